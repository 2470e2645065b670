"""Maps of kv-prediction in closed form: some of a model's own layers tell the keys and values of all (heads.kv_maps).

Both the model and the auxiliary, its layers alone, read the same text with the kernels and weights that serve. For each
layer the map is the ridge regression of the model's keys on the auxiliary's, and of its values likewise:

    W = Y' X (X' X + r I)^-1        X with a column of ones, which r spares

of which the sums X'X, Y'X and Y'Y are all that has to be kept, so no text is read twice and nothing goes backwards.
Ours: the paper (section 3) trains auxiliary and maps by gradient on 140 billion tokens. A regression is as good as
what these layers know when the layers between them are missing; the auxiliary itself learns nothing.

Text: three domains that are on every machine (``bench/longtext.py``) and, if given, what the model itself said. The end
of each is kept apart to measure with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from diastole.bench.longtext import DOMAINS, Corpus
from diastole.bench.rig import Rig
from diastole.heads.kv_maps import GROUP, Auxiliary, packed
from diastole.nn.decoder import Decoder
from diastole.recipes.keeping import whole
from diastole.recipes.own_text import Texts
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, UserError

LENGTHS = (512, 1024, 2048)  # tokens of passages, in turn
APART = 0.1  # share of each text that is not learned from
HELD = 6  # passages to measure with, of each domain
SIDES = ("k", "v")


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome.

    Args:
        layers: of the model, ascending: the auxiliary.
        tokens: to learn from.
        ridge: r, of the mean square of the auxiliary's numbers.
        exact: first tokens of a passage, of which nothing is told.
    """

    layers: tuple[int, ...]
    tokens: int = 300_000
    ridge: float = 1e-3
    exact: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How many tokens have been read, and of how many."""

    tokens: int
    of: int


def usual(depth: int, every: int = 4) -> tuple[int, ...]:
    """Every fourth layer, from the first."""
    return tuple(range(0, depth, every))


def mapping(layers: Sequence[int], depth: int) -> list[int]:
    """m: for each layer the last one of the auxiliary's that is not above it, as a number within these."""
    found: list[int] = (np.searchsorted(np.array(layers), np.arange(depth), side="right") - 1).clip(0).tolist()
    return found


# ---- reading


