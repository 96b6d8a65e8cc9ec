"""What the machine and the environment make of the build."""

from __future__ import annotations

import platform
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from llama_cpp_src import features
from llama_cpp_src.features import BuildToolError, Features, detect

PLAIN = Features(
    accelerator="cpu",
    native=False,
    machine="x86_64",
    cmake="/usr/bin/cmake",
    ninja=None,
    c_compiler="/usr/bin/cc",
    cxx_compiler="/usr/bin/c++",
    launcher=None,
    jobs=2,
)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has exactly the programs of this folder: at first a compiler and CMake."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cc", "c++", "cmake"):
        add_tool(folder, name)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def add_tool(folder: Path, name: str, status: int = 0) -> Path:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\nexit {status}\n")
    tool.chmod(0o755)
    return tool


def on(tools: Path, local: bool = True, **variables: str) -> Features:
    return detect(local=local, environ={"PATH": str(tools), **variables})


class TestTools:
    def test_are_found_on_the_path(self, tools: Path) -> None:
        found = on(tools)
        assert (found.c_compiler, found.cxx_compiler) == (str(tools / "cc"), str(tools / "c++"))
        assert (found.cmake, found.ninja, found.launcher) == (str(tools / "cmake"), None, None)

    def test_optional_ones_are_used_when_present(self, tools: Path) -> None:
        ninja, ccache = add_tool(tools, "ninja"), add_tool(tools, "ccache")
        found = on(tools)
        assert (found.ninja, found.launcher) == (str(ninja), str(ccache))
        options = found.cmake_options()
        assert options["CMAKE_CXX_COMPILER_LAUNCHER"] == str(ccache)
        assert options["CMAKE_MAKE_PROGRAM"] == str(ninja)

    def test_a_wished_compiler_comes_first(self, tools: Path) -> None:
        clang = add_tool(tools, "clang++-17")
        assert on(tools, CXX="clang++-17").cxx_compiler == str(clang)

    def test_a_wished_compiler_that_is_missing(self, tools: Path) -> None:
        with pytest.raises(BuildToolError, match=r"CXX=icpx does not run: install one"):
            on(tools, CXX="icpx")

    def test_no_compiler(self, tools: Path) -> None:
        (tools / "c++").unlink()
        with pytest.raises(
            BuildToolError, match=r"No C\+\+ compiler: .*apt install g\+\+"
        ) as caught:
            on(tools)
        assert "\n" not in str(caught.value)

    def test_a_compiler_that_is_only_a_stub(self, tools: Path) -> None:
        add_tool(tools, "c++", status=1)
        with pytest.raises(BuildToolError, match=r"No C\+\+ compiler"):
            on(tools)

    def test_no_cmake(self, tools: Path) -> None:
        (tools / "cmake").unlink()
        with pytest.raises(
            BuildToolError, match=r"CMake is missing: .*pip install cmake"
        ) as caught:
            on(tools)
        assert "\n" not in str(caught.value)

    def test_no_python_headers(self, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tools / name))
        with pytest.raises(BuildToolError, match="apt install python3-dev"):
            on(tools)


