"""Answer a question several times at once, and keep the answer that the model likes best."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

from llama_runner import Completion, LlamaRunner


def main() -> None:
    """Fork a conversation, answer in all forks, and let the model choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="Write a slogan for umbrellas.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-n", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=40)
    options = parser.parse_args()

    # One sequence for each fork, one for the session, one for the stateless call at the end.
    with LlamaRunner(options.model, n_seq_max=options.n + 2) as runner:
        session = runner.session("You are a helpful assistant.")
        session.append([{"role": "user", "content": options.question}])
        forks = [session.fork() for _ in range(options.n)]

        def attempt(index: int) -> Completion:
            return forks[index].generate(max_tokens=options.max_tokens, seed=index)

        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(attempt, range(options.n)))
        for index, answer in enumerate(answers):
            print(f"{index}: {answer.text.strip()}")

        listed = "\n".join(f"{index}: {answer}" for index, answer in enumerate(answers))
        choice = runner.generate_stateless(
            f"{options.question}\n\n{listed}\n\nThe best of these is number",
            max_tokens=3,
            temperature=0,
        )
        digits = [int(character) for character in choice.text if character.isdigit()]
        best = next((digit for digit in digits if digit < options.n), 0)
        print(f"best: {best}")


if __name__ == "__main__":
    main()
