"""Pages of codes in numpy: the slow twin of csrc/zip.inl, which says how a page is laid out."""

from __future__ import annotations

import numpy as np

from diastole.types import Array

PAGE = 64
MIDDLE = 7.5
REST = np.array([2, 6, 9, 13])  # what codes of two bits stand for
_LEAST, _ONE = (127 - 20) << 23, 127 << 23


def page_bytes(dim: int, fine: int) -> int:
    """Of one head."""
    words = dim // 16
    return 512 * words + 4 * words * fine + _values_low(words, fine) + 12 + 128 * -(-words // 4) + 8 * words + 64


def _values_low(words: int, fine: int) -> int:
    return fine // 16 * 64 * words + fine % 16 // 4 * 64 * -(-words // 4)


def seal(k: Array, v: Array, mask: Array) -> Array:
    """k, v (N, 64, dim) float32; mask (N, 64) bool: the tokens that keep four bits, as many in each -> (N, bytes)."""
    n, _, dim = k.shape
    order = np.argsort(~mask, axis=1, kind="stable")[..., None]
    k, v = np.take_along_axis(k, order, 1), np.take_along_axis(v, order, 1)
    fine = int(mask[0].sum())

    top, bottom = k.max(1), k.min(1)
    middle = (top + bottom) * np.float32(0.5)
    width = np.maximum((top - bottom) * np.float32(1 / 15), np.abs(middle) * np.float32(1 / 56))
    k_step = np.clip((_bits(width) - (_LEAST - (1 << 19))) >> 20, 0, 255)
    step = _number8(k_step)
    k_center = np.clip(np.rint(middle / (step * np.float32(0.5))), -127, 127).astype(np.int32)
    k = k - (step * np.float32(0.5) * k_center.astype(np.float32))[:, None]
    keys = _encode(k * (np.float32(1) / step)[:, None], fine)

    size = np.abs(v).max(1)
    most = size.max(1, keepdims=True)
    v_scale = _nearest4(np.where(most > 0, 14 * np.sqrt(size / np.maximum(most, 1e-30)), 1).astype(np.float32))
    v = v / _number4(v_scale)[:, None]
    high, low = v.max(2), v.min(2)
    width = (high - low) / np.float32(15)
    base = np.maximum(width.max(1, keepdims=True), np.float32(1e-30)) / np.float32(14)
    v_step = _nearest4(width / base)
    step = _number4(v_step) * base
    v_center = np.clip(np.rint((high + low) / step), -8, 7).astype(np.int32)
    v = v - (step * np.float32(0.5) * v_center.astype(np.float32))[..., None]
    values = _encode(v * (np.float32(1) / step)[..., None], fine)

    parts = [
        *_words(keys.reshape(n, 4, 16, dim // 16, 16).swapaxes(2, 3), fine, by_token=True),
        *_words(values.reshape(n, 4, 16, dim // 16, 16).transpose(0, 1, 3, 4, 2), fine, by_token=False),
        np.packbits(mask, axis=1, bitorder="little"),
        base.view(np.uint8),
        _spread(k_center.astype(np.int8).view(np.uint8)),
        _spread(k_step.astype(np.uint8)),
        (v_scale[:, ::2] | v_scale[:, 1::2] << 4).astype(np.uint8),
        (v_step | (v_center + 8) << 4).astype(np.uint8).reshape(n, 4, 16).swapaxes(1, 2).reshape(n, -1),
    ]
    return np.concatenate(parts, axis=1)


def unseal(pages: Array, dim: int, fine: int) -> tuple[Array, Array]:
    """pages (N, bytes) -> k, v (N, 64, dim) float32, in order of position."""
    n, words = len(pages), dim // 16
    at = 0

    def take(size: int) -> Array:
        nonlocal at
        at += size
        return np.ascontiguousarray(pages[:, at - size : at])

    sizes = {True: 4 * words * fine, False: _values_low(words, fine)}  # of low bits
    halves = [_codes(take(256 * words), take(size), dim, fine, by_token) for by_token, size in sizes.items()]
    keys = halves[0].swapaxes(2, 3).reshape(n, PAGE, dim)
    values = halves[1].transpose(0, 1, 4, 2, 3).reshape(n, PAGE, dim)
    mask = np.unpackbits(take(8), axis=1, bitorder="little").astype(bool)
    base = take(4).view(np.float32)
    wide = 64 * -(-words // 4)
    center = _gather(take(wide), dim).view(np.int8)
    step = _number8(_gather(take(wide), dim).astype(np.int32))
    packed = take(8 * words)
    scale = _number4(np.stack([packed & 15, packed >> 4], -1).reshape(n, dim).astype(np.int32))
    tokens = take(64).reshape(n, 16, 4).swapaxes(1, 2).reshape(n, PAGE).astype(np.int32)
    v_step = _number4(tokens & 15) * base
    v_center = (tokens >> 4) - 8

    k = (keys - MIDDLE + center[:, None] / 2) * step[:, None]
    v = (values - MIDDLE + v_center[..., None] / 2) * v_step[..., None] * scale[:, None]
    order = np.argsort(~mask, axis=1, kind="stable")[..., None]
    out = np.empty((2, n, PAGE, dim), np.float32)
    for to, x in zip(out, (k, v), strict=True):
        np.put_along_axis(to, order, x.astype(np.float32), 1)
    return out[0], out[1]


def _bits(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32).view(np.int32)


def _number8(code: Array) -> Array:
    return ((code << 20) + _LEAST).astype(np.int32).view(np.float32)


def _number4(code: Array) -> Array:
    return ((code << 21) + _ONE).astype(np.int32).view(np.float32)


def _nearest4(x: Array) -> Array:
    return np.clip((_bits(x) - (_ONE - (1 << 20))) >> 21, 0, 15)


def _encode(level: Array, fine: int) -> Array:
    """Codes 0..15 of levels (N, 64, dim) around 0; of the rest high bits alone, four times."""
    codes = np.clip(np.rint(level + np.float32(MIDDLE)), 0, 15).astype(np.int64)
    rest = level[:, fine:]
    codes[:, fine:] = 4 * sum((rest > edge).astype(np.int64) for edge in (-3.5, 0, 3.5))
    return codes


_BIT = np.array([i // 2 * 2 + i % 2 * 16 for i in range(16)])  # of the i-th of sixteen codes in their word


def _words(codes: Array, fine: int, by_token: bool) -> tuple[Array, Array]:
    """Codes (N, 4 blocks, words, 16 lanes, 16 of a word) as high and low bytes (N, bytes)."""
    n, whole, left = len(codes), fine // 16, fine % 16
    high, low = (((codes >> s & 3) << _BIT).sum(-1).astype(np.uint32) for s in (2, 0))
    packed = [low[:, :whole].reshape(n, -1).view(np.uint8)]
    if left and by_token:
        packed.append(np.ascontiguousarray(low[:, whole, :, :left]).reshape(n, -1).view(np.uint8))
    elif left:
        last = low[:, whole].reshape(n, -1)
        packed += [_spread(((last >> s & 15) | (last >> 16 + s & 15) << 4).astype(np.uint8)) for s in range(0, left, 4)]
    return high.reshape(n, -1).view(np.uint8), np.concatenate(packed, axis=1)


def _codes(high: Array, low: Array, dim: int, fine: int, by_token: bool) -> Array:
    """The inverse: (N, 4 blocks, words, 16 lanes, 16 of a word)."""
    n, words, whole, left = len(high), dim // 16, fine // 16, fine % 16

    def bits(x: Array) -> Array:
        return (x[..., None] >> _BIT & 3).astype(np.int64)

    first = bits(high.view(np.uint32).reshape(n, 4, words, 16))
    codes = REST[first]
    cut = whole * words * 64
    codes[:, :whole] = 4 * first[:, :whole] + bits(np.ascontiguousarray(low[:, :cut]).view(np.uint32)).reshape(
        first[:, :whole].shape
    )
    rest = np.ascontiguousarray(low[:, cut:])
    if left and by_token:
        seconds = bits(rest.view(np.uint32).reshape(n, words, left))
        codes[:, whole, :, :left] = 4 * first[:, whole, :, :left] + seconds
    elif left:
        both = np.zeros((n, dim), np.uint32)
        for s, part in enumerate(np.split(rest, left // 4, axis=1)):
            own = _gather(part, dim).astype(np.uint32)
            both |= ((own & 15) | (own >> 4) << 16) << 4 * s
        seconds = bits(both.reshape(n, words, 16))
        codes[:, whole, :, :, :left] = 4 * first[:, whole, :, :, :left] + seconds[..., :left]
    return codes


def _spread(x: Array) -> Array:
    """Bytes of channels (N, dim), four blocks of sixteen side by side: (N, ceil(dim / 64) * 64)."""
    n, dim = x.shape
    wide = np.zeros((n, -(-dim // 64) * 64), np.uint8)
    wide[:, :dim] = x
    return wide.reshape(n, -1, 4, 16).swapaxes(2, 3).reshape(n, -1)


def _gather(x: Array, dim: int) -> Array:
    n = len(x)
    return np.ascontiguousarray(x.reshape(n, -1, 16, 4).swapaxes(2, 3).reshape(n, -1)[:, :dim])