class Readers:
    """A model and its auxiliary over one passage at a time.

    Raises:
        ValueError: the model has no such layers.
    """

    def __init__(self, decoder: Decoder, layers: Sequence[int], length: int) -> None:
        self.base, self.auxiliary = Auxiliary(decoder, range(len(decoder.blocks))), Auxiliary(decoder, layers)
        self.pages = -(-length // PAGE)
        self._stores = []
        for side in (self.base, self.auxiliary):
            store = PagedKV("bf16")
            store.alloc(side.spec, self.pages, decoder.ops)
            self._stores.append(store)

    def told(self, ids: Array) -> list[Array]:
        """Of the auxiliary, by layer: keys, then values (2, T, in) float32, neither normed nor rotated."""
        return [*_raw(self.auxiliary, self._stores[1], ids, self.pages)]

    def true(self, ids: Array) -> Iterator[Array]:
        """The same of the model, layer after layer."""
        return _raw(self.base, self._stores[0], ids, self.pages)


def _raw(side: Auxiliary, store: PagedKV, ids: Array, pages: int) -> Iterator[Array]:
    n = len(ids)
    pos, lo = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    tables, starts = np.arange(pages, dtype=np.int32)[None], np.array([0, n], np.int32)
    ids = np.ascontiguousarray(ids, np.int32)
    batch = Batch((), (), ids, pos, starts, pos.astype(np.int64), tables, lo, pos + 1, lo[:0])
    x = side.embedded(ids)
    for at, block in enumerate(side.blocks):
        qkv = side.projected(block, x)
        halves = np.split(qkv[:, side.heads :], 2, axis=1)
        yield np.stack([half.reshape(n, -1) for half in halves])
        side.mix(at, block, x, qkv, batch, store)


# ---- regression


@dataclass(slots=True)
class Sums:
    """What of all passages is kept: by side (keys, values), float64.

    Args:
        xx: (2, A, in + 1, in + 1) of the auxiliary's rows, each with a one behind it.
        yx: (2, L, out, in + 1) of the model's rows with those of the auxiliary's layer that tells them.
        yy: (2, L, out): squares of the model's.
        rows: how many.
    """

    xx: Array
    yx: Array
    yy: Array
    rows: int = 0

    @classmethod
    def none(cls, auxiliary: int, depth: int, wide: int, out: int) -> Sums:
        xx, yx, yy = (auxiliary, wide + 1, wide + 1), (depth, out, wide + 1), (depth, out)
        return cls(np.zeros((2, *xx)), np.zeros((2, *yx)), np.zeros((2, *yy)))

    def add(self, told: Sequence[Array], true: Iterator[Array], m: Sequence[int], exact: int) -> None:
        """A passage: told (2, T, in) by auxiliary layer, true (2, T, out) by layer of the model."""
        ones = np.ones((2, told[0].shape[1] - exact, 1), np.float32)
        x = [np.concatenate([rows[:, exact:], ones], 2) for rows in told]
        for at, rows in enumerate(x):
            self.xx[:, at] += rows.transpose(0, 2, 1) @ rows
        for layer, rows in enumerate(true):
            y = rows[:, exact:]
            self.yx[:, layer] += y.transpose(0, 2, 1) @ x[m[layer]]
            self.yy[:, layer] += (y.astype(np.float64) ** 2).sum(1)
        self.rows += ones.shape[1]

    def maps(self, m: Sequence[int], ridge: float) -> Array:
        """(2, L, out, in + 1), the last column what is added."""
        found = np.empty_like(self.yx)
        wide = self.xx.shape[-1] - 1
        for side, at in np.ndindex(*self.xx.shape[:2]):
            xx = self.xx[side, at].copy()
            xx[range(wide), range(wide)] += ridge * np.trace(xx[:wide, :wide]) / wide + 1e-9
            own = [layer for layer, j in enumerate(m) if j == at]
            for layer in own:
                found[side, layer] = np.linalg.solve(xx, self.yx[side, layer].T).T
        return found

    def errors(self, maps: Array, m: Sequence[int]) -> Array:
        """How far maps are off, by side and layer (2, L): the root of the share of the variance of the model's numbers
        that they leave. 1: no better than the mean."""
        xx = self.xx[:, list(m)]
        left = self.yy - 2 * (maps * self.yx).sum(-1) + np.einsum("sloi,slij,sloj->slo", maps, xx, maps)
        varied = self.yy - self.yx[..., -1] ** 2 / max(self.rows, 1)
        found: Array = np.sqrt(np.maximum(left.sum(-1), 0) / np.maximum(varied.sum(-1), 1e-12))
        return found


def tensors(plan: Plan, maps: Array) -> dict[str, Array]:
    """As ``heads.kv_maps.KVMaps`` reads them: maps (2, L, out, in + 1)."""
    depth = maps.shape[1]
    found = {
        "layers": np.array(plan.layers, np.int32),
        "map": np.array(mapping(plan.layers, depth), np.int32),
        "as_is": np.zeros(depth, bool),
    }
    for name, own in zip(SIDES, maps.astype(np.float32), strict=True):
        found |= packed(name, np.ascontiguousarray(own[..., :-1]), own[..., -1])
    return found


def unpacked(found: Mapping[str, Array]) -> Array:
    """The maps of a file, without ``as_is``: (2, L, out, in + 1)."""
    sides = []
    for name in SIDES:
        w = found[f"{name}.q"] * found[f"{name}.d"].astype(np.float64).repeat(GROUP, -1)
        sides.append(np.concatenate([w, found[f"{name}.bias"][..., None]], -1))
    return np.stack(sides)


# ---- text


def passages(rig: Rig, plan: Plan, own: Texts | None = None, apart: bool = False) -> Iterator[Array]:
    """Ids (n,) int32 of passages, domain after domain in turn; without end but for those kept apart, which are HELD of
    each domain and of the middle length.

    Raises:
        UserError: there is less text than the shortest of them.
    """
    texts: list[Array] = []
    for domain in DOMAINS:
        if DOMAINS[domain]():
            texts.append(np.array(Corpus.of(rig.tokenizer, domain).ids, np.int32))
    if own is not None:
        texts.append(own.ids.astype(np.int32))
    lengths = [n for n in LENGTHS if n <= rig.context] or [rig.context]
    parts = []
    for ids in texts:
        cut = int(len(ids) * (1 - APART))
        parts.append(ids[cut:] if apart else ids[:cut])
    yield from drawn(parts, lengths[len(lengths) // 2 :][:1] if apart else lengths, [plan.seed, apart], apart)


def drawn(texts: Sequence[Array], lengths: Sequence[int], seed: Sequence[int], ends: bool) -> Iterator[Array]:
    """Passages of texts in turn, of lengths in turn; ``ends``: after HELD rounds."""
    rng, turn = np.random.default_rng(seed), 0
    if not texts or min(map(len, texts)) < lengths[0]:
        raise UserError(f"a text to learn from has fewer than {lengths[0]} tokens", param="own")
    while not ends or turn < HELD:
        for ids in texts:
            n = min(lengths[turn % len(lengths)], len(ids))
            at = int(rng.integers(0, len(ids) - n + 1))
            yield ids[at : at + n]
        turn += 1


# ---- all of it


@dataclass(slots=True)
class Work:
    """A regression under way, which goes on from its file when it is interrupted.

    Args:
        about: what decides its outcome, as JSON has it; a file by another is refused.
        place: None: nothing is kept.
    """

    sums: Sums
    about: Mapping[str, Any]
    place: Path | None = None
    passages: int = field(default=0)  # that have been read

    def resume(self) -> None:
        """Raises:
        UserError: the file is of another plan, or torn.
        """
        if self.place is None or not self.place.exists():
            return
        try:
            with safe_open(self.place, "np") as file:
                notes = json.loads(file.metadata()["notes"])
                found = {name: file.get_tensor(name) for name in ("xx", "yx", "yy")}
            fits = all(found[name].shape == getattr(self.sums, name).shape for name in found)
            about, rows, done = notes["about"], int(notes["rows"]), int(notes["passages"])
        except Exception as e:  # whatever a torn file does to the reader
            said = f"{self.place} cannot be read as a training under way: remove it ({e!s:.80})"
            raise UserError(said, param="out") from None
        if about != json.loads(json.dumps(self.about)) or not fits:
            raise UserError(f"{self.place} is of a training by another plan: remove it", param="out")
        self.sums, self.passages = Sums(**found, rows=rows), done

    def keep(self) -> None:
        if self.place is not None:
            notes = json.dumps({"about": self.about, "rows": self.sums.rows, "passages": self.passages})
            arrays = {name: getattr(self.sums, name) for name in ("xx", "yx", "yy")}
            whole(self.place, lambda part: save_file(arrays, part, {"notes": notes}))


def train(
    rig: Rig,
    plan: Plan,
    own: Texts | None = None,
    tell: Callable[[Progress], None] = lambda p: None,
    kept: Path | None = None,
    save_every: int = 10,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The maps' tensors, and figures: by layer, how far they are off on text that was kept apart, as they are written.

    Args:
        own: text of the model itself, learned from too.
        tell: is told of every passage.
        kept: file of a regression under way, which goes on from there.
        save_every: passages; what was read since is lost when it is interrupted.

    Raises:
        UserError: layers are wrong, or the file is of another plan.
    """
    try:
        readers = Readers(rig.decoder, plan.layers, min(max(LENGTHS), rig.context))
    except ValueError as e:
        raise UserError(f"--layers: {e}", param="layers") from None
    if readers.auxiliary.width % GROUP:
        raise UserError(f"keys of {readers.auxiliary.width} numbers are no multiple of {GROUP}", param="model")
    depth, wide = len(rig.decoder.blocks), readers.auxiliary.width
    m = mapping(plan.layers, depth)
    about = {**asdict(plan), "layers": [*plan.layers], "of": "" if own is None else own.fingerprint}
    work = Work(Sums.none(len(plan.layers), depth, wide, readers.base.width), about, kept)
    work.resume()
    for i, ids in enumerate(passages(rig, plan, own)):
        if i < work.passages:
            continue
        if work.sums.rows >= plan.tokens:
            break
        work.sums.add(readers.told(ids), readers.true(ids), m, plan.exact)
        work.passages += 1
        if work.passages % save_every == 0:
            work.keep()
        tell(Progress(min(work.sums.rows, plan.tokens), plan.tokens))
    work.keep()
    held = Sums.none(len(plan.layers), depth, wide, readers.base.width)
    for ids in passages(rig, plan, own, apart=True):
        held.add(readers.told(ids), readers.true(ids), m, plan.exact)
    found = tensors(plan, work.sums.maps(m, plan.ridge))
    errors = held.errors(unpacked(found), m)
    figures = {
        "rows": work.sums.rows,
        "passages": work.passages,
        "held": held.rows,
        "errors": {name: [round(x, 4) for x in errors[side].tolist()] for side, name in enumerate(SIDES)},
        "bytes": sum(x.nbytes for x in found.values()),
    }
    return found, figures
