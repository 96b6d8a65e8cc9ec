"""llama.cpp is silent; on request its lines go to Python's logging; an abort starts no debugger."""

from __future__ import annotations

import logging
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner
from llama_runner._core import Context, Model, set_log_level
from llama_runner.errors import InvalidParameterError, LlamaError, ModelLoadError
from tests.unit.loaders.model_files import tiny_llama


def broken_file(model_path: Path, folder: Path) -> Path:
    """A file that passes for a GGUF up to where llama.cpp reads its tensors."""
    path = folder / "broken.gguf"
    path.write_bytes(model_path.read_bytes()[:5_000_000])
    return path


def test_nothing_is_printed(model_path: Path, tmp_path: Path, capfd) -> None:
    # capfd sees what C and C++ write, too.
    with LlamaRunner(model_path, n_ctx=512, n_threads=1, check_tensors=True) as runner:
        runner.generate_stateful([{"role": "user", "content": "Hello"}], 3)
        runner.gc_context()
        for prompt in ("", "word " * 600, [-1], [{"role": "nobody", "content": 3}]):
            with pytest.raises(LlamaError):
                runner.generate_stateless(prompt, 3)
    with pytest.raises(LlamaError):
        LlamaRunner(model_path, n_ctx=512, chat_template="{% if %}")
    with pytest.raises(ModelLoadError):
        Model(broken_file(model_path, tmp_path))
    assert capfd.readouterr() == ("", "")


def test_error_carries_the_line_that_llama_cpp_logged(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        Model(broken_file(model_path, tmp_path))
    assert "tensor" in caught.value.native
    assert str(caught.value).endswith(f"(llama.cpp: {caught.value.native})")
    assert "\n" not in str(caught.value)


def test_broken_weights_are_told_to_logging(tmp_path: Path, capfd, caplog) -> None:
    path = tiny_llama(2).write(tmp_path / "broken.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:-4] + struct.pack("<f", math.nan))
    set_log_level("error")
    try:
        with pytest.raises(ModelLoadError) as caught:
            LlamaRunner(path, check_tensors=True)
    finally:
        set_log_level(None)
    assert capfd.readouterr() == ("", "")
    assert "found nan value" in caplog.text
    assert "has invalid data" in caught.value.native  # says which tensor


LOGGING = """
import logging
from llama_runner._core import set_log_level

class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []
    def emit(self, record):
        self.records.append(record)

lines = Lines()
logging.getLogger("llama_runner.native").addHandler(lines)
logging.getLogger("llama_runner.native").setLevel(logging.DEBUG)
"""


def test_lines_go_to_logging_from_the_level_on(python) -> None:
    answer = python(
        LOGGING
        + """
def load():
    lines.records.clear()
    with new_runner() as runner:
        runner.generate_stateless("The sky is", 2)
    return sorted({record.levelname for record in lines.records}), len(lines.records)

assert load() == ([], 0)
set_log_level("debug")
levels, n_debug = load()
assert {"DEBUG", "INFO"} <= set(levels), levels
assert all("\\n" not in record.getMessage() for record in lines.records)
set_log_level("info")
levels, n_info = load()
assert "INFO" in levels and "DEBUG" not in levels, levels
assert 0 < n_info < n_debug
set_log_level("error")
assert load() == ([], 0)
set_log_level(None)
assert load() == ([], 0)
"""
    )
    assert answer == ""


def test_lines_of_several_threads(python) -> None:
    # The loop computes without the GIL, and its lines need it.
    answer = python(
        LOGGING
        + """
set_log_level("debug")
runner = new_runner()
threads = [
    threading.Thread(target=lambda: runner.generate_stateless("The sky is", 10, **ENDLESS))
    for _ in range(4)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
runner.close()
print(len(lines.records) > 0)
"""
    )
    assert answer == "True\n"


def test_a_broken_log_handler_does_no_harm(python) -> None:
    answer = python(
        LOGGING
        + """
def fail(record):
    raise ValueError("no disk")

lines.emit = fail
set_log_level("debug")
with new_runner() as runner:
    print(runner.generate_stateless("The sky is", 2).usage.completion_tokens)
"""
    )
    assert answer == "2\n"


def test_ctrl_c_inside_a_handler_ends_the_load(python) -> None:
    answer = python(
        LOGGING
        + """
def interrupt(record):
    del lines.emit
    os.kill(os.getpid(), signal.SIGINT)

lines.emit = interrupt
set_log_level("debug")
try:
    new_runner()
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    assert answer == "interrupted\n"


@pytest.mark.parametrize("kind", ["TimeoutError", "SystemExit"])
def test_what_a_signal_handler_raises_comes_out_of_the_call(python, kind: str) -> None:
    """While llama.cpp works, Python's only own code is that which logs."""
    answer = python(
        LOGGING
        + f"""
def stop(*_):
    raise {kind}("enough")

n_loads = 0
signal.signal(signal.SIGALRM, stop)
set_log_level("debug")
for i in range(8):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.01 * i)
        with new_runner() as runner:
            runner.generate_stateless("Why?", 900, **ENDLESS)
    except {kind} as error:
        n_loads += str(error) == "enough"
print(n_loads)
"""
    )
    assert answer == "8\n"


@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        ("INFO", {"INFO", "ERROR"}),
        ("Error", {"ERROR"}),
        (logging.DEBUG, {"DEBUG", "INFO", "ERROR"}),
        (15, {"INFO", "ERROR"}),
        ("critical", set()),
        (logging.CRITICAL, set()),
    ],
)
def test_levels_as_logging_has_them(
    model_path: Path, tmp_path: Path, caplog, level: str | int, kinds: set[str]
) -> None:
    caplog.set_level(logging.DEBUG, "llama_runner.native")
    set_log_level(level)
    try:
        with pytest.raises(ModelLoadError):
            Model(broken_file(model_path, tmp_path))
        Model(model_path, vocab_only=True).close()
    finally:
        set_log_level(None)
    found = {record.levelname for record in caplog.records}
    assert found - {"WARNING"} == kinds


@pytest.mark.parametrize("level", ["loud", "", 2.5, True, b"info", ["info"]])
def test_unknown_level_is_refused(level: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"level: must be one of debug, .* \(got"):
        set_log_level(level)


def test_debugger_is_off_before_the_core_is_loaded() -> None:
    # ggml reads this when it is loaded; where it is not set, an abort forks gdb into the process.
    program = """
import ctypes, sys, llama_runner
assert "llama_runner._core" not in sys.modules
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(getenv(b"GGML_NO_BACKTRACE"))
"""
    without = {name: value for name, value in os.environ.items() if name != "GGML_NO_BACKTRACE"}
    answer = subprocess.run([sys.executable, "-c", program], env=without, capture_output=True)
    assert (answer.stdout, answer.stderr) == (b"b'1'\n", b"")


def test_context_that_cannot_be_is_one_error(model_path: Path, capfd) -> None:
    with Model(model_path) as model, pytest.raises(LlamaError) as caught:
        Context(model, n_ctx=512, kv_type="q4_0", flash_attention=False)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
