"""Control groups: how much memory and processor time the system lets this process have, by containers or services.

Both versions are read, also where one machine mixes them. A group is bound by its own limit and by those of all groups
around it. Inside a container only the groups that are mounted there can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class _Version:
    """What one version calls its files."""

    limit: str
    used: str
    reclaimable: str  # line of memory.stat: of what is used, what the system gives up when asked


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def memory_left(mounted: Path = MOUNTED, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that may still be taken before a limit is met; None without a limit."""
    left = [
        max(0, limit - max(0, used - _stat(group / "memory.stat", version.reclaimable)))
        for version in (_V1, _V2)
        for group in _groups("memory", mounted, membership)
        if (limit := _number(group / version.limit)) is not None and (used := _number(group / version.used)) is not None
    ]
    return min(left, default=None)


def memory_limit(mounted: Path = MOUNTED, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that may be taken in all; None without a limit."""
    limits = [
        limit
        for version in (_V1, _V2)
        for group in _groups("memory", mounted, membership)
        if (limit := _number(group / version.limit)) is not None
    ]
    return min(limits, default=None)


def processors(mounted: Path = MOUNTED, membership: Path = MEMBERSHIP) -> float | None:
    """Seconds of processor time per second; None without a limit."""
    shares = []
    for group in _groups("cpu", mounted, membership):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and "-1" are no limits
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def _groups(controller: str, mounted: Path, membership: Path) -> Iterator[Path]:
    """Folders of the groups that this process is in, for one controller: innermost first, in each hierarchy."""
    for line in _text(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # The second version is mounted itself, or beside the first.
        for root in [mounted / controller] if controllers else [mounted, mounted / "unified"]:
            parts = [p for p in inside.split("/") if p not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:depth])


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
