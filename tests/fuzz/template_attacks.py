"""Chat templates that want to hang the process, fill its memory or overflow its stack."""

from __future__ import annotations

BIG = "{% set ns = namespace(s='x' * 1000000, l=[]) %}"
# Each list is short, but the loop is long.
LOOP = "{% for i in range(9999) %}{% for j in range(9999) %}"
END = "{% endfor %}{% endfor %}"

# Each of them ends in an error that names one of these reasons.
TOO_MUCH = ("too long", "too much text", "too many values")
TOO_DEEP = ("too deeply",)
CYCLE = ("into itself",)

REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    # ---- recursion
    "macro that calls itself": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        TOO_DEEP,
    ),
    "macros that call each other": (
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        TOO_DEEP,
    ),
    "macro that calls itself twice, but not deeply": (
        "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(14) }}{{ f(14) }}" + "{{ f(16) }}" * 100,
        TOO_MUCH + TOO_DEEP,
    ),
    "macro in a loop in itself": (
        "{% macro f() %}{% for i in [1, 2] %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
        TOO_DEEP,
    ),
    "default argument that calls its macro": (
        "{% macro f(a=f()) %}{{ a }}{% endmacro %}{{ f() }}",
        TOO_DEEP,
    ),
    "call block in its own macro": (
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
        TOO_DEEP,
    ),
    "caller that calls its caller": (
        "{% macro f() %}{{ caller() }}{% endmacro %}"
        "{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
        TOO_DEEP,
    ),
    # ---- work
    "long range": ("{% for i in range(1000000000) %}x{% endfor %}", TOO_MUCH),
    "shorter range": ("{% for i in range(30000000) %}x{% endfor %}", TOO_MUCH),
    "range that is listed": ("{{ range(1000000000)|list }}", TOO_MUCH),
    "range that is joined": ("{{ range(100000000)|join }}", TOO_MUCH),
    "range that is counted": ("{{ range(1000000000)|length }}", TOO_MUCH),
    "nested loops": ("{% for i in range(10000) %}" * 4 + "x" + "{% endfor %}" * 4, TOO_MUCH),
    "nested loops without text": (
        "{% for i in range(3000) %}" * 4 + "{% endfor %}" * 4,
        TOO_MUCH,
    ),
    "loop that skips": (f"{LOOP}{{% continue %}}{END}", TOO_MUCH),
    "loops that skip": (
        "{% for i in range(9999) %}" * 3 + "{% continue %}" + "{% endfor %}" * 3,
        TOO_MUCH,
    ),
    "filtered loop": (
        "{% for i in range(3000) %}{% for j in range(3000) if false %}{% endfor %}{% endfor %}",
        TOO_MUCH,
    ),
    "many arguments": (
        "{% macro f(" + ", ".join(f"a{i}" for i in range(20_000)) + ") %}{% endmacro %}"
        "{{ f(" + "1," * 19_999 + "1) }}",
        TOO_MUCH,
    ),
    # ---- text
    "multiplied text": ("{{ 'x' * 1000000000 }}", TOO_MUCH),
    "text multiplied again": ("{{ ('x' * 100000) * 100000 }}", TOO_MUCH),
    "text that doubles": (
        f"{{% set ns = namespace(s='x') %}}{LOOP}{{% set ns.s = ns.s + ns.s %}}{END}",
        TOO_MUCH,
    ),
    "text that doubles by format": (
        f"{{% set ns = namespace(s='x') %}}{LOOP}"
        f"{{% set ns.s = '{{}}{{}}'.format(ns.s, ns.s) %}}{END}",
        TOO_MUCH,
    ),
    "text that grows by replace": (
        f"{{% set ns = namespace(s='x') %}}{LOOP}{{% set ns.s = ns.s.replace('x', 'xx') %}}{END}",
        TOO_MUCH,
    ),
    "replace of nothing": (f"{BIG}{{{{ ns.s.replace('', ns.s) }}}}", TOO_MUCH),
    "replace of all": (f"{BIG}{{{{ ns.s.replace('x', ns.s) }}}}", TOO_MUCH),
    "long separator": (f"{BIG}{{{{ range(10000)|join(ns.s) }}}}", TOO_MUCH),
    "deep indentation": ("{{ 'a\\nb'|indent(1000000000) }}", TOO_MUCH),
    "wide indentation": (f"{BIG}{{{{ ('a\\n' * 10000)|indent(ns.s) }}}}", TOO_MUCH),
    "indented JSON": ("{{ [[1, 2], 3]|tojson(indent=2000000000) }}", TOO_MUCH),
    "large text in a namespace": (
        f"{BIG}{LOOP}{{% set ns.s = ns.s ~ 'x' %}}{END}",
        TOO_MUCH,
    ),
    "length of a large text": (f"{BIG}{LOOP}{{{{ ns.s|length }}}}{END}", TOO_MUCH),
    "large text as a key": (
        f"{BIG}{{% set d = {{ns.s: 1}} %}}{LOOP}{{{{ ns.s in d }}}}{END}",
        TOO_MUCH,
    ),
    "large text compared": (
        f"{BIG}{LOOP}{{% if ns.s == ns.s %}}{{% endif %}}{END}",
        TOO_MUCH,
    ),
    "large text in capitals": (f"{BIG}{LOOP}{{{{ ns.s|upper }}}}{END}", TOO_MUCH),
    "large macro": (
        f"{BIG}{{% macro f() %}}{{{{ ns.s }}}}{{% endmacro %}}{LOOP}{{% set x = f() %}}{END}",
        TOO_MUCH,
    ),
    "wide text": ("{{ 'x'|center(1000000000) }}", TOO_MUCH),
    "wide text, by its methods": (
        "{{ 'x'.ljust(1000000000) }}{{ 'x'.center(10 ** 12) }}",
        TOO_MUCH,
    ),
    "text multiplied by a power": ("{{ 'x' * 10 ** 9 }}", TOO_MUCH),
    "list multiplied": ("{{ [1] * 10 ** 9 }}", TOO_MUCH),
    "many slices": ("{{ [1]|slice(10 ** 9)|list }}", TOO_MUCH),
    "large groups": ("{{ [1]|batch(10 ** 9, 0)|list }}", TOO_MUCH),
    "JSON with large indentation": ("{{ [[1]]|tojson(indent='x' * 30000000) }}", TOO_MUCH),
    "replace of nothing, some": (
        f"{BIG}{{{{ ns.s|replace('', ns.s, 1000000) }}}}",
        TOO_MUCH,
    ),
    "recursive loop without end": (
        "{% set l = [1] %}{% for i in l recursive %}{{ loop(l) }}{% endfor %}",
        TOO_DEEP,
    ),
    "recursive loop that branches": (
        "{% for i in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}",
        TOO_MUCH + TOO_DEEP,
    ),
    "scopes that macros keep": (
        f"{LOOP}{{% set t = 'x' * 1000 %}}{{% macro f() %}}{{{{ t }}}}{{% endmacro %}}{END}",
        TOO_MUCH,
    ),
    "objects copied": (
        "{% set d = dict(range(9998)|map('string')|batch(2)) %}"
        f"{LOOP}{{% set x = d.copy() %}}{END}",
        TOO_MUCH,
    ),
    "text taken apart": (f"{BIG}{LOOP}{{% set x = ns.s|list %}}{END}", TOO_MUCH),
    "text turned around": (f"{BIG}{LOOP}{{% set x = ns.s[::-1] %}}{END}", TOO_MUCH),
    "text looked at letter by letter": (f"{BIG}{LOOP}{{{{ ns.s[0] }}}}{END}", TOO_MUCH),
    "argument that is spread": (
        "{% macro f() %}{% endmacro %}{% set l = range(100000)|list %}"
        f"{LOOP}{{{{ f(*l) if false }}}}{{% set x = [l|join(*[l|join]) ] %}}{END}",
        TOO_MUCH,
    ),
    "a loop that knows its last item": (
        "{% for a in range(90000) if loop is undefined %}{% for b in range(90000) if a > b %}"
        "{{ loop.length }}{% endfor %}{% endfor %}",
        TOO_MUCH,
    ),
    # ---- lists
    "list that grows": (
        f"{BIG}{LOOP}{{% set x = ns.l.append('x' * 1000) %}}{END}",
        TOO_MUCH,
    ),
    "list that doubles": (
        f"{{% set ns = namespace(l=[1]) %}}{LOOP}{{% set ns.l = ns.l + ns.l %}}{END}",
        TOO_MUCH,
    ),
    "namespace that grows": (
        "{% set ns = namespace() %}"
        + "".join(f"{{% set ns.a{i} = 'x' * 100000 %}}" for i in range(5_000)),
        TOO_MUCH,
    ),
    "loops that are kept": (
        f"{BIG}{LOOP}{{% set x = ns.l.append(loop) %}}{END}",
        TOO_MUCH,
    ),
    "sorting again and again": (
        f"{{% set l = range(100000)|list %}}{LOOP}{{% set x = l|sort %}}{END}",
        TOO_MUCH,
    ),
    "slicing again and again": (
        f"{{% set l = range(100000)|list %}}{LOOP}{{% set x = l[::-1] %}}{END}",
        TOO_MUCH,
    ),
    "looking again and again": (
        f"{{% set l = range(100000)|list %}}{LOOP}{{% set x = -1 in l %}}{END}",
        TOO_MUCH,
    ),
    "taking from the front": (
        f"{{% set l = range(150000)|list %}}{LOOP}{{% set x = l.pop(0) %}}{END}",
        TOO_MUCH,
    ),
    # ---- shapes of data
    "list in itself, shown": ("{% set l = [] %}{% set x = l.append(l) %}{{ l }}", TOO_DEEP),
    "list in itself, as JSON": (
        "{% set l = [] %}{% set x = l.append(l) %}{{ l|tojson }}",
        TOO_DEEP,
    ),
    "list in itself, as text": (
        "{% set l = [] %}{% set x = l.append(l) %}{{ l|string }}",
        TOO_DEEP,
    ),
    "list in itself, as an argument, as a key": (
        "{% set l = [] %}{% set x = l.append(l) %}{% set k = [] %}{% set x = k.append(a=l) %}"
        "{% set d = {} %}{{ k[0] in d }}",
        ("unhashable", "not allowed", *CYCLE),
    ),
    "list in itself, kept": ("{% set l = [] %}{% set x = l.append(l) %}", CYCLE),
    "namespace in itself": ("{% set ns = namespace() %}{% set ns.x = ns %}", CYCLE),
    "lists that double when shown": (
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}"
        "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
        TOO_MUCH,
    ),
    "tuples that double when hashed": (
        "{% set ns = namespace(l=(1, 2)) %}{% for i in range(60) %}"
        "{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ ns.l in {} }}",
        TOO_MUCH,
    ),
    "deep list, as JSON": (
        "{% set ns = namespace(l=[]) %}{% for i in range(20000) %}{% set ns.l = [ns.l] %}"
        "{% endfor %}{{ ns.l|tojson }}",
        TOO_DEEP,
    ),
    "deep tuple, hashed": (
        "{% set ns = namespace(l=(1, 2)) %}{% for i in range(20000) %}{% set ns.l = (ns.l, 1) %}"
        "{% endfor %}{{ ns.l in {} }}",
        TOO_DEEP,
    ),
    # ---- what llama.cpp's engine does not have
    "including a file": ("{% include '/etc/passwd' %}", ("include",)),
    "importing a file": ("{% import '/etc/passwd' as p %}", ("import",)),
    "extending a file": ("{% extends '/etc/passwd' %}", ("extends",)),
    # CVE-2024-34359: Python's objects, from the template.
    "classes of Python": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        ("not supported",),
    ),
    "globals of Python": (
        "{{ self.__init__.__globals__.__builtins__.__import__('os').system('id') }}",
        ("not supported",),
    ),
    "globals of a function": (
        "{{ namespace.__init__.__globals__['os'].popen('id').read() }}",
        ("not supported",),
    ),
}