class TestCpu:
    def test_a_local_build_is_native_and_a_wheel_is_not(self, tools: Path) -> None:
        assert on(tools, local=True).native
        assert not on(tools, local=False).native

    def test_the_variable_wins(self, tools: Path) -> None:
        assert not on(tools, local=True, LLAMA_RUNNER_NATIVE="0").native
        assert on(tools, local=False, LLAMA_RUNNER_NATIVE="1").native
        with pytest.raises(BuildToolError, match="LLAMA_RUNNER_NATIVE=yes"):
            on(tools, LLAMA_RUNNER_NATIVE="yes")

    def test_portable_x86_names_every_instruction_set(self) -> None:
        options = PLAIN.cmake_options()
        sets = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")
        assert options["GGML_NATIVE"] == "OFF"
        assert all(options[f"GGML_{name}"] == "ON" for name in sets)
        assert PLAIN.cpu_flags() == ["-msse4.2", "-mavx", "-mavx2", "-mbmi2", "-mfma", "-mf16c"]

    def test_native_leaves_the_instruction_sets_to_the_compiler(self) -> None:
        native = replace(PLAIN, native=True)
        assert native.cmake_options()["GGML_NATIVE"] == "ON"
        assert "GGML_AVX2" not in native.cmake_options()
        assert native.cpu_flags() == ["-march=native"]
        assert replace(native, machine="aarch64").cpu_flags() == ["-mcpu=native"]

    def test_portable_arm_has_no_x86_flags(self) -> None:
        arm = replace(PLAIN, machine="aarch64")
        assert arm.cpu_flags() == []
        assert "GGML_AVX2" not in arm.cmake_options()


class TestAccelerator:
    @pytest.mark.parametrize("name", features.ACCELERATORS)
    def test_exactly_the_chosen_one_is_on(self, tools: Path, name: str) -> None:
        chosen = on(tools, LLAMA_RUNNER_ACCEL=name)
        options = chosen.cmake_options()
        switches = {switch for switch in features.ACCELERATORS.values() if switch}
        enabled = {switch for switch in switches if options[switch] == "ON"}
        assert enabled == {features.ACCELERATORS[name]} - {None}

    @pytest.mark.parametrize(
        ("system", "machine", "expected"),
        [("linux", "x86_64", "cpu"), ("darwin", "arm64", "metal"), ("darwin", "x86_64", "cpu")],
    )
    def test_auto(
        self,
        tools: Path,
        monkeypatch: pytest.MonkeyPatch,
        system: str,
        machine: str,
        expected: str,
    ) -> None:
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        assert on(tools).accelerator == expected

    def test_an_unknown_one(self, tools: Path) -> None:
        with pytest.raises(
            BuildToolError, match=r"LLAMA_RUNNER_ACCEL=tpu .* cpu, cuda, hip, metal"
        ):
            on(tools, LLAMA_RUNNER_ACCEL="tpu")


def test_builds_that_differ_do_not_share_a_folder() -> None:
    changes = [{}, {"native": True}, {"accelerator": "cuda"}, {"sanitizer": "address"}]
    assert len({replace(PLAIN, **change).tag for change in changes}) == len(changes)


class TestSanitizer:
    def test_is_not_used_unasked(self, tools: Path) -> None:
        assert on(tools).sanitizer_flags() == []
        assert on(tools).cmake_options()["LLAMA_RUNNER_SANITIZE"] == ""

    def test_checks_llama_cpp_and_the_extension(self, tools: Path) -> None:
        checked = on(tools, LLAMA_RUNNER_SANITIZE="address")
        assert "-fsanitize=address" in checked.sanitizer_flags()
        assert "-fsanitize=address" in checked.cmake_options()["LLAMA_RUNNER_SANITIZE"].split(";")

    def test_an_unknown_one(self, tools: Path) -> None:
        with pytest.raises(BuildToolError, match=r"LLAMA_RUNNER_SANITIZE=heap .* use address"):
            on(tools, LLAMA_RUNNER_SANITIZE="heap")


class TestJobs:
    def test_the_wish_counts(self, tools: Path) -> None:
        assert on(tools, CMAKE_BUILD_PARALLEL_LEVEL="7").jobs == 7

    @pytest.mark.parametrize(
        ("content", "expected"),
        [("150000 100000", 2), ("20000 100000", 1), ("max 100000", sys.maxsize), ("", sys.maxsize)],
    )
    def test_the_quota_of_the_cgroup(self, tmp_path: Path, content: str, expected: int) -> None:
        quota = tmp_path / "cpu.max"
        quota.write_text(content)
        assert features._cgroup_cpus(quota) == expected
        assert features._cgroup_cpus(tmp_path / "missing") == sys.maxsize
