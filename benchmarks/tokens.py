"""How fast text becomes tokens, against llama-cpp-python and Hugging Face's tokenizers.

The same vocabulary for all: that of the model, which is written down in the form that tokenizers
reads. The tokens are compared, and a peer whose tokens differ is said to.

Two texts of 1 MB at most, both from Python's standard library: prose (the language reference, as
help() shows it) and code, in parts of 16 KiB, none of which comes twice. In tokens per second:

first    all parts one after the other, in a process that has seen no text before.
again    the same once more: all words have been seen, as in a process that runs for a while.
batch    all parts, eight times over, in one call on 1 and on 2 processors, when the words have been
         seen. Eight times, because a system takes milliseconds to wake a second processor.

Not called tokenize.py: the scripts in this folder would then import it instead of Python's own.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import sysconfig
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _peers import OURS, Setup, parse_arguments, run, undisturbed
from _report import draw_bars, write_results

WORKER = Path(__file__).with_name("_tokens_worker.py")
PEERS = (OURS, "llama-cpp-python", "tokenizers")
CONTROL, USER_DEFINED = 3, 4  # types of tokens in a GGUF file
TEXT_BYTES, PART_BYTES = 1_000_000, 16 * 1024
PASSES = 5
TARGETS = {"first": 1.0, "again": 4.0}  # of ours to llama-cpp-python's
BATCH_TARGET = 1.8  # of two processors to one

Rates = dict[str, dict[str, list[float]]]


def parts(text: str) -> list[str]:
    """Parts of a text, between characters."""
    text = text[:TEXT_BYTES]
    return [text[start : start + PART_BYTES] for start in range(0, len(text), PART_BYTES)]


def texts() -> dict[str, list[str]]:
    """Prose and code, each in parts."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return {
        "prose": parts("\n\n".join(pydoc_data.topics.topics.values())),
        "code": parts("\n\n".join(path.read_text(errors="replace") for path in sources)),
    }


