"""The command line, with a runner that needs no model."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
import pytest

from llama_runner.cli import main, output
from llama_runner.cli.chat import _lines
from llama_runner.cli.options import CONTEXT, GENERATION
from llama_runner.errors import ContextFullError, DownloadError, ModelLoadError
from llama_runner.loaders import validate_model
from llama_runner.params import ContextParams, GenerationParams
from llama_runner.results import (
    Chunk,
    Completion,
    ContextInfo,
    GcReport,
    Receipt,
    Span,
    Timings,
    Usage,
)
from tests.unit.loaders.gguf_writer import F32, U32
from tests.unit.loaders.model_files import tiny_llama
from tests.unit.loaders.test_reading import write_split

Run = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeStream(Iterator[Chunk]):
    """Chunks, or whatever is to be raised in their place."""

    def __init__(self, items: list[Chunk | BaseException]) -> None:
        self.items = items
        self.closed = False

    def __next__(self) -> Chunk:
        if not self.items:
            raise StopIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self.closed = True


class FakeRunner:
    """Answers every prompt with the same words, and remembers what it was asked."""

    made: ClassVar[list[FakeRunner]] = []
    load_error: ClassVar[BaseException | None] = None
    has_template: ClassVar[bool] = True
    words: ClassVar[list[str | BaseException]] = ["Hel", "lo"]
    finish_reason: ClassVar[Any] = "stop"

    def __init__(self, model: Path, *, progress: Any = None, **settings: Any) -> None:
        if self.load_error is not None:
            raise self.load_error
        if progress is not None:
            progress(1.0)
        self.model, self.settings = model, settings
        self.chat_template = "{{ messages }}" if self.has_template else None
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.streams: list[FakeStream] = []
        self.used = 0
        self.closed = False
        self.made.append(self)

    def completion(self) -> Completion:
        text = "".join(word for word in self.words if isinstance(word, str))
        return Completion(
            text,
            (1, 2),
            self.finish_reason,
            None,
            Usage(7, 2),
            Timings(10, 12, 20, 50, 700),
            Receipt(0, 7),
            1,
        )

    def generate_stateless(self, prompt: Any, **overrides: Any) -> Completion:
        self.asked.append((prompt, overrides))
        return self.completion()

    def stream_stateless(self, prompt: Any, **overrides: Any) -> FakeStream:
        self.asked.append((prompt, overrides))
        chunks = [word if isinstance(word, BaseException) else Chunk(word) for word in self.words]
        stream = FakeStream([*chunks, Chunk("", (), "stop", self.completion())])
        self.streams.append(stream)
        return stream

    def stream_stateful(self, prompt: Any, **overrides: Any) -> FakeStream:
        self.used += 10
        return self.stream_stateless(prompt, **overrides)

    def get_context_info(self) -> ContextInfo:
        spans = (Span("system", 0, 4, True, 0), Span("user", 4, 6, False, 0)) if self.used else ()
        return ContextInfo(100, self.used, 1024, spans, 0, "growing")

    def gc_context(self) -> GcReport:
        return GcReport(1, 5, "shift", 0, 0.5)

    def clear_context(self) -> None:
        self.used = 0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    class Runner(FakeRunner):
        made: ClassVar[list[FakeRunner]] = []

    module = types.ModuleType("llama_runner.runner")
    module.LlamaRunner = Runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_runner.runner", module)
    return Runner


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GGUF file with a hostile name."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("evil\x1b[31m\nname")
    writer.add_context_length(64)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("LLAMA_RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_RUNNER_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.delenv("LLAMA_RUNNER_MODEL", raising=False)

    def run(*arguments: str | Path, stdin: str | io.StringIO = "") -> tuple[int, str, str]:
        typed = io.StringIO(stdin) if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return run


# ---- generate ------------------------------------------------------------------------------


def test_generate_streams_to_stdout_and_tells_the_rest_on_stderr(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    status, out, err = run("generate", "-m", model, "Hi")
    assert (status, out) == (0, "Hello\n")
    assert str(model) in err
    assert "7 tokens, 700/s" in err
    (runner,) = fake.made
    assert runner.asked == [([{"role": "user", "content": "Hi"}], {})]
    assert runner.settings == {"n_seq_max": 1}
    assert runner.closed


def test_quiet_prints_nothing_but_the_answer(fake: type[FakeRunner], model: Path, run: Run) -> None:
    assert run("generate", "-q", "-m", model, "Hi") == (0, "Hello\n", "")


def test_generate_hands_on_exactly_the_options_that_were_given(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    given = ["--max-tokens=5", "-t0", "--seed=3", "--stop=a", "--stop=b", "--n-ctx=512"]
    run("generate", "-m", model, *given, "--kv-type=q8_0", "--n-threads=1", "Hi")
    (runner,) = fake.made
    assert runner.asked[0][1] == {
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 3,
        "stop": ("a", "b"),
    }
    assert runner.settings == {"n_seq_max": 1, "n_ctx": 512, "kv_type": "q8_0", "n_threads": 1}


def test_every_option_is_a_parameter_and_shows_its_default() -> None:
    for group, params in ((GENERATION, GenerationParams()), (CONTEXT, ContextParams())):
        for option in group:
            assert option.name
            value = getattr(params, option.name, None)
            if option.name not in ("n_gpu_layers", "stop") and value is not None:
                assert option.show_default == str(value)


def test_wrong_values_are_refused_before_the_model_is_loaded(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    status, _, err = run("generate", "-m", model, "--top-p", "7", "Hi")
    assert (status, err) == (1, "error: top_p=7.0: must be a number above 0 and at most 1\n")
    assert not fake.made


def test_raw_and_system_prompts(fake: type[FakeRunner], model: Path, run: Run) -> None:
    run("generate", "-m", model, "--raw", "Hi")
    run("generate", "-m", model, "--system", "Be kind", "Hi")
    assert fake.made[0].asked[0][0] == "Hi"
    assert fake.made[1].asked[0][0] == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi"},
    ]
    assert run("generate", "-m", model, "--raw", "--system", "Be kind", "Hi")[0] == 2


def test_a_model_without_a_template_gets_the_bare_text(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.has_template = False
    status, _, err = run("generate", "-m", model, "Hi")
    assert (status, fake.made[0].asked[0][0]) == (0, "Hi")
    assert "no chat template" in err


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_the_prompt_can_be_piped_in(
    fake: type[FakeRunner], model: Path, run: Run, arguments: tuple[str, ...]
) -> None:
    run("generate", "--raw", "-m", model, *arguments, stdin="one\ntwo\n")
    assert fake.made[0].asked[0][0] == "one\ntwo"


def test_a_prompt_option_may_begin_with_a_dash(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    run("generate", "--raw", "-m", model, "--prompt", "-")
    assert fake.made[0].asked[0][0] == "-"


def test_no_prompt_or_two_is_wrong_usage(fake: type[FakeRunner], run: Run) -> None:
    assert run("generate", "a", "--prompt", "b")[0] == 2
    status, _, err = run("generate", stdin=Terminal())
    assert status == 2
    assert "No prompt" in err
    assert not fake.made


def test_generate_json_is_the_whole_completion(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    _, out, _ = run("generate", "--json", "-m", model, "Hi")
    result = json.loads(out)
    assert result["text"] == "Hello"
    assert result["usage"] == {"prompt_tokens": 7, "completion_tokens": 2}


def test_an_error_is_one_line_and_status_1(fake: type[FakeRunner], model: Path, run: Run) -> None:
    fake.load_error = ModelLoadError("it is\x1b[2J broken", native="tensor\n'x'")
    status, out, err = run("generate", "-q", "-m", model, "Hi")
    assert (status, out) == (1, "")
    assert err == "error: it is\\x1b[2J broken (llama.cpp: tensor\\n'x')\n"


def test_a_missing_default_model_says_how_to_get_it(fake: type[FakeRunner], run: Run) -> None:
    status, _, err = run("generate", "Hi")
    assert status == 1
    assert "llama-runner pull smollm2-135m" in err


def test_ctrl_c_stops_the_generation(fake: type[FakeRunner], model: Path, run: Run) -> None:
    fake.words = ["Hel", KeyboardInterrupt()]
    status, out, err = run("generate", "-m", model, "Hi")
    assert (status, out) == (130, "Hel")
    assert "Traceback" not in err
    (runner,) = fake.made
    assert runner.streams[0].closed
    assert runner.closed


def test_wrong_usage_is_status_2(run: Run) -> None:
    for arguments in (["generate", "--nonsense"], ["nonsense"], ["generate", "-n", "many", "Hi"]):
        status, _, err = run(*arguments)
        assert status == 2
        assert "Usage:" in err


# ---- chat ----------------------------------------------------------------------------------


def test_chat_answers_each_line_and_sends_the_system_prompt_once(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    status, out, _ = run("chat", "-m", model, "-s", "Be kind", stdin="one\n\ntwo\n")
    assert (status, out) == (0, "Hello\nHello\n")
    (runner,) = fake.made
    assert [prompt for prompt, _ in runner.asked] == [
        [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "one"}],
        [{"role": "user", "content": "two"}],
    ]
    assert runner.closed


def test_chat_commands(fake: type[FakeRunner], model: Path, run: Run) -> None:
    typed = "one\n/info\n/gc\n/help\n/nonsense\n/clear\nagain\n/quit\nnever\n"
    status, out, err = run("chat", "-m", model, "-s", "Be kind", stdin=typed)
    assert (status, out) == (0, "Hello\nHello\n")
    assert "10 of 100 tokens (10%)" in err
    assert "system: 4 tokens, pinned" in err
    assert "dropped 5 tokens" in err
    assert "unknown command /nonsense" in err
    assert all(command in err for command in ("/info", "/gc", "/clear", "/help", "/quit"))
    asked = [prompt for prompt, _ in fake.made[0].asked]
    assert [len(prompt) for prompt in asked] == [2, 2]  # the system prompt again after /clear


def test_ctrl_c_stops_the_answer_not_the_chat(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.words = ["Hel", KeyboardInterrupt()]
    status, out, err = run("chat", "-m", model, stdin="one\ntwo\n")
    assert (status, out) == (0, "HelHel")
    assert err.count("[stopped]") == 2
    assert all(stream.closed for stream in fake.made[0].streams)


def test_an_error_in_an_answer_does_not_end_the_chat(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.words = [ContextFullError("no room")]
    status, _, err = run("chat", "-m", model, stdin="one\ntwo\n")
    assert status == 0
    assert err.count("error: no room") == 2


def test_chat_says_when_an_answer_was_cut_off(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    fake.finish_reason = "length"
    assert "[cut off" in run("chat", "-m", model, stdin="one\n")[2]


def test_chat_needs_a_template(fake: type[FakeRunner], model: Path, run: Run) -> None:
    fake.has_template = False
    status, _, err = run("chat", "-m", model, stdin="one\n")
    assert status == 1
    assert "no chat template" in err


def test_on_a_terminal_ctrl_c_clears_the_line_and_ctrl_d_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed: list[str | type[BaseException]] = [" one ", KeyboardInterrupt, "two", EOFError]

    def type_in(prompt: str) -> str:
        item = typed.pop(0)
        if isinstance(item, str):
            return item
        raise item

    monkeypatch.setattr("builtins.input", type_in)
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, types.SimpleNamespace(isatty=lambda: True))
    assert list(_lines()) == ["one", "two"]


# ---- models --------------------------------------------------------------------------------


def test_info_shows_a_file_without_its_control_codes(model: Path, run: Run) -> None:
    status, out, _ = run("info", model, "--tensors")
    assert status == 0
    assert "evil\\x1b[31m\\nname" in out
    assert "\x1b" not in out
    assert "token_embd.weight" in out
    assert "32 x 3" in out
    assert "3 x str" in out


def test_info_json(model: Path, run: Run) -> None:
    found = json.loads(run("info", model, "--json", "--tensors")[1])
    assert (found["architecture"], found["context_length"]) == ("llama", 64)
    assert found["keys"]["tokenizer.ggml.tokens"] == {"type": "str", "length": 3}
    assert found["tensors"][0]["shape"] == [32, 3]
    assert "tensors" not in json.loads(run("info", model, "--json")[1])


def test_info_says_why_a_broken_file_cannot_be_loaded(model: Path, run: Run) -> None:
    model.write_bytes(model.read_bytes()[:-64])
    status, out, _ = run("info", model)
    assert status == 0
    assert "not valid: " in out
    assert "truncated" in out


def test_info_of_no_model_is_an_error(tmp_path: Path, run: Run) -> None:
    (tmp_path / "text.gguf").write_text("not a model at all, I am afraid")
    for path in (tmp_path / "missing.gguf", tmp_path, tmp_path / "text.gguf"):
        status, out, err = run("info", path)
        assert (status, out, err.count("\n")) == (1, "", 1)


def test_models_lists_the_catalogue(run: Run, tmp_path: Path, model: Path) -> None:
    (tmp_path / "catalogue").mkdir()
    entry = {"name": "Mine", "path": str(model), "architecture": "llama", "license": "mit"}
    (tmp_path / "catalogue" / "mine.json").write_text(json.dumps(entry))
    lines = run("models")[1].splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["+", "mine"], ["*", "smollm2-135m"]]
    mine, default = json.loads(run("models", "--json")[1])
    assert (mine["name"], mine["installed"], mine["license"]) == ("mine", True, "mit")
    assert (default["default"], default["installed"]) == (True, False)


def test_pull_prints_the_path_and_what_it_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    def pull(name: str, progress: Callable[[int, int, str], None]) -> Path:
        for done in (0, 50, 100):
            progress(done, 100, "download")
        progress(100, 100, "verify")
        return model

    monkeypatch.setattr("llama_runner.loaders.pull", pull, raising=False)
    status, out, err = run("pull", "some-model")
    assert (status, out) == (0, f"{model}\n")
    assert err.splitlines() == [
        "downloading some-model",
        "verifying some-model",
        "some-model is ready",
    ]


def test_a_failed_pull_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, progress: object) -> Path:
        raise DownloadError("the network is down")

    monkeypatch.setattr("llama_runner.loaders.pull", pull, raising=False)
    status, out, err = run("pull", "some-model")
    assert (status, out, err) == (1, "", "error: the network is down\n")


@pytest.fixture
def pulled(tmp_path: Path, model: Path) -> Path:
    """A model of the user's catalogue, as if it had been pulled."""
    content = tiny_llama().to_bytes()
    (tmp_path / "catalogue").mkdir()
    entry = {
        "name": "Mine",
        "source": "pypi:mine==1.0:mine/mine.gguf",
        "architecture": "llama",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (tmp_path / "catalogue" / "mine.json").write_text(json.dumps(entry))
    path = tmp_path / "cache" / "models" / "mine" / "mine.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_verify_tells_a_whole_file_from_a_damaged_one(run: Run, pulled: Path) -> None:
    assert run("verify", "mine") == (0, "", "verifying mine\nmine is whole\n")
    pulled.write_bytes(pulled.read_bytes()[:-1] + b"x")
    status, out, err = run("verify", "mine")
    assert (status, out) == (1, "")
    assert "sha256; remove it with llama-runner rm, and pull it again" in err


def test_verify_says_what_it_could_not_compare(run: Run, tmp_path: Path, pulled: Path) -> None:
    description = tmp_path / "catalogue" / "mine.json"
    entry = json.loads(description.read_text())
    del entry["sha256"]
    description.write_text(json.dumps(entry))
    status, _, err = run("verify", "mine")
    assert status == 0
    assert "whole" not in err
    assert "no sha256" in err


def test_a_part_of_a_model_is_not_taken_for_it(run: Run, pulled: Path) -> None:
    assert "+  mine" in run("models")[1]
    pulled.write_bytes(pulled.read_bytes()[:-1])
    assert "~  mine" in run("models")[1]


@pytest.mark.parametrize("prompt", [["generate", ""], ["generate", "--prompt", ""]])
def test_an_empty_prompt_is_wrong_usage(run: Run, prompt: list[str]) -> None:
    status, _, err = run(*prompt)
    assert status == 2
    assert "empty" in err


def test_verify_refuses_what_could_not_be_loaded(run: Run, tmp_path: Path, pulled: Path) -> None:
    tiny_llama().with_keys(llama__block_count=(U32, 0)).write(pulled)
    description = tmp_path / "catalogue" / "mine.json"
    entry = json.loads(description.read_text())
    del entry["sha256"]
    description.write_text(json.dumps(entry | {"size": pulled.stat().st_size}))
    status, _, err = run("verify", "mine")
    assert status == 1
    assert "block_count" in err


def test_rm_deletes_the_file_and_keeps_the_name(run: Run, pulled: Path) -> None:
    size = output.byte_size(pulled.stat().st_size)
    assert run("rm", "mine") == (0, "", f"mine is gone: {size} freed\n")
    assert not pulled.exists()
    assert json.loads(run("models", "--json")[1])[0]["installed"] is False
    status, out, err = run("rm", "mine")
    assert (status, out) == (1, "")
    assert "not on this machine" in err


def test_what_is_broken_or_half_here_is_listed(run: Run, tmp_path: Path, pulled: Path) -> None:
    (tmp_path / "catalogue" / "bad.json").write_text("{")
    pulled.rename(pulled.with_suffix(".partial"))
    status, out, err = run("models")
    assert status == 0
    marks = {line.split()[1]: line.split()[0] for line in out.splitlines()[1:] if line[0] in "~!"}
    assert marks == {"mine": "~", "bad": "!"}
    assert "broken: bad: " in err
    assert "bad.json" in err
    assert run("rm", "mine")[0] == 0
    assert not pulled.parent.exists()


def test_n_ctx_may_be_what_fits(fake: type[FakeRunner], model: Path, run: Run) -> None:
    run("generate", "-m", model, "-c", "auto", "Hi")
    assert fake.made[0].settings["n_ctx"] == "auto"
    status, _, err = run("generate", "-m", model, "-c", "much", "Hi")
    assert status == 2
    assert "'much' is neither a number of tokens nor 'auto'" in err


def test_a_description_is_handed_on_as_one(
    fake: type[FakeRunner], model: Path, run: Run, tmp_path: Path
) -> None:
    description = tmp_path / "mine.json"
    entry = {"name": "Mine", "path": str(model), "architecture": "llama"}
    description.write_text(json.dumps(entry))
    run("generate", "-m", description, "Hi")
    assert fake.made[0].model == str(description)


# ---- doctor --------------------------------------------------------------------------------


def test_doctor_says_what_is_missing(run: Run) -> None:
    status, out, _ = run("doctor")
    assert status == 1
    assert "missing: " in out
    assert "llama-runner pull smollm2-135m" in out
    assert "threads" in out


def test_doctor_is_content_with_a_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_runner._core")
    model = tiny_llama().write(tmp_path / "sound.gguf")
    monkeypatch.setenv("LLAMA_RUNNER_MODEL", str(model))
    status, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert (status, report["missing"]) == (0, [])
    assert str(model) in report["found"]["default model"]
    assert report["found"]["accelerators"]


def test_doctor_and_models_work_without_the_core() -> None:
    # In a process of its own, where nothing that needs the core was imported before.
    program = (
        "import sys; sys.modules['llama_runner._core'] = None\n"
        "from llama_runner.cli import main; main(sys.argv[1:])"
    )
    doctor, models = (
        subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True)
        for command in ("doctor", "models")
    )
    assert doctor.returncode == 1
    assert "missing: the native core" in doctor.stdout
    assert "default model" in doctor.stdout or "llama-runner pull" in doctor.stdout
    assert models.returncode == 0
    assert "smollm2-135m" in models.stdout