# What these ask for is odd, but does no harm.
HARMLESS: dict[str, str] = {
    "range past the last integer": (
        "{{ range(9223372036854775800, 9223372036854775807, 9)|length }}"
    ),
    "many variables in a loop": (
        "".join(f"{{% set v{i} = 1 %}}" for i in range(3000))
        + "{% for i in range(9999) %}{% for j in [1] %}{% endfor %}{% endfor %}"
    ),
    "negative indentation": ("{{ 'a\\nb'|indent(-1) }}"),
    "block that holds itself": (
        "{% set ns = namespace() %}{% macro f() %}{% set ns.c = caller %}{% endmacro %}"
        "{% call f() %}{% endcall %}"
    ),
    "tuples that double when compared": (
        "{% set ns = namespace(l=(1, 2)) %}{% for i in range(60) %}"
        "{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ ns.l == ns.l }}"
    ),
    "deep list, never looked at": (
        "{% set ns = namespace(l=[]) %}{% for i in range(50000) %}{% set ns.l = [ns.l] %}"
        "{% endfor %}"
    ),
    "deep list, from the outside in": (
        "{% set a = [] %}{% set ns = namespace(l=a) %}{% for i in range(50000) %}{% set b = [] %}"
        "{% set x = ns.l.append(b) %}{% set ns.l = b %}{% endfor %}"
    ),
    "deep list of methods": (
        "{% set ns = namespace(l=[]) %}{% for i in range(50000) %}{% set ns.l = [ns.l.append] %}"
        "{% endfor %}"
    ),
    "pairs that get shorter": (
        "{% set l = [[1, 2], [3, 4]] %}"
        "{% for a, b in l %}{% if loop.first %}{% set x = l[1].pop() %}{% endif %}{% endfor %}"
    ),
    "division by zero": "{{ 5 is divisibleby(0) }}",
    "division that overflows": "{{ (-9223372036854775807 - 1) is divisibleby(-1) }}",
    "an order that is none": (
        "{% set l = range(2000)|list %}"
        "{% for i in range(2000) %}{% set x = l.append(i ~ 'a') %}{% endfor %}{{ (l|sort)|length }}"
    ),
    "many blanks": "{{ (' ' * 200000)|trim }}",
    "many kinds of blanks": (
        "{% set ns = namespace(s='') %}{% for i in range(2000) %}"
        "{% set ns.s = ns.s ~ messages[0].content ~ ' ' %}{% endfor %}"
        "{{ ns.s.strip('User message hi') }}"
    ),
    "many pieces": "{{ ('a,' * 50000).split(',')|length }}",
    "many replacements": "{{ ('a,' * 50000).replace(',', ';;')|length }}",
    "break outside of a loop": "{% break %}",
    "attributes of Python": "{{ ''.__class__ }}",
    "configuration": "{{ config }}{{ request }}{{ self }}",
}
