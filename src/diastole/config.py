"""Settings, defined once: frozen dataclasses whose fields give TOML keys, environment variables and flags.

Later ones win: defaults, the TOML file, the environment, flags. Whoever gives a wrong value reads the setting's name as
he wrote it.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from diastole.types import UserError

PREFIX = "DIASTOLE_"
_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Bytes(int):
    """A size; written "512MiB", "2GiB", "100MB" or as a plain number."""

    @classmethod
    def parse(cls, value: object) -> Bytes:
        """Raises:
        ValueError: this is no size.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", str(value))
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError('a size such as "512MiB" or "2GiB"')
        return cls(int(float(match[1]) * _UNITS[match[2].upper()]))

    def __str__(self) -> str:
        for unit in ("GiB", "MiB", "KiB"):
            if self and self % _UNITS[unit.upper()] == 0:
                return f"{int(self) // _UNITS[unit.upper()]}{unit}"
        return int(self).__repr__()


class Knob(NamedTuple):
    """What is known of a setting beside its type and default."""

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


def knob(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field with its documentation and bounds; see ``Knob``."""
    return field(default=default, metadata={"knob": Knob(help, **more)})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine as a whole."""

    threads: int = knob(0, "compute threads; 0: one per physical core", low=0, high=1024)
    memory: Bytes = knob(Bytes(0), "for key/value pages of all services; 0: a quarter of what is free", low=0)
    swap: Bytes = knob(Bytes(256 * 2**20), "for the packed state of preempted streams; 0: recompute them", low=0)
    admission: str = knob("arrival", "who of those who wait comes next", choices=("arrival", "priority"))
    admission_room: str = knob(
        "now",
        "what a stream must find room for to be let in: what it brings, or the peak that all are expected to grow to",
        choices=("now", "peak"),
    )
    admission_ageing_seconds: float = knob(
        30.0, "of waiting that count as one step of priority", unit="s", low=0.001, high=1e6
    )
    dispatch: str = knob("slack", "how services share the clock", choices=("slack",))
    costs: str = knob(
        "auto", "folder where a server keeps what steps cost, for its next start; auto: in the cache; empty: nowhere"
    )


@dataclass(frozen=True, slots=True)
class SLOConfig:
    """Promised times, where a request does not bring its own."""

    first: float = knob(10.0, "to the first output", unit="s", low=0.001, high=1e6)
    gap: float = knob(1.0, "between outputs", unit="s", low=0.0001, high=1e6)


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One model and how it is served."""

    model: str = knob("smollm2-135m", "asset name, GGUF file, Hugging Face directory or hub id")
    name: str = knob("", "what requests call it; empty: the key in the file, or the model's name")
    aliases: tuple[str, ...] = knob((), "other names it answers to")
    weights: str = knob(
        "auto",
        "format in memory; auto: as exact as the file; compact: four-bit weights in 4.6 bits instead of 5",
        choices=("auto", "compact", "f32", "bf16", "q8", "q4"),
    )
    kv: str = knob(
        "auto",
        "format of keys and values; rows, rows8: bf16, int8 token by token; auto: bf16, or what a technique prefers",
        choices=("auto", "f32", "bf16", "int8", "rows", "rows8"),
    )
    context: int = knob(0, "most tokens of a stream; 0: the model's own", unit="tokens", low=0, high=2**31 - 1)
    max_streams: int = knob(64, "streams that hold state at once", low=1, high=65_536)
    step_tokens: int = knob(512, "most tokens in one step", unit="tokens", low=1, high=2**20)
    prefix_cache: bool = knob(True, "reuse the state of prompts that begin alike")
    repetition_stop: bool = knob(True, "end texts that have become a loop, where a request does not say")
    kernels: str = knob(
        "auto",
        "operators to run on",
        choices=("auto", "native", "amx", "avx512bf16", "avx512", "avx2", "scalar", "torch"),
    )
    use: tuple[str, ...] = knob((), 'techniques, each "name" or "name:knob=value,knob=value"')
    slo: SLOConfig = SLOConfig()


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The HTTP server."""

    host: str = knob("127.0.0.1", "address to listen on")
    port: int = knob(8000, "port to listen on; 0: any free one", low=0, high=65_535)
    api_key: tuple[str, ...] = knob((), "keys that clients must show; none: open")
    api_key_file: str = knob("", "file of keys' hashes, limits and rights; see diastole key new")
    requests_per_minute: int = knob(0, "of a key, or of an address if there are no keys; 0: no limit", low=0)
    tokens_per_minute: int = knob(0, "of the same, prompts and answers; 0: no limit", unit="tokens", low=0)
    concurrent_requests: int = knob(0, "of the same at once; 0: no limit", low=0)
    isolate_keys: bool = knob(False, "no key is served from prefixes that another one's requests cached")
    cors_origins: tuple[str, ...] = knob((), "web pages' origins that may call from browsers")
    allowed_hosts: tuple[str, ...] = knob(
        (), "names, beside localhost, that it answers to; none: all, unless it is on loopback and without keys"
    )
    max_tokens: int = knob(0, "most tokens of one answer; 0: no limit", unit="tokens", low=0)
    max_seconds: float = knob(0.0, "longest time of one generation; 0: no limit", unit="s", low=0)
    max_body_bytes: Bytes = knob(Bytes(4 * 2**20), "largest request body", low=1)
    max_upload_bytes: Bytes = knob(Bytes(64 * 2**20), "largest recording that is sent for transcription", low=1)
    max_queued: int = knob(512, "requests in flight before new ones are refused", low=1, high=10**6)
    max_joules: float = knob(
        0.0, "most energy of one generation, its share of the host's; 0: no limit", unit="J", low=0
    )
    max_resident: Bytes = knob(
        Bytes(0), "memory of server and engine above which new requests are refused; 0: 90 % of what there is", low=0
    )
    max_wait_seconds: float = knob(
        60.0, "that a request may be expected to wait for its first token; 0: no limit", unit="s", low=0
    )
    drain_seconds: float = knob(30.0, "for running requests when the server stops", unit="s", low=0, high=86_400)
    ping_seconds: float = knob(15.0, "of silence before a stream carries a comment", unit="s", low=0.01, high=86_400)
    send_timeout_seconds: float = knob(30.0, "before a client that does not read is dropped", unit="s", low=0.01)
    stream_idle_seconds: float = knob(
        3600.0, "without input before a live stream is ended; 0: never", unit="s", low=0, high=10**7
    )
    stream_resume_seconds: float = knob(
        30.0, "that a live stream waits when its connection was lost", unit="s", low=0, high=86_400
    )
    engine_timeout_seconds: float = knob(
        60.0, "before an engine that does not answer is restarted; 0: never", unit="s", low=0, high=86_400
    )
    log_level: str = knob("info", "how much is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = knob("text", "lines for people, or one JSON object per line", choices=("text", "json"))
    vllm_metrics: bool = knob(False, "give /metrics under vLLM's names too")
    otlp_endpoint: str = knob("", "OpenTelemetry collector, e.g. http://localhost:4318; empty: no traces")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything."""

    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    service: Mapping[str, ServiceConfig] = field(default_factory=lambda: {"": ServiceConfig()})


class Setting(NamedTuple):
    """One field of one table, as flags and documentation need it."""

    table: str  # "engine", "server", "service"
    path: tuple[str, ...]  # below the table
    type: Any
    default: Any
    knob: Knob

    @property
    def key(self) -> str:
        return ".".join((self.table, *self.path))

    @property
    def variable(self) -> str:
        return PREFIX + "_".join((self.table, *self.path)).upper()

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")


_TABLES: dict[str, type] = {"engine": EngineConfig, "server": ServerConfig, "service": ServiceConfig}


def settings(table: str | None = None) -> Iterator[Setting]:
    """All settings, or those of one table."""
    for name in [table] if table else _TABLES:
        yield from _walk(name, _TABLES[name], ())


def _walk(table: str, cls: type, path: tuple[str, ...]) -> Iterator[Setting]:
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            yield from _walk(table, hints[f.name], (*path, f.name))
        else:
            yield Setting(table, (*path, f.name), hints[f.name], _default(f), f.metadata["knob"])


def _default(f: Field[Any]) -> Any:
    return f.default  # every setting has one: see knob


# ---- reading


def from_toml(text: str) -> Config:
    """A configuration file's text.

    Raises:
        UserError: it is not TOML, has an unknown key or a wrong value.
    """
    return _merge(Config(), _parse(text))


def _parse(text: str) -> dict[str, Any]:
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise UserError(f"the configuration is not valid TOML: {e}", param="config") from None
    _known(tree, (*_TABLES,), "the configuration")
    return tree


def from_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """The tree of settings that environment variables give; those of a service are for all services."""
    tree: dict[str, Any] = {}
    for s in settings():
        if s.variable in environ:
            _put(tree, (s.table, *s.path), convert(s, environ[s.variable], s.variable))
    return tree


def resolve(toml: str | None, environ: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]]) -> Config:
    """Defaults, then TOML, then environment, then flags (a tree by table; a service's flags are for all services)."""
    config = _merge(Config(), _parse(toml)) if toml is not None else Config()
    for tree in (from_env(environ), flags):
        everywhere = tree.get("service", {})
        more = {k: dict(everywhere) for k in config.service}
        config = _merge(config, {**{k: v for k, v in tree.items() if k != "service"}, "service": more})
    return config


def changed(config: Config, tree: Mapping[str, Any]) -> Config:
    """With the settings of a tree by table, as TOML would give it; what it does not name stays.

    Raises:
        UserError: it has an unknown key or a wrong value.
    """
    return _merge(config, tree)


def convert(setting: Setting, value: Any, named: str) -> Any:
    """A value from TOML, a flag or the environment as the setting's type, within its bounds.

    Raises:
        UserError: it does not fit; the message calls the setting ``named``.
    """
    wanted = setting.type
    try:
        result = _convert(wanted, value)
    except ValueError as e:
        raise UserError(f"{named} must be {e}, not {value!r:.80}", param=named) from None
    k = setting.knob
    if k.choices and result not in k.choices:
        close = difflib.get_close_matches(str(result), k.choices, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"{named} must be one of {', '.join(k.choices)}, not {result!r:.80}{hint}", param=named)
    if isinstance(result, int | float) and not isinstance(result, bool):
        low, high = k.low if k.low is not None else -math.inf, k.high if k.high is not None else math.inf
        if not low <= result <= high:
            bounds = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise UserError(f"{named} must be {bounds}, not {result!r:.80}", param=named)
    return result


def _convert(wanted: Any, value: Any) -> Any:
    if get_origin(wanted) in {Union, types.UnionType}:
        wanted = next(t for t in get_args(wanted) if t is not type(None))
    if wanted is Bytes:
        return Bytes.parse(value)
    if wanted is bool:
        return _bool(value)
    if wanted is int:
        return _int(value)
    if wanted is float:
        return _float(value)
    if wanted is str:
        if not isinstance(value, str):
            raise ValueError("text")
        return value
    if isinstance(value, str):  # a tuple of strings, from a variable
        return tuple(v for v in value.split(";") if v)
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of texts")
    return tuple(value)


def _bool(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,19}\s*", value):
        return int(value)
    raise ValueError("a whole number")


def _float(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ValueError("a number")
    return number


# ---- merging trees into dataclasses


def _merge(config: Config, tree: Mapping[str, Any]) -> Config:
    changes: dict[str, Any] = {}
    for table in ("engine", "server"):
        if table in tree:
            changes[table] = _apply(getattr(config, table), table, (), tree[table], table)
    given = tree.get("service")
    if given is not None:
        if not isinstance(given, Mapping):
            raise UserError("service must be a table of services", param="service")
        kept = {} if any(k not in config.service for k in given) else dict(config.service)
        for name, values in given.items():
            base = config.service.get(name, ServiceConfig())
            kept[name] = _apply(base, "service", (), values, f"service.{name}" if name else "service")
        changes["service"] = kept
    return replace(config, **changes)


def _apply(target: Any, table: str, path: tuple[str, ...], values: Any, named: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{named} must be a table of settings, not {values!r:.80}", param=named)
    own = {f.name for f in fields(target)}
    _known(values, own, named)
    by_path = {s.path: s for s in settings(table)}
    changes = {}
    for key, value in values.items():
        at = (*path, key)
        if at in by_path:
            changes[key] = convert(by_path[at], value, f"{named}.{key}")
        else:
            changes[key] = _apply(getattr(target, key), table, at, value, f"{named}.{key}")
    return replace(target, **changes)


def _known(values: Mapping[str, Any], known: Any, named: str) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}"
            raise UserError(f"{named} has no setting {key!r}{hint}", param=f"{named}.{key}")


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


# ---- writing


def to_toml(config: Config) -> str:
    """The whole configuration as TOML that ``from_toml`` reads back."""
    lines = []
    for table, target in (("engine", config.engine), ("server", config.server)):
        lines += [f"[{table}]", *_lines(table, target)]
    for name, service in config.service.items():
        lines += [f"[service.{_quote(name)}]", *_lines("service", service)]
    return "\n".join(lines) + "\n"


def _lines(table: str, target: Any) -> Iterator[str]:
    for s in settings(table):
        value = target
        for key in s.path:
            value = getattr(value, key)
        yield f"{'.'.join(s.path)} = {_literal(value)}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Bytes):
        return _quote(str(value))
    if isinstance(value, tuple):
        return "[" + ", ".join(_quote(v) for v in value) + "]"
    return _quote(value) if isinstance(value, str) else repr(value)


def _quote(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
