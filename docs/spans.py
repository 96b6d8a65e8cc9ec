"""Draw the spans of a conversation as coloured bars, into ``docs/_static/spans.svg``."""

from __future__ import annotations

from pathlib import Path

from llama_runner import ContextInfo, LlamaRunner

PICTURE = Path(__file__).parent / "_static" / "spans.svg"
COLOURS = {"system": "#6b7a99", "user": "#e0a458", "assistant": "#5b9e8f"}
QUESTIONS = ("What is the capital of Japan?", "And of Italy?", "And of Spain?")
WIDTH, HEIGHT, GAP = 760, 34, 74


def bar(info: ContextInfo, title: str, top: int, scale: float) -> list[str]:
    """Return the SVG elements of one context."""
    parts = [f'<text x="0" y="{top - 8}">{title}: {info}</text>']
    for span in info.spans:
        x, width = span.start * scale, span.tokens * scale
        parts.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width - 2:.1f}" height="{HEIGHT}" rx="4" '
            f'fill="{COLOURS[span.role]}"/>'
        )
        label = f"{span.role} {span.tokens}"
        parts.append(f'<text class="in" x="{x + width / 2 - 1:.1f}" y="{top + 22}">{label}</text>')
    return parts


def main() -> None:
    """Hold a short conversation, evict its oldest turns, and draw both states."""
    with LlamaRunner("smollm2-135m", n_ctx=256) as runner:
        session = runner.session("You are a helpful assistant.")
        for question in QUESTIONS:
            session.generate([{"role": "user", "content": question}], max_tokens=30, temperature=0)
        before = session.info()
        session.gc(target=0)
        after = session.info()
    scale = WIDTH / before.used
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * GAP}" role="img">',
        "<style>text { font: 14px sans-serif; fill: #777 } "
        ".in { font-size: 11px; fill: #fff; text-anchor: middle }</style>",
        *bar(before, "Before", 24, scale),
        *bar(after, "After gc(target=0)", 24 + GAP, scale),
        "</svg>",
    ]
    PICTURE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
