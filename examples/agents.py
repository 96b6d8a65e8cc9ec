"""A writer and a critic improve a text in turns; both begin as forks of one conversation."""

from __future__ import annotations

import argparse

from llama_runner import LlamaRunner, Session


def say(agent: Session, text: str, max_tokens: int) -> str:
    """Give an agent a message, and return what it says."""
    reply = agent.generate([{"role": "user", "content": text}], max_tokens)
    print(f"{agent.name}: {reply.text.strip()}  [{reply.receipt.reused} tokens reused]")
    return reply.text


def main() -> None:
    """Let them talk for some rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topic", nargs="?", default="a lighthouse")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=60)
    options = parser.parse_args()

    with LlamaRunner(options.model) as runner:
        team = runner.session("You work on short texts. Answer in one or two sentences.")
        team.append([{"role": "user", "content": f"Our topic is {options.topic}."}])
        team.generate(max_tokens=options.max_tokens)
        with team.fork("writer") as writer, team.fork("critic") as critic:
            text = say(writer, "Write a first sentence.", options.max_tokens)
            for _ in range(options.rounds):
                remark = say(critic, f"What could be better here? {text}", options.max_tokens)
                text = say(writer, f"Improve it: {remark}", options.max_tokens)


if __name__ == "__main__":
    main()
