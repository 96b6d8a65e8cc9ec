"""Saved conversations come back as they were, or not at all."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner._core import ChatTemplate, Context, Model
from llama_runner.conversation.conversation import Conversation, ConversationSettings
from llama_runner.conversation.snapshot import Snapshot
from llama_runner.conversation.transcript import Transcript
from llama_runner.errors import (
    ContextBusyError,
    FileWriteError,
    PromptTooLongError,
    SnapshotError,
    SnapshotNotFoundError,
    SnapshotReadError,
)
from llama_runner.loading.open import Validation
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.results import Completion
from llama_runner.tokens import Tokenizer
from tests.model.talk import question

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=1024, n_seq_max=2) as runner:
        yield runner


@pytest.fixture
def session(runner: LlamaRunner) -> Iterator[Session]:
    with runner.session("You are helpful.", name="first") as session:
        session.generate(question("What is the capital of Japan?"), 12, **GREEDY)
        session.pin(1)
        yield session


def test_it_goes_on_where_it_was(runner: LlamaRunner, session: Session) -> None:
    data, messages, spans = session.snapshot(), session.messages, session.info().spans
    expected = session.generate(question("And of Italy?"), 6, **GREEDY)
    with runner.session() as other:
        other.generate("What was here before is gone.", 4, **GREEDY)
        other.restore(data)
        assert (other.name, other.messages, other.info().spans) == ("first", messages, spans)
        assert other.generate(question("And of Italy?"), 6, **GREEDY).text == expected.text
    session.restore(data)
    assert session.messages == messages
    assert session.generate(question("And of Italy?"), 6, **GREEDY).text == expected.text


def test_after_a_restart_nothing_is_computed_again(
    session: Session, model_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "conversation"
    session.save(path)
    expected = session.generate(question("And of Italy?"), 6, **GREEDY)
    n_before = expected.usage.prompt_tokens
    program = """
import sys
from llama_runner import LlamaRunner
with LlamaRunner(sys.argv[1], n_ctx=2048) as runner, runner.session() as session:
    session.load(sys.argv[2])
    n = session.info().used
    message = {"role": "user", "content": "And of Italy?"}
    answer = session.generate([message], 6, temperature=0, ignore_eos=True)
    print(answer.receipt.reused, n)
    print(answer.text, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, model_path, path],
        capture_output=True,
        text=True,
        check=True,
    )
    counts, text = done.stdout.split("\n", 1)
    n_reused, n = map(int, counts.split())
    assert n_reused >= 0.99 * (n - 1)
    assert n < n_before
    assert text == expected.text


def test_a_snapshot_serves_other_conversations_that_begin_alike(runner: LlamaRunner) -> None:
    story = "Once upon a time there was a clockmaker in a village by a forest. " * 8
    with runner.session() as session, runner.session() as restored:
        session.generate(story, 2, **GREEDY)
        data = session.snapshot()
        session.clear()
        restored.restore(data)
        receipt = runner.generate_stateless(story, 2, **GREEDY).receipt
        assert receipt.shared >= 100


def new_session(context: Context, chat: ChatFormat) -> Session:
    """A session without a runner."""
    transcript = Transcript(context.new_sequence(), chat)
    return Session(Conversation(transcript, ConversationSettings(0.8)))


@pytest.mark.parametrize("kind", ["plain", "swa", "recurrent", "hybrid", "mrope"])
@pytest.mark.parametrize("swa_full", [True, False])
def test_every_kind_of_memory(tiny_models: dict[str, Model], kind: str, swa_full: bool) -> None:
    model = tiny_models[kind]
    chat = ChatFormat(Tokenizer(model.vocab), ChatTemplate(model, "{{ messages[0].content }}"))

    def begin() -> tuple[Context, Session]:
        context = Context(model, n_ctx=256, kv_type="f32", swa_full=swa_full)
        return context, new_session(context, chat)

    first_context, first = begin()
    second_context, second = begin()
    with first_context, second_context:
        first.generate("abc the a é漢字 " * 6, 10, **GREEDY)
        second.restore(first.snapshot())
        expected = first.generate(" go on", 10, **GREEDY)
        found = second.generate(" go on", 10, **GREEDY)
        assert found.tokens == expected.tokens
        assert found.receipt.recomputed == expected.receipt.recomputed


