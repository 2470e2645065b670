"""Settings: one definition, read from TOML, environment and flags, and wrong values named as they were written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from diastole.config import Bytes, Config, from_env, from_toml, resolve, settings, to_toml
from diastole.types import UserError

TOML = """
engine = { threads = 2, memory = "16GiB" }
[server]
port = 9000
api_key = ["a", "b"]
[service.chat]
model = "smollm2-135m"
use = ["orca", "int8-kv"]
slo = { first = 0.5, gap = 0.05 }
[service."odd name"]
kv = "int8"
"""


def test_toml() -> None:
    config = from_toml(TOML)
    assert config.engine.threads == 2
    assert config.engine.memory == 16 * 2**30
    assert config.server.port == 9000
    assert config.server.api_key == ("a", "b")
    assert list(config.service) == ["chat", "odd name"]
    assert config.service["chat"].use == ("orca", "int8-kv")
    assert config.service["chat"].slo.gap == 0.05
    assert config.service["odd name"].kv == "int8"
    assert config.service["odd name"].model == "smollm2-135m"


@effort(deadline=None)  # how long an example takes is up to the machine
@given(st.text(max_size=20), st.lists(st.text(max_size=10), max_size=3), st.integers(0, 65_535), st.booleans())
def test_what_is_written_is_read_back(name: str, aliases: list[str], port: int, cache: bool) -> None:
    flags = {"server": {"port": port}, "service": {"name": name, "aliases": tuple(aliases), "prefix_cache": cache}}
    config = resolve(TOML, {}, flags)
    assert from_toml(to_toml(config)) == config
    assert from_toml(to_toml(Config())) == Config()


def test_later_ones_win() -> None:
    environ = {
        "DIASTOLE_SERVER_PORT": "1",
        "DIASTOLE_SERVICE_KV": "f32",
        "DIASTOLE_SERVICE_SLO_GAP": "0.2",
        "PATH": "x",
    }
    config = resolve(TOML, environ, {"server": {"port": 2}})
    assert config.server.port == 2
    assert config.engine.threads == 2
    assert {s.kv for s in config.service.values()} == {"f32"}
    assert config.service["chat"].slo.first == 0.5
    assert config.service["chat"].slo.gap == 0.2


def test_every_setting_has_its_three_names() -> None:
    names = [(s.key, s.variable, s.flag) for s in settings()]
    assert ("service.slo.first", "DIASTOLE_SERVICE_SLO_FIRST", "--slo-first") in names
    for column in zip(*names, strict=True):
        assert len(set(column)) == len(column)
    assert all(s.knob.help for s in settings())


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2**31), ("1.5 KiB", 1536), ("100MB", 10**8), (7, 7), ("9", 9)])
def test_sizes(text: Any, size: int) -> None:
    assert Bytes.parse(text) == size


WRONG: list[tuple[str, str, str]] = [
    ("server.port = 70000", "server.port", "between 0 and 65535"),
    ("server.port = 1.5", "server.port", "a whole number"),
    ("server.port = true", "server.port", "a whole number"),
    ("server.prot = 1", "server.prot", "did you mean 'port'"),
    ("sevrer.port = 1", "the configuration.sevrer", "did you mean 'server'"),
    ("service.a.kv = 'int9'", "service.a.kv", "did you mean 'int8'"),
    ("service.a.use = 'orca'\nservice.a.slo = 3", "service.a.slo", "a table"),
    ("service.a.use = [1]", "service.a.use", "list of texts"),
    ("service.a.slo.gap = nan", "service.a.slo.gap", "a number"),
    ("service.a.slo.first = -1", "service.a.slo.first", "between"),
    ("service = 3", "service", "a table"),
    ("engine.memory = '12 parsecs'", "engine.memory", "a size"),
    ("engine.memory = -1", "engine.memory", "at least 0"),
    ("server.max_queued = 99999999999999999999999", "server.max_queued", "between"),
    ("server", "config", "not valid TOML"),
    ("x = " + "[" * 5000, "config", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "param", "what"), WRONG, ids=lambda v: str(v)[:30])
def test_wrong_values_are_named_as_written(text: str, param: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        from_toml(text)
    assert e.value.param == param


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(UserError, match="DIASTOLE_SERVER_PORT must be a whole number"):
        from_env({"DIASTOLE_SERVER_PORT": "x"})
