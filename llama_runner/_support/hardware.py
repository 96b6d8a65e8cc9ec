"""Processors, memory and CPU features that this process can use.

A container or a batch system often grants less than the machine has. So the scheduler's affinity
and all cgroups (v1 and v2), from the process's own up to the top, are taken into account. ``root``
is the directory that contains ``/proc`` and ``/sys``.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from llama_runner.errors import InvalidParameterError, of_the_call

__all__ = [
    "cpu_features",
    "cpu_name",
    "free_memory",
    "memory_limit",
    "peak_rss",
    "physical_cores",
    "thread_counts",
    "usable_cpus",
]

ROOT = Path("/")

# CPU features that ggml has kernels for: Linux's names, and ggml's.
FEATURES = {
    "ssse3": "SSSE3",
    "avx": "AVX",
    "f16c": "F16C",
    "fma": "FMA",
    "avx2": "AVX2",
    "bmi2": "BMI2",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "asimdhp": "FP16_VA",
    "i8mm": "MATMUL_INT8",
    "sve": "SVE",
    "sme": "SME",
}


def thread_counts(n_threads: int | None, n_threads_batch: int | None) -> tuple[int, int]:
    """Return the numbers of threads for decoding one token and for the prefill.

    Args:
        n_threads: The number asked for. None is one per usable physical core, because two threads
            on one core share the unit that does the work.
        n_threads_batch: The number asked for. None is as many as for decoding.

    Raises:
        InvalidParameterError: A number exceeds the processors that this process may use: every
            token would wait for the thread without a processor.
    """
    usable = usable_cpus()
    for field, asked in (("n_threads", n_threads), ("n_threads_batch", n_threads_batch)):
        if asked is not None and asked > usable:
            raise InvalidParameterError(
                f"{field}={asked}: this process may use {usable} processors; "
                "more threads only wait for each other",
                field=field,
            )
    decode = n_threads or min(usable, physical_cores())
    return decode, n_threads_batch or decode


def usable_cpus(root: Path = ROOT) -> int:
    """Return the number of processors that this process may keep busy, at least 1.

    That is its affinity or the tightest cgroup quota, whichever is less; a fraction of a processor
    counts as a whole one.
    """
    quotas = (_cpu_quota(directory) for directory in _cgroups("cpu", root))
    return max(1, math.ceil(min((len(_affinity()), *quotas))))


def physical_cores(root: Path = ROOT) -> int:
    """Return the number of physical cores of the processors in this process's affinity."""
    if sys.platform == "darwin":
        # Apple silicon: the efficiency cores would only slow down the others.
        return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or 1
    affinity = _affinity()
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_read(root / topology.format(cpu)) for cpu in affinity}
    return len(affinity) if "" in cores else len(cores)


def memory_limit(root: Path = ROOT) -> int:
    """Return the most bytes that this process can have: the RAM or the tightest cgroup limit."""
    limits = (_memory_quota(directory) for directory in _cgroups("memory", root))
    return int(min((_total_memory(root), *limits)))


def free_memory(root: Path = ROOT) -> int:
    """Return the bytes that this process could get now, without swapping.

    Memory in use does not count as free, neither on the machine nor in any cgroup. The system's
    cache of files does, because the system gives it up.
    """
    free = [memory_limit(root), *(_free_quota(directory) for directory in _cgroups("memory", root))]
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    return int(min(free))


def peak_rss(root: Path = ROOT) -> int:
    """Return the most bytes of memory that this process has ever had resident."""
    found = _status("VmHWM", root)
    if found is not None:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def data_size(root: Path = ROOT) -> int:
    """Return the bytes that count against RLIMIT_DATA now; 0 if the system does not say."""
    return _status("VmData", root) or 0


def cpu_name(root: Path = ROOT) -> str:
    """Return the processor's model name, or "unknown"."""
    return _cpuinfo(root, "model name") or "unknown"


def cpu_features(root: Path = ROOT) -> tuple[str, ...]:
    """Return the features of this CPU that llama.cpp can use, by ggml's names."""
    flags = set((_cpuinfo(root, "flags") or _cpuinfo(root, "Features")).split())
    return tuple(name for flag, name in FEATURES.items() if flag in flags)


def _status(name: str, root: Path) -> int | None:
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _affinity() -> list[int]:
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the directories of this process's cgroups for a controller, from its own upwards."""
    own = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), name))
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, *_, options = filesystem.split()
        if kind == "cgroup2":
            path = PurePosixPath(own.get("", "/"))
        elif kind == "cgroup" and controller in options.split(","):
            path = PurePosixPath(own.get(controller, "/"))
        else:
            continue
        top, point = mount.split()[3:5]
        # A path outside the mount belongs to another namespace; only its top is visible to us.
        ours = path.is_relative_to(top) and ".." not in path.parts
        here = path.relative_to(top) if ours else PurePosixPath()
        for directory in (here, *here.parents):
            yield root / point.lstrip("/") / directory


def _cpu_quota(cgroup: Path) -> float:
    """Return the processors that this cgroup may keep busy; infinity if it sets no limit."""
    v1 = f"{_read(cgroup / 'cpu.cfs_quota_us')} {_read(cgroup / 'cpu.cfs_period_us')}"
    match (_read(cgroup / "cpu.max") or v1).split():
        case [quota, period] if quota.isdigit() and period.isdigit():
            return int(quota) / int(period)
    return math.inf


def _memory_quota(cgroup: Path) -> float:
    limit = _read(cgroup / "memory.max") or _read(cgroup / "memory.limit_in_bytes")
    return int(limit) if limit.isdigit() else math.inf


def _free_quota(cgroup: Path) -> float:
    """Return the bytes that this cgroup may still take; infinity if it sets no limit."""
    limit = _memory_quota(cgroup)
    held = _read(cgroup / "memory.current") or _read(cgroup / "memory.usage_in_bytes")
    if limit == math.inf or not held.isdigit():
        return limit
    numbers = dict(line.split() for line in _read(cgroup / "memory.stat").splitlines())
    # In v1, the numbers that begin with "total" include the cgroups below, as the usage does.
    of_files = sum(
        int(numbers.get(f"total_{name}") or numbers.get(name) or 0)
        for name in ("active_file", "inactive_file", "slab_reclaimable")
    )
    return max(0, limit - max(0, int(held) - of_files))


def _total_memory(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpuinfo(root: Path, key: str) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _sysctl(name: str) -> int:
    import subprocess

    answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return int(answer.stdout) if answer.returncode == 0 else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except of_the_call(OSError):
        return ""
