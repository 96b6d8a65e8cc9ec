"""One measurement in one process, in whichever environment a peer lives.

Started by ``_peers.py`` with one JSON object as its argument; prints one JSON object as its last
line. Uses the standard library and the peer alone, so that it runs in every environment.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Every peer continues the same text greedily; none of them ends it within the tokens asked for.
STORY = (
    "Once upon a time, in a small village at the edge of a great forest, there lived an old "
    "clockmaker. Every morning he wound the clock in the tower, and every morning"
)
N_STREAMED = 128
SYSTEM = "You are a helpful assistant."
N_ANSWER = 16


def prompt_ids(n: int, n_vocab: int = 49_000) -> list[int]:
    """As good as random, and the same for every peer; a prompt's content does not matter."""
    return [1] + [(7919 * i) % (n_vocab - 100) + 50 for i in range(1, n)]


def peak_rss() -> int:
    """Most bytes this process had resident. Not ru_maxrss: that begins with the parent's peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("this kernel does not report VmHWM")


def rss() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class LlamaRunnerPeer:
    """This package, through its public class alone."""

    def __init__(self, model: str, n_threads: int, n_ctx: int, **options: Any) -> None:
        from llama_runner import LlamaRunner

        self.runner = LlamaRunner(
            model, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, **options
        )
        self.greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}

    def prefill(self, n: int) -> float:
        timings = self.runner.generate_stateless(prompt_ids(n), 1, **self.greedy).timings
        return n / timings.first_token_ms * 1e3

    def decode(self, n: int) -> float:
        # A prompt of one token: like llama-bench's, each of the n tokens comes out of computing
        # one token, the first from an empty memory.
        done = self.runner.generate_stateless(prompt_ids(1), n, **self.greedy)
        assert len(done.tokens) == n
        return n / done.timings.total_ms * 1e3

    def call(self) -> float:
        done = self.runner.generate_stateless(STORY, N_STREAMED, **self.greedy)
        return done.timings.tokens_per_second

    def stream(self) -> float:
        chunks = self.runner.stream_stateless(STORY, N_STREAMED, **self.greedy)
        return rate_between([time.perf_counter() for chunk in chunks if chunk.text])

    def generate(self, n_prompt: int, n_tokens: int) -> None:
        done = self.runner.generate_stateless(prompt_ids(n_prompt), n_tokens, **self.greedy)
        assert len(done.tokens) == n_tokens

    def open_conversation(self) -> None:
        self.session = self.runner.session(SYSTEM)

    def turn(self, question: str) -> Iterator[str]:
        message = {"role": "user", "content": question}
        for chunk in self.session.stream([message], N_ANSWER, temperature=0.0):
            yield chunk.text

    def any_generation(self, i: int) -> None:
        """Another kind each time, with prompts of different lengths."""
        ids = prompt_ids(10 + 37 * i % 200)
        if i % 3 == 0:
            self.runner.generate_stateless(ids, 16)
        elif i % 3 == 1:
            next(self.runner.stream_stateless(ids, 16, ignore_eos=True))  # and dropped half-read
        else:
            self.runner.generate_stateful(ids, 16)
            self.runner.clear_context()


class LlamaCppPythonPeer:
    """llama-cpp-python, through its Llama class."""

    def __init__(self, model: str, n_threads: int, n_ctx: int) -> None:
        llama_cpp = importlib.import_module("llama_cpp")
        self.llama = llama_cpp.Llama(
            model, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, verbose=False
        )

    def prefill(self, n: int) -> float:
        self.llama.reset()
        start = time.perf_counter()
        self.llama.eval(prompt_ids(n))
        self.llama.sample(temp=0.0)
        return n / (time.perf_counter() - start)

    def call(self) -> float:
        # It reports no timings; the prompt's part is taken off by a call for one token.
        seconds = []
        for n in (1, N_STREAMED):
            self.llama.reset()
            start = time.perf_counter()
            done = self.llama.create_completion(STORY, max_tokens=n, temperature=0.0)
            seconds.append(time.perf_counter() - start)
            assert done["usage"]["completion_tokens"] == n
        return (N_STREAMED - 1) / (seconds[1] - seconds[0])

    def stream(self) -> float:
        self.llama.reset()  # or the prompt would come from its prefix cache
        chunks = self.llama.create_completion(
            STORY, max_tokens=N_STREAMED, temperature=0.0, stream=True
        )
        return rate_between([time.perf_counter() for c in chunks if c["choices"][0]["text"]])

    def open_conversation(self) -> None:
        self.messages = [{"role": "system", "content": SYSTEM}]

    def turn(self, question: str) -> Iterator[str]:
        self.messages.append({"role": "user", "content": question})
        chunks = self.llama.create_chat_completion(
            self.messages, max_tokens=N_ANSWER, temperature=0.0, stream=True
        )
        answer = ""
        for chunk in chunks:
            text = chunk["choices"][0]["delta"].get("content") or ""
            answer += text
            yield text
        self.messages.append({"role": "assistant", "content": answer})

    def generate(self, n_prompt: int, n_tokens: int) -> None:
        self.llama.reset()
        tokens = self.llama.generate(prompt_ids(n_prompt), temp=0.0)
        for _ in range(n_tokens):
            next(tokens)


class XllamacppPeer:
    """xllamacpp: llama.cpp's server in the process. Its wheel carries a llama.cpp of its own."""

    def __init__(self, model: str, n_threads: int, n_ctx: int) -> None:
        xllamacpp = importlib.import_module("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = n_ctx
        params.verbosity = -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
        self.server = xllamacpp.Server(params)

    def stream(self) -> float:
        times: list[float] = []

        def on_chunk(chunk: dict[str, Any]) -> None:
            if chunk["choices"][0]["text"]:
                times.append(time.perf_counter())

        request = {
            "prompt": STORY,
            "max_tokens": N_STREAMED,
            "temperature": 0.0,
            "stream": True,
            "cache_prompt": False,
        }
        self.server.handle_completions(request, on_chunk)
        return rate_between(times)

    def open_conversation(self) -> None:
        self.messages = [{"role": "system", "content": SYSTEM}]

    def turn(self, question: str) -> Iterator[str]:
        self.messages.append({"role": "user", "content": question})
        texts: list[tuple[float, str]] = []

        def on_chunk(chunk: dict[str, Any]) -> None:
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            text = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            texts.append((time.perf_counter(), text or ""))

        request = {
            "messages": self.messages,
            "max_tokens": N_ANSWER,
            "temperature": 0.0,
            "stream": True,
        }
        self.server.handle_chat_completions(request, on_chunk)
        answer = "".join(text for _, text in texts)
        if not answer:
            raise RuntimeError("no answer")
        self.messages.append({"role": "assistant", "content": answer})
        # It calls back rather than being iterated over: say when the first text was there.
        self.first = next(when for when, text in texts if text)
        yield answer

    def generate(self, n_prompt: int, n_tokens: int) -> None:
        request = {"prompt": prompt_ids(n_prompt), "max_tokens": n_tokens, "temperature": 0.0}
        self.server.handle_completions(request)


def rate_between(times: list[float]) -> float:
    """Tokens per second from the first chunk of a stream to its last; a chunk is a token here."""
    assert len(times) > N_STREAMED * 0.9, f"the stream ended after {len(times)} tokens"
    return (len(times) - 1) / (times[-1] - times[0])


def measure_rate(peer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of the job's test, after one run to warm up."""
    run: Callable[..., float] = getattr(peer, job["test"])
    arguments = [job["n"]] if "n" in job else []
    run(*arguments)
    return {"rates": [run(*arguments) for _ in range(job["repetitions"])]}


def measure_peak(peer: Any, job: dict[str, Any]) -> dict[str, Any]:
    peer.generate(job["n_prompt"], job["n_tokens"])
    return {"peak": peak_rss()}


def measure_growth(peer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Resident memory after the warm-up and then after each tenth of the generations."""
    sizes = []
    step = job["generations"] // 10
    for i in range(job["warm_up"] + 10 * step + 1):
        if i >= job["warm_up"] and (i - job["warm_up"]) % step == 0:
            gc.collect()
            sizes.append(rss())
        peer.any_generation(i)
    return {"sizes": sizes}


def measure_conversation(peer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Time to the first text and resident memory, turn by turn, as far as it gets."""
    first_ms: list[float] = []
    sizes: list[int] = []
    error = None
    peer.open_conversation()
    for i in range(job["turns"]):
        start, first = time.perf_counter(), None
        try:
            for text in peer.turn(f"Tell me something about the number {i}."):
                if text and first is None:
                    first = getattr(peer, "first", time.perf_counter())
        except Exception as raised:  # whatever a peer ends with is its result
            error = f"{type(raised).__name__}: {raised}"
            break
        if first is None:
            error = "no answer"
            break
        first_ms.append((first - start) * 1e3)
        sizes.append(rss())
    return {"first_ms": first_ms, "sizes": sizes, "error": error}


PEERS = {
    "llama_runner": LlamaRunnerPeer,
    "llama-cpp-python": LlamaCppPythonPeer,
    "xllamacpp": XllamacppPeer,
}
MEASURES = {
    "rate": measure_rate,
    "peak": measure_peak,
    "growth": measure_growth,
    "conversation": measure_conversation,
}


def main() -> None:
    """Do the one job that the command line names."""
    job = json.loads(sys.argv[1])
    options = job.get("options", {})
    peer = PEERS[job["peer"]](job["model"], job["n_threads"], job["n_ctx"], **options)
    print(json.dumps(MEASURES[job["measure"]](peer, job)))


if __name__ == "__main__":
    main()
