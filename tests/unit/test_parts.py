"""What of a conversation that is given whole is known, and what was changed in it."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_runner.conversation.history import Part, changes

Message = dict[str, Any]
SYSTEM = {"role": "system", "content": "You are helpful. It is 10:15."}
TOOL = {"role": "tool", "content": "A very long table: 1 2 3 4 5 6 7 8 9"}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


contents = st.sampled_from("abc")
roles = st.sampled_from(["user", "assistant", "tool"])
talks = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, roles, contents))


@settings(deadline=None)
@given(talks, talks)
def test_changes_lead_from_one_conversation_to_the_other(
    old: list[Message], new: list[Message]
) -> None:
    """What is left, with what was changed in it, is what the new one begins with."""
    parts = [Part(m["role"], 1, 0, messages=[m]) for m in old]
    gone, edited, first, _ = changes(parts, new)
    assert old[:first] == new[:first]
    if not gone and not edited:
        return
    last = max([*gone, *edited]) + 1  # behind it there is something that is as it was
    left = [edited.get(i, [old[i]])[0] for i in range(last + 1) if i not in gone]
    assert left == new[: len(left)]
    assert gone == sorted(set(gone) - edited.keys())
    assert all(messages != [old[i]] for i, messages in edited.items())
    assert first == min([*gone, *edited])
    assert old[first] != new[first]


def test_changes_in_place_are_found_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes quadratic time where messages repeat, as those of an agent that polls do."""
    monkeypatch.delattr(difflib, "SequenceMatcher")
    old = [SYSTEM, user("Look."), *[assistant("check"), TOOL] * 8, user("Go on.")]
    parts = [Part(m["role"], 1, 0, messages=[m]) for m in old]
    new = [{**SYSTEM, "content": "It is 10:16."}, *old[1:], assistant("check"), user("Go on.")]
    new[7] = {**TOOL, "content": "[cut]"}
    gone, edited, first, _ = changes(parts, new)
    assert (gone, edited, first) == ([], {0: [new[0]], 7: [new[7]]}, 0)
