"""Keys: the file, who gets in, what he may do, and changes while the server runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.test_cli import run
from diastole.serve import keys
from diastole.serve.app import create_app
from diastole.serve.errors import ApiError
from diastole.serve.keys import Keyring, Limits, digest, parse
from diastole.serve.run import Server
from diastole.types import UserError
from serve.fakes import FakeBackend, Running, config
from serve.test_chat import HELLO, URL, wait_ready

ALICE, BOB = (f"{name}:sha256:{digest(name + '-key').hex()}" for name in ("alice", "bob"))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_lines_of_a_file() -> None:
    alice, bob = parse(f"# who\n\n{ALICE}:rpm=60,tpm=10000,concurrent=4,admin\n  {BOB}:tpm=0\n", "keys")
    assert (alice.name, alice.digest) == ("alice", digest("alice-key"))
    assert alice.limits == Limits(60, 10_000, 4)
    assert bob.limits == Limits(None, 0, None)
    assert bob.limits.over(Limits(1, 2, 3)) == (1, 0, 3)
    alice.require("admin")
    with pytest.raises(ApiError) as refused:
        bob.require("admin")
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("alice", "after alice: comes sha256:"),
        ("alice-key", "after alice-key: comes sha256:"),
        (":sha256:" + "0" * 64, "begins with the key's name"),
        ("a b:sha256:" + "0" * 64, "begins with the key's name"),
        ("alice:md5:" + "0" * 32, "after alice: comes sha256:"),
        ("alice:sha256:" + "0" * 63, "64 hexadecimal digits"),
        ("alice:sha256:" + "g" * 64, "64 hexadecimal digits"),
        ("alice:sha256:" + digest("").hex(), "no key at all"),
        (ALICE + ":rpm=-1", "rpm must be a whole number"),
        (ALICE + ":rpm=" + "9" * 5000, "rpm must be a whole number"),
        (ALICE + ":rpm=٣", "rpm must be a whole number"),
        (ALICE + ":speed=3", "'speed=3' is none of rpm=N, tpm=N, concurrent=N, admin"),
        (ALICE + ":root", "'root' is none of"),
        (ALICE + ":admin=1", "'admin=1' is none of"),
    ],
)
def test_a_wrong_line_is_named(line: str, what: str) -> None:
    with pytest.raises(UserError) as wrong:
        parse(f"{BOB}\n{line}\n", "the/file")
    assert wrong.value.message.startswith("the/file, line 2: ")
    assert what in wrong.value.message


def test_wrong_files_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for content, what in (
        (None, "No such file"),
        (b"\xff", "not UTF-8"),
        (f"{ALICE}\n{ALICE}\n".encode(), "two keys are called alice"),
        (f"{ALICE}\n{ALICE.replace('alice', 'carol')}\n".encode(), "alice and carol are the same key"),
        (b"nonsense", "line 1"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError) as wrong:
            Server(FakeBackend(), config(api_key_file=str(file)))
        assert what in wrong.value.message
    for settings, what in (
        ({"api_key": ("",)}, "empty key"),
        ({"isolate_keys": True}, "needs keys"),
    ):
        with pytest.raises(UserError, match=what):
            create_app(FakeBackend(), config(**settings))


def test_plain_keys_and_those_of_the_file_get_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(ALICE)
    with Running(api_key=("plain",), api_key_file=str(tmp_path / "keys")) as server:
        wait_ready(server)
        with httpx.Client(base_url=server.url) as http:
            for key, status in (("alice-key", 200), ("plain", 200), ("alice", 401), (digest("alice-key").hex(), 401)):
                assert http.post(URL, json=HELLO, headers=bearer(key)).status_code == status
                assert http.get("/metrics", headers=bearer(key)).status_code == status
            assert http.post(URL, json=HELLO).status_code == 401
            assert http.get("/health").status_code == 200


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    ring = Keyring((), str(tmp_path / "keys"))
    for given in ("", "x"):
        with pytest.raises(ApiError) as refused:
            ring.find(given)
        assert refused.value.status == 401


def test_changes_are_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], object]], None], caplog: Any
) -> None:
    monkeypatch.setattr(keys, "WATCH_SECONDS", 0.01)
    file = tmp_path / "keys"

    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", file)

    write(ALICE)
    with Running(api_key_file=str(file)) as server:
        wait_ready(server)
        with httpx.Client(base_url=server.url) as http:

            def status(key: str) -> int:
                return http.get("/version", headers=bearer(key)).status_code

            assert (status("alice-key"), status("bob-key")) == (200, 401)
            write(f"{ALICE}\n{BOB}\n")
            eventually(lambda: status("bob-key") == 200)
            write(f"{ALICE}\nnonsense\n")
            eventually(lambda: "line 2" in caplog.text)
            assert (status("alice-key"), status("bob-key")) == (200, 200)
            write(BOB)
            eventually(lambda: status("alice-key") == 401)
            assert status("bob-key") == 200
            file.unlink()
            eventually(lambda: "No such file" in caplog.text)
            assert status("bob-key") == 200


def test_key_new_makes_a_line_that_works(tmp_path: Path) -> None:
    made = run("key", "new", "alice", "--rpm", "60", "--concurrent", "2", "--admin")
    assert made.returncode == 0
    (key,) = made.stdout.split()
    assert len(key) > 40
    assert key not in made.stderr
    (tmp_path / "keys").write_text(made.stderr)
    found = Keyring((), str(tmp_path / "keys")).find(key)
    assert (found.name, found.limits, found.rights) == ("alice", Limits(60, None, 2), {"admin"})
    assert run("key", "new", "alice").stdout.strip() != key
    file = tmp_path / "made"
    for name in ("bob", "carol"):
        key = run("key", "new", name, "--tpm", "5", "--file", str(file)).stdout.strip()
        assert Keyring((), str(file)).find(key).limits == Limits(None, 5, None)
        file.write_text(file.read_text().rstrip())  # as editors do that end no last line
    assert key not in file.read_text()
    before = file.read_text()
    again = run("key", "new", "bob", "--file", str(file))
    assert (again.returncode, again.stdout) == (2, "")
    assert "two keys are called bob" in again.stderr
    assert file.read_text() == before
    assert run("key", "new", "dave", "--file", str(tmp_path)).returncode == 2
    wrong = run("key", "new", "a:b")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "letters, digits" in wrong.stderr
