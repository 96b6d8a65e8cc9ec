"""Chat templates are rendered as Jinja2 does it, or refused."""

# ruff: noqa: E501 -- a template reads best as one line
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_runner._core import ChatTemplate, Model
from llama_runner.errors import ChatTemplateError
from tests.model import huggingface
from tests.unit.loaders.model_files import tiny_llama

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "hi \u00c4b"},
    {"role": "assistant", "content": "a\n\nb"},
    {"role": "user", "content": ""},
]
VARIABLES: dict[str, Any] = {
    "messages": MESSAGES,
    "add_generation_prompt": True,
    "enable_thinking": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}

# Each of them is the same in both engines.
EQUAL = {
    "set in a loop lasts for one round": (
        "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}"
    ),
    "set in a condition lasts": "{% if true %}{% set y = 1 %}{% endif %}{{ y }}",
    "namespace": (
        "{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}"
        "{{ ns.a }}{{ ns }}"
    ),
    "one character before a block": "x{% if true %}y{% endif %}",
    "one character between": "a{{ 1 }}b{{ 2 }}",
    "lists, objects and none as text": (
        "{{ [1, 'a', none, true, 1.5, {'k': \"it's\"}, (1,), ()] }}{{ none }}{{ {} }}"
    ),
    "texts in a list": r"""{{ ["\t\\'", 'é', "\x00", '"\'', '\u200b', '😀'] }}""",
    "defaults": "{{ none|default('x') }}{{ u|default('d') }}{{ ''|default('x', true) }}{{ u|d }}",
    "floats": (
        "{{ [1.0, 1e16, 1e-5, 0.1, 123456789.123, 1e15, -0.0, 1e22, 2.5e-7]|tojson }}"
        "{{ 1e22 }} {{ 2.5e-7 }} {{ 0.1 + 0.2 }} {{ 3.0 }} {{ 5e-324 }}"
    ),
    "characters of a text": "{% for c in 'héλ😀' %}<{{ c }}>{% endfor %}{{ 'héλ'|length }}",
    "raw": "a\n  {% raw -%}  {{ x }}{% if %}\n{% endraw %}\n z",
    "escapes": r"""{{ '\u00e9\x41\101\z\a\U0001f600\'\"\\' }}""",
    "condition without else": "{{ 1 if -1 else 2 }}{{ 'a' if '' }}{{ ('a' if u) is defined }}",
    "replace with a count": (
        "{{ 'aXbXc'|replace('X', '-', 1) }}{{ 'aXbXc'.replace('X', '-', 1) }}"
        "{{ 'äbc'.replace('', '-') }}{{ 'abc'|replace('', '-', 2) }}"
    ),
    "messages as JSON": "{{ messages|tojson }}",
    "JSON": (
        "{{ {'a': [1, {'b': none}], 'c': 1.0, 'd': 'é\"\n<>&'}|tojson(indent=2) }}"
        "{{ []|tojson(indent=2) }}{{ {}|tojson(indent=2) }}{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}"
        "{{ 'é😀'|tojson(ensure_ascii=true) }}{{ [1, 2]|tojson(separators=(',', ':')) }}"
        "{{ {1: 2, true: 3, none: (4, 5)}|tojson(indent='\t') }}"
    ),
    "fewer arguments": (
        "{% macro m(a, b=2, c=b) %}{{ a }}{{ b }}{{ c }}{% endmacro %}"
        "{{ m() }}|{{ m(1) }}|{{ m(1, c=3) }}|{{ m(b=7) }}"
    ),
    "more arguments": (
        "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, *[3], k=4) }}"
    ),
    "a macro sees what is around it": (
        "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% for x in [7] %}{{ f() }}{% endfor %}"
        "{% set x = 2 %}{{ f() }}"
    ),
    "call": (
        "{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(x) m() %}{{ x }}!{% endcall %}"
    ),
    "with": "{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "filter and set blocks": (
        "{% filter upper|replace('A', 'x') %}abc{{ 'é' }}{% endfilter %}"
        "{% set x %}a{{ 1 }}{% endset %}{{ x }}{% set y | upper %}abc{% endset %}{{ y }}"
    ),
    "numbers": (
        "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7 / 2 }} "
        "{{ 6 / 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1_000 }} {{ 1e3 }} {{ true + 1 }} {{ -2 ** 2 }} "
        "{{ 2 ** 3 ** 2 }} {{ 1 - 1 - 1 }} {{ - - 1 }} {{ +1 }} {{ -2|abs }}"
    ),
    "~ binds more than +": "{{ '1' + 2 ~ 3 }}{{ 1 ~ 2 * 3 }}{{ 'a' ~ none ~ u ~ [1] }}",
    "chained comparisons": (
        "{{ 1 < 2 < 3 }}{{ 1 < 2 > 3 }}{{ 1 == 1.0 }}{{ 'a' not in 'bc' }}{{ not 1 == 2 }}"
        "{{ 3 > 2 == 2 }}{{ 1 in [1] in [[1]] }}"
    ),
    "comparisons": (
        "{{ [[1, 2] == [1, 2], {'a': [1], 'b': 2} == {'b': 2, 'a': [1]}, [[1]] == [[1]], 1 in [1.0], "
        "[1] < [2], 'a' < 'b', (1,) == [1], 'a' == 1, none == u, u == v, true == 1] }}"
    ),
    "texts and lists added and repeated": (
        "{{ 'a' 'b' }}{{ 'a' * 3 }}{{ 2 * [1] }}{{ (1,) + (2,) }}{{ [1] + [2] }}{{ 'x' * -1 }}"
    ),
    "slices": (
        "{{ [1, 2, 3, 4][::-1] }}{{ 'héllo'[::-1] }}{{ [1, 2, 3][-2:] }}{{ [1, 2, 3][5:] }}{{ 'äbc'[-1] }}"
        "{{ (1, 2, 3)[1:] }}{{ [1, 2, 3, 4, 5][4:0:-2] }}{{ 'abc'[:-1] }}{{ 'abc'[-9:9] }}{{ none[1:] }}"
    ),
    "items": (
        "{{ messages[0]['role'] }}{{ messages.0.role }}{{ messages[-1].role }}{{ messages[5] }}"
        "{{ messages[0].foo }}{{ 'abc'[1] }}{{ 'abc'[9] }}{{ {'items': 1}['items'] }}{{ [1]['a'] }}"
    ),
    "loop": (
        "{% for i in range(3) %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
        "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}"
        "{{ loop.cycle('a', 'b') }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.changed(i // 2) }};{% endfor %}"
    ),
    "loop over some": (
        "{% for i in [1, 2, 3, 4] if i % 2 == 0 %}{{ i }}/{{ loop.length }}{% endfor %}"
        "{% for i in [] %}x{% else %}e{% endfor %}{% for i in [1] if i > 1 %}x{% else %}e{% endfor %}"
    ),
    "a loop's condition looks at what its body did": (
        "{% set ns = namespace(n=0) %}{% for i in [1, 2, 3] if ns.n < 2 %}{{ i }}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}"
    ),
    "recursive loop": (
        "{% for n in [{'v': 1, 'c': [{'v': 2, 'c': []}]}] recursive %}"
        "{{ n.v }}[{{ loop(n.c) }}]{{ loop.depth }}{% endfor %}"
    ),
    "break and continue lose nothing": (
        "{% for x in [1, 2, 3] %}a{% if x == 2 %}b{% continue %}{% endif %}c"
        "{% if x == 3 %}d{% break %}{% endif %}{% endfor %}"
    ),
    "unpacking": (
        "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }},{% endfor %}"
        "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (a, b) = 'xy' %}{{ a }}{{ b }}"
        "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}"
    ),
    "comments and space": "{# c #}\nx{#- y -#}  z {#+ w #}\nq\n  {# a #}\n",
    "blocks and space": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n\n{% if true %}\n\nd{% endif %}\n\n",
    "signs": "a\n  {%+ if true %}b{% endif +%}\nc\n  {%- if 1 -%}\n d {%- endif -%} \n e{{- 1 -}}\n f\n",
    "brackets hide the end of a tag": "{{ {'a': {'b': 1}}['a']['b'] }}{{ '}}' }}{% if ['%}'] %}x{% endif %}",
    "sorting": (
        "{{ [3, 1, 2]|sort }}{{ ['b', 'A', 'c']|sort }}{{ ['b', 'A']|sort(case_sensitive=true) }}"
        "{{ [1, 2]|sort(reverse=true) }}{{ messages|sort(attribute='content')|map(attribute='role')|list }}"
        "{{ {'b': 1, 'a': 2}|dictsort }}{{ {'b': 1, 'A': 2}|dictsort(true) }}"
        "{{ {'b': 1, 'a': 2}|dictsort(by='value', reverse=true) }}{{ [1, 3, 2]|max }}{{ ['b', 'A']|min }}"
    ),
    "selecting": (
        "{{ messages|selectattr('role', 'equalto', 'user')|list }}{{ messages|rejectattr('content')|list }}"
        "{{ messages|map(attribute='nope', default='-')|join(',') }}{{ ['a', 'b']|map('upper')|list }}"
        "{{ [1, 2, 3]|select('odd')|list }}{{ [1, 2, 3]|reject('gt', 1)|list }}{{ [0, 1, none]|select|list }}"
        "{{ none|selectattr('x')|list }}{% if []|map('upper') %}generators are true{% endif %}"
    ),
    "first and last": "{{ [1, 2]|first }}{{ [1, 2]|last }}{{ []|first }}{{ 'abc'|first }}{{ {'a': 1}|last }}",
    "letters": (
        "{{ 'hello wORLD-foo (bar'|title }}|{{ \"it's a dog's\".title() }}|{{ 'hELLO é'|capitalize }}"
        "|{{ 'ÀÉÎ Ж'|lower }}|{{ 'éà жσ'|upper }}|{{ '\u00a0 x \n'|trim }}|{{ 'xxaxx'|trim('x') }}"
    ),
    "indent": (
        "{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}"
        "|{{ 'a\nb\n'|indent('>') }}|{{ 'a\nb'|indent(-1) }}"
    ),
    "numbers from texts": (
        "{{ '42'|int + 1 }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ '3.7'|int }} {{ '3.5'|float }} {{ 3.7|int }} "
        "{{ '0x1f'|int(base=16) }} {{ ' 1_000 '|int }} {{ 'inf'|float }} {{ none|int }} {{ true|int }}"
    ),
    "rounding": (
        "{{ 2.5|round }} {{ 3.14159|round(2) }} {{ 2.1|round(method='ceil') }} {{ 5|round }} {{ -3|abs }} "
        "{{ [1, 2, 3]|sum }} {{ -2.5|round(0, 'floor') }}"
    ),
    "groups": (
        "{{ [1, 2, 1, 'a', 'A']|unique|list }}{{ [1, 2, 3]|reverse|list }}{{ 'äbc'|reverse }}"
        "{{ [1, 2, 3, 4, 5]|batch(2, 0)|list }}{{ [1, 2, 3, 4, 5]|slice(3, 'x')|list }}{{ 'äb'|list }}"
    ),
    "joining": "{{ [1, none, 'a', u]|join('-') }}{{ 'abc'|join(',') }}{{ messages|join(',', 'role') }}",
    "markup": "{{ '<a>'|escape }}{{ '<b>'|safe }}{{ ('<'|safe) + '<' }}{{ ('<'|e) ~ '<' }}{{ ['<'|e] }}",
    "tests": (
        "{{ 1 is number }}{{ true is number }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}"
        "{{ 'a' is string }}{{ [] is sequence }}{{ {} is mapping }}{{ {} is sequence }}{{ u is defined }}"
        "{{ none is none }}{{ 3 is odd }}{{ 4 is divisibleby 2 }}{{ 1 is in [1] }}{{ 'A1' is upper }}"
        "{{ '1' is lower }}{{ u is iterable }}{{ 1 is iterable }}{{ 1 is eq 1 }}{{ 1 is not none }}"
        "{{ namespace() is mapping }}{{ {}.keys() is sequence }}{{ true is true }}{{ 1 is true }}"
    ),
    "texts' methods": (
        "{{ 'a b  c'.split() }}{{ 'a,b,c'.split(',', 1) }}{{ '  a b c '.split(none, 1) }}"
        "{{ 'a b c'.rsplit(' ', 1) }}{{ ' a b c '.rsplit(none, 1) }}{{ 'a,b'.partition(',') }}"
        "{{ 'x'.join(['a', 'b']) }}{{ 'äbc'.find('c') }}{{ 'a{}b{}'.format(1, 'z') }}{{ '{a}{{'.format(a=1) }}"
        "{{ 'abc'.startswith(('x', 'a')) }}{{ 'a\r\nb\x0bc'.splitlines() }}{{ 'aXbX'.count('X') }}"
    ),
    "objects' methods": (
        "{{ {'a': 1}.keys() }}{{ {'a': 1}.values() }}{{ {'a': 1}.items() }}{{ {'a': 1}|items|list }}"
        "{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.keys()|list }}{{ 'a' in {'a': 1} }}"
    ),
    "ranges": "{{ range(3) }}{{ range(1, 5, 2)|list }}{{ range(5)[-1] }}{{ range(3) == [0, 1, 2] }}",
    "generation": "{% generation %}x{% endgeneration %}\ny",
    "constants": "{{ true }}{{ True }}{{ None }}{{ false }}",
    "tuples": "{{ 1, 2 }}{{ (1,) }}{{ () }}",
}

