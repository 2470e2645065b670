"""POST /v1/embeddings: the vectors that a language model has for texts. See docs/embeddings.md for what they are."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import msgspec
import numpy as np

from diastole.loops.pooling import unit
from diastole.params import PoolParams
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.interface import TextService
from diastole.serve.openai import SloWish, read_plain, wrong
from diastole.serve.prompts import Prompt, path, split_prompts
from diastole.serve.slo import slo_of
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
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
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
    request = read_plain(await exchange.body(face.config.max_body_bytes), EmbeddingRequest, UNSERVED)
    service = face.service(request.model)
    if request.encoding_format is not None and request.encoding_format not in FORMATS:
        raise wrong("encoding_format", f"encoding_format must be one of {', '.join(FORMATS)}.")
    if request.dimensions is not None and not 1 <= request.dimensions <= service.width:
        raise wrong("dimensions", f"dimensions must be between 1 and {service.width}, as many as this model has.")
    inputs = split_prompts(request.input, "input", MAX_INPUTS)
    slo = slo_of(request.slo, exchange.headers)

    async def work() -> None:
        prompts = [await _ids(service, one, path("input", i, len(inputs))) for i, one in enumerate(inputs)]
        tokens = sum(map(len, prompts))
        with exchange.account.spend(tokens) as bill:
            vectors = await _vectors(service, prompts, f"embd-{exchange.id}", slo)
            bill.used = tokens
        await exchange.reply(200, await asyncio.to_thread(_body, request, vectors, tokens))

    await exchange.run(work())


async def _ids(service: TextService, given: Prompt, where: str) -> list[int]:
    try:
        ids = await service.encode(given) if isinstance(given, str) else given
        await asyncio.to_thread(service.check, ids, POOLING)
    except UserError as e:
        raise of_user_error(e, {"prompt": where}) from None
    return ids


async def _vectors(service: TextService, prompts: Sequence[Sequence[int]], id: str, slo: SLO | None) -> list[Array]:
    """Vectors in the order of the prompts. Cancelling this aborts what still runs."""
    vectors: dict[int, Array] = {}
    left = iter(range(len(prompts)))

    async def work() -> None:
        for i in left:
            vectors[i] = await service.embed(prompts[i], POOLING, request_id=f"{id}-{i}", slo=slo)

    workers = [asyncio.create_task(work()) for _ in range(min(AT_ONCE, len(prompts)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [vectors[i] for i in range(len(prompts))]


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
