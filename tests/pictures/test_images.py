"""POST /v1/images/generations on a real server with a small model, by OpenAI's client and by hand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI
from PIL import Image

from diastole.config import Config, ServerConfig, ServiceConfig
from diastole.frontend.backend import Backend
from diastole.params import PictureParams
from diastole.serve.run import Server
from diastole.types import Array
from live.served import go, running
from masked import small as texts
from pictures import small

LABELS = ["shoe", "dress", "t-shirt"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("pictures") / "clothes", labels=LABELS)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts.written(tmp_path_factory.mktemp("masked") / "words")


class Served:
    def __init__(self, server: Server, backend: Backend) -> None:
        self.server, self.backend = server, backend
        self.url = f"http://127.0.0.1:{server.port}/v1"
        self.openai = AsyncOpenAI(base_url=self.url, api_key="x", max_retries=0)

    async def post(self, **body: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.post(f"{self.url}/images/generations", json=body)

    async def idle(self) -> None:
        """Nothing is held any more."""
        link: Any = self.backend._engine.client._link
        for _ in range(300):
            if not link._host.engine.busy:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("something still runs")


@asynccontextmanager
async def served(*models: Path, use: tuple[str, ...] = ()) -> AsyncIterator[Served]:
    services = {m.name: ServiceConfig(model=str(m), max_streams=4, use=use) for m in models}
    config = Config(service=services, server=ServerConfig(port=0))
    async with running(config) as (server, backend):
        yield Served(server, backend)


def pixels(b64: str) -> Array:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def want(place: Path, params: PictureParams) -> Array:
    """Of a model with two channels the first three of which, that is all, cannot be shown: so the first."""
    picture = small.alone(small.service(place), params)
    return ((picture + 1) * 127.5).round().astype(np.uint8)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dataclasses import replace

    sizes = replace(small.SIZES, in_channels=1)
    return small.written(tmp_path_factory.mktemp("pictures") / "grey", sizes, labels=LABELS)


def test_openais_client_gets_pictures(grey: Path) -> None:
    async def work() -> None:
        async with served(grey) as at:
            more = {"steps": 6, "seed": 3, "guidance": 2.5}
            reply = await at.openai.images.generate(model="grey", prompt="a red dress", n=2, extra_body=more)
            for i, data in enumerate(reply.data or ()):
                assert data.b64_json is not None
                np.testing.assert_array_equal(
                    pixels(data.b64_json), want(grey, PictureParams(6, 1, 2.5, 3 + i))[..., 0]
                )
            stream = await at.openai.images.generate(
                model="grey", prompt="dresses", stream=True, partial_images=2, extra_body=more
            )
            events = [event async for event in stream]
            kinds = [e.type for e in events]
            assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
            np.testing.assert_array_equal(pixels(events[-1].b64_json), want(grey, PictureParams(6, 1, 2.5, 3))[..., 0])
            await at.idle()

    go(work)


def test_larger_pictures_and_what_they_took(grey: Path) -> None:
    async def work() -> None:
        async with served(grey, use=("faster-diffusion",)) as at:
            body = (await at.post(prompt="SHOE", size="32x32", seed=1)).json()
            (data,) = body["data"]
            assert (body["size"], data["seed"]) == ("32x32", 1)
            assert data["denoising"] == {"steps": 50, "encoder_steps": 9, "approximate": True}
            shown = pixels(data["b64_json"])
            assert shown.shape == (32, 32)
            np.testing.assert_array_equal(shown[::4, ::4], shown[3::4, 3::4])
            nothing = (await at.post(prompt="", steps=50, seed=1)).json()["data"][0]["b64_json"]
            numbered = (await at.post(prompt="0", steps=50, seed=1)).json()["data"][0]["b64_json"]
            assert pixels(nothing).shape == (8, 8)
            np.testing.assert_array_equal(pixels(numbered), shown[::4, ::4])
            wrong = await at.post(prompt="shoe", steps=20)
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "steps")

    go(work)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": "a house"}, "prompt"),
        ({"prompt": "a shoe and a dress"}, "prompt"),
        ({"prompt": "7"}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"size": "12x12"}, "size"),
        ({"size": "16x8"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"size": "large"}, "size"),
        ({"steps": 0}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"steps": 2**70}, "steps"),
        ({"steps": 5, "num_inference_steps": 6}, "num_inference_steps"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": 1e9}, "guidance"),
        ({"min_steps": 60}, "min_steps"),
        ({"partial_images": 2}, "partial_images"),
        ({"partial_images": 99, "stream": True}, "partial_images"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "webp"}, "output_format"),
        ({"negative_prompt": "ugly"}, "negative_prompt"),
        ({"use": ["faster-diffusion"]}, "use"),
        ({"model": "nobody"}, "model"),
        ({"model": "words"}, "model"),
    ],
    ids=str,
)
def test_wrong_wishes_are_refused_by_name(clothes: Served, wrong: dict[str, Any], param: str) -> None:
    async def work() -> None:
        reply = await clothes.post(**{"model": "grey", "prompt": "shoe", **wrong})
        assert reply.status_code in {400, 404}, reply.text
        assert reply.json()["error"]["param"] == param
        await clothes.idle()

    clothes.loop.run_until_complete(work())  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def clothes(grey: Path, words: Path) -> Any:
    loop = asyncio.new_event_loop()
    context = served(grey, words)
    at = loop.run_until_complete(context.__aenter__())
    at.loop = loop  # type: ignore[attr-defined]
    yield at
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


def test_nan_in_json_is_none(clothes: Served) -> None:
    async def work() -> None:
        async with httpx.AsyncClient() as http:
            body = b'{"model": "grey", "prompt": "shoe", "guidance": NaN}'
            head = {"content-type": "application/json"}
            reply = await http.post(f"{clothes.url}/images/generations", content=body, headers=head)
        assert reply.status_code == 400

    clothes.loop.run_until_complete(work())  # type: ignore[attr-defined]


def test_models_of_each_kind_are_listed_and_kept_apart(clothes: Served) -> None:
    async def work() -> None:
        async with httpx.AsyncClient() as http:
            cards = {c["id"]: c for c in (await http.get(f"{clothes.url}/models")).json()["data"]}
            assert cards["grey"]["object"] == "picture_model"
            assert (cards["grey"]["size"], cards["grey"]["labels"]) == ("8x8", LABELS)
            assert (await http.get(f"{clothes.url}/models/grey")).json() == cards["grey"]
            chat = {"model": "grey", "messages": [{"role": "user", "content": "Hello"}]}
            reply = await http.post(f"{clothes.url}/chat/completions", json=chat)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "picture_model")

    clothes.loop.run_until_complete(work())  # type: ignore[attr-defined]


def test_who_leaves_ends_it(clothes: Served) -> None:
    async def work() -> None:
        body = {"model": "grey", "prompt": "shoe", "steps": 1000, "stream": True, "partial_images": 16}
        async with (
            httpx.AsyncClient(timeout=30) as http,
            http.stream("POST", f"{clothes.url}/images/generations", json=body) as reply,
        ):
            async for line in reply.aiter_lines():
                if line.startswith("data:"):
                    break
        await clothes.idle()

    clothes.loop.run_until_complete(work())  # type: ignore[attr-defined]


def test_masked_models_stream_places_as_they_settle(clothes: Served, words: Path) -> None:
    """Over HTTP, by chat and by plain completions: the same text, and every place once."""

    async def work() -> None:
        prompt = "sort 31 12:"
        want = texts.alone(
            texts.service(words), [*prompt.encode()], texts.params(16, 8, temperature=0.0, ignore_eos=False)
        )
        said = bytes(t for t in want if t < 256)
        body = {"model": "words", "prompt": prompt, "max_tokens": 16, "steps": 8, "temperature": 0}
        async with httpx.AsyncClient(timeout=30) as http:
            whole = (await http.post(f"{clothes.url}/completions", json=body)).json()
            assert whole["choices"][0]["text"].encode() == said.decode("utf-8", "replace").encode()
            took = whole["usage"]["unmasking"]
            assert (took["rows"], took["approximate"]) == (took["steps"] * 27, False)
            places: dict[int, int] = {}
            text = ""
            async with http.stream("POST", f"{clothes.url}/completions", json={**body, "stream": True}) as reply:
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        (choice,) = json.loads(line[6:])["choices"]
                        text += choice["text"]
                        for settled in choice.get("settled", ()):
                            assert settled["index"] not in places
                            places[settled["index"]] = settled["token"]
            assert text == whole["choices"][0]["text"]
            assert [places[i] for i in range(len(want))] == want
            for wrong, param in (
                ({"steps": 3, "block_length": 8}, "steps"),
                ({"n": 2}, "n"),
            ):
                reply = await http.post(f"{clothes.url}/completions", json={**body, **wrong})
                assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)

    clothes.loop.run_until_complete(work())  # type: ignore[attr-defined]


def test_a_service_is_loaded_anew_beside_its_pictures(place: Path) -> None:
    async def work() -> None:
        async with served(place) as at, httpx.AsyncClient(timeout=30) as http:
            asked = {"model": place.name, "prompt": "shoe", "seed": 3, "steps": 20}
            first, reloaded = await asyncio.gather(
                at.post(**asked),
                http.post(f"{at.url[:-3]}/admin/services/{place.name}/reload", json={"max_streams": 2}),
            )
            assert (reloaded.status_code, reloaded.json()["status"]) == (200, "reloaded")
            again = await at.post(**asked)
            assert first.json()["data"] == again.json()["data"]
            link: Any = at.backend._engine.client._link
            assert [s.ledger.most for s in link._host.engine.services][-1] == 2

    go(work)