# Each of them is shown by Jinja2, and refused here.
REFUSED = {
    "integers of more than 64 bits": "{{ 10000000000 * 10000000000 }}",
    "literals of more than 64 bits": "{{ 123456789012345678901234567890 }}",
    "numbers in another base": "{{ 0x1f }}",
    "generators as text": "{{ [1]|map('string') }}",
    "functions as text": "{% macro f() %}{% endmacro %}{{ f }}",
    "loops as text": "{% for i in [1] %}{{ loop }}{% endfor %}",
    "letters that become two": "{{ 'ß'|upper }}",
    "letters that depend on their place": "{{ 'Σ'|lower }}",
    "names of characters": r"{{ '\N{BULLET}' }}",
    "lone surrogates": r"{{ '\ud83d'|length }}",
    "the operator % of texts": "{{ '%s' % 1 }}",
    "filters that nobody uses": "{{ 'a b'|urlencode }}{{ 'a'|wordwrap }}",
    "the functions lipsum, cycler and joiner": "{{ joiner is defined }}",
    "formats with more than a name": "{{ '{:>4}'.format(1) }}",
    "Python's own attributes": "{{ 'a'.zfill(3) }}{{ (1).real }}",
    "macros' attributes": "{% macro f() %}{% endmacro %}{{ f.name }}",
    "texts marked safe, changed": "{{ ('a'|safe).upper() }}",
    "slices of ranges": "{{ range(5)[1:] }}",
    "sums of floats": "{{ [0.1, 0.2]|sum }}",
    "sorting by two attributes": "{{ messages|sort(attribute='role,content')|list }}",
    "other values that are the same": "{{ 'a' is sameas 'a' }}",
    "going on with a generator": (
        "{% set g = [1, 2]|map('string') %}{% for x in g %}{% break %}{% endfor %}{{ g|list }}"
    ),
    "blocks and other templates": "{% block a %}x{% endblock %}",
}

