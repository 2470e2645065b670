"""POST /v1/embeddings: the vectors that a language model has for texts. See docs/embeddings.md for what they are."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import msgspec
import numpy as np

from diastole.frontend.types import RequestEnded
from diastole.loops.pooling import unit
from diastole.params import PoolParams
from diastole.serve import bounds
from diastole.serve.bounds import documented
from diastole.serve.errors import ApiError, ended_early, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.interface import TextService
from diastole.serve.openai import SloWish, read_plain, wrong
from diastole.serve.prompts import Prompt, path, split_prompts
from diastole.serve.replies import Cached, UsageReply
from diastole.serve.slo import slo_of
from diastole.serve.terms import Terms
from diastole.types import SLO, Array, UserError

MAX_INPUTS = 2_048  # OpenAI's
AT_ONCE = 16  # inputs of one request that the engine has at a time: others' requests come between them
FORMATS = ("float", "base64")
POOLING = PoolParams("mean")
# Fields that other servers know and that would change a vector, with the values that change nothing.
UNSERVED = {
    "truncate_prompt_tokens": (),
    "add_special_tokens": (True,),
    "input_type": (),
    "instruction": ("",),
    "normalize": (True,),
    "pooling": ("mean",),
    "messages": (),
    "priority": (0,),
    "use": ([],),
}


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: str
    input: bounds.Text | bounds.Prompts
    encoding_format: Annotated[str, documented(enum=FORMATS)] | None = None
    dimensions: Annotated[int, documented(minimum=1)] | None = None
    user: str | None = None
    slo: SloWish | None = None


class Embedding(msgspec.Struct, tag_field="object", tag="embedding"):
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(msgspec.Struct, tag_field="object", tag="list"):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


async def embeddings(face: Face, exchange: Exchange) -> None:
    """A vector for each input.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request, inputs = await face.bodies.read(exchange, _parse)
    service = face.service(request.model)
    if request.encoding_format is not None and request.encoding_format not in FORMATS:
        raise wrong("encoding_format", f"encoding_format must be one of {', '.join(FORMATS)}.")
    if request.dimensions is not None and not 1 <= request.dimensions <= service.width:
        raise wrong("dimensions", f"dimensions must be between 1 and {service.width}, as many as this model has.")
    slo = slo_of(request.slo, exchange.headers)

    async def work() -> None:
        prompts = [await _ids(service, one, path("input", i, len(inputs))) for i, one in enumerate(inputs)]
        reading = Reading(service, prompts, f"embd-{exchange.id}", slo)
        vectors = await reading.vectors(face.terms(exchange, service, slo))
        await exchange.reply(200, await asyncio.to_thread(_body, request, vectors, reading.tokens))

    await exchange.run(work())


def _parse(body: bytes) -> tuple[EmbeddingRequest, list[Prompt]]:
    request = read_plain(body, EmbeddingRequest, UNSERVED)
    return request, split_prompts(request.input, "input", MAX_INPUTS)


async def _ids(service: TextService, given: Prompt, where: str) -> list[int]:
    try:
        ids = await service.encode(given) if isinstance(given, str) else given
        await asyncio.to_thread(service.check, ids, POOLING)
    except UserError as e:
        raise of_user_error(e, {"prompt": where}) from None
    return ids


class Reading:
    """The inputs of one request while the engine reads them.

    Args:
        id: of the answer; the engine's request ids are made from it.
    """

    def __init__(self, service: TextService, prompts: Sequence[Sequence[int]], id: str, slo: SLO | None) -> None:
        self.id, self.model, self.created = id, service.name, int(time.time())
        self.tokens = sum(map(len, prompts))
        self._service, self._prompts, self._slo = service, prompts, slo
        self._began = time.monotonic()
        self._vectors: dict[int, Array] = {}

    def usage(self) -> UsageReply:
        """Tokens so far."""
        read = sum(len(self._prompts[i]) for i in self._vectors)
        return UsageReply(read, 0, read, Cached(0))

    async def vectors(self, terms: Terms) -> list[Array]:
        """Vectors in the order of the prompts. Cancelling this aborts what still runs.

        Raises:
            ApiError: the request must wait for its turn, the engine failed on it, its time was up, or somebody
                cancelled it.
        """
        with terms.account.spend(self.tokens) as bill:
            async with terms.running.enter(self, terms.owner):
                try:
                    await self._run()
                finally:
                    bill.used = self.usage().total_tokens
                    terms.notes["model"] = self.model
                    terms.notes["prompt_tokens"] = bill.used
        return [self._vectors[i] for i in range(len(self._prompts))]

    def _rest(self) -> SLO | None:
        """What is left of the promise: inputs that the engine is given later have less time for the whole."""
        if self._slo is None or self._slo.total is None:
            return self._slo
        return replace(self._slo, total=max(self._slo.total - (time.monotonic() - self._began), 0.0))

    async def _run(self) -> None:
        left = iter(enumerate(self._prompts))

        async def work() -> None:
            for i, prompt in left:
                id = f"{self.id}-{i}"
                try:
                    self._vectors[i] = await self._service.embed(prompt, POOLING, request_id=id, slo=self._rest())
                except RequestEnded as e:
                    raise ended_early(e) from None

        workers = [asyncio.create_task(work()) for _ in range(min(AT_ONCE, len(self._prompts)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _body(request: EmbeddingRequest, vectors: Sequence[Array], tokens: int) -> bytes:
    """The answer's JSON, which takes long where there are many numbers.

    Raises:
        ApiError: the model gave what is no number.
    """
    if not all(np.isfinite(v).all() for v in vectors):
        raise ApiError(500, "The model gave numbers that are not finite.", code="engine_error")
    if request.dimensions is not None:
        vectors = [unit(v[: request.dimensions]) for v in vectors]
    data = [Embedding(i, _encoded(v, request.encoding_format)) for i, v in enumerate(vectors)]
    return msgspec.json.encode(EmbeddingReply(data, request.model, EmbeddingUsage(tokens, tokens)))


def _encoded(vector: Array, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
