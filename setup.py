"""Build: llama.cpp's source, the static native part (CMake), then the one extension module.

Everything declarative is in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from llama_cpp_src import features, source  # noqa: E402  (the line above makes them importable)

PACKAGE = Path("llama_runner")
BUILD_INFO = "_build_info.json"


class BuildNative(build_ext):
    """CMake builds the static libraries, then setuptools the extension that links them."""

    def run(self) -> None:
        try:
            machine = features.detect(local=bool(self.inplace))
            pin = source.read_pin()
            tree = source.find_tree(pin)
        except (features.BuildToolError, source.SourceError) as error:
            raise SystemExit(f"error: {error}") from None
        # One compiler for CMake and for setuptools.
        os.environ["CC"], os.environ["CXX"] = machine.c_compiler, machine.cxx_compiler
        native_dir = ROOT / "build" / f"native-{machine.tag}"
        native_dir.mkdir(parents=True, exist_ok=True)
        with source.exclusive(native_dir / "lock"):
            build_native(machine, pin, tree, native_dir)
        if self.inplace:
            # Editable installs come with throw-away folders; these last, so that a second
            # install has nothing to do.
            self.build_lib = str(ROOT / "build" / f"lib-{machine.tag}")
            self.build_temp = str(ROOT / "build" / f"temp-{machine.tag}")
        self.machine = machine
        self.link_against(native_dir)
        super().run()
        self.write_build_info(pin, native_dir)

    def link_against(self, native_dir: Path) -> None:
        """Complete the extension with what CMake wrote down."""
        native = json.loads((native_dir / "native.json").read_text(encoding="utf-8"))
        (extension,) = self.extensions
        extension.include_dirs += native["include_dirs"]
        extension.define_macros += [macro_of(definition) for definition in native["definitions"]]
        extension.extra_compile_args += self.machine.cpu_flags() + self.machine.sanitizer_flags()
        extension.extra_link_args += self.machine.sanitizer_flags()
        for item in (native_dir / "link_line.txt").read_text(encoding="utf-8").splitlines():
            library = native_dir / item
            if library.is_file():
                extension.extra_link_args.append(str(library))
                extension.depends.append(str(library))
            else:
                extension.extra_link_args.append(item)

    def build_extension(self, ext: Extension) -> None:
        from Cython.Build import cythonize

        (translated,) = cythonize([ext], build_dir=str(ROOT / "build" / "cython"))
        ext.sources = translated.sources
        if self.machine.launcher:
            for name in ("compiler_so", "compiler_so_cxx"):
                command = getattr(self.compiler, name, None)
                if command and command[0] != self.machine.launcher:
                    command.insert(0, self.machine.launcher)
        super().build_extension(ext)

    def copy_file(self, infile: str, outfile: str, *args: Any, **options: Any) -> tuple[str, bool]:
        """Whole or not at all: a build may be cut short, and programs have the old file mapped."""
        part = f"{outfile}.part"
        super().copy_file(infile, part, *args, **options)
        Path(part).replace(outfile)
        return outfile, True

    def write_build_info(self, pin: source.Pin, native_dir: Path) -> None:
        """Record what was built, for ``llama-runner doctor``."""
        native = json.loads((native_dir / "native.json").read_text(encoding="utf-8"))
        info = {
            "llama_cpp_commit": pin.commit,
            "llama_cpp_version": pin.version,
            "ggml_version": pin.ggml_version,
            "accelerator": self.machine.accelerator,
            "native": self.machine.native,
            "cpu_flags": self.machine.cpu_flags(),
            "compiler": native["compiler"],
            "target": native["target"],
        }
        home = ROOT if self.inplace else Path(self.build_lib)
        path = home / PACKAGE / BUILD_INFO
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


class SourceDistribution(sdist):
    """Our own source distribution carries the pruned llama.cpp tree."""

    def run(self) -> None:
        try:
            source.find_tree(environ={})
        except source.SourceError as error:
            raise SystemExit(f"error: {error}") from None
        super().run()


def build_native(machine: features.Features, pin: source.Pin, tree: Path, native_dir: Path) -> None:
    """Configure and build the static libraries; quick where nothing changed."""
    options = machine.cmake_options()
    options |= {"LLAMA_CPP_DIR": str(tree), "LLAMA_CPP_COMMIT": pin.commit[:7]}
    configure = [machine.cmake, "-S", str(ROOT / "llama_cpp_src"), "-B", str(native_dir)]
    if machine.ninja:
        configure += ["-G", "Ninja"]
    if compiler_changed(machine, native_dir):
        configure.append("--fresh")  # CMake cannot change its compiler in place
    configure += [f"-D{name}={value}" for name, value in options.items()]
    log = native_dir / "configure.log"
    with log.open("w", encoding="utf-8") as stream:
        if subprocess.run(configure, stdout=stream, stderr=subprocess.STDOUT).returncode:
            stream.flush()
            sys.stderr.write(log.read_text(encoding="utf-8"))
            raise SystemExit("error: CMake could not configure llama.cpp; its output is above.")
    print(f"llama.cpp {pin.version} for {machine.tag}, {machine.jobs} compilers", flush=True)
    build = [machine.cmake, "--build", str(native_dir), "--parallel", str(machine.jobs)]
    if subprocess.run(build).returncode:
        raise SystemExit("error: llama.cpp could not be compiled; the compiler's message is above.")


def compiler_changed(machine: features.Features, native_dir: Path) -> bool:
    try:
        cache = (native_dir / "CMakeCache.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    compilers = dict(re.findall(r"^CMAKE_(C|CXX)_COMPILER:\w+=(.*)$", cache, re.MULTILINE))
    return compilers != {"C": machine.c_compiler, "CXX": machine.cxx_compiler}


def macro_of(definition: str) -> tuple[str, Any]:
    name, equals, value = definition.partition("=")
    return (name, value if equals else None)


def extension() -> Extension:
    link_args = ["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []
    pieces = [
        Path("setup.py"),
        *PACKAGE.glob("_native/**/*.pxi"),
        *PACKAGE.glob("_llama_cpp/**/*.pxd"),
        *PACKAGE.glob("_shim/**/*.hpp"),
        *PACKAGE.glob("_core.pxd"),
    ]
    return Extension(
        "llama_runner._core",
        sources=[str(PACKAGE / "_core.pyx")],
        depends=sorted(map(str, pieces)),
        language="c++",
        extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
        extra_link_args=link_args,
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildNative, "sdist": SourceDistribution},
)