# Each of them is refused by both.
REFUSED_BY_BOTH = {
    "attributes of what is undefined": "{{ u.x }}",
    "items of what is undefined": "{{ u['x'] }}",
    "adding to what is undefined": "{{ 'a' + u }}",
    "adding none": "{{ 'a' + none }}",
    "adding a number to a text": "{{ 'a' + 1 }}",
    "ordering a text and a number": "{{ 'a' < 1 }}",
    "setting an attribute of an object": "{% set d = {} %}{% set d.a = 1 %}",
    "too many arguments": "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
    "arguments of another name": "{% macro f(a) %}{% endmacro %}{{ f(b=1) }}",
    "arguments that a filter has not": "{{ 'a'|upper(1) }}{{ [1]|join(x=1) }}",
    "dividing by zero": "{{ 1 // 0 }}",
    "JSON of what is undefined": "{{ u|tojson }}",
    "looping over none": "{% for x in none %}{% endfor %}",
    "an object as a key": "{{ {[]: 1} }}",
    "the length of a generator": "{{ [1]|map('string')|length }}",
    "ranges beyond 100,000": "{{ range(100001)|length }}",
    "objects that change": "{{ {'a': 1}.pop('a') }}",
    "brackets of another kind": "{{ (1] }}",
    "a block that does not end": "{% if true %}",
    "assigning to none": "{% set none = 1 %}",
}

