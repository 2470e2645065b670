"""Limits of containers and services, read from made-up files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from diastole.frontend import assembly
from diastole.kernels import table
from diastole.kernels.cgroup import memory_left, memory_limit, processors

MIB = 2**20
V1_ENDLESS = 2**63 - 4096


def tree(at: Path, membership: str, files: Mapping[str, str]) -> tuple[Path, Path]:
    (at / "membership").write_text(membership)
    for name, text in files.items():
        path = at / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return at / "cgroup", at / "membership"


def memory(limit: object, used: int, inactive: int = 0, under: str = "") -> dict[str, str]:
    return {
        f"{under}memory.max": str(limit),
        f"{under}memory.current": str(used),
        f"{under}memory.stat": f"anon 5\nfile 9\ninactive_file {inactive}\n",
    }


def test_no_files_no_limits(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere", tmp_path / "none"
    assert memory_left(*nowhere) is None
    assert processors(*nowhere) is None
    bare = tree(tmp_path, "0::/\n", {})
    assert memory_left(*bare) is None
    assert processors(*bare) is None


def test_a_container_of_the_second_version(tmp_path: Path) -> None:
    at = tree(tmp_path, "0::/\n", {**memory(512 * MIB, 200 * MIB, 50 * MIB), "cpu.max": "150000 100000"})
    assert memory_left(*at) == 362 * MIB  # what it may drop from its page cache counts as free
    assert processors(*at) == 1.5


def test_words_for_no_limit(tmp_path: Path) -> None:
    at = tree(tmp_path, "0::/\n", {**memory("max", MIB), "cpu.max": "max 100000"})
    assert memory_left(*at) is None
    assert processors(*at) is None


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        **memory(900 * MIB, 100 * MIB, under="system.slice/a.service/"),
        **memory(500 * MIB, 300 * MIB, under="system.slice/"),  # others in it have taken 200 MiB
        "system.slice/a.service/cpu.max": "max 100000",
        "system.slice/cpu.max": "300000 100000",
        **memory(1, 1, under="other.slice/"),
    }
    at = tree(tmp_path, "0::/system.slice/a.service\n", files)
    assert memory_left(*at) == 200 * MIB
    assert processors(*at) == 3.0


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    assert memory_left(*tree(tmp_path, "0::/\n", memory(100, 300))) == 0


@pytest.mark.parametrize("mixed", [False, True])
def test_the_first_version_and_a_path_that_only_the_host_has(tmp_path: Path, mixed: bool) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(256 * MIB),
        "memory/memory.usage_in_bytes": str(100 * MIB),
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MIB}",
        "cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.cfs_period_us": "100000",
    }
    membership = "4:memory:/docker/abc\n3:cpuacct,cpu:/docker/abc\n2:name=systemd:/\n" + ("0::/docker/abc\n" * mixed)
    at = tree(tmp_path, membership, files)
    assert memory_left(*at) == 176 * MIB
    assert processors(*at) == 0.5
    (at[0] / "memory/memory.limit_in_bytes").write_text(str(V1_ENDLESS))
    (at[0] / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert (memory_left(*at) or 0) > 2**60
    assert processors(*at) is None


def test_a_mixed_machine_may_limit_by_the_second_version(tmp_path: Path) -> None:
    files = memory(300 * MIB, 100 * MIB, under="unified/a/")
    assert memory_left(*tree(tmp_path, "2:cpuset:/\n0::/a\n", files)) == 200 * MIB


@pytest.mark.parametrize("junk", ["", "many", "-5", "1e9", "\x00"])
def test_junk_is_no_limit(tmp_path: Path, junk: str) -> None:
    at = tree(tmp_path, f"0::/\nx\n{junk}\n", {**memory(junk, 0), "cpu.max": f"{junk} 0"})
    assert memory_left(*at) is None
    assert processors(*at) is None


def test_memory_and_threads_heed_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "memory_left", lambda: None)
    free = assembly.available_memory()
    assert free > MIB
    monkeypatch.setattr(assembly, "memory_left", lambda: MIB)
    assert assembly.available_memory() == MIB
    monkeypatch.setattr(assembly, "memory_left", lambda: 2**62)
    assert assembly.available_memory() < 2**50

    monkeypatch.setattr(table, "processors", lambda: None)
    cores = table.physical_cores()
    for limit, threads in ((0.3, 1), (1.0, 1), (1.9, 1), (cores + 0.5, cores), (1e6, cores)):
        monkeypatch.setattr(table, "processors", lambda limit=limit: limit)
        assert table.physical_cores() == threads


def test_the_whole_limit_is_that_of_the_tightest_group(tmp_path: Path) -> None:
    assert memory_limit(tmp_path / "none", tmp_path / "neither") is None
    files = {
        **memory(900 * MIB, 100 * MIB, under="system.slice/a.service/"),
        **memory(500 * MIB, 300 * MIB, under="system.slice/"),
        **memory("max", 400 * MIB),
    }
    assert memory_limit(*tree(tmp_path, "0::/system.slice/a.service\n", files)) == 500 * MIB
