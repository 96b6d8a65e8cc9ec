"""Hold a long conversation in a small context: old turns are replaced by a summary."""

from __future__ import annotations

import argparse

from llama_runner import LlamaRunner
from llama_runner.memory import summarize

QUESTIONS = (
    "My name is Ada and I live in Paris. What can I see there?",
    "What should I eat?",
    "How do I get to the airport?",
    "What is the weather like in May?",
    "Which museum do you like best?",
    "What is my name?",
)


def main() -> None:
    """Ask some questions, and show what the context holds after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=100)
    options = parser.parse_args()

    with LlamaRunner(options.model, n_ctx=options.n_ctx) as runner:

        def notes(text: str) -> str:
            prompt = [{"role": "user", "content": f"{text}\n\nSummarise this in one sentence."}]
            return runner.generate_stateless(prompt, options.max_tokens).text.strip()

        with runner.session("You are a helpful assistant.", gc_policy=summarize(notes)) as session:
            for question in QUESTIONS:
                ask = [{"role": "user", "content": question}]
                answer = session.generate(ask, options.max_tokens)
                roles = " ".join(span.role for span in session.info().spans)
                print(f"> {question}\n{answer.text.strip()}\n[{session.info()}: {roles}]\n")


if __name__ == "__main__":
    main()