# transformers refuses to change a list; templates of the pinned tree do it.
MORE = "{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}{{ l.pop(0) }}{{ l }}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_llama().write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with Model(path, vocab_only=True) as model:
        yield model


def shown(model: Model, template: str) -> str:
    return ChatTemplate(model, template).render(MESSAGES)[0]


@pytest.mark.parametrize("name", EQUAL)
def test_it_is_shown_as_jinja2_does(model: Model, name: str) -> None:
    assert shown(model, EQUAL[name]) == huggingface.render(EQUAL[name], **VARIABLES)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_shown_otherwise_is_refused(model: Model, name: str) -> None:
    huggingface.render(REFUSED[name], **VARIABLES)
    with pytest.raises(ChatTemplateError) as caught:
        shown(model, REFUSED[name])
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", REFUSED_BY_BOTH)
def test_what_jinja2_refuses_is_refused(model: Model, name: str) -> None:
    with pytest.raises(huggingface.REFUSALS):
        huggingface.render(REFUSED_BY_BOTH[name], **VARIABLES)
    with pytest.raises(ChatTemplateError):
        shown(model, REFUSED_BY_BOTH[name])


def test_lists_can_be_changed(model: Model) -> None:
    with pytest.raises(jinja2.exceptions.SecurityError):
        huggingface.render(MORE, **VARIABLES)
    assert shown(model, MORE) == huggingface.render(MORE, lists_may_change=True, **VARIABLES)


