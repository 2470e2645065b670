"""Rig: one model with one stack of techniques, driven by hand on the engine's own code.

An engine decides what runs and samples what comes; a study wants to decide both. The rig takes the service that an
engine would run, and absorbs prompts and feeds given tokens (teacher forcing) as told, giving the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from types import TracebackType

import numpy as np

from diastole.assets import resolve
from diastole.assets.models import tokenizer_of
from diastole.config import Bytes, Config, EngineConfig, ServiceConfig
from diastole.engine.engine import Engine
from diastole.engine.executor import Inline
from diastole.frontend.assembly import build_engine
from diastole.loops.ar import AutoRegressive
from diastole.nn.decoder import Decoder
from diastole.nn.inside import Inside
from diastole.params import SamplingParams
from diastole.slots import Probe
from diastole.state.lease import Blob
from diastole.state.pages import PAGE
from diastole.text import Tokenizer
from diastole.types import Array, Batch, Grant, PagedSpec, Request, Stream, UserError

CHUNK = 512  # tokens of a prompt absorbed in one step, as the engine does


class Rig:
    """A language model whose streams are driven by hand.

    >>> with Rig(use=("int8-kv",)) as rig, rig.stream([1, 2, 3]) as s:
    ...     logits = rig.absorb(s)
    ...     logits = rig.step({s: int(logits.argmax())})[0]

    Args:
        model: asset, GGUF file or directory.
        use: techniques, as after ``--use``.
        kv: format of keys and values, where no technique decides it.
        weights: format in memory.
        context: most tokens of a stream; 0: the model's own.
        streams: as many streams of that length have room; forks share pages and need less.
        threads: compute threads; 0: one per physical core.
        kernels: as in ``diastole serve``.
        memory: bytes for pages; 0: a quarter of what is free.

    Raises:
        UserError: the model or a setting is wrong.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        use: Sequence[str] = (),
        *,
        kv: str = "auto",
        weights: str = "auto",
        context: int = 0,
        streams: int = 1,
        threads: int = 0,
        kernels: str = "auto",
        memory: int = 0,
    ) -> None:
        service = ServiceConfig(
            model=model,
            use=tuple(use),
            kv=kv,
            weights=weights,
            context=context,
            max_streams=streams,
            prefix_cache=False,  # what a stream remembers is to be its own
            kernels=kernels,
        )
        engine = replace(EngineConfig(), threads=threads, memory=Bytes(memory))
        built, _, kernels = build_engine(Config(engine=engine, service={"rig": service}))
        self._take(built, model, kernels)

    @classmethod
    def around(cls, engine: Engine, model: str = "", kernels: str = "") -> Rig:
        """A rig on an engine of one service that exists already, which it closes at its end.

        Args:
            model: where the tokenizer is found, if it is asked for.
            kernels: name of the operators.
        """
        rig = cls.__new__(cls)
        rig._take(engine, model, kernels)
        return rig

    def _take(self, engine: Engine, model: str, kernels: str) -> None:
        self._engine, self.kernels = engine, kernels
        (self.service,) = engine.services
        loop = self.service.loop
        if not isinstance(loop, AutoRegressive):
            raise UserError("a rig drives language models only", param="model")
        self.loop, self.context, self.vocab = loop, loop.context, loop.vocab
        self._model, self._ids, self._executor = model, count(), Inline()
        self._open: set[Stream] = set()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return tokenizer_of(resolve(self._model))

    # ---- a stream's life

    def open(self, ids: Sequence[int] | Array) -> Stream:
        """A stream that knows these tokens and has absorbed none.

        Raises:
            UserError: there are none, too many, or one is outside the vocabulary.
        """
        prompt = np.asarray(ids, np.int32)
        request = Request(f"rig-{next(self._ids)}", self.service.name, prompt, SamplingParams(ignore_eos=True))
        self.loop.check(request)
        stream = self.loop.open(request)
        if not self.loop.admit(stream):
            raise self._no_room()
        self._open.add(stream)
        return stream

    def fork(self, stream: Stream) -> Stream:
        """A second stream that has come as far; the two share pages until they differ."""
        twin = self.loop.twin(stream, stream.index + 1)
        self._open.add(twin)
        return twin

    def save(self, stream: Stream) -> Blob:
        """A stream's tokens and pages, for any rig with the same layout; not what techniques noted of it."""
        blobs = {name: lease.pool.pack(lease) for name, lease in stream.leases.items()}
        rows = blobs.pop("kv")
        data = {**rows.data, "ids": stream.own.ids[: stream.known].copy(), "given": np.array(stream.given)}
        for name, blob in blobs.items():  # state in other forms
            data |= {f"{name}/{key}": array for key, array in blob.data.items()}
            data |= {f"{name}/units": np.array(blob.units), f"{name}/layout": np.array(blob.layout)}
        return replace(rows, data=data)

    def load(self, blob: Blob) -> Stream:
        """The stream that was saved.

        Raises:
            UserError: it has another layout, or there is no room.
        """
        stream = self.loop.open(
            Request(f"rig-{next(self._ids)}", self.service.name, blob.data["ids"], SamplingParams())
        )
        stream.given, stream.done = int(blob.data["given"]), blob.units
        self._open.add(stream)
        for name, part in _parts(blob, self.service.ledger.pools).items():
            lease = self.service.ledger.pools[name].unpack(part)
            if lease is None:
                self.close(stream)
                raise self._no_room()
            stream.leases[name] = lease
        return stream

    def close(self, stream: Stream) -> None:
        """Give a stream's pages back; closing twice is harmless."""
        self._open.discard(stream)
        self.loop.close(stream)

    @contextmanager
    def stream(self, ids: Sequence[int] | Array) -> Iterator[Stream]:
        """``open``, and ``close`` at the end."""
        stream = self.open(ids)
        try:
            yield stream
        finally:
            self.close(stream)

    # ---- driving it

    @contextmanager
    def watched(self, *probes: Probe) -> Iterator[None]:
        """While inside, these look on too."""
        before = self.service.state
        inside: Inside = before["inside"]
        self.service.state = {**before, "inside": replace(inside, probes=(*inside.probes, *probes))}
        try:
            yield
        finally:
            self.service.state = before

    def absorb(self, stream: Stream, chunk: int = CHUNK) -> Array:
        """Absorb what a stream knows, ``chunk`` tokens at a time: logits (V,) after the last one."""
        return self._absorb(stream, chunk, False)[-1]

    def absorb_all(self, stream: Stream, chunk: int = CHUNK) -> Array:
        """The same: logits (n, V) float32 after each token. Large: 200 KB a token with the embedded model."""
        return self._absorb(stream, chunk, True)

    def piece(self, stream: Stream, chunk: int = CHUNK) -> Array:
        """Absorb one chunk of what a stream knows: logits (V,) after its last token, if that was the stream's too, else
        none (0, V)."""
        logits = self._run(self._prepare([Grant(stream, min(chunk, stream.left))]))
        return logits[-1] if len(logits) else logits

    def _absorb(self, stream: Stream, chunk: int, all_positions: bool) -> Array:
        if not stream.left:
            raise ValueError("the stream has absorbed all that it knows: give it a token with step()")
        parts = []
        while stream.left:
            batch = self._prepare([Grant(stream, min(chunk, stream.left))])
            if all_positions:
                batch = replace(batch, want=np.arange(len(batch.pos), dtype=np.int32))
            parts.append(self._run(batch))
        return np.concatenate(parts)

    def step(self, tokens: Mapping[Stream, int]) -> Array:
        """Feed each stream one more token, all in one decode step: logits (B, V) after it, in the mapping's order."""
        for stream, token in tokens.items():
            if stream.left:
                raise ValueError("a stream has not absorbed all that it knows: absorb() comes first")
            if stream.known >= self.context:
                raise UserError(f"a stream has {stream.known} tokens, its whole context", param="context")
            self.loop.learn(stream, int(token))
        logits = self._run(self._prepare([Grant(s, 1) for s in tokens]))
        for stream in tokens:
            self.loop.reconsider(stream)
            while stream.left:
                self._run(self._prepare([Grant(stream, stream.left)]))
        return logits

    def _prepare(self, grants: list[Grant]) -> Batch:
        batch = self.loop.prepare(grants)
        if batch.starved:
            raise self._no_room()
        return batch

    def _run(self, batch: Batch) -> Array:
        logits = self._executor.run(self.service, batch).copy()  # the next step reuses it
        for stream, n in batch.grants:
            self.loop.absorbed(stream, n)
        return logits

    # ---- what it costs

    @property
    def decoder(self) -> Decoder:
        """The model."""
        if not isinstance(self.service.model, Decoder):
            raise UserError("only decoders are studied", param="model")
        return self.service.model

    @property
    def spec(self) -> PagedSpec:
        """Layers, key/value heads and their size."""
        return self.decoder.state_specs()["kv"]

    @property
    def bytes_per_token(self) -> float:
        """Of state, over all layers."""
        return float(self.service.state["kv"].bytes_per_token)

    @property
    def used_bytes(self) -> int:
        """Of the pages that open streams hold; shared ones count once."""
        return int(self.loop.pool.used * PAGE * self.bytes_per_token)

    def _no_room(self) -> UserError:
        pages = self.loop.pool.pages
        return UserError(f"no room: all {pages} pages of {PAGE} tokens are in use; give the rig more", param="streams")

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in list(self._open):
            self.close(stream)
        self._engine.close()


def _parts(blob: Blob, pools: Iterable[str]) -> dict[str, Blob]:
    """What ``Rig.save`` put together, by pool."""
    found = {"kv": blob}
    for name in pools:
        data = {k.removeprefix(f"{name}/"): a for k, a in blob.data.items() if k.startswith(f"{name}/")}
        if data:
            found[name] = Blob(str(data.pop("layout")), int(data.pop("units")), data)
    return found