@pytest.mark.parametrize(
    ("kind", "made_with", "restored_with"),
    [
        ("plain", {"flash_attention": "auto"}, {"flash_attention": True}),
        ("plain", {"swa_full": True}, {"swa_full": False}),
        ("plain", {}, {"rope_freq_base": 10000.0, "rope_freq_scale": 1.0}),
        ("swa", {"swa_full": True}, {"swa_full": False}),
        ("swa", {"swa_full": False}, {"swa_full": True}),
        ("recurrent", {"unified": True, "kv_type": "f16"}, {"unified": False, "kv_type": "f32"}),
    ],
)
def test_settings_that_come_to_the_same(
    tiny_models: dict[str, Model],
    kind: str,
    made_with: dict[str, Any],
    restored_with: dict[str, Any],
) -> None:
    made = restored_and_continued(tiny_models[kind], made_with, restored_with)
    assert made.receipt.recomputed < 20


def test_another_layout_computes_it_again(tiny_models: dict[str, Model]) -> None:
    made = restored_and_continued(tiny_models["plain"], {"unified": True}, {"unified": False})
    assert made.receipt.reused == 0


def restored_and_continued(
    model: Model, made_with: dict[str, Any], restored_with: dict[str, Any]
) -> Completion:
    """What a restored conversation says next, which is what the first one says."""
    chat = ChatFormat(Tokenizer(model.vocab), ChatTemplate(model, "{{ messages[0].content }}"))
    with (
        Context(model, n_ctx=512, n_seq_max=2, **made_with) as first_context,
        Context(model, n_ctx=512, n_seq_max=2, **restored_with) as second_context,
    ):
        first, second = (new_session(c, chat) for c in (first_context, second_context))
        first.generate("abc the a é漢字 " * 6, 10, **GREEDY)
        second.restore(first.snapshot())
        expected = first.generate(" go on", 4, **GREEDY)
        found = second.generate(" go on", 4, **GREEDY)
        assert found.tokens == expected.tokens
        return found


def test_with_other_settings_it_is_computed_again(session: Session, model_path: Path) -> None:
    data, messages = session.snapshot(), session.messages
    with LlamaRunner(model_path, n_ctx=512, kv_type="q8_0") as other:
        copy = other.session()
        copy.restore(data)
        assert copy.messages == messages
        receipt = copy.generate(question("Another one."), 4, **GREEDY).receipt
        assert receipt.reused == 0
        assert receipt.recomputed > 0


def test_a_snapshot_that_is_not_of_this_model_is_refused(
    session: Session, tiny_paths: dict[str, Path], model_path: Path, tmp_path: Path
) -> None:
    data = session.snapshot()
    with LlamaRunner(tiny_paths["plain"], n_ctx=256) as other:
        foreign = other.session()
        with pytest.raises(SnapshotError, match="another model"):
            foreign.restore(data)
    with LlamaRunner(model_path, n_ctx=256) as small:
        copy = small.session()
        long = session.fork()
        long.append([504] * 300)
        with pytest.raises(PromptTooLongError, match="raise n_ctx"):
            copy.restore(long.snapshot())
        long.save(tmp_path / "long")
        with pytest.raises(PromptTooLongError, match=f"{tmp_path / 'long'}.*raise n_ctx"):
            copy.load(tmp_path / "long")
        long.close()
    newer = bytearray(data)
    newer[8] += 1
    before = session.messages
    for wrong, message in [
        (b"", "not a snapshot"),
        (b"GGUF" + data[4:], "not a snapshot"),
        (data[:-1], "truncated"),
        (data[: len(data) // 2], "truncated"),
        (data + b"\0", "truncated"),
        (bytes(newer), "format version 3, .* up to 2"),
    ]:
        with pytest.raises(SnapshotError, match=message):
            session.restore(wrong)
        path = tmp_path / "wrong"
        path.write_bytes(wrong)
        with pytest.raises(SnapshotError, match=f"{path}.*{message}"):
            session.load(path)
    with pytest.raises(SnapshotError, match="bytes"):
        session.restore("text")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="cannot be read: it is a directory") as caught:
        session.load(tmp_path)
    assert isinstance(caught.value, SnapshotReadError)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(tmp_path))
    assert session.messages == before


def test_a_program_that_resumes_what_is_there(session: Session, tmp_path: Path) -> None:
    path, before = tmp_path / "conversation", session.messages
    with pytest.raises(FileNotFoundError, match=r"save\(\)") as caught:
        session.load(path)
    assert isinstance(caught.value, SnapshotNotFoundError)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))
    assert session.messages == before


