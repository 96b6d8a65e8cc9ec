"""``llama-runner generate``, with a runner that needs no model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from llama_runner.cli.options import CONTEXT, GENERATION
from llama_runner.errors import ModelLoadError
from llama_runner.params import ContextParams, GenerationParams
from tests.unit.cli.fakes import FakeRunner, Run, Terminal


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
    for option, words in (
        ("--top-p=7", "top_p=7.0: must be a number above 0 and at most 1"),
        ("--n-threads=0", "n_threads=0: must be"),
        ("--kv-type=f12", "kv_type='f12': must be one of"),
    ):
        for command in (("generate", "-m", model, option, "Hi"), ("chat", "-m", model, option)):
            status, out, err = run(*command)
            assert (status, out) == (2, "")
            assert f"Error: {words}" in err
            assert "model:" not in err
    assert not fake.made


def test_an_empty_name_is_not_the_default_model(
    fake: type[FakeRunner], model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_RUNNER_MODEL", str(model))
    for command in (("info", ""), ("generate", "-m", "", "Hi"), ("chat", "-m", "")):
        status, out, err = run(*command)
        assert (status, out) == (1, "")
        assert "the name of a model is empty" in err
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


@pytest.mark.parametrize("arguments", [("Summarise:",), ("--prompt", "Summarise:")])
def test_what_is_piped_in_comes_after_the_prompt(
    fake: type[FakeRunner], model: Path, run: Run, arguments: tuple[str, ...]
) -> None:
    run("generate", "--raw", "-m", model, *arguments, stdin="one\ntwo\n")
    assert fake.made[0].asked[0][0] == "Summarise:\n\none\ntwo"
    run("generate", "--raw", "-m", model, *arguments, stdin=Terminal("typed\n"))
    assert fake.made[1].asked[0][0] == "Summarise:"
    run("generate", "--raw", "-m", model, *arguments, stdin="")
    assert fake.made[2].asked[0][0] == "Summarise:"


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


@pytest.mark.parametrize("prompt", [["generate", ""], ["generate", "--prompt", ""]])
def test_an_empty_prompt_is_wrong_usage(run: Run, prompt: list[str]) -> None:
    status, _, err = run(*prompt)
    assert status == 2
    assert "empty" in err


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


def test_piped_text_in_another_encoding_is_refused(
    fake: type[FakeRunner], model: Path, run: Run
) -> None:
    latin1 = io.TextIOWrapper(io.BytesIO(b"caf\xe9 x"), encoding="utf-8")
    status, out, err = run("generate", "-m", model, "Summarise:", stdin=latin1)
    assert (status, out) == (1, "")
    assert "not utf-8 (byte 3)" in err
    assert not fake.made
