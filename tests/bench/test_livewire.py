"""Streams through a real server beside prompts: what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diastole.bench import livewire
from diastole.bench.livewire import Heard, Line
from diastole.config import Config, ServerConfig, ServiceConfig
from diastole.types import UserError
from live import small
from live.served import go, running
from models.common import embedded


def ready(line: Line, now: float) -> None:
    line.hear({"type": "ready", "rate": 100.0, "channels": ["Z", "N", "E"]}, now)


def chunk(start: float, end: float, chunks: int = 1, late: int = 0) -> dict[str, Any]:
    return {"type": "chunk", "start": start, "end": end, "chunks": chunks, "late_chunks": late, "latency_ms": 30.0}


def test_a_chunk_is_waited_for_from_when_its_last_piece_was_there() -> None:
    heard = Heard(1)
    line = Line(heard, 0, since=10.0, until=20.0)
    ready(line, 5.0)
    began = line._began  # somewhere in the first piece of 80 ms
    assert 5.0 <= began <= 5.08
    line.hear(chunk(4.4, 4.6), began + 4.7)  # before it counts
    assert heard.chunks == 0
    line.hear(chunk(6.0, 6.2), began + 6.35)  # its last piece was whole at 6.24
    line.hear(chunk(6.2, 6.4), began + 6.8)  # at 6.4
    line.hear({"type": "partial", "text": "."}, began + 6.8)
    assert heard.period == pytest.approx(0.2)
    assert heard.waits == pytest.approx([0.11, 0.4])
    assert (heard.chunks, heard.met, heard.seen) == (2, 2, 1)
    assert heard.latencies == [0.03, 0.03]


def test_several_chunks_in_one_answer_are_told_apart() -> None:
    heard = Heard(1)
    line = Line(heard, 0, since=0.0, until=20.0)
    ready(line, 1.0)
    line.hear(chunk(0.8, 1.6, chunks=4, late=3), line._began + 1.65)  # whole at 1.04, 1.2, 1.44, 1.6
    assert (heard.chunks, heard.met, heard.seen) == (4, 1, 1)
    assert heard.waits == pytest.approx([0.61])


def test_seconds_of_steps_are_read_from_metrics() -> None:
    page = 'diastole_step_seconds_sum{model_name="a"} 1.5\ndiastole_step_seconds_sum{model_name="lm"} 2.5\n'
    assert livewire.steps_seconds(page, "lm") == 2.5
    with pytest.raises(UserError, match="'other'"):
        livewire.steps_seconds(page, "other")


@pytest.mark.model
@pytest.mark.slow
def test_streams_beside_prompts(tmp_path: Path) -> None:
    net = small.classifier()
    net.register_buffer("covariance", torch.eye(5))
    small.written(net, small.classifier_config(), tmp_path / "brain")
    services = {
        "brain": ServiceConfig(model=str(tmp_path / "brain"), max_streams=4),
        "lm": ServiceConfig(model=str(embedded()), max_streams=8, context=1024),
    }

    async def work() -> None:
        async with running(Config(service=services, server=ServerConfig(port=0))) as (server, _):
            url = f"http://127.0.0.1:{server.port}"
            prompt = list(range(300, 700))
            found = await livewire.run(url, "lm", prompt, {"brain": ("brain", {})}, 3, 4.0, 0.5, 1.0)
            heard = found.models["brain"]
            assert heard.streams == 3
            assert heard.period == pytest.approx(0.25)
            assert (
                0 < heard.met <= heard.chunks <= 3 * 20
            )  # all that is sent in five seconds: what is heard late counts
            assert len(heard.waits) == len(heard.latencies) > 0
            assert min(heard.waits) > 0
            assert found.busy > 0
            with pytest.raises(UserError, match="'nobody'"):
                await livewire.run(url, "nobody", prompt, {"brain": ("brain", {})}, 1, 1.0, 0.5, 0.0)
            with pytest.raises(UserError, match="'heart'"):
                await livewire.run(url, "lm", prompt, {"heart": ("heart", {})}, 1, 1.0, 0.5, 0.0)

    go(work)


def test_a_server_that_is_not_there_is_named() -> None:
    async def work() -> None:
        with pytest.raises(UserError, match="cannot be reached"):
            await livewire.run("http://127.0.0.1:9", "lm", [1, 2], {"brain": ("brain", {})}, 1, 1.0, 0.5, 0.0)

    go(work)
