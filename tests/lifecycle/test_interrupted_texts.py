"""Ctrl-C and other signals while texts are tokenised or templates run."""

from __future__ import annotations

import pytest

WORDS = """
import itertools, random, re
import numpy  # an import inside the call would look for signals, too

digits = random.Random(1).randbytes(6_000_000).hex()
letters = digits.translate(str.maketrans("0123456789", "ghijklmnop"))
words = re.sub("(.{9})", r"\\1 ", letters)  # most of them never seen before
runner = new_runner(vocab_only=True)
vocab = runner.tokenizer.vocab
"""


@pytest.mark.parametrize(
    "call",
    [
        "runner.tokenize(words)",
        "vocab.tokenize(words)",
        "vocab.count_tokens(words)",
        "vocab.tokenize_batch([words[:100_000]] * 100, n_threads=1)",
        "vocab.tokenize_batch([words, words], n_threads=2)",
    ],
)
def test_ctrl_c_while_a_text_is_tokenised(python, call: str) -> None:
    # Without a look in between, one tick would be seen: when the call has ended.
    answer = python(
        WORDS
        + f"""
ticks = itertools.count(1)
signal_when(lambda: next(ticks) == 4)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted")
print(runner.count_tokens("Why?"))
"""
    )
    assert answer == "interrupted\n2\n"


def test_signals_that_do_not_raise_change_no_tokens(python) -> None:
    answer = python(
        WORDS
        + """
words = words[:3_000_000]
expected = vocab.tokenize(words).tolist()
n_ticks = 0

def tick(*_):  # tokenises inside of tokenising
    global n_ticks
    n_ticks += 1
    runner.tokenize(words[:50_000])

signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.05)
one, (other, _) = new_runner(vocab_only=True).tokenize(words), runner.tokenize_batch([words, "a"])
signal.setitimer(signal.ITIMER_REAL, 0)
print(one.tolist() == other.tolist() == expected, n_ticks > 3)
"""
    )
    assert answer == "True True\n"


# Every step of these compares strings, and llama.cpp swallows what is thrown there.
BUSY_TEMPLATE = """
from llama_runner._core import ChatTemplate, Model

model = Model(sys.argv[1])
LOOPS = "{% for m in messages %}{% for i in range(600) %}", "{% endfor %}{% endfor %}"
busy = ChatTemplate(model, "{{ m['role'] == 'us' + 'er' }}".join(LOOPS))
messages = [{"role": "user", "content": str(i)} for i in range(500)]
"""


def test_ctrl_c_while_a_template_runs(python) -> None:
    answer = python(
        BUSY_TEMPLATE
        + """
signal_when(lambda: True)
try:
    busy.render(messages)
except KeyboardInterrupt:
    print("interrupted")
print(busy.render(messages[:1])[0][:12])
"""
    )
    assert answer == "interrupted\nTrueTrueTrue\n"


def test_a_handler_may_render_while_a_template_runs(python) -> None:
    answer = python(
        BUSY_TEMPLATE
        + """
other = ChatTemplate(model, "{% for m in messages %}{{ [m['content']] }}{% endfor %}")
ticks = 0

def tick(*_):
    global ticks
    ticks += 1
    other.render(messages[:1])

expected = busy.render(messages)
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
same = busy.render(messages) == expected
signal.setitimer(signal.ITIMER_REAL, 0)
print(same, ticks > 1, busy.render(messages) == expected)
"""
    )
    assert answer == "True True True\n"
