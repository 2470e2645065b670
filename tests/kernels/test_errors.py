"""Wrong arguments raise ValueError that names them; nothing is written and nothing foreign is read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.cases import PAGE, native

I32, I64, F32 = np.int32, np.int64, np.float32


def zeros(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.zeros(shape, dtype)


def frozen(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


def call(name: str, **changed: Any) -> Callable[[], None]:
    """An operator with arguments that are right but for those given."""

    def run() -> None:
        ops = native()
        good: dict[str, dict[str, Any]] = {
            "linear": {"x": zeros(3, 32), "w": ops.pack_f32(zeros(16, 32)), "out": zeros(3, 16), "bias": zeros(16)},
            "embed": {"w": ops.pack_f32(zeros(16, 32)), "ids": zeros(3, dtype=I32), "out": zeros(3, 32)},
            "rmsnorm": {"x": zeros(3, 32), "weight": zeros(32), "eps": 1e-5, "out": zeros(3, 32)},
            "rope": {"x": zeros(3, 2, 32), "pos": zeros(3, dtype=I32), "table": zeros(9, 32)},
            "gated": {"gu": zeros(3, 32), "kind": "silu", "out": zeros(3, 16)},
            "groupnorm": {
                "x": zeros(2, 3, 4, 8),
                "w": zeros(2, 8),
                "groups": 4,
                "eps": 1e-5,
                "out": zeros(2, 3, 4, 8),
                "add": zeros(2, 8),
                "silu": True,
            },
            "pack_q4": {"q": zeros(16, 64, dtype=np.uint8), "d": zeros(16, 2), "m": zeros(16, 2)},
            "pack_q4b": {
                "q": zeros(16, 64, dtype=np.uint8),
                "both": zeros(16, 4, dtype=np.uint8),
                "scales": zeros(16, 2),
            },
            "pack_q8": {"q": zeros(16, 64, dtype=np.int8), "d": zeros(16, 2)},
            "kv_write": {
                "buf": zeros(2, 2, ops.kv_page_bytes("bf16", 32), dtype=np.uint8),
                "fmt": "bf16",
                "rows": zeros(3, dtype=I64),
                "k": zeros(3, 2, 32),
                "v": zeros(3, 2, 32),
            },
            "attend": {
                "q": zeros(3, 4, 32),
                "buf": zeros(2, 2, ops.kv_page_bytes("bf16", 32), dtype=np.uint8),
                "fmt": "bf16",
                "tables": np.array([[0, 1], [1, 0]], I32),
                "starts": np.array([0, 1, 3], I32),
                "lo": zeros(3, dtype=I32),
                "hi": np.full(3, 100, I32),
                "scale": 1.0,
                "out": zeros(3, 4, 32),
                "lse": zeros(3, 4),
            },
        }
        good["kv_read"] = dict(good["kv_write"])
        getattr(ops, name)(*(good[name] | changed).values())

    return run


def with_length(n: int, k: int) -> Any:
    ops = native()
    packed = ops.pack_f32(zeros(16, 32))
    return type(packed)("f32", n, k, packed.data)


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "embed",
        "rmsnorm",
        "rope",
        "gated",
        "groupnorm",
        "pack_q4",
        "pack_q4b",
        "pack_q8",
        "kv_write",
        "kv_read",
        "attend",
    ],
)
def test_the_right_arguments_are_right(name: str) -> None:
    call(name)()


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("linear", {"x": zeros(3, 31)}, "x: the second axis"),
        ("linear", {"x": zeros(32)}, "x must have 2 axes"),
        ("linear", {"x": zeros(3, 64)[:, ::2]}, "x: all axes but the first"),
        ("linear", {"x": zeros(3, 32, dtype=np.float64)}, "x must be an array of float32"),
        ("linear", {"x": [[0.0] * 32] * 3}, "x must be an array"),
        ("linear", {"x": zeros(3, 32).astype(">f4")}, "x must be an array of float32"),
        ("linear", {"out": zeros(2, 16)}, "out must be"),
        ("linear", {"out": zeros(3, 16, dtype=np.float64)}, "out must be an array of float32"),
        ("linear", {"out": zeros(3, 32)[:, ::2]}, "out: all axes but the first"),
        ("linear", {"out": frozen(zeros(3, 16))}, "out must be a writable"),
        ("linear", {"bias": zeros(15)}, "bias must be"),
        ("embed", {"ids": np.array([0, 1, 16], I32)}, "ids: an id is out of range"),
        ("embed", {"ids": np.array([0, -1, 3], I32)}, "ids: an id is out of range"),
        ("embed", {"ids": zeros(3, dtype=I64)}, "ids must be an array of int32"),
        ("embed", {"out": zeros(3, 31)}, "out must be"),
        ("rmsnorm", {"weight": zeros(31)}, "weight must have"),
        ("rmsnorm", {"x": zeros(32), "out": zeros(32)}, "x must have two or three axes"),
        ("rmsnorm", {"out": zeros(4, 32)}, "out must have"),
        ("rope", {"pos": np.array([0, 9, 0], I32)}, "pos: a position is outside"),
        ("rope", {"pos": np.array([0, 0, -3], I32)}, "pos: a position is outside"),
        ("rope", {"table": zeros(9, 31)}, "table: its second axis"),
        ("rope", {"table": zeros(9, 34)}, "table: its second axis"),
        ("rope", {"x": frozen(zeros(3, 2, 32))}, "x must be a writable"),
        ("gated", {"kind": "relu"}, "kind must be"),
        ("gated", {"gu": zeros(3, 30)}, "out must be half as wide as gu"),
        ("groupnorm", {"x": zeros(2, 3, 4, 16)[..., ::2]}, "x: the last axis"),
        ("groupnorm", {"x": zeros(2, 3, 8)}, "x must have 4 axes"),
        ("groupnorm", {"out": zeros(2, 3, 5, 8)}, "out must have the shape"),
        ("groupnorm", {"out": frozen(zeros(2, 3, 4, 8))}, "out must be a writable"),
        ("groupnorm", {"w": zeros(2, 7)}, "w must be"),
        ("groupnorm", {"w": zeros(8)}, "w must have 2 axes"),
        ("groupnorm", {"groups": 3}, "groups must divide"),
        ("groupnorm", {"groups": 0}, "groups must divide"),
        ("groupnorm", {"add": zeros(1, 8)}, "add must be"),
        ("pack_q4", {"q": np.full((16, 64), 16, np.uint8)}, "q must hold 0..15"),
        ("pack_q4", {"q": zeros(16, 40, dtype=np.uint8)}, "multiple of 32"),
        ("pack_q4", {"m": zeros(16, 3)}, "m has the wrong shape"),
        ("pack_q4", {"d": np.full((16, 2), np.nan, F32)}, "finite"),
        ("pack_q4b", {"q": np.full((16, 64), 16, np.uint8)}, "q must hold 0..15"),
        ("pack_q4b", {"both": zeros(16, 2, dtype=np.uint8)}, "both has the wrong shape"),
        ("pack_q4b", {"scales": zeros(16, 3)}, "scales has the wrong shape"),
        ("pack_q4b", {"scales": np.full((16, 2), np.inf, F32)}, "finite"),
        ("pack_q8", {"d": np.full((16, 2), 7e4, F32)}, "d must be finite"),
        ("pack_q8", {"q": zeros(0, 64, dtype=np.int8), "d": zeros(0, 2)}, "must not be empty"),
        ("kv_write", {"rows": np.array([0, 1, 2 * PAGE], I64)}, "rows: a row is outside"),
        ("kv_write", {"rows": np.array([0, -1, 2], I64)}, "rows: a row is outside"),
        ("kv_write", {"rows": zeros(3, dtype=I32)}, "rows must be an array of int64"),
        ("kv_write", {"fmt": "fp8"}, "unknown key/value format fp8"),
        ("kv_write", {"fmt": "f32"}, "buf: its pages"),
        ("kv_write", {"v": zeros(3, 2, 16)}, "k and v must have the same shape"),
        ("kv_write", {"k": zeros(3, 2, 24), "v": zeros(3, 2, 24)}, "multiple of 16"),
        ("kv_read", {"rows": np.array([0, 1, 1 << 40], I64)}, "rows: a row is outside"),
        ("kv_read", {"k": frozen(zeros(3, 2, 32))}, "k must be a writable"),
        ("attend", {"q": zeros(3, 3, 32), "out": zeros(3, 3, 32)}, "heads must be a multiple"),
        ("attend", {"q": zeros(3, 98, 32), "out": zeros(3, 98, 32)}, "more than 48"),
        ("attend", {"q": zeros(3, 4, 32, dtype=np.float64)}, "q must be an array of float32"),
        ("attend", {"q": zeros(3, 4, 272)}, "up to 256"),
        ("attend", {"out": zeros(3, 4, 16)}, "out must have"),
        ("attend", {"tables": np.array([[0, 2], [1, 0]], I32)}, "tables: a page id"),
        ("attend", {"tables": np.array([[0, 1], [-1, 0]], I32)}, "tables: a page id"),
        ("attend", {"hi": np.array([1, 129, 1], I32)}, "hi: a row looks beyond"),
        ("attend", {"hi": np.array([1, 2**31 - 1, 1], I32)}, "hi: a row looks beyond"),
        ("attend", {"lo": np.array([0, -1, 0], I32)}, "lo must not"),
        ("attend", {"starts": np.array([0, 4, 3], I32)}, "starts"),
        ("attend", {"starts": np.array([0, 1, 2], I32)}, "starts must run"),
        ("attend", {"starts": np.array([0, 2], I32)}, "starts must have"),
        ("attend", {"lse": zeros(3, 3)}, "lse must be"),
    ],
)
def test_wrong_arguments(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(name, **changed)()


@pytest.mark.parametrize(("n", "k"), [(17, 32), (16, 64), (0, 32), (-16, 32), (2**31 - 1, 32), (16, 0)])
def test_weights_whose_shape_is_not_their_data(n: int, k: int) -> None:
    with pytest.raises(ValueError, match="weight"):
        call("linear", w=with_length(n, k), x=zeros(3, max(k, 0)), out=zeros(3, 1))()


def test_sizes_and_threads() -> None:
    from diastole.kernels import _native

    ops = native()
    with pytest.raises(ValueError, match="size"):
        ops.alloc(-1)
    with pytest.raises(ValueError, match="size"):
        ops.alloc(1 << 60)
    for dim in (0, -16, 24, 272):
        with pytest.raises(ValueError, match="head's dimension"):
            ops.kv_page_bytes("bf16", dim)
    for n in (0, -1, 5000):
        with pytest.raises(ValueError, match="threads"):
            _native.set_threads(n)
    with pytest.raises(ValueError, match="mmx"):
        _native.set_isa("mmx")
