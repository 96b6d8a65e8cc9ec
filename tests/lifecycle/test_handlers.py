"""What a signal handler raises comes out as it is, wherever the signal comes."""

from __future__ import annotations

import pytest

# The handler runs in one call after another that the package makes, where Python runs handlers:
# when a function begins, and when one in C has ended. What it raises could be taken for what the
# call itself raised.
IN_EVERY_CALL = """
import errno, io, contextlib, llama_runner
from pathlib import Path
from llama_runner import cli
from llama_runner.loaders import *
from llama_runner.params import ContextParams

PACKAGE = str(Path(llama_runner.__file__).parent)
path = sys.argv[1]
raised = [
    TimeoutError("enough"),
    OSError(errno.ENOENT, "enough"),
    OSError(errno.EINVAL, "enough"),
    ValueError("enough"),
    RuntimeError("enough"),
    MemoryError("enough"),
    KeyboardInterrupt("enough"),
]
error = None

def handler(*_):
    raise error

signal.signal(signal.SIGUSR1, handler)

def run(call, at):
    \"\"\"Call something; the signal comes in the at-th call. Returns how many there were.\"\"\"
    n = 0

    def look(*event):
        nonlocal n
        frame, kind, _ = event
        ours = frame.f_code.co_filename.startswith(PACKAGE) and kind in ("call", "c_return")
        del event, frame  # only a handler is given a frame
        n += ours
        if ours and n == at:
            signal.raise_signal(signal.SIGUSR1)

    try:
        sys.setprofile(look)
        call()
    finally:
        sys.setprofile(None)
    return n

def in_every_call(call, points=140):
    global error
    call()  # imports what it needs
    n_calls = run(call, 0)
    for i in range(points):
        error = raised[i % len(raised)].with_traceback(None)
        at = 1 + i * n_calls // points
        try:
            run(call, at)
        except BaseException as caught:
            assert caught is error, (at, error, caught)
        else:
            raise AssertionError((at, "nothing was raised"))
    return n_calls
"""


@pytest.mark.parametrize(
    ("call", "points"),
    [
        ("read_gguf(path)", 700),
        ("validate_model(path)", 140),
        ("estimate_memory(path, n_ctx=256)", 140),
        ("find_model(path)", 700),
        ("load_model('model.json')", 700),
        ("list_models()", 140),
        ("ContextParams(parking_dir='.', parking_disk=1)", 140),
        ("new_runner(vocab_only=True).close()", 140),
        ("new_runner(parking_dir='.', parking_disk=1).close()", 140),
    ],
)
def test_while_a_model_is_read_or_loaded(python, tmp_path, call: str, points: int) -> None:
    python(
        IN_EVERY_CALL
        + f"""
path = os.path.abspath(path)
os.chdir({str(tmp_path)!r})
ModelMetadata.from_gguf(path).save("model.json")
assert in_every_call(lambda: {call}, {points}) > 5
"""
    )


@pytest.mark.parametrize(
    "call",
    [
        "session.save('there')",
        "session.load('there')",
        "other.load('there')",
        "session.snapshot()",
        "runner.generate_stateless([{'role': 'user', 'content': 'Why?'}], 1, stop='a')",
    ],
)
def test_while_a_conversation_is_used_or_saved(python, tmp_path, call: str) -> None:
    python(
        IN_EVERY_CALL
        + f"""
runner = new_runner()
os.chdir({str(tmp_path)!r})
session, other = runner.session(system="Be brief."), runner.session()
session.generate([{{"role": "user", "content": "Hi."}}], 1, **GREEDY)
session.save("there")
assert in_every_call(lambda: {call}) > 5
session.load("there")
session.generate([{{"role": "user", "content": "Why?"}}], 1, **GREEDY)
assert os.listdir() == ["there"]
runner.close()
"""
    )


@pytest.mark.parametrize("arguments", ["['info', path]", "['models']"])
def test_while_a_command_runs(python, arguments: str) -> None:
    python(
        IN_EVERY_CALL
        + f"""
raised = [error for error in raised if not isinstance(error, KeyboardInterrupt)]

def call():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main({arguments})

assert in_every_call(call) > 5
"""
    )


def test_what_the_system_refuses_is_an_error_of_the_package_while_a_handler_is_installed(
    python,
) -> None:
    answer = python(
        IN_EVERY_CALL
        + """
for missing in ("none.gguf", "/", "\\0"):
    try:
        read_gguf(missing)
    except LlamaError as error:
        print(type(error).__name__)
"""
    )
    assert answer == "ModelNotFoundError\nModelValidationError\nModelValidationError\n"


def test_calls_import_nothing(python) -> None:
    """While Python imports, it may take what a handler raises for a module that is not there."""
    answer = python(
        """
        import tempfile
        before = set(sys.modules)
        with new_runner(n_ctx=512) as runner:
            session = runner.session()
            session.generate([{"role": "user", "content": "Hello"}], 3)
            list(session.stream("One, two", 3))
            runner.generate_stateless("The sky is", 3, temperature=0.8, top_p=0.5)
            runner.detokenize(runner.tokenize("The sky is"))
            mark = session.mark()
            session.gc(0)
            session.rewind(mark)
            session.info()
            with tempfile.TemporaryDirectory() as folder:
                session.save(folder + "/snapshot")
                session.load(folder + "/snapshot")
        print(sorted(set(sys.modules) - before))
        """
    )
    assert answer == "[]\n"
