"""Hidden Transfer: one pass gives the next token and, from a middle layer on, pseudo rows that tell of those behind it.

Wu, Liu, Gong, Wang, Li, Wang, Cai, Zhao: "Parallel Decoding via Hidden Transfer for Lossless Large Language Model
Acceleration", 2024, arXiv 2404.12022. Learned linear maps turn a row's state after some layers into states of the
positions behind it, which the layers above refine (``heads.transfer``); what they tell becomes a tree of guesses that
the next step checks. Needs trained maps (``diastole train hidden-transfer``) and pages that hold all keys and values.

Nobody knows beforehand which guess will be right, so every row of a draft makes pseudo rows; streams that nobody asks
to draft make none, and of a prompt only the last token does. Ours: maps in residual form; pseudo rows stop before the
head, and only those of the guess that was right go through it, when the next draft is due, for the most frequent part
of the vocabulary; verification is the engine's, one draw per node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from diastole.heads.transfer import Transfer
from diastole.nn.decoder import Decoder
from diastole.sample import Chosen
from diastole.slots import Facts
from diastole.spec.crossed import likeliest, tree
from diastole.spec.guesser import Guesser
from diastole.types import Array, Batch, Draft, Stream, UserError
from diastole.weights.calibration import find

NEEDS = frozenset({"paged_kv"})
NAME = "hidden-transfer"
MOST = 64  # guesses that one step may verify
_USE = 3  # tokens that a text must have room for, for a guess to be of use: what is said now, a guess, what follows it

Sights = Sequence[tuple[Stream, Sequence[int]]]  # streams with the rows of a batch that are sources of theirs


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    weights: str = ""  # file of the maps; empty: beside the model, or Diastole's own
    nodes: int = 4  # guesses of one draft, at most
    topk: int = 4  # tokens that are thought of for each position
    shape: str = "tree"  # of drafts: tree, or chain: the likeliest token of each position


@dataclass(slots=True)
class Ahead:
    """What a stream's last rows foresee: the last states of their pseudo rows."""

    at: int  # position of the first source
    states: Array  # (S, N, d) float32, normed, of each source; after verification of the right one alone


class HiddenTransfer(Guesser):
    """Slot ``draft``."""

    looks = True

    def __init__(self, p: Params, facts: Facts) -> None:
        _check(p)
        if facts.windowed or facts.decoder is None:
            raise UserError(
                f"{NAME} needs a model all of whose layers see the whole context, and layers of this one see a window",
                param="use",
            )
        found = find(NAME, facts, p.weights, NAME)
        try:
            self.transfer = Transfer(facts.decoder, found.tensors, p.nodes)
        except (KeyError, ValueError) as e:
            raise _wrong("weights", f"do not fit this model: {e}") from None
        self.topk = 1 if p.shape == "chain" else p.topk
        self.most = min(p.nodes, len(self.transfer.layers)) if p.shape == "chain" else p.nodes
        self._asked: frozenset[Stream] = frozenset()  # in the step that is being prepared

    # ---- a step: before, within and after the model

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        room = {s: min(n, self.most) for s, n in zip(streams, lengths, strict=True) if n > 0}
        self._asked = frozenset(room)
        sights = {s: seen for s in room if (seen := _fresh(s)) is not None}
        if not sights:
            return [Draft(()) for _ in streams]
        count = len(self.transfer.layers)
        logits = self.transfer.logits(np.concatenate([seen.states[0] for seen in sights.values()]))
        ids, odds = likeliest(logits, self.topk)
        found = {
            s: tree(self.transfer.vocab[ids[i : i + count]], odds[i : i + count], room[s])
            for s, i in zip(sights, range(0, len(ids), count), strict=True)
        }
        return [found.get(s, Draft(())) for s in streams]

    def ready(self, batch: Batch) -> Batch:
        asked, self._asked = self._asked, frozenset()
        sights = _sources(batch, asked)
        return replace(batch, relay=partial(self._run, sights)) if sights else batch

    def _run(self, sights: Sights, decoder: Decoder, batch: Batch, state: Mapping[str, Any]) -> Array:
        """The batch's way through the model; what its sources foresee becomes their streams' notes."""
        rows = np.array(sorted(row for _, own in sights for row in own))
        logits, states = self.transfer.forward(batch, state, rows)
        for stream, own in sights:
            stream.scratch[NAME] = Ahead(int(batch.pos[own[0]]), states[np.searchsorted(rows, own)])
        return logits

    def verified(self, stream: Stream, draft: Draft, nodes: Sequence[int], chosen: Sequence[Chosen]) -> None:
        seen: Ahead | None = stream.scratch.get(NAME)
        if seen is None or seen.at != stream.done:
            return  # nobody asked this stream
        last = nodes[-1] + 1 if nodes else 0  # of its rows
        stream.scratch[NAME] = Ahead(seen.at + len(nodes), seen.states[last : last + 1].copy())


def _fresh(stream: Stream) -> Ahead | None:
    """What its source foresaw, if just one token has come since."""
    seen: Ahead | None = stream.scratch.get(NAME)
    return seen if seen is not None and seen.at + 2 == stream.known else None


def _sources(batch: Batch, asked: frozenset[Stream]) -> list[tuple[Stream, Sequence[int]]]:
    """Of streams that were asked to draft, the rows of the draft, or the one row there is; of those whose prompt ends
    here, the last row."""
    sights: list[tuple[Stream, Sequence[int]]] = []
    behind = 0
    for i, (stream, n) in enumerate(batch.grants):
        behind += n
        speaks = stream.speaks and n == stream.left and n > 1
        sown = batch.sown[i] if batch.sown else None
        foresees = stream in asked or (speaks and sown is None)
        if foresees and stream.known + _USE <= stream.own.limit:
            sights.append((stream, [behind - 1] if sown is None else sown.rows))
    return sights


def _check(p: Params) -> None:
    if not 1 <= p.nodes <= MOST:
        raise _wrong("nodes", f"must be between 1 and {MOST}, not {p.nodes}")
    if not 1 <= p.topk <= MOST:
        raise _wrong("topk", f"must be between 1 and {MOST}, not {p.topk}")
    if p.shape not in {"tree", "chain"}:
        raise _wrong("shape", f"must be tree or chain, not {p.shape!r:.40}")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"draft": HiddenTransfer(p, facts)}
