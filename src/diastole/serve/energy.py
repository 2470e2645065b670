"""Energy: the host's, as its processors count it, shared among the generations that run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diastole.clock import Clock
from diastole.types import UserError

COUNTERS = Path("/sys/class/powercap")
INTERVAL = 0.1  # seconds between readings, at least: the counters move every millisecond


class Source(Protocol):
    """Something that counts joules."""

    def joules(self) -> float:
        """Since some start."""
        ...


class Rapl:
    """The counters of all processor packages (RAPL), which Linux offers for Intel's and AMD's.

    Args:
        root: where the system shows them.

    Raises:
        UserError: there are none, or they may not be read.
    """

    def __init__(self, root: Path) -> None:
        packages = [p for p in sorted(root.glob("intel-rapl:*")) if _name(p).startswith("package")]
        if not packages:
            raise _unreadable(f"this machine shows none in {root}")
        self._counters = [_Counter(p) for p in packages]

    def joules(self) -> float:
        return sum(c.joules() for c in self._counters)


class _Counter:
    """One package. Its counter begins again at 0 after its range."""

    def __init__(self, package: Path) -> None:
        self._file = package / "energy_uj"
        try:
            self._range = int((package / "max_energy_range_uj").read_text())
            self._last = int(self._file.read_text())
        except (OSError, ValueError) as e:
            raise _unreadable(f"{self._file}: {getattr(e, 'strerror', None) or 'it holds no number'}") from None
        self._sum = 0

    def joules(self) -> float:
        now = int(self._file.read_text())
        self._sum += now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return self._sum / 1e6


def _name(package: Path) -> str:
    try:
        return (package / "name").read_text()
    except OSError:
        return ""


def _unreadable(why: str) -> UserError:
    message = f"server.max_joules needs the processor's energy counters to be readable, and they are not: {why}"
    return UserError(message, param="server.max_joules")


@dataclass(eq=False, slots=True)
class Share:
    """What one generation has used."""

    joules: float = 0.0
    tokens: int = 0  # since the last reading


class Energy:
    """Shares what the host used between two readings among generations, by the tokens that they took or gave meanwhile.

    Nothing tells what each of them really cost; over many readings tokens come near to it.
    """

    def __init__(self, source: Source, clock: Clock) -> None:
        self._source, self._clock = source, clock
        self._shares: set[Share] = set()
        self._last, self._read_at = 0.0, clock.now()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Take part."""
        if not self._shares:  # what was used before is nobody's
            self._last, self._read_at = self._source.joules(), self._clock.now()
        share = Share()
        self._shares.add(share)
        try:
            yield share
        finally:
            self._settle()
            self._shares.discard(share)

    def add(self, share: Share, tokens: int) -> float:
        """A generation took or gave so many tokens; the joules that it has used so far."""
        share.tokens += tokens
        if self._clock.now() - self._read_at >= INTERVAL:
            self._settle()
        return share.joules

    def _settle(self) -> None:
        """Read, and share out what was used since the last time. Without tokens it stays for the next time."""
        tokens = sum(s.tokens for s in self._shares)
        self._read_at = self._clock.now()
        if tokens == 0:
            return
        joules = self._source.joules()
        used, self._last = joules - self._last, joules
        for share in self._shares:
            share.joules += used * share.tokens / tokens
            share.tokens = 0


def host_energy(clock: Clock) -> Energy:
    """What this machine uses.

    Raises:
        UserError: its counters cannot be read.
    """
    return Energy(Rapl(COUNTERS), clock)
