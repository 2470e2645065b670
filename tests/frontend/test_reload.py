"""Services are loaded anew while they and others speak."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from diastole.config import Config, ServiceConfig
from diastole.frontend import assembly
from diastole.frontend.backend import Backend
from diastole.frontend.link import Thread
from diastole.params import SamplingParams
from diastole.types import UserError
from frontend.test_serving import MODEL, Running, eventually
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


class Talker(threading.Thread):
    """Asks one service for one thing again and again; whole answers and streams in turn."""

    def __init__(self, server: Running, model: str, first: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.model, self.first = server, model, first
        self.enough = threading.Event()
        self.texts: list[str] = []
        self.errors: list[str] = []
        self.start()

    def run(self) -> None:
        body = {"model": self.model, "prompt": "The heart is", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        while not self.enough.is_set():
            with self.server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
                text = "".join(reply.iter_text())
            if reply.status_code != 200 or '"error"' in text or '"finish_reason":"length"' not in text:
                self.errors.append(text)
            whole = self.server.http.post("/v1/completions", json=body)
            if whole.status_code != 200:
                self.errors.append(whole.text)
                continue
            self.texts.append(whole.json()["choices"][0]["text"])
            self.first.set()


def test_five_reloads_disturb_nobody(tmp_path: Path) -> None:
    embedded()
    tables = [f'[service.{name}]\nmodel = "{MODEL}"\ncontext = 1024\nmax_streams = 8\n' for name in ("one", "two")]
    file = tmp_path / "engine.toml"
    file.write_text('engine = { memory = "128MiB" }\n' + "".join(tables))
    server = Running(target=str(file))
    try:
        talkers = [Talker(server, name, threading.Event()) for name in ("one", "one", "two")]
        for talker in talkers:
            assert talker.first.wait(60)
        said = [len(t.texts) for t in talkers]
        resident = lambda: int(Path(f"/proc/{server.engine_pid()}/statm").read_text().split()[1])  # noqa: E731
        memory = []
        for weights in ("q8", "bf16", "q8", "bf16", "q8"):
            reply = server.http.post("/admin/services/one/reload", json={"weights": weights})
            assert reply.status_code == 200, reply.text
            memory.append(resident())
        wrong = server.http.post("/admin/services/one/reload", json={"weights": "q9"})
        assert wrong.status_code == 400
        assert "weights must be one of" in wrong.json()["error"]["message"]
        for field in ("model", "name"):
            fixed = server.http.post("/admin/services/one/reload", json={field: "x"})
            assert (fixed.status_code, fixed.json()["error"]["param"]) == (400, field)
        after = [len(t.texts) for t in talkers]
        eventually(lambda: all(len(t.texts) > n for t, n in zip(talkers, after, strict=True)), "they fell silent")
        for talker in talkers:
            talker.enough.set()
        for talker in talkers:
            talker.join(60)
            assert talker.errors == []
        assert all(now > then for now, then in zip(after, said, strict=True))
        one, two = ({*talkers[0].texts, *talkers[1].texts}, set(talkers[2].texts))
        assert len(two) == 1
        assert len(one) <= 3  # one text for each format: the file's own, q8, bf16
        # Had those that were replaced kept their memory, it would stay twice as much. One goes with its last stream.
        eventually(lambda: resident() < memory[0] * 1.5, "what was replaced kept its memory")
        assert server.metric("request_success_total") == server.metric("request_prompt_tokens_count")
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0, "pages are held")
        os.kill(server.engine_pid(), signal.SIGKILL)  # its successor has the settings of the last reload
        eventually(lambda: server.metric("engine_restarts_total") == 1, "the engine's death was not noticed")
        eventually(lambda: server.http.get("/ready").status_code == 200, "the engine did not come back")
        body = {"model": "one", "prompt": "The heart is", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        assert server.http.post("/v1/completions", json=body).json()["choices"][0]["text"] == talkers[0].texts[-1]
    finally:
        assert server.stop() == 0


def test_what_cannot_be_loaded_leaves_the_old_one_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded()
    config = Config(service={"m": ServiceConfig(model=MODEL, context=512)})

    async def text(backend: Backend) -> str:
        service = backend.services["m"]
        prompt = await service.encode("The heart is")
        return "".join([d.text async for d in service.stream(prompt, GREEDY, request_id="r")])

    async def main() -> None:
        backend = Backend(config, Thread)
        await backend.start()
        try:
            before = await text(backend)

            async def refused(code: str | None, **changes: Any) -> str:
                with pytest.raises(UserError) as e:
                    await backend.reload("m", changes)
                assert e.value.code == code
                assert await text(backend) == before
                assert backend.config == config
                return e.value.message

            with monkeypatch.context() as m:
                m.setattr(assembly, "available_memory", lambda: 64 << 20)
                assert "64 MiB are available" in await refused("not_enough_memory")
            with monkeypatch.context() as m:
                m.setattr(assembly, "_build", lambda *_: 1 / 0)
                assert "ZeroDivisionError" in await refused("reload_failed")
            await refused(None, use=["no_such_technique"])
            await refused(None, context="many")
            first, second = await asyncio.gather(
                backend.reload("m", {"context": 256}), backend.reload("m", {}), return_exceptions=True
            )
            assert first is None
            assert isinstance(second, UserError)
            assert second.code == "reload_running"
            assert backend.services["m"].context == 256
            assert await text(backend) == before
        finally:
            await backend.stop(0)

    asyncio.run(main())