def test_a_thousand_damaged_snapshots(session: Session) -> None:
    data, before = session.snapshot(), session.messages
    header_bytes = len(data) - len(Snapshot.from_bytes(data).state)
    chosen = random.Random(5)
    for _ in range(1000):
        mutant = bytearray(data)
        for _ in range(chosen.randrange(1, 4)):
            # Most of the interesting bytes are at the beginning.
            end = header_bytes if chosen.random() < 0.7 else len(mutant)
            at = chosen.randrange(min(end, len(mutant)))
            if chosen.random() < 0.2:
                del mutant[at : at + chosen.randrange(1, 64)]
            elif chosen.random() < 0.2:
                mutant[at:at] = chosen.randbytes(chosen.randrange(1, 64))
            else:
                mutant[at] ^= 1 << chosen.randrange(8)
        if mutant != data:
            with pytest.raises(SnapshotError):
                session.restore(mutant)
    assert session.messages == before
    assert session.generate(question("Another one."), 4, **GREEDY).receipt.reused > 0


def test_saving_is_all_or_nothing(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "conversation"
    path.write_text("what was there")
    nowhere = tmp_path / "no such folder" / "conversation"
    with pytest.raises(OSError, match="cannot be written") as caught:
        session.save(nowhere)
    assert isinstance(caught.value, FileWriteError)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(nowhere))
    for refused in (tmp_path, tmp_path / ("x" * 5000)):
        with pytest.raises(FileWriteError, match="cannot be written"):
            session.save(refused)
    session.save(path)
    assert sorted(tmp_path.iterdir()) == [path]
    session.load(path)


def test_a_saved_conversation_is_for_its_user(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "conversation"
    session.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)  # until the user says otherwise
    session.save(path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_saving_through_a_link_writes_what_it_leads_to(session: Session, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link, loop = tmp_path / "latest", tmp_path / "loop"
    link.symlink_to(Path("disk", "conversation"))
    for _ in range(2):  # where nothing is yet, and where something is
        session.save(link)
        assert link.is_symlink()
        assert list(disk.iterdir()) == [disk / "conversation"]
    session.load(disk / "conversation")
    loop.symlink_to(loop)
    with pytest.raises(FileWriteError, match=f"{loop}.* cannot be written") as caught:
        session.save(loop)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(loop))


def test_a_snapshot_is_made_without_copies_of_it(session: Session) -> None:
    snapshot = Snapshot.from_bytes(session.snapshot())
    snapshot.state = bytes(32 << 20)
    tracemalloc.start()
    try:
        snapshot.to_bytes()
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(snapshot.state)
    finally:
        tracemalloc.stop()


def test_an_open_stream_is_in_the_way(session: Session) -> None:
    data = session.snapshot()
    with session.stream(question("Go on."), 8, **GREEDY) as stream:
        next(stream)
        with pytest.raises(ContextBusyError):
            session.snapshot()
        with pytest.raises(ContextBusyError):
            session.restore(data)


def test_nothing_to_save(runner: LlamaRunner) -> None:
    with runner.session() as empty, runner.session() as other:
        other.generate("The sky is", 2, **GREEDY)
        other.restore(empty.snapshot())
        assert other.info().state == "empty"
        assert other.generate("The sky is", 2, **GREEDY).receipt.recomputed > 0


@pytest.mark.parametrize("validate", ["full", False])
def test_a_snapshot_is_of_the_model_that_was_loaded(
    tiny_paths: dict[str, Path], tmp_path: Path, validate: Validation
) -> None:
    """Whatever stands under its path by then."""
    path = Path(shutil.copy(tiny_paths["plain"], tmp_path / "model.gguf"))
    with LlamaRunner(path, n_ctx=256, validate=validate) as runner:
        session = runner.session()
        session.generate("abc", 4, **GREEDY)
        path.unlink()
        saved = session.snapshot()
        runner.session().restore(saved)
        shutil.copy(tiny_paths["mrope"], path)
        assert session.snapshot() == saved
    with (
        LlamaRunner(path, n_ctx=256, validate=validate) as other,
        pytest.raises(SnapshotError, match="another model"),
    ):
        other.session().restore(saved)
    with LlamaRunner(tiny_paths["plain"], n_ctx=256, validate=validate) as same:
        session = same.session()
        session.restore(saved)
        assert session.generate("d", 4, **GREEDY).receipt.reused > 2
