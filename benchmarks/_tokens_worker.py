"""One measurement of a tokenizer in one process, in whichever environment a peer lives.

Started by ``tokens.py`` with one JSON object as its argument; prints one JSON object. Uses the
standard library and the peer alone, so that it runs in every environment.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Texts = list[str]
TokenLists = Iterable[Sequence[int]]


def llama_runner(model: str) -> tuple[Callable[[str], Any], Callable[[Texts], Any] | None]:
    from llama_runner import LlamaRunner

    runner = LlamaRunner(model, vocab_only=True)
    return (
        lambda text: runner.tokenize(text, add_special=False),
        lambda texts: runner.tokenize_batch(texts, add_special=False),
    )


def llama_cpp_python(model: str) -> tuple[Callable[[str], Any], Callable[[Texts], Any] | None]:
    llama = importlib.import_module("llama_cpp").Llama(model, vocab_only=True, verbose=False)
    return lambda text: llama.tokenize(text.encode(), add_bos=False, special=True), None


def hugging_face(model: str) -> tuple[Callable[[str], Any], Callable[[Texts], Any] | None]:
    # With the same vocabulary, as tokens.py wrote it down beside the texts.
    loaded = importlib.import_module("tokenizers").Tokenizer.from_file(model)
    return (
        lambda text: loaded.encode(text).ids,
        lambda texts: [encoding.ids for encoding in loaded.encode_batch(texts)],
    )


PEERS = {
    "llama_runner": llama_runner,
    "llama-cpp-python": llama_cpp_python,
    "tokenizers": hugging_face,
}


def digest(found: TokenLists) -> str:
    """The same for the same tokens."""
    tokens = b"".join(array("i", list(each)).tobytes() for each in found)
    return hashlib.sha256(tokens).hexdigest()


def rates(texts: Texts, run: Callable[[Texts], TokenLists], passes: int) -> dict[str, Any]:
    """Tokens per second of each pass over all texts, and what they were tokenised to."""
    found: list[float] = []
    for _ in range(passes):
        start = time.perf_counter()
        tokens = run(texts)
        seconds = time.perf_counter() - start
        found.append(sum(map(len, tokens)) / seconds)
    return {"rates": found, "digest": digest(tokens)}


def main() -> None:
    """Do the one job that the command line names."""
    job = json.loads(sys.argv[1])
    texts = json.loads(Path(job["texts"]).read_text())
    as_batch = "processors" in job
    if as_batch:
        os.sched_setaffinity(0, range(job["processors"]))
    single, batch = PEERS[job["peer"]](job["model"])
    single("The first call makes tables.")
    if as_batch:
        assert batch is not None, f"{job['peer']} has no batches"
        result = rates(texts * 8, batch, job["passes"])
    else:
        result = rates(texts, lambda all_texts: [single(text) for text in all_texts], job["passes"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
