"""Packs: what is kept between starts is what was packed, and nothing in the file is trusted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diastole.kernels.table import Ops, Packed, load
from diastole.nn.packs import MAGIC, PackFile


@pytest.fixture(scope="module")
def ops() -> Ops:
    return load()


def matrices(ops: Ops) -> dict[str, list[Packed]]:
    r = np.random.default_rng(0)
    q, d = r.integers(0, 16, (40, 64)).astype(np.uint8), r.random((40, 2)).astype(np.float32)
    floats = r.normal(size=(7, 10)).astype(np.float32)
    return {"a": [ops.pack_q4(q, d, -d), ops.pack_bf16(floats)], "b": [ops.pack_f32(floats)]}


def kept(path: Path, ops: Ops) -> dict[str, list[Packed]]:
    given = matrices(ops)
    with PackFile(path, ops, pytest.fail) as packs:
        for name, parts in given.items():
            assert packs.get(name) is None
            packs.put(name, parts)
    return given


def warned(path: Path, ops: Ops) -> list[str]:
    """What is said when the file is opened and both matrices are asked for and not found."""
    said: list[str] = []
    packs = PackFile(path, ops, said.append)
    found = [packs.get("a"), packs.get("b")]
    assert None in found
    return said


def test_what_was_put_comes_back(tmp_path: Path, ops: Ops) -> None:
    path = tmp_path / "new" / "x.pack"
    given = kept(path, ops)
    before = path.stat()
    with PackFile(path, ops, pytest.fail) as packs:
        for name, parts in given.items():
            found = packs.get(name)
            assert found is not None
            assert [(p.fmt, p.n, p.k) for p in found] == [(p.fmt, p.n, p.k) for p in parts]
            for one, other in zip(found, parts, strict=True):
                np.testing.assert_array_equal(one.data, other.data)
                assert one.data.ctypes.data % 64 == 0
        assert packs.get("c") is None
    assert path.stat().st_mtime_ns == before.st_mtime_ns  # nothing new: not written again
    assert [p.name for p in path.parent.iterdir()] == ["x.pack"]


def test_a_failed_load_keeps_nothing(tmp_path: Path, ops: Ops) -> None:
    path = tmp_path / "x.pack"

    def fail() -> None:
        with PackFile(path, ops, pytest.fail) as packs:
            packs.put("a", matrices(ops)["a"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not path.exists()


def test_a_place_that_cannot_be_written_only_warns(tmp_path: Path, ops: Ops) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with PackFile(tmp_path / "file" / "x.pack", ops, said.append) as packs:
        packs.put("a", matrices(ops)["a"])
    assert len(said) >= 1
    assert "not kept" in said[-1]


def rewrite(path: Path, change: dict[str, object]) -> None:
    """The same matrices under another index."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    text = json.dumps(json.loads(whole[16 : 16 + length]) | change).encode()
    head = MAGIC + len(text).to_bytes(8, "little") + text
    path.write_bytes(head + bytes(-len(head) % 4096) + whole[-(-(16 + length) // 4096) * 4096 :])


@pytest.mark.parametrize(
    "entry",
    [
        ["q4", 40, 64, 1 << 40],
        ["q4", 40, 64, -4096],
        ["q4", 2**31 - 1, 2**31 - 32, 0],
        ["q4", 10**12, 64, 0],
        ["q4", 40, 63, 0],
        ["q4", 0, 64, 0],
        ["q5", 40, 64, 0],
        ["q4", 40, 64],
        "q4",
        7,
    ],
)
def test_an_index_that_lies_is_not_followed(tmp_path: Path, ops: Ops, entry: object) -> None:
    path = tmp_path / "x.pack"
    kept(path, ops)
    rewrite(path, {"matrices": {"a": [entry]}})
    said = warned(path, ops)
    assert len(said) == 1
    assert "damaged" in said[0]


@pytest.mark.parametrize("cut", [0, 4, 12, 40, 4096, 5000])
def test_a_file_that_was_cut_is_not_read(tmp_path: Path, ops: Ops, cut: int) -> None:
    path = tmp_path / "x.pack"
    kept(path, ops)
    path.write_bytes(path.read_bytes()[:cut])
    assert len(warned(path, ops)) == 1
    kept_again = matrices(ops)
    with PackFile(path, ops, lambda _: None) as packs:
        packs.put("a", kept_again["a"])
    with PackFile(path, ops, pytest.fail) as packs:
        assert packs.get("a") is not None


def test_noise_is_not_read(tmp_path: Path, ops: Ops) -> None:
    path = tmp_path / "x.pack"
    r = np.random.default_rng(1)
    for size in (1, 100, 5000):
        for head in (b"", MAGIC, MAGIC + (2**63).to_bytes(8, "little"), MAGIC + (20).to_bytes(8, "little")):
            path.write_bytes(head + r.bytes(size))
            assert len(warned(path, ops)) == 1
