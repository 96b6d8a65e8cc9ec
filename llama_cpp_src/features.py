"""The tools and the CPU of this machine, and the build options that follow from them.

Three environment variables decide, the rest is found:

``LLAMA_RUNNER_ACCEL``
    ``auto`` (the default: Metal on Apple silicon, otherwise the CPU alone), ``cpu``, ``cuda``,
    ``hip``, ``metal`` or ``vulkan``. A toolkit that happens to be installed is not taken
    unasked: it makes the build many times longer and the result unportable.
``LLAMA_RUNNER_NATIVE``
    ``1``: for exactly this CPU; ``0``: for any of the last decade (x86-64 with AVX2 and FMA).
    By default an editable or in-place build is native, and a wheel is not.
``LLAMA_RUNNER_SANITIZE``
    ``address``: everything native with AddressSanitizer, in a build folder of its own. Not set: as
    it is shipped.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ACCELERATORS", "SANITIZERS", "BuildToolError", "Features", "detect"]

# The CMake switch of each accelerator.
ACCELERATORS: Mapping[str, str | None] = {
    "cpu": None,
    "cuda": "GGML_CUDA",
    "hip": "GGML_HIP",
    "metal": "GGML_METAL",
    "vulkan": "GGML_VULKAN",
}

# Its reports are readable only with frame pointers and line numbers.
SANITIZERS: Mapping[str, list[str]] = {
    "address": ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1"],
}

# The portable x86-64 baseline: CMake switch and compiler flag. Always given explicitly, because
# ggml's own defaults fall back to plain SSE2 as soon as SOURCE_DATE_EPOCH is set.
BASELINE_X86 = {
    "GGML_SSE42": "-msse4.2",
    "GGML_AVX": "-mavx",
    "GGML_AVX2": "-mavx2",
    "GGML_BMI2": "-mbmi2",
    "GGML_FMA": "-mfma",
    "GGML_F16C": "-mf16c",
}


class BuildToolError(Exception):
    """A tool is missing or an option is unknown; the message says what to do."""


@dataclass(frozen=True)
class Features:
    """The decisions for one build.

    Attributes:
        accelerator: A key of ``ACCELERATORS``.
        native: Whether the code is for exactly this CPU.
        machine: The processor architecture, for example ``x86_64``.
        cmake: Path of the CMake program.
        ninja: Path of the ninja program; CMake's default generator is used where it is absent.
        c_compiler: The C compiler's command.
        cxx_compiler: The C++ compiler's command.
        launcher: Path of a compiler cache, if there is one.
        jobs: How many compilers may run at once.
        sanitizer: A key of ``SANITIZERS``, or None.
    """

    accelerator: str
    native: bool
    machine: str
    cmake: str
    ninja: str | None
    c_compiler: str
    cxx_compiler: str
    launcher: str | None
    jobs: int
    sanitizer: str | None = None

    @property
    def tag(self) -> str:
        """Return the name of the build folder; builds that differ in it share no object files."""
        kind = "native" if self.native else "portable"
        suffix = f"-{self.sanitizer}" if self.sanitizer else ""
        return f"{sysconfig.get_platform()}-{self.accelerator}-{kind}{suffix}"

    @property
    def is_x86(self) -> bool:
        return self.machine.lower() in ("x86_64", "amd64")

    def cmake_options(self) -> dict[str, str]:
        """Return the CMake cache entries that follow from the decisions."""
        options = {"GGML_NATIVE": _on_off(self.native)}
        if self.is_x86 and not self.native:
            options |= dict.fromkeys(BASELINE_X86, "ON")
        for name, switch in ACCELERATORS.items():
            if switch:
                options[switch] = _on_off(name == self.accelerator)
        options["GGML_METAL_EMBED_LIBRARY"] = _on_off(self.accelerator == "metal")
        options["LLAMA_RUNNER_SANITIZE"] = ";".join(self.sanitizer_flags())
        options["CMAKE_C_COMPILER"] = self.c_compiler
        options["CMAKE_CXX_COMPILER"] = self.cxx_compiler
        options["CMAKE_C_COMPILER_LAUNCHER"] = self.launcher or ""
        options["CMAKE_CXX_COMPILER_LAUNCHER"] = self.launcher or ""
        if self.ninja:
            options["CMAKE_MAKE_PROGRAM"] = self.ninja
        return options

    def cpu_flags(self) -> list[str]:
        """Return the compiler flags that build the extension for the same CPU as ggml."""
        if self.native:
            return ["-march=native" if self.is_x86 else "-mcpu=native"]
        return list(BASELINE_X86.values()) if self.is_x86 else []

    def sanitizer_flags(self) -> list[str]:
        """Return the flags of a sanitizer build, for all compilers and the linker."""
        return list(SANITIZERS[self.sanitizer]) if self.sanitizer else []


def detect(*, local: bool, environ: Mapping[str, str] = os.environ) -> Features:
    """Look at the machine and the environment.

    Args:
        local: Whether the result stays on this machine (editable or in-place build).
        environ: The environment variables that count.

    Raises:
        BuildToolError: No compiler, no CMake, no Python headers, or an unknown value in one of
            the variables.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    c_compiler = _compiler("C", "CC", ("cc", "gcc", "clang"), environ, path)
    cxx_compiler = _compiler("C++", "CXX", ("c++", "g++", "clang++"), environ, path)
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise BuildToolError(
            f"Python's headers are missing ({headers}/Python.h): install them "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise BuildToolError("CMake is missing: install it (python -m pip install cmake ninja).")
    return Features(
        accelerator=_accelerator(environ),
        native=_native(environ, default=local),
        machine=platform.machine(),
        cmake=cmake,
        ninja=shutil.which("ninja", path=path),
        c_compiler=c_compiler,
        cxx_compiler=cxx_compiler,
        launcher=shutil.which("ccache", path=path) or shutil.which("sccache", path=path),
        jobs=_jobs(environ),
        sanitizer=_sanitizer(environ),
    )


def _on_off(value: bool) -> str:
    return "ON" if value else "OFF"


def _compiler(
    language: str,
    variable: str,
    names: tuple[str, ...],
    environ: Mapping[str, str],
    path: str,
) -> str:
    wished = environ.get(variable, "")
    for name in (wished,) if wished else names:
        found = shutil.which(name, path=path)
        if found is None:
            continue
        try:
            # macOS has a stub in place of the compiler until the tools are installed.
            subprocess.run([found, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return found
    missing = f"{variable}={wished} does not run" if wished else f"No {language} compiler"
    raise BuildToolError(
        f"{missing}: install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
        "macOS: xcode-select --install)."
    )


def _accelerator(environ: Mapping[str, str]) -> str:
    wish = environ.get("LLAMA_RUNNER_ACCEL", "").lower() or "auto"
    if wish == "auto":
        apple_silicon = sys.platform == "darwin" and platform.machine() == "arm64"
        return "metal" if apple_silicon else "cpu"
    if wish not in ACCELERATORS:
        known = ", ".join(["auto", *ACCELERATORS])
        raise BuildToolError(f"LLAMA_RUNNER_ACCEL={wish} is unknown: use one of {known}.")
    return wish


def _native(environ: Mapping[str, str], *, default: bool) -> bool:
    wish = environ.get("LLAMA_RUNNER_NATIVE", "")
    if wish not in ("", "0", "1"):
        raise BuildToolError(f"LLAMA_RUNNER_NATIVE={wish} is unknown: use 0 or 1.")
    return wish == "1" if wish else default


def _sanitizer(environ: Mapping[str, str]) -> str | None:
    wish = environ.get("LLAMA_RUNNER_SANITIZE", "")
    if wish and wish not in SANITIZERS:
        raise BuildToolError(
            f"LLAMA_RUNNER_SANITIZE={wish} is unknown: use {' or '.join(SANITIZERS)}, or unset it."
        )
    return wish or None


def _jobs(environ: Mapping[str, str]) -> int:
    wish = environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if wish.isdecimal() and int(wish) > 0:
        return int(wish)
    if sys.platform == "linux":
        return min(len(os.sched_getaffinity(0)), _cgroup_cpus())
    return os.cpu_count() or 1


def _cgroup_cpus(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the number of CPUs in the cgroup's quota; a large one if there is no quota."""
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return sys.maxsize
