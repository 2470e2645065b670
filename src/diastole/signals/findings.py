"""Findings: a file of what was found in a signal: JSON lines, a table (CSV), or picks as QuakeML.

Lines are written as events come, so that what was found is there when a long stream is cut off. A table's columns and a
catalogue are known at the end only, when the file appears whole.
"""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from diastole.signals.source import About, library
from diastole.types import UserError

SUFFIXES = (".jsonl", ".csv", ".xml")
_PASSED_OVER = frozenset({"hello", "ready", "chunk", "partial", "done", "error", "probability"})


def findings(path: Path, about: About) -> Findings:
    """A file of what will be found in a source.

    Raises:
        UserError: its ending is not known, its folder is not there, or QuakeML lacks the signal's time.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path.name} must end in {', '.join(SUFFIXES)} (.xml: QuakeML)", param="out")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder", param="out")
    if path.suffix == ".xml":
        if about.start is None:
            raise UserError("QuakeML needs the time of the first sample, which this source does not tell", param="out")
        library("obspy")
    return {".jsonl": Lines, ".csv": Table, ".xml": QuakeML}[path.suffix](path, about)


class Findings:
    """Takes events; as a context manager it ends the file."""

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about
        self.events: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        """One event, as a server sends it."""
        if event["type"] not in _PASSED_OVER:
            self.events.append(event)

    def end(self) -> None:
        """Write what is not written yet."""

    def __enter__(self) -> Findings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def when(self, seconds: float) -> str:
        """UTC of a place in the signal, empty where that is not known."""
        if self.about.start is None:
            return ""
        return datetime.fromtimestamp(self.about.start + seconds, UTC).isoformat().replace("+00:00", "Z")


class Lines(Findings):
    """Each event as a line of JSON, with its ``time`` where that is known."""

    def __init__(self, path: Path, about: About) -> None:
        super().__init__(path, about)
        self._file = path.open("w", encoding="utf-8")

    def take(self, event: dict[str, Any]) -> None:
        if event["type"] in _PASSED_OVER:
            return
        time = self.when(event["start"]) if "start" in event else ""
        self._file.write(json.dumps({**event, **({"time": time} if time else {})}) + "\n")
        self._file.flush()

    def end(self) -> None:
        self._file.close()


class Table(Findings):
    """Events as rows; what is no single value is JSON."""

    def end(self) -> None:
        rows = [{"time": self.when(e["start"]) if "start" in e else "", **e} for e in self.events]
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["time", "type"]
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        part.replace(self.path)


class QuakeML(Findings):
    """Picks, each in an event of its own: nothing here says which belong together."""

    def take(self, event: dict[str, Any]) -> None:
        if event["type"] == "pick":
            super().take(event)

    def end(self) -> None:
        library("obspy")
        from obspy import UTCDateTime
        from obspy.core.event import Catalog, Comment, Event, Pick, WaveformStreamID

        network, _, station = self.about.station.partition(".")
        found = []
        for pick in self.events:
            channel = next((c for c in self.about.channels if c.endswith("Z" if pick["phase"] == "P" else "N")), "")
            found.append(
                Event(
                    picks=[
                        Pick(
                            time=UTCDateTime(float(self.about.start or 0) + pick["start"]),
                            phase_hint=pick["phase"],
                            waveform_id=WaveformStreamID(network or "XX", station or "XX", channel_code=channel),
                            evaluation_mode="automatic",
                            comments=[Comment(text=f"probability {pick['probability']:.4f}")],
                        )
                    ]
                )
            )
        part = self.path.with_name(self.path.name + ".part")
        Catalog(found).write(str(part), format="QUAKEML")
        part.replace(self.path)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
