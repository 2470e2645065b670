"""Labels in four bits, in numpy: the twin of csrc/labels.inl, with the same bytes."""

from __future__ import annotations

import numpy as np

from diastole.kernels.ref_parts import PAGE, tensor, wide
from diastole.types import Array

_MOST = 15  # the largest code


def blocks(buf: Array) -> Array:
    """Pages of labels as (pages, Hkv, 4 blocks, dim/8 + 1, 16 tokens, 4 bytes); the last are steps and least values."""
    return buf.reshape(len(buf), buf.shape[1], PAGE // 16, -1, 16, 4)


def labels_write(buf: Array, rows: Array, k: Array) -> None:
    """k (T, Hkv, C): at most as many channels as the pages have room for."""
    least, most = k.min(2, keepdims=True), k.max(2, keepdims=True)
    step, least = (_bf16(x) for x in ((most - least) / np.float32(_MOST), least))
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.where(step > 0, np.rint((k - least) / step), 0)
    code = np.nan_to_num(np.clip(code, 0, _MOST)).astype(np.uint8)
    room = blocks(buf)
    whole = np.zeros((*k.shape[:2], (room.shape[3] - 1) * 8), np.uint8)
    whole[..., : k.shape[2]] = code
    pieces = whole.reshape(*k.shape[:2], -1, 2, 4)  # of eight channels, the low and the high halves
    at = rows // PAGE, slice(None), rows % PAGE // 16, slice(None), rows % 16
    room[at[0], :, at[2], :-1, at[4]] = (pieces[..., 0, :] | pieces[..., 1, :] << 4).reshape(len(k), k.shape[1], -1, 4)
    pair = np.concatenate([step, least], 2).view(np.uint32) >> 16
    room[at[0], :, at[2], -1, at[4]] = pair.astype(np.uint16).view(np.uint8).reshape(len(k), k.shape[1], 4)


def labels_read(buf: Array) -> tuple[Array, Array, Array]:
    """Codes (pages, Hkv, 64, dim), steps and least values (pages, Hkv, 64)."""
    room = blocks(buf)
    words = room[:, :, :, :-1].swapaxes(3, 4)  # (pages, Hkv, 4, 16, dim/8, 4)
    codes = np.stack([words & 15, words >> 4], -2).reshape(*buf.shape[:2], PAGE, -1)
    pair = wide(np.ascontiguousarray(room[:, :, :, -1]).view(np.uint16)).reshape(*buf.shape[:2], PAGE, 2)
    return codes, pair[..., 0], pair[..., 1]


def label_scores(q: Array, buf: Array, tables: Array, lo: Array, hi: Array, out: Array) -> None:
    """The largest product that any head of a group has with each token that a row sees, -inf for the rest: q (R, H, C),
    tables (R, P), lo, hi (R,), out (R, Hkv, n)."""
    codes, step, least = labels_read(buf)
    groups, dim = out.shape[1], q.shape[2]
    scale = np.abs(q).max(2, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(scale > 0, np.rint(q * (1 / scale)), 0)
    out[...] = -np.inf
    for i, g in np.ndindex(len(q), groups):
        at = np.arange(int(lo[i]), int(hi[i]))
        cell = tables[i, at // PAGE], g, at % PAGE
        mine = own[i].reshape(groups, -1, dim)[g]
        dots = (mine @ codes[cell][:, :dim].T.astype(np.float32)).astype(np.float32)
        s = (least[cell] * mine.sum(1, keepdims=True) + dots * step[cell]) * scale[i].reshape(groups, -1, 1)[g]
        out[i, g, at] = s.max(0)


def _bf16(x: Array) -> Array:
    rounded: Array = tensor(x).bfloat16().float().numpy()
    return rounded