@pytest.mark.parametrize("number", ["9" * 19, "-" + "9" * 25, "1" + "0" * 30])
def test_arguments_with_an_integer_that_would_become_a_float_are_refused(
    model: Model, number: str
) -> None:
    template = ChatTemplate(model, "{{ messages[-1].tool_calls[0].function.arguments }}")

    def message(arguments: str) -> list[dict[str, Any]]:
        made = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [made]}]

    with pytest.raises(ChatTemplateError, match="integer of more than 18 digits"):
        template.render(message(f'{{"x": {number}}}'))
    assert number in template.render(message(f'{{"x": "{number}"}}'))[0]
    assert "1e30" in template.render(message(f'{{"x": 1e30, "y": 0.{"1" * 30}}}'))[0]


@pytest.mark.parametrize("name", ["upper", "lower", "capitalize"])
@given(letters=st.text(st.characters(categories=["L", "Nd", "Zs"]), max_size=5))
def test_letters_change_case_as_in_python_or_are_refused(
    model: Model, name: str, letters: str
) -> None:
    template = f"{{{{ messages[0].content|{name} }}}}"
    try:
        text = ChatTemplate(model, template).render([{"role": "user", "content": letters}])[0]
    except ChatTemplateError:
        return
    assert text == getattr(letters, name)()


