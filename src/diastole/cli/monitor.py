"""Monitor: a live stream in the terminal: its last seconds, what was found in them, and whether deadlines are kept."""

from __future__ import annotations

import json
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diastole.types import Array

if TYPE_CHECKING:
    from diastole.signals.source import About

SECONDS = 10.0  # of the signal
BARS = " ▁▂▃▄▅▆▇█"
EVENTS = 12
CHANNELS = 12  # shown at most
FRAMES = 8  # pictures per second
HIDDEN = frozenset({"type", "seq", "emitted", "start", "end", "latency_ms", "deadline_met", "fatal", "param", "words"})


class Monitor:
    """Shows events, in a live view or as lines.

    Args:
        plain: lines.
        as_json: as the server sends them.
    """

    def __init__(self, model: str, source: str, about: About, plain: bool, as_json: bool) -> None:
        self.model, self.source, self.about = model, source, about
        self._plain, self._as_json = plain, as_json
        self._signal: deque[Array] = deque()
        self._held = self._heard = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._partial = ""
        self._chunks = self._met = 0
        self._latencies: deque[float] = deque(maxlen=1000)
        self._end = 0.0
        self._shown = 0.0
        self._console = Console()
        self._live: Live | None = None
        if not plain:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()

    def hear(self, x: Array) -> None:
        """Samples that are sent."""
        self._heard += len(x)
        if self._live is None:
            return
        self._signal.append(x)
        self._held += len(x)
        while self._held - len(self._signal[0]) > SECONDS * self.about.rate:
            self._held -= len(self._signal.popleft())
        self._refresh()

    def show(self, event: dict[str, Any]) -> None:
        """Something that was found."""
        kind = event["type"]
        if kind == "chunk":
            self._chunks += event["chunks"]
            self._met += event["chunks"] - event["late_chunks"]
            self._latencies.append(event["latency_ms"])
            self._end = event["end"]
        if self._as_json:
            if kind != "chunk":
                print(json.dumps(event), flush=True)
            return
        if kind == "partial":
            self._partial = str(event.get("text", ""))
        elif kind not in {"chunk", "ready"}:
            self._partial = "" if kind == "final" else self._partial
            if kind != "done" or self._live is None:
                self._events.append(event)
            if self._live is None:
                print(self.line(event), flush=True)
        if self._live is not None:
            self._refresh(force=kind == "done")

    def line(self, event: dict[str, Any]) -> str:
        """An event in words."""
        kind = event["type"]
        if kind == "done":
            late, latency = event["late_chunks"], event["latency_ms"]
            said = f"{event['seconds']:.1f} s in {event['chunks']} chunks, {late} late"
            return f"done: {said}; latency p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"
        at = f"{self._when(event['start'])}  " if "start" in event else ""
        values = {k: v for k, v in event.items() if k not in HIDDEN}
        text = values.pop("text", None)
        said = " ".join(f"{k} {_shown(v)}" for k, v in values.items())
        return f"{at}{kind:<8} {text if text is not None else said}".rstrip()

    def _when(self, seconds: float) -> str:
        if self.about.start is None:
            return f"{seconds:9.2f} s"
        at = datetime.fromtimestamp(self.about.start + seconds, UTC)
        return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 10_000:02d}"

    # ---- the live view

    def _refresh(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and (force or now - self._shown >= 1 / FRAMES):
            self._shown = now
            self._live.update(self._view(), refresh=True)

    def _view(self) -> Group:
        head = Text(f"{self.model}  ", style="bold")
        head.append(f"{self.source}  {self.about.rate:g} Hz  {self._heard / self.about.rate:.1f} s sent", style="dim")
        parts: list[Any] = [head, self._waves()]
        if self._partial:
            parts.append(Text(f"  {self._partial} …", style="italic"))
        for event in self._events:
            style = {"error": "red", "warning": "yellow", "gap": "yellow"}.get(event["type"], "")
            parts.append(Text("  " + self.line(event), style=style))
        parts.append(self._meter())
        return Group(*parts)

    def _waves(self) -> Table:
        width = max(self._console.width - 14, 20)
        table = Table.grid(padding=(0, 1))
        if not self._signal:
            return table
        x = np.concatenate(self._signal)
        columns = min(width, len(x))
        edges = np.linspace(0, len(x), columns + 1).astype(int)[:-1]
        for i, name in enumerate(self.about.channels[:CHANNELS]):
            wave = x[:, i] - x[:, i].mean()
            heights = np.maximum.reduceat(np.abs(wave), edges)
            top = max(float(heights.max()), 1e-12)
            levels = np.minimum((heights / top * (len(BARS) - 1)).round().astype(int), len(BARS) - 1)
            table.add_row(Text(name[:10], style="cyan"), Text("".join(BARS[v] for v in levels), style="blue"))
        return table

    def _meter(self) -> Text:
        if not self._chunks:
            return Text("  waiting for the first chunk", style="dim")
        share = self._met / self._chunks
        ordered = sorted(self._latencies)
        said = f"  {share:7.2%} of {self._chunks} chunks in time"
        meter = Text(said, style="green" if share >= 0.99 else "red")
        p50, p99 = ordered[len(ordered) // 2], ordered[99 * (len(ordered) - 1) // 100]
        meter.append(f"   latency p50 {p50:.1f} ms, p99 {p99:.1f} ms", style="dim")
        return meter

    def close(self) -> None:
        """Leave the last picture."""
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            self._live.stop()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{len(value)} values]"
    return str(value)