def tokenizer_json(model: Path) -> dict[str, Any]:
    """The model's vocabulary as Hugging Face's tokenizers reads it.

    Raises:
        SystemExit: Another kind of vocabulary than the default model's.
    """
    from llama_runner.loaders import read_gguf

    keys = read_gguf(model).keys
    kind = keys["tokenizer.ggml.model"], keys.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise SystemExit(f"error: this vocabulary is {kind}; the comparison is made for smollm's")
    tokens, types, merges = (
        keys[f"tokenizer.ggml.{name}"].values() for name in ("tokens", "token_type", "merges")
    )
    special = [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": True} | dict.fromkeys(flags, False)
            for i in special
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                byte_level | {"use_regex": True},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def work(setup: Setup, peer: str, folder: Path, name: str, **job: Any) -> dict[str, Any]:
    """Have a peer's Python do one job of ``_tokens_worker.py``."""
    model = folder / "tokenizer.json" if peer == "tokenizers" else setup.model
    job |= {"peer": peer, "model": str(model), "texts": str(folder / f"{name}.json")}
    output = run([setup.programs[peer], WORKER, json.dumps(job | {"passes": PASSES})])
    return dict(json.loads(output.splitlines()[-1]))


def one_round(setup: Setup, folder: Path, name: str, rates: Rates) -> None:
    """Every peer once with one of the texts."""

    def measure() -> dict[str, dict[str, Any]]:
        found = {}
        for peer in setup.programs:
            found[peer] = work(setup, peer, folder, name)
            if peer != "llama-cpp-python":
                for n in (1, setup.n_threads):
                    done = work(setup, peer, folder, name, processors=n)
                    found[f"{peer}, {n} processors"] = done
        return found

    found, others = undisturbed(measure)
    for peer, done in found.items():
        first, *rest = done["rates"]
        if peer in PEERS:
            rates[f"{name} first"].setdefault(peer, []).append(first)
            rates[f"{name} again"].setdefault(peer, []).append(median(rest))
        else:
            rates[f"{name} batch"].setdefault(peer, []).append(median(rest))
        same = found[OURS if peer in PEERS else f"{OURS}, 1 processors"]
        if done["digest"] != same["digest"]:
            print(f"  {name}: {peer} finds other tokens")
    print(f"  {name}: done (others {others:.0%})", flush=True)


def grown(model: Path, text: list[str], n_appended: int = 200) -> dict[str, float]:
    """Milliseconds to tokenise a transcript of 30,000 tokens anew, and with a line appended."""
    from llama_runner import LlamaRunner

    with LlamaRunner(model, vocab_only=True) as runner:
        whole = "".join(text)
        transcript = runner.detokenize(runner.tokenize(whole, add_special=False)[:30_000])
        vocab = runner.tokenizer.vocab
        seconds: dict[str, list[float]] = {"anew": [], "appended": []}
        runner.tokenize(transcript)
        for i in range(n_appended):
            transcript += f"\n\nAnd this is what was said in turn {i}, in some ten or twenty words."
            for how, call in (("appended", runner.tokenize), ("anew", vocab.tokenize)):
                start = time.perf_counter()
                call(transcript)
                seconds[how].append(time.perf_counter() - start)
        assert (runner.tokenize(transcript) == vocab.tokenize(transcript)).all()
    return {how: median(each) * 1e3 for how, each in seconds.items()}


def summary(rates: Rates, n_threads: int) -> dict[str, float]:
    """Ratios, medians of those within rounds."""
    ratios = {}

    def compare(title: str, ours: list[float], theirs: list[float]) -> None:
        ratios[title] = median(a / b for a, b in zip(ours, theirs, strict=True))

    for test, peers in rates.items():
        for peer in PEERS[1:]:
            if peer in peers:
                compare(f"{test}: {OURS} / {peer}", peers[OURS], peers[peer])
        for peer in PEERS:
            one, several = f"{peer}, 1 processors", f"{peer}, {n_threads} processors"
            if one in peers:
                compare(f"{test}: {several} / 1", peers[several], peers[one])
    return ratios


def report(rates: Rates, ratios: dict[str, float], times: dict[str, float]) -> None:
    """Print it all."""
    print("\nmedians, million tokens per second")
    for test, peers in rates.items():
        for peer, found in peers.items():
            print(f"  {test:12}{peer:32}{median(found) / 1e6:8.2f}")
    print("\nratios")
    for title, ratio in ratios.items():
        wanted = BATCH_TARGET if title.endswith("/ 1") and OURS in title else None
        if title.endswith("llama-cpp-python"):
            wanted = TARGETS[title.split(":")[0].split()[1]]
        verdict = "" if wanted is None else "  ok" if ratio >= wanted else f"  below {wanted}"
        print(f"  {title:56}{ratio:7.2f}{verdict}")
    print("\na transcript of 30,000 tokens, milliseconds")
    for how, milliseconds in times.items():
        print(f"  {how:12}{milliseconds:8.3f}")


def main() -> None:
    """Run everything, print it, and write JSON and picture."""
    setup, options = parse_arguments(__doc__, peers=PEERS[1:], rounds=5)
    all_texts = texts()
    rates: Rates = {f"{n} {test}": {} for n in all_texts for test in ("first", "again", "batch")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(setup.model)))
        for title, text in all_texts.items():
            (folder / f"{title}.json").write_text(json.dumps(text))
        for i in range(options.rounds):
            print(f"round {i + 1} of {options.rounds}, vocabulary of {setup.model.name}")
            for title in all_texts:
                one_round(setup, folder, title, rates)
    times, _ = undisturbed(lambda: grown(setup.model, all_texts["prose"]))
    ratios = summary(rates, setup.n_threads)
    report(rates, ratios, times)
    results = {"model": setup.model.name, "tokens_per_second": rates, "ratios": ratios}
    write_results(options.output / "tokens.json", results | {"grown_ms": times})
    panels = {t: {p: median(r) / 1e6 for p, r in peers.items()} for t, peers in rates.items()}
    draw_bars(options.output / "tokens.png", panels, "million tokens per second")


if __name__ == "__main__":
    main()