# ---- any small template ------------------------------------------------------------------------

VALUES = st.sampled_from(
    "0 1 -1 2 3.5 0.1 1e20 'a' '' 'é x' true false none u x y d l s messages messages[0] [] "
    "messages[1].content {} (1,) range(4) ns.v '10' ' pad ' -2.5 '<x>' [[1],[2]] ns "
    "['b','A','c'] {'a':1,'b':'z'} 'a\\nb\\n\\nc' [1,'a',none] loop.index".replace(
        "é x", "é\0x"
    ).split(" ")
).map(lambda value: value.replace("\0", " "))
FILTERS = st.sampled_from(
    [
        "upper",
        "lower",
        "title",
        "capitalize",
        "trim",
        "length",
        "first",
        "last",
        "join",
        "join(',')",
        "string",
        "int",
        "int(5)",
        "float",
        "abs",
        "round",
        "round(1)",
        "sort",
        "sort(reverse=true)",
        "reverse",
        "unique|list",
        "map('upper')|list",
        "reverse|list",
        "list",
        "map(attribute='role')|list",
        "select|list",
        "reject('odd')|list",
        "selectattr('role')|list",
        "sum",
        "min",
        "max",
        "selectattr('role','equalto','user')|list",
        "default('D')",
        "default('D',true)",
        "dictsort",
        "items|list",
        "batch(2)|list",
        "slice(2)|list",
        "tojson",
        "tojson(indent=2)",
        "replace('a','_')",
        "replace('a','_',1)",
        "indent",
        "indent(2,true)",
        "escape",
        "safe",
        "center(9)",
        "truncate(4)",
        "wordcount",
        "tojson(ensure_ascii=true)",
    ]
)
TESTS = st.sampled_from(
    [
        "defined",
        "none",
        "string",
        "number",
        "integer",
        "float",
        "boolean",
        "mapping",
        "sequence",
        "iterable",
        "odd",
        "even",
        "true",
        "false",
        "divisibleby(2)",
        "lower",
        "upper",
        "in([1,'a'])",
        "eq(1)",
        "callable",
        "gt(1)",
        "escaped",
    ]
)
METHODS = st.sampled_from(
    [
        "upper()",
        "lower()",
        "title()",
        "capitalize()",
        "strip()",
        "strip('a')",
        "split()",
        "split('a')",
        "rsplit('b',1)",
        "replace('a','b')",
        "startswith('a')",
        "find('a')",
        "count('a')",
        "join(['x','y'])",
        "splitlines()",
        "isdigit()",
        "isupper()",
        "partition('b')",
        "format(1)",
        "items()",
        "keys()",
        "values()",
        "get('a')",
        "get('q',3)",
        "foo",
        "role",
    ]
)
OPERATORS = st.sampled_from(
    [
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "**",
        "~",
        "==",
        "!=",
        "<",
        ">",
        "<=",
        ">=",
        "in",
        "and",
        "or",
        "not in",
    ]
)
PLACES = st.sampled_from(
    ["0", "-1", "5", ":1", "1:", "::-1", "-2:", ":-1", "3:0:-1", "'a'", "'role'", "u"]
)


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def form(text: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map(lambda found: text.format(*found))

    return st.one_of(
        form("{} {} {}", inner, OPERATORS, inner),
        form("({})", inner),
        form("({})|{}", inner, FILTERS),
        form("{}|{}", inner, FILTERS),
        form("({}) is {}", inner, TESTS),
        form("({}).{}", inner, METHODS),
        form("({})[{}]", inner, PLACES),
        form("{} if {} else {}", inner, inner, inner),
        form("{} if {}", inner, inner),
        form("not {}", inner),
        form("-{}", inner),
        form("[{}, {}]", inner, inner),
        form("{{'k': {}}}", inner),
    )


SMALL = st.one_of(VALUES, _larger(VALUES))
EXPRESSIONS = st.one_of(VALUES, _larger(SMALL))
SPACE = st.sampled_from(["", " ", "\n", "\n  ", " \n", "\t", "a", "b ", "\n\n", "é"])
OPENING = st.sampled_from(["{%", "{%", "{%-", "{%+"])
CLOSING = st.sampled_from(["%}", "%}", "-%}", "+%}"])


@st.composite
def templates(draw: st.DrawFn, depth: int = 2) -> str:
    """Some statements, with space around them."""

    def tag(statement: str) -> str:
        return f"{draw(OPENING)} {statement} {draw(CLOSING)}"

    def inside() -> str:
        return draw(SPACE) + draw(templates(depth - 1)) + draw(SPACE)

    def statement() -> str:
        kind = draw(st.sampled_from(["print"] * 3 + KINDS * bool(depth)))
        value = draw(EXPRESSIONS)
        match kind:
            case "if":
                otherwise = tag("else") + inside() if draw(st.booleans()) else ""
                return tag(f"if {value}") + inside() + otherwise + tag("endif")
            case "for":
                over = draw(st.sampled_from(["messages", "l", "d.items()", "s", value]))
                target = draw(st.sampled_from(["x", "y", "x, y"]))
                which = draw(st.sampled_from(["", f" if {draw(EXPRESSIONS)}"]))
                more = draw(st.sampled_from(LOOP_ENDS))
                return tag(f"for {target} in {over}{which}") + inside() + more + tag("endfor")
            case "set":
                return tag(f"set {draw(st.sampled_from(['x', 'y', 'ns.v', 'x, y']))} = {value}")
            case "set block":
                return tag("set x") + inside() + tag("endset")
            case "filter":
                return tag("filter upper") + inside() + tag("endfilter")
            case "with":
                return tag(f"with x = {value}, z = x") + inside() + "{{ z }}" + tag("endwith")
            case "macro":
                name = draw(st.sampled_from(["f()", "f(a)", "f(a, b=x)"]))
                called = draw(st.sampled_from(["f()", "f(1)", "f(1, 2)", "f(b=3)"]))
                return tag(f"macro {name}") + inside() + tag("endmacro") + f"{{{{ {called} }}}}"
            case "comment":
                return draw(st.sampled_from(["{# c #}", "{#- c -#}", "{#+ c +#}"]))
            case "raw":
                return tag("raw") + draw(SPACE) + "{{ x" + draw(SPACE) + tag("endraw")
        return draw(st.sampled_from(["{{ %s }}", "{{- %s }}", "{{ %s -}}"])) % value

    return "".join(draw(SPACE) + statement() for _ in range(draw(st.integers(1, 3)))) + draw(SPACE)


KINDS = ["if", "for", "for", "set", "set block", "filter", "with", "macro", "comment", "raw"]
LOOP_ENDS = [
    "",
    "{% break %}",
    "{% if loop.last %}{% continue %}{% endif %}z",
    "{{ loop.index }}{{ loop.last }}{{ loop.length }}",
    "{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle(1, 2) }}{{ loop.changed(x) }}",
    "{% else %}e",
]
BEFORE = (
    "{% set ns = namespace(v=1) %}{% set l = [3, 1, 2] %}{% set d = {'b': 1, 'a': 'q'} %}"
    "{% set s = 'tExt é' %}"
)


@given(templates())
def test_any_template_is_shown_as_jinja2_does_or_refused(model: Model, template: str) -> None:
    template = BEFORE + template
    try:
        text = shown(model, template)
    except ChatTemplateError:
        return
    assert text == huggingface.render(template, **VARIABLES)
