"""What a client's bytes become, where it numbers its pieces and has them resampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from diastole.serve.hello import Converter, Hello
from diastole.types import Array, UserError

X = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)


@dataclass
class Card:
    name: str = "small"
    rate: float = 100.0
    channels: list[str] = field(default_factory=lambda: ["a", "b"])
    hop: int = 10
    quantity: str = ""
    unit: str = ""


def converter(**hello: Any) -> Converter:
    return Converter(Hello(rate=150.0, resample=True, **hello), Card())


def numbered(first: int, x: Array) -> bytes:
    return first.to_bytes(8, "little", signed=True) + x.tobytes()


def test_resampled_pieces_have_numbers_at_the_models_rate() -> None:
    plain, own = converter(), converter(indexed=True)
    want = np.concatenate([*(plain.samples(X[i : i + 300].tobytes())[0] for i in range(0, 3000, 300)), plain.rest()])
    parts, at = [], 0
    for i in range(0, 3000, 300):
        x, first = own.samples(numbered(i, X[i : i + 300]))
        assert first == at
        parts.append(x)
        at += len(x)
    np.testing.assert_array_equal(np.concatenate([*parts, own.rest()]), want)
    assert len(want) == 2000


def test_a_resampler_begins_anew_behind_a_gap() -> None:
    fresh, own = converter(), converter(indexed=True)
    own.samples(numbered(0, X[:1000]))
    x, first = own.samples(numbered(15_000, X[1000:]))
    assert first == 10_000
    assert (own.taken, own.reached) == (3000, 17_000)  # what is missing is no drift of a clock
    np.testing.assert_array_equal(x, fresh.samples(X[1000:].tobytes())[0])
    np.testing.assert_array_equal(own.rest(), fresh.rest())


def test_resampled_pieces_come_in_order() -> None:
    own = converter(indexed=True)
    own.samples(numbered(0, X[:1000]))
    with pytest.raises(UserError, match="sample 500 came after 999"):
        own.samples(numbered(500, X[500:]))
    x, first = own.samples(numbered(1000, X[1000:]))
    assert (first, len(x) > 0) == (len(converter().samples(X[:1000].tobytes())[0]), True)
