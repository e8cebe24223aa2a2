"""Chat templates in the manner of well-known families, and what transformers makes of conversations.

Every `<name>.json` holds `chat_template` as tokenizer_config.json would, the tokens it may name, and cases
of `messages` and `vars` with either the render, `expected`, or `error`: the message of raise_exception, or
null for what Python cannot do. `expressions.json` holds small templates, each with its render or null.
"""

import datetime
import shutil

import jinja2
from transformers.utils import chat_template_utils

import common
from families import FAMILIES

# System prompt with a default, roles as they come.
CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# Headers, trimmed contents, a date (only its length here: the render must not depend on the day), tools.
LLAMA3 = """\
{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- The system message is taken out of the conversation. -#}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Date characters: " + date_string | length | string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Roles must alternate; the system message joins the first of the user.
MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported, with the exception of an initial optional system message!') }}
    {%- endif %}
{%- endfor %}
"""

# No system role, the assistant is called model.
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

# Blocks on lines of their own, which only trim_blocks and lstrip_blocks take away.
ZEPHYR = """\
{% for message in messages %}
    {% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
    {% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# Python's string methods, namespace, slices, macro, loop controls, in the manner of reasoning models.
REASONING = """\
{%- macro turn(role, content) -%}
<|im_start|>{{ role }}
{{ content }}<|im_end|>
{% endmacro -%}
{%- set ns = namespace(last_query=-1, system='', seen=[]) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.system = ns.system ~ message.content.strip() ~ ' ' -%}
    {%- elif message.role == 'user' and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) -%}
        {%- set ns.last_query = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- if ns.system -%}
    {{- turn('system', ns.system.rstrip()) -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- continue -%}
    {%- endif -%}
    {%- if message.role not in ['user', 'assistant', 'tool'] -%}
        {{- raise_exception('Unexpected role: ' ~ message.role) -}}
    {%- endif -%}
    {%- set content = message.content -%}
    {%- if message.role == 'assistant' and '</think>' in content -%}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- if loop.index0 > ns.last_query -%}
            {%- set content = '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' ~ content -%}
        {%- endif -%}
    {%- endif -%}
    {%- if loop.previtem is defined and loop.previtem.role == message.role -%}
        {{- '[again] ' -}}
    {%- endif -%}
    {{- turn(message.role | upper if message.role == 'tool' else message.role.title().lower(), content.replace('\\t', '    ')) -}}
{%- endfor -%}
{%- if messages[::-1][0].role == 'assistant' -%}
    {{- '(' ~ messages | length ~ ' messages, ' ~ (messages | selectattr('role', 'equalto', 'user') | list | length) ~ ' of the user)' -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# JSON as Python writes it: spaces after separators, nothing escaped for HTML, characters beyond ASCII kept.
JSON = """\
{%- for message in messages -%}
{{ message | tojson }}
{{ message.content | tojson }} {{ message['content'] | tojson(ensure_ascii=False) | length }}
{% endfor -%}
{{ {'list': [1, 2.5, true, none, 'é<&>'], 'empty': {}} | tojson }}
{{ [] | tojson(indent=2) }}{{ {'a': [1, {'b': 'ü'}]} | tojson(indent=2) }}
"""

# The tags around what the assistant says mark it for training and leave no trace.
GENERATION = """\
{%- for message in messages -%}
    {{- '<|' + message.role + '|>' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
        {{- message.content + eos_token -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message.content -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

TOOL_USE = """\
{{- bos_token }}[TOOLS]{% for tool in tools %}{{ tool.function.name }}: {{ tool.function | tojson }}
{% endfor %}[/TOOLS]
{%- for message in messages %}{{ '\\n<' ~ message.role ~ '>' ~ message.content }}{% endfor %}"""

NAMED = {"default": "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}", "tool_use": TOOL_USE}

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "zephyr": ZEPHYR,
    "reasoning": REASONING,
    "json": JSON,
    "generation": GENERATION,
    "named": NAMED,
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "météo",
            "description": "The weather <now> & here",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


PLAIN = [
    say(("user", "Hello")),
    say(("system", "Be brief."), ("user", "Who are you?")),
    say(("user", "2 + 2?"), ("assistant", "4"), ("user", "Sûr? 世界 🚀 <b>\"quoted\" & 'so'</b>")),
    say(("system", "  Be kind. \n"), ("user", "\n  spaces around\t\n"), ("assistant", " yes "), ("user", "{{ x }} {% y %}")),
    say(("user", "")),
    say(("user", "one"), ("assistant", "two")),
]
WRONG_ORDER = [
    say(("assistant", "I begin"), ("user", "no")),
    say(("user", "one"), ("user", "two")),
    say(("system", "s"), ("user", "one"), ("tool", "result")),
]
THOUGHTS = [
    say(("user", "think"), ("assistant", "<think>\nfirst\n</think>\n\nanswer"), ("user", "more\tplease")),
    say(
        ("system", " a "), ("system", "b"), ("user", "look up"), ("assistant", "<think>\n\nhm\n</think>\ncalling"),
        ("tool", "42"), ("user", "<tool_response>x</tool_response>"), ("assistant", "<think>so</think>done"),
    ),
    say(("user", "hi"), ("critic", "boo")),
]


# What templates do with Python's values, one thing at a time. Each is rendered with CONTEXT.
CONTEXT = {
    "text": "  Hello, wörld!\n", "words": "one two  three", "lines": "a\nb\r\nc\n", "empty": "", "quote": "it's \"so\"",
    "number": 7, "real": 2.5, "yes": True, "no": False, "nothing": None,
    "list": ["b", "a", "c", "a"], "mixed": [1, 2.0, "x", None, True, ["y"], {"k": "v"}],
    "dict": {"zeta": 1, "alpha": {"b": [1, "two"], "a": None}, "mid": "é<&>'"},
    "people": [
        {"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25, "tags": []}, {"name": "Cid", "age": 30},
    ],
}
STRINGS = [
    "text.strip()", "text.lstrip()", "text.rstrip()", "text.rstrip('\\n')", "text.strip(' \\n!')", "'xxaxx'.strip('x')",
    "'\\x1c a\\x1f'.strip() | length", "' a ' | trim", "'xaxx' | trim('x')", "nothing | trim", "number | trim", "missing | trim",
    "words.split()", "words.split(' ')", "words.split(' ', 1)", "words.split(None, 1)", "words.split(maxsplit=1)",
    "words.split(' ', maxsplit=1)", "words.rsplit(' ', 1)", "words.rsplit(None, 1)", "words.rsplit()", "' a b '.split(None, 1)",
    "' a b '.rsplit(None, 1)", "''.split()", "''.split(',')", "'a,b,,c'.split(',')", "'a</t>b</t>c'.split('</t>')[-1]",
    "'abc'.split('')", "'abc'.split('</t>')[0]", "'a</t>b'.split('</t>', 1)[1]",
    "lines.splitlines()", "lines.splitlines(True)", "lines.splitlines(keepends=true)", "lines.split('\\n')",
    "'a=b=c'.partition('=')[0]", "'a=b=c'.partition('=')[2]", "'a=b=c'.rpartition('=')[0]", "'abc'.partition('=')[2] == ''",
    "'hello'.startswith('he')", "'hello'.startswith(('x', 'h'))", "'hello'.endswith('lo')", "'hello'.endswith(('x', 'o'))",
    "'hello'.find('l')", "'wörld'.find('l')", "'wörld'.rfind('z')", "'hello'.index('e')", "'hello'.count('l')", "'aaa'.count('aa')",
    "'hello'.index('z')", "'a-b-c'.replace('-', '+')", "'a-b-c'.replace('-', '+', 1)", "'abc'.replace('', '-')",
    "'hello world'.title()", "\"they're bill's\".title()", "'hELLO wORLD'.capitalize()", "'éa b'.capitalize()", "'Straße'.upper()",
    "'ÀB'.lower()", "'aB'.swapcase()", "'x'.join(['a', 'b'])", "', '.join(list)", "''.join(words.split())", "','.join([1, 2])",
    "'{} and {}'.format(1, 'b')", "'{0} {1} {0}'.format('a', 'b')", "'{x}!'.format(x=3)", "'{:>5}|'.format('ab')", "'{:.2f}'.format(real)",
    "'7'.zfill(3)", "'-7'.zfill(4)", "'ab'.ljust(4) ~ '|'", "'ab'.rjust(4, '.')", "'ab'.center(5, '*')", "'abc'.center(6, '*')",
    "'abc'.isdigit()", "'12'.isdigit()", "''.isdigit()", "'aB'.isalpha()", "''.isalpha()", "'ab1'.isalnum()", "' '.isspace()", "''.isspace()",
    "'AB 1'.isupper()", "'ab 1'.islower()", "'a1'.isupper()", "'pre-x'.removeprefix('pre-')", "'x.py'.removesuffix('.py')",
    "text[2:7]", "text[-3:]", "text[:-1]", "'hello'[0]", "'hello'[-1]", "'wörld'[1]", "'hello'[::-1]", "'hello'[1:4:2]", "'hello'[9:]",
    "text | length", "'日本' | length", "text | upper", "number | upper", "nothing | upper", "yes | lower", "'hello world' | title",
    "\"they're bill's\" | title", "'hELLO' | capitalize", "'a-b' | replace('-', '+')", "'aaa' | replace('a', 'b', 2)", "number | replace('7', 'x')",
    "'a' * 3", "'ab' in 'cabd'", "'x' not in 'abc'", "'a' ~ 1 ~ none ~ true ~ 2.0", "'a' + 1", "'a' + none", "'a' 'b'",
    "'%s-%d' | format('a', 3)", "'%05.1f' | format(real)", "'a\\tb\\\\n\\u00e9\\x41'", "'it\\'s'", "'\\d'",
    "'a\\nb' | indent(2)", "'a\\nb' | indent(2, true)", "'a\\n\\nb' | indent(2)", "'a\\nb' | indent(width=3, first=true)", "'a\\n\\nb' | indent(2, blank=true)",
    "'{\\n' | indent(4, first=True)", "'' | indent(2, true)", "'a\\n' | indent('> ', blank=true)", "'<a>' | e", "'<a>' | escape | length", "'<a>' | safe",
    "'abc' | first", "'abc' | last", "'abc' | list", "'cab' | sort | join", "'abc' | reverse", "'a' < 'b'", "'a' == 'a'", "'Z' < 'a'",
    "'1' | int + 1", "'x' | int", "'x' | int(5)", "'1.5' | float", "'2.7' | int",
]
VALUES = [
    "yes", "no", "nothing", "missing", "true", "True", "none", "None", "number", "real", "1.0", "1e16", "1e15", "1e-5", "0.0001", "123456789012345678",
    "1.5e300", "0.1 + 0.2", "100000000000000000000.0", "-0.0", "4 / 2", "7 / 2", "7 // 2", "-7 // 2", "-7 % 3", "7 % 3", "2 ** 10", "7.0 // 2", "1 + 2.0",
    "10 * 2.5", "true + 1", "list", "mixed", "dict", "people[0]", "[]", "{}", "[none, true, 'a\\n']", "{'a': 'b', 1: 2}", "[quote]", "['\\'']", "['\"']", "['\\\\']",
    "['é', '日本', '\\u200b', '\\x07', '\\u00a0', '\\u0301']", "(1, 2) | list", "[1.0, 1e20, 2.5]", "list | string", "dict | string", "nothing | string", "missing | string", 
    "[[1, 2], ['a']] | join(', ')", "list | join(' ')", "[1, none, true, 2.5] | join('|')", "people | join(', ', attribute='name')",
    "people | map(attribute='name') | join(', ')", "list[1:]", "list[:2] | tojson", "list[::-1]", "list[-1]", "list[9]", "list[9] is defined", "list[-9] is defined", "list + ['z']",
    "(list + ['z']) | length", "(list + ['z'])[-1]", "(list + ['z']) | tojson", "(list + ['z']) is sequence", "(list + ['z']) is iterable", "(list + ['z'])[1:3]", "[1] * 3", "list.index('a')", "list.count('a')",
    "list | unique | list", "list | unique | join", "list | sort", "list | sort(reverse=true)", "people | sort(attribute='age') | map(attribute='name') | list", "list | reverse | list", "list | first", "list | last",
    "[] | first", "list | length", "list | count", "dict | length", "nothing | length", "[3, 1, 2] | max", "[3, 1, 2] | min", "[3, 1, 2] | sum", "[1, 2, 3, 4, 5] | batch(2) | list", "range(3) | list",
    "range(1, 10, 3) | list", "range(3) | length", "range(5)[-1]", "people | selectattr('age', 'equalto', 30) | map(attribute='name') | list", "people | selectattr('tags') | list | length", "people | selectattr('tags', 'defined') | list | length",
    "people | rejectattr('age', 'eq', 30) | map(attribute='name') | first", "[1, 2, 3, 4] | select('odd') | list", "[1, none, 2] | reject('none') | list", "list | map('upper') | list", "[' a '] | map('trim') | list",
    "people | map(attribute='tags', default='-') | list", "people | groupby('age') | length", "list | select('in', ['a', 'c']) | list", "['a', 1] | select('string') | list", "people | selectattr('age', '>', 26) | list | length",
    "dict.keys() | list", "dict.values() | list | length", "dict.items() | list | length", "missing | first", "missing | list", "missing | join(',')", "missing | length", "'x' | float", "people | sum(attribute='age')", "'abcabc'.rindex('b')",
    "'' ~ missing", "'x' + missing", "'a' + ('b' if no)", "'a' ~ ('b' if no)", "'a' in ('a', 'b')", "('a', 'b')[0]", "['b', 'A', 'a', 'B'] | sort", "['a', 'A', 'b'] | unique | list",
    "{'b': 1, 'A': 2} | dictsort | map('first') | list", "[{'a': {'b': 1}}] | selectattr('a.b', 'equalto', 1) | list | length", "range(3, -1, -1) | list", "dict(people[0], **{'name': 'x'})", "dict.get('x', {}).get('y', 'z')",
    "people | map(attribute='name') | unique | list | tojson", "list[::2]", "list[-2:]", "none == false", "0 == false", "1 in [true]", "missing is sequence", "missing is iterable", "'%.3s|%5s|%-5s|' | format('abcdef', 'b', 'c')",
    "(dict | tojson)[1:-1]", "2 ** 64", "2 ** 3 ** 2", "-7.5 // 2", "1.10 ~ ''", "not 1 == 2", "'a' if missing is defined and missing.x else 'b'", "dict.items() | map('last') | list | length", "missing | items | list", "dict | list", "dict.get('zeta')", "dict.get('none')", "dict.get('none', 'x')", "dict.get('alpha').get('a')", "dict.alpha.a is none",
    "dict['alpha']['b'][1]", "dict.alpha.missing", "dict.missing is defined", "dict['missing'] | default('d')", "dict.missing.deeper", "missing.deeper", "'zeta' in dict", "'x' in dict.alpha", "dict(a=1, b='x')",
    "dict.copy().zeta", "dict.pop('zeta')", "list.append('x')", "dict.update({})", "{'a': 1, 'b': 2}.items() | map('first') | list", "dict == dict", "[1, 2] == [1, 2]", "1 == 1.0", "1 == true", "'1' == 1", "nothing == none",
    "missing == none", "missing == missing", "missing | default('d')", "nothing | default('d')", "nothing | default('d', true)", "'' | default('d', boolean=true)", "missing | d('e')", "number | default(1)", "missing or 'x'", "'' or 'x'", "nothing or []",
    "list and 'x'", "not list", "not missing", "'a' if yes", "'a' if no", "'a' if no else 'b'", "1 < 2 < 3", "3 > 2 and 2 > 1", "number in [7]", "none in [none]", "1 in mixed", "'x' in missing", "'x' in nothing", "2.7 | round", "2.345 | round(2)", "2.5 | int",
    "7 | round", "-3 | abs", "'3' | float", "number | float", "true | int", "number | string + 'x'", "number ~ 'x'", "[1, [2, [3]]] | tojson", "missing.strip()", "number.strip()", "nothing.x", "nothing.x is defined", "number.x is defined",
]
TESTS = [
    f"{value} is {test}"
    for value in ["text", "list", "dict", "number", "real", "yes", "nothing", "missing", "range(2)", "list[1:]"]
    for test in ["string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "none", "defined", "undefined", "true", "false", "not string"]
] + ["3 is odd", "4 is even", "6 is divisibleby(3)", "'a' is in ['a']", "'ab' is lower", "'AB' is upper", "1 is eq 1", "1 is sameas 1", "2 is gt 1", "2 is le 1", "raise_exception is defined", "strftime_now is defined", "text is not defined"]
JSONS = [
    "dict | tojson", "mixed | tojson", "text | tojson", "nothing | tojson", "yes | tojson", "real | tojson", "1e20 | tojson", "1e-7 | tojson", "missing | tojson", "dict | tojson(indent=2)", "dict | tojson(indent=0)", "dict | tojson(indent=4, ensure_ascii=true)",
    "dict | tojson(ensure_ascii=False)", "'é🚀\\x7f' | tojson(ensure_ascii=True)", "dict | tojson(separators=(',', ':'))", "dict | tojson(separators=[', ', ' = '], indent=1)", "dict | tojson(sort_keys=true)", "dict | tojson(true)", "dict | tojson(false, 2)", "dict | tojson(indent='--')",
    "[] | tojson(indent=2)", "{} | tojson(indent=2)", "[[], {}] | tojson(indent=2)", "'\\x01\\b\\f</script>' | tojson", "'a\\nb\\\\\"' | tojson", "people | map(attribute='name') | list | tojson", "list[1:] | tojson", "range(3) | list | tojson",
    "dict.items() | list | tojson", "[1.0, -0.0, 100] | tojson", "1 | tojson + 'x'", "people[0] | tojson | length", "dict.alpha | tojson | safe",
]
STATEMENTS = [
    "{% for c in 'ab' %}{{ c }};{% endfor %}", "{% for k in dict %}{{ k }};{% endfor %}", "{% for k, v in dict.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in dict | items %}{{ k }};{% endfor %}", "{% for k, v in dict | dictsort %}{{ k }};{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}", "{% for x in missing %}x{% else %}none{% endfor %}", "{% for x in list if x != 'a' %}{{ loop.index }}{{ x }}{{ loop.last }};{% endfor %}",
    "{% for x in list %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}", "{% for x in list %}{{ loop.previtem is defined }}{{ loop.cycle('o', 'e') }}{{ loop.changed(x) }};{% endfor %}",
    "{% for x in list %}{% if x == 'c' %}{% break %}{% endif %}{% if x == 'a' %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in list %}{% for y in [1, 2] %}{{ loop.index }}{% if y == 1 %}{% break %}{% endif %}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set a, b = [1, 2] %}{{ b }}{{ a }}", "{% set t %}a{{ number }}{% endset %}{{ t ~ t | length }}", "{% set x %}  a {% endset %}{{ x.strip() }}|",
    "{% macro m(a, b='d') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}", "{% macro m(a) %}{% if a > 0 %}{{ a }}{{ m(a - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}", "{% macro m(a) %}  {{ a }}\n{% endmacro %}{{ m('x').strip() }}|{{ m('y') | trim | length }}", "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{% endcall %}", "{% macro m(x) %}{{ x }}{% endmacro %}{% set y = m('a') + 'b' %}{{ y }}{{ m is defined }}",
    "{% filter upper %}abc{% endfilter %}", "{% with x = 2 %}{{ x }}{% endwith %}{{ x }}", "{% raw %}{{ x }}{% endraw %}", "{# note #}a{#- b -#} c", "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "a  {%- generation -%}  b {%- endgeneration %}  c",
    "{% if a is defined and a %}x{% elif not a %}y{% endif %}", "{% if list|length > 3 and list[0]|length == 1 %}x{% endif %}", "a\n{% if true %}\n  b\n{% endif %}\nc\n", "  {% if true %}  \n  x\n  {%- endif %}\n\n y\n\n", "  {# c #}\n  x {{- ' y ' -}} z\n", "{{ 1 }}\n{{ 2 }}\n", "a\r\n{% if true %}\r\nb{% endif %}\r\n",
    "{% for g in people | groupby('age') %}{{ g.grouper }}{{ g.list | length }};{% endfor %}", "{% for x in [{'c': [{'c': [], 'n': 2}], 'n': 1}] recursive %}{{ x.n }}{{ loop(x.c) }}{{ loop.depth }}{% endfor %}", "{% set ns = namespace(d={}) %}{% for k in list %}{% set ns.d = dict(ns.d, **{k: loop.index}) %}{% endfor %}{{ ns.d }}",
    "{% macro m() %}{{ caller('z') }}{% endmacro %}{% call(x) m() %}[{{ x }}]{% endcall %}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% for x in people | selectattr('age', 'gt', 26) %}{{ x.name }}{{ loop.last }}{{ loop.nextitem is defined }}{% endfor %}", "{% for x in list | map('upper') %}{{ x }}{{ loop.last }}{% endfor %}",
    "\t{% if true %}\n\ty\n\t{% endif %}\n", "a\n  {%- if true %}\n  b\n  {%- endif +%}\n c", "{% set x %}\nline\n{% endset %}[{{ x }}]", "{% for k in dict.keys() %}{{ k }}{{ loop.last }}{% endfor %}", "x {# c -#}  \n y",
    "{%+ if true %} x{% endif +%}\n y", "{% if true -%}\n\n x {%- else %}y{% endif %}", "{{ '\n' }}{{- '\n' -}} x", "{% set l = [] %}{% set l = l + [1] %}{% set l = l + [2] %}{{ l }}{{ l[0] }}", "{% set ns = namespace(l=[]) %}{% for x in list %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.l | join('') }}{{ ns.l[1:] }}",
    "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}", "{% set d = {'a': 1} %}{% set d = dict(d, b=2) %}{{ d.b }}", "{% for p in people | sort(attribute='name') %}{{ p.name }}{% endfor %}", "{% for p in people recursive %}{{ p.name }}{% endfor %}", "{% for a in [[1, 2], [3, 4]] %}{{ a[0] }}{% endfor %}{% for a, b in [[1, 2]] %}{{ b }}{% endfor %}",
    "{{ raise_exception('bad ' ~ number) }}", "{% do list %}", "{% include 'x' %}", "{% set x = list[0] if list else 'n' %}{{ x }}", "{{ 'a' if list is string else 'b' if number else 'c' }}", "{{ {'a': {'b': 1}}.a.b }}{{ {'a-b': 1}['a-b'] }}", "{{ ('a' ~ 'b') | upper ~ 'c' }}", "{{ not yes or no }}{{ -number }}", "{{ [1, 2,] | length }}{{ {'a': 1,} | length }}",
    "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%A, %B %-d, %Y %H:%M:%S.%f%z') }}|{{ strftime_now('%j %y %I %p %%') }}",
]


def expressions(tokenizer):
    def result(source):
        tokenizer.chat_template = source
        try:
            return tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, **CONTEXT)
        except Exception:
            return None

    written = ["{{ " + expression + " }}" for expression in STRINGS + VALUES + TESTS + JSONS]
    return {"context": CONTEXT, "cases": [[source, result(source)] for source in written + STATEMENTS]}


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 4, 5, 6, 7, 89)


def write(folder):
    shutil.rmtree(folder, ignore_errors=True)
    chat_template_utils.datetime = FixedDate
    tokenizer = common.gpt2_tokenizer()
    for name, template in (TEMPLATES | {name: template.lstrip("\n") for name, (template, _) in FAMILIES.items()}).items():
        tokenizer.chat_template = template
        value = {
            "chat_template": as_config(template),
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "cases": [case(tokenizer, *given) for given in given_cases(name)],
        }
        common.write_json(folder / f"{name}.json", value)
    common.write_json(folder / "expressions.json", expressions(tokenizer))


def as_config(template):
    """tokenizer_config.json lists named templates."""
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def given_cases(name):
    """Conversations, each with variables for the template and whether the assistant is to go on."""
    conversations = PLAIN + WRONG_ORDER + (THOUGHTS if name == "reasoning" else [])
    cases = [(messages, {}, messages[-1]["role"] != "assistant") for messages in conversations]
    cases.append((PLAIN[2], {}, False))
    if name in FAMILIES:
        _, more = FAMILIES[name]
        return cases + [(messages, variables, messages[-1]["role"] != "assistant") for messages, variables in more]
    return cases + ([(PLAIN[1], {"tools": TOOLS}, True)] if name in ("llama3", "named") else [])


def case(tokenizer, messages, variables, go_on):
    result = {"messages": messages, "vars": variables, "add_generation_prompt": go_on}
    if not variables:
        del result["vars"]
    try:
        result["expected"] = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=go_on, **variables
        )
    except Exception as error:
        # Only what templates raise themselves has the same words everywhere.
        result["error"] = str(error) if type(error) is jinja2.TemplateError else None
    return result
