"""Attacks with chat templates: unbounded work, CVE-2026-115911."""

from __future__ import annotations

from tests.fuzz.attacks.registry import attack
from tests.gguf_files import STRING, GgufFile
from tests.unit.loaders.model_files import tiny_llama


def with_template(template: str) -> GgufFile:
    """The llama model with another chat template."""
    return tiny_llama().with_keys(tokenizer__chat_template=(STRING, template))


@attack("tokenizer.chat_template")
def template_of_a_megabyte() -> GgufFile:
    return with_template("x" * (1 << 20))


@attack("tokenizer.chat_template")
def template_nested_deeply() -> GgufFile:
    return with_template("{% if a %}" * 200 + "{% endif %}" * 200)


@attack("tokenizer.chat_template")
def template_of_parentheses() -> GgufFile:
    return with_template("{{ " + "(" * 10_000)


@attack("tokenizer.chat_template")
def template_of_negations() -> GgufFile:
    return with_template("{{ " + "not " * 10_000 + "a }}")


@attack("tokenizer.chat_template")
def template_of_a_long_sum() -> GgufFile:
    return with_template("{{ " + "a + " * 10_000 + "a }}")


@attack("tokenizer.chat_template")
def template_of_many_alternatives() -> GgufFile:
    return with_template("{% if a %}" + "{% elif b %}" * 500 + "{% endif %}")


@attack("tokenizer.chat_template")
def template_whose_tag_ends_in_a_string() -> GgufFile:
    return with_template('{{ "}}" + ' + "(" * 60_000)


@attack("tokenizer.chat_template")
def template_whose_tag_ends_in_a_comment() -> GgufFile:
    return with_template("{{ a {# }} #}{{" + "(" * 10_000)


@attack("tokenizer.chat_template")
def template_with_words_behind_digits() -> GgufFile:
    return with_template("{{ 1" + "if 1else 1" * 20_000 + "}}")


@attack("tokenizer.chat_template")
def template_of_blocks_that_seem_to_be_assignments() -> GgufFile:
    return with_template("{% set f(a=1) %}" * 500)


@attack("tokenizer.chat_template.79")
def templates_without_end() -> GgufFile:
    """Each of them of an allowed size."""
    template = "{{ a }}" * 7_500
    return tiny_llama().with_keys(
        **{f"tokenizer__chat_template__{n}": (STRING, template) for n in range(200)}
    )


@attack("general.description")
def text_of_wide_characters() -> GgufFile:
    """A character beyond ASCII makes all of them wider in memory."""
    return tiny_llama().with_keys(general__description=(STRING, "\U0001f600" + "x" * (5 << 20)))


@attack("tokenizer.chat_template.tool_use")
def second_template_nested_deeply() -> GgufFile:
    deep = "{{ " + "[" * 500 + "]" * 500 + " }}"
    return tiny_llama().with_keys(tokenizer__chat_template__tool_use=(STRING, deep))
