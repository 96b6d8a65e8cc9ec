"""Talk with a model: /again answers again, /undo goes back one question, /quit leaves."""

from __future__ import annotations

import argparse

from llama_runner import LlamaError, LlamaRunner, Session


def answer(session: Session, messages: list[dict[str, str]], max_tokens: int) -> None:
    """Print an answer while it is generated."""
    with session.stream(messages, max_tokens) as stream:
        for chunk in stream:
            print(chunk, end="", flush=True)
    print()


def main() -> None:
    """Read questions until the end of input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--system", default="You are a helpful assistant.")
    parser.add_argument("--max-tokens", type=int, default=200)
    options = parser.parse_args()

    with LlamaRunner(options.model) as runner, runner.session(options.system) as session:
        marks = []
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                return
            try:
                if line == "/quit":
                    return
                if line == "/again":
                    answer(session, session.messages[:-1], options.max_tokens)
                elif line == "/undo" and marks:
                    session.rewind(marks.pop())
                elif line:
                    marks.append(session.mark())
                    answer(session, [{"role": "user", "content": line}], options.max_tokens)
            except LlamaError as error:
                print(f"error: {error}")


if __name__ == "__main__":
    main()