# ---- the program -------------------------------------------------------------------------


def test_a_terminal_gets_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.bar("a model", count_bytes=True) as update:
        update(50, 100, "loading")
    printed = capsys.readouterr()
    assert "loading a model" in printed.err
    assert printed.out == ""


def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "llama_runner", "info", str(model), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_help_loads_neither_the_core_nor_what_is_slow() -> None:
    slow = ["llama_runner._core", "numpy", "pydantic", "rich"]
    code = (
        "import sys\nfrom llama_runner.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "generate" in done.stdout


# ---- where it prints to, and what it is given ---------------------------------------------------


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("llama-runner", f"'{sys.executable}' -m llama_runner")],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("command", ["models", "models --json", "info {}", "info --json {}"])
def test_output_that_cannot_be_written_is_an_error(command: str, model: Path) -> None:
    done = shell(f"llama-runner {command.format(model)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_reader_that_has_had_enough_is_no_error(model: Path) -> None:
    assert shell(f"llama-runner info --tensors {model} | true").stderr == ""


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-"])
def test_closed_streams_are_like_empty_ones(closing: str, model: Path) -> None:
    done = shell(f"llama-runner info {model} {closing}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["x" * 300, "~nouser/x.gguf"])
def test_a_name_that_nothing_can_have_is_one_line(run: Run, name: str) -> None:
    for command in (("info", name), ("generate", "-m", name, "Hi")):
        status, _, err = run(*command)
        assert status == 1
        assert err.startswith("error: no model file")
        assert err.count("\n") == 1


def test_json_has_only_numbers_that_json_knows(run: Run, tmp_path: Path) -> None:
    path = tiny_llama().with_keys(general__odd=(F32, math.nan)).write(tmp_path / "odd.gguf")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(run("info", "--json", path)[1], parse_constant=refuse)
    assert found["keys"]["general.odd"] == "nan"


def test_doctor_looks_into_the_default_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RUNNER_MODEL", "/etc/passwd")
    status, out, _ = run("doctor")
    assert status == 1
    assert "missing: '/etc/passwd' is not a valid model" in out


def test_info_lists_the_parts_of_a_split_model(run: Run, tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    out = run("info", parts[1])[1]
    assert "3 files" in out
    assert all(part.name in out for part in parts)
    found = json.loads(run("info", "--json", parts[1])[1])
    assert [part["path"] for part in found["parts"]] == [str(part) for part in parts]


def test_info_shows_oddities(run: Run, tmp_path: Path) -> None:
    path = replace(tiny_llama(), tail=bytes(1000)).write(tmp_path / "longer.gguf")
    notes = validate_model(path).notes
    assert notes
    assert notes[0] in run("info", path)[1]
    assert json.loads(run("info", "--json", path)[1])["notes"] == list(notes)
