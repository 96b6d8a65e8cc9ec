"""The built extension module: what it links, hides and says of itself."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

import llama_runner
from llama_cpp_src.source import find_tree, read_pin

PACKAGE = Path(llama_runner.__file__).parent
ROOT = Path(__file__).parents[2]


def extension_modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*") if path.suffix in (".so", ".pyd")]


def test_there_is_exactly_one_extension_module() -> None:
    (module,) = extension_modules()
    assert module.name.startswith("_core.")


@pytest.mark.parametrize("symbol", ["llama_decode", "ggml_init", "gguf_init_from_file"])
def test_llama_cpp_stays_hidden_from_the_process(symbol: str) -> None:
    (module,) = extension_modules()
    library = ctypes.CDLL(str(module))
    assert library.PyInit__core
    assert not hasattr(library, symbol)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_openmp_is_not_loaded() -> None:
    script = "import llama_runner._core; print(open('/proc/self/maps').read())"
    maps = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "_core." in maps.stdout
    assert "libgomp" not in maps.stdout


def test_the_build_info_names_the_pin() -> None:
    info = json.loads((PACKAGE / "_build_info.json").read_text())
    pin = read_pin()
    assert info["llama_cpp_commit"] == pin.commit
    assert info["llama_cpp_version"] == pin.version
    assert info["ggml_version"] == pin.ggml_version
    assert info["compiler"]


def test_the_notices_of_what_is_linked_are_ours_to_ship() -> None:
    notices = (ROOT / "THIRD_PARTY_LICENSES").read_text()
    licence = (find_tree() / "LICENSE").read_text()
    holder = next(line for line in licence.splitlines() if line.startswith("Copyright"))
    assert holder in notices
    assert licence[licence.index("Permission is") :].strip() in notices
