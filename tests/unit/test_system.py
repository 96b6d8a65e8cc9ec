"""Processors and memory are what the process may use, not what the machine has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llama_runner._support import hardware as system
from llama_runner.errors import InvalidParameterError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert system.usable_cpus(tmp_path) == 8


@pytest.mark.parametrize(
    ("own", "top", "usable"),
    [
        ("max 100000", "max 100000", 8),
        ("300000 100000", "max 100000", 3),
        ("max 100000", "200000 100000", 2),  # an ancestor's quota holds for its children
        ("150000 100000", "400000 100000", 2),  # one and a half processors need two threads
        ("20000 100000", "max 100000", 1),
        ("9900000 100000", "max 100000", 8),
    ],
)
def test_cgroup_v2_quota(tmp_path: Path, own: str, top: str, usable: int) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pods/one\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pods/one/cpu.max": own,
            "sys/fs/cgroup/pods/cpu.max": top,
        },
    )
    assert system.usable_cpus(root) == usable


def test_cgroup_v1_quota_in_a_container_that_sees_only_its_own_part(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box/inner\n",
            "proc/self/mountinfo": V1_CPU.format(top="/box") + V1_MEMORY,
            "sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us": "50000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert system.usable_cpus(root) == 5


@pytest.mark.parametrize("path", ["/elsewhere", "/../outside"])
def test_a_cgroup_outside_the_mount_leaves_the_top_to_ask(tmp_path: Path, path: str) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": V2_MOUNT.replace(" / /sys", " /box /sys"),
            "sys/fs/cgroup/cpu.max": "100000 100000",
            "sys/fs/outside/cpu.max": "700000 100000",
        },
    )
    assert system.usable_cpus(root) == 1


@linux_only
def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = tree(tmp_path, {siblings.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    assert system.physical_cores(root) == 4


@linux_only
def test_only_cores_of_the_affinity_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = tree(tmp_path, {siblings.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5})
    assert system.physical_cores(root) == 2


@linux_only
def test_unknown_topology_counts_every_processor(tmp_path: Path) -> None:
    assert system.physical_cores(tmp_path) == 8


def test_memory_is_the_least_of_ram_and_every_cgroup(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": "4:memory:/a/b\n0::/\n",
        "proc/self/mountinfo": V1_MEMORY,
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": str(2**63 - 4096),
    }
    assert system.memory_limit(tree(tmp_path, files)) == 8 * GIB
    limit = {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(3 * GIB)}
    assert system.memory_limit(tree(tmp_path, limit)) == 3 * GIB


def test_memory_limit_of_cgroup_v2(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\n",
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/memory.max": str(GIB),
    }
    assert system.memory_limit(tree(tmp_path, files)) == GIB


def test_free_memory_is_what_is_available_within_the_limit(tmp_path: Path) -> None:
    files = {"proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {GIB // 1024} kB\n"}
    assert system.free_memory(tree(tmp_path, files)) == GIB
    files["proc/self/cgroup"] = "0::/a\n"
    files["proc/self/mountinfo"] = V2_MOUNT
    files["sys/fs/cgroup/a/memory.max"] = str(GIB // 2)
    assert system.free_memory(tree(tmp_path, files)) == GIB // 2


def test_what_a_cgroup_holds_is_not_free_but_for_what_it_keeps_of_files(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {6 * GIB // 1024} kB\n",
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/a/memory.max": str(4 * GIB),
        "sys/fs/cgroup/a/memory.current": str(3 * GIB),
        "sys/fs/cgroup/a/memory.stat": f"anon 5\nactive_file {GIB}\ninactive_file {GIB // 2}\n",
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.current": str(GIB),
    }
    assert system.free_memory(tree(tmp_path / "v2", files)) == 2 * GIB + GIB // 2
    files = {
        "proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\n",
        "proc/self/cgroup": "4:memory:/a\n",
        "proc/self/mountinfo": V1_MEMORY,
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(3 * GIB // 2),
        "sys/fs/cgroup/memory/a/memory.stat": f"active_file 1\ntotal_inactive_file {GIB}\n",
    }
    assert system.free_memory(tree(tmp_path / "v1", files)) == GIB + GIB // 2 + 1


def test_peak_memory_grows_with_what_is_held() -> None:
    before = system.peak_rss()
    held = b"x" * (before + 32 * 2**20)
    assert system.peak_rss() >= len(held)


def test_cpu_features_have_ggmls_names(tmp_path: Path) -> None:
    x86 = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 avx512f sse\n"
    root = tree(tmp_path / "x86", {"proc/cpuinfo": x86})
    assert system.cpu_name(root) == "Some CPU"
    assert system.cpu_features(root) == ("AVX", "AVX2", "AVX512")
    arm = tree(tmp_path / "arm", {"proc/cpuinfo": "Features\t: fp asimd asimddp i8mm\n"})
    assert system.cpu_name(arm) == "unknown"
    assert system.cpu_features(arm) == ("NEON", "DOTPROD", "MATMUL_INT8")


@pytest.fixture
def three_cores_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "usable_cpus", lambda: 4)
    monkeypatch.setattr(system, "physical_cores", lambda: 3)


@pytest.mark.usefixtures("three_cores_of_four")
@pytest.mark.parametrize(
    ("asked", "counts"),
    [((None, None), (3, 3)), ((1, None), (1, 1)), ((1, 4), (1, 4)), ((None, 2), (3, 2))],
)
def test_thread_counts(asked: tuple[int | None, int | None], counts: tuple[int, int]) -> None:
    assert system.thread_counts(*asked) == counts


@pytest.mark.usefixtures("three_cores_of_four")
@pytest.mark.parametrize(("asked", "field"), [((5, 1), "n_threads"), ((1, 5), "n_threads_batch")])
def test_more_threads_than_processors_are_refused(asked: tuple[int, int], field: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"{field}=5: this process may use 4") as caught:
        system.thread_counts(*asked)
    assert caught.value.field == field


def test_a_quota_below_the_cores_lowers_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "usable_cpus", lambda: 2)
    monkeypatch.setattr(system, "physical_cores", lambda: 16)
    assert system.thread_counts(None, None) == (2, 2)
