"""Continue a conversation where the last run of this program ended, computing nothing again."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_runner import LlamaRunner


def main() -> None:
    """Load the conversation if there is one, ask, and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--file", type=Path, default=Path("conversation.session"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=100)
    options = parser.parse_args()

    with LlamaRunner(options.model) as runner, runner.session() as session:
        if options.file.exists():
            session.load(options.file)
        else:
            session.append([{"role": "system", "content": "You are a helpful assistant."}])
        ask = [{"role": "user", "content": options.question}]
        answer = session.generate(ask, options.max_tokens)
        session.save(options.file)
        print(answer)
        print(f"[{answer.receipt.reused} tokens reused, {answer.receipt.recomputed} computed]")


if __name__ == "__main__":
    main()
