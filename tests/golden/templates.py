"""Chat templates in the manner of well-known families, and what transformers makes of conversations.

Every `<name>.json` holds `chat_template` as tokenizer_config.json would, the tokens it may name, and cases
of `messages` and `vars` with either the render, `expected`, or `error`: the message of raise_exception, or
null for what Python cannot do. `expressions.json` and `language.json` hold small templates, each with its render or
null; `continued.json` holds prompts that end within the last message.
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


# The rest of Jinja: operators, macros, filters, tests and methods that the lists above leave out.
OPERATORS = [
    "'' and 'a'", "'a' and ''", "'a' and 'b'", "none and 1", "0 or none", "[] or {}", "1 and 2 or 3", "missing and 'x'", "+3", "+number", "- - 3", "-+-2", "-number ** 2",
    "2 ** -1", "(-2) ** 3", "4 ** 0.5", "0 ** 0", "2 ** 100", "10 ** 20 % 7", "-7 // 2.0", "7 % -3", "-7 % -3", "7.5 % -2", "1e308 * 10", "5 % 0", "1 / 0", "5 // 0", "0 ** -1",
    "'%s' % 'x'", "'%s and %s' % ('a', 1)", "'%d%%' % 5", "'%(a)s-%(b)d' % {'a': 'x', 'b': 2}", "'%5.2f|%-8s|%+d|% d' % (2.5, 'ab', 3, 4)", "'%x %X %o %#x %c %r' % (255, 255, 8, 255, 'z', 'q')",
    "'%s' % ([1, 2],)", "'%s' % [1, 2]", "'%s %s' % 'a'", "'%s' % ('a', 'b')", "'%e %E %g %G' % (12345.678, 0.00012, 1e10, 1e-5)", "'%05d|%-5d|%.3d' % (42, 42, 7)", "'%*d' % (5, 3)", "'%s' % none", "'%s' % missing", "'x' % ()", "'%d' % 'a'", "'%i %u' % (3, 4.7)", "'%.2s|' % 'abc'",
    "'a' 'b' ~ 'c'", "[1] + [2] * 2", "(1, 2) + (3,)", "(1, 2) * 2", "'ab' * -1", "2 * 'ab'", "true + true", "1 - true", "'a' - 'b'", "[] - []", "1 + none", "[1] + (2,)", "1 < 2 == true", "1 < 3 > 2", "[1, 2] < [1, 3]", "(1, 2) <= (1, 2)", "'a' < 1", "none < 1", "1 <= 1.0", "2 ** 53 == 2.0 ** 53",
    "1 in [1.0]", "true in [1]", "'a' in {'a': 1}", "2 in range(0, 10, 2)", "3 in range(0, 10, 2)", "2.0 in range(3)", "none in none", "[] in [[]]", "'' in 'abc'", "1 in 'abc'", "1 not in [2]", "not 1 in [1]", "not not 'a'", "not none",
    "1 if 0 else 2 if 0 else 3", "(1 if 0) is undefined", "'a' if 1 if 1", "1, 2", "(1,)", "()", "(1, (2, 3))", "[1, [2, (3,)]]", "{'a': (1, 2)}", "{1: 'a', none: 'b', 2.5: 'c', (1, 2): 'd', true: 'e'}", "{[]: 1}", "{'a': 1}['a']", "{'a': 1}.b is defined", "[1, 2, 3][1:][0]", "'abcdef'[4:1:-1]", "'abcdef'[::-2]", "[1, 2, 3][::-1]", "(1, 2, 3)[:2]", "range(10)[2:8:3] | list", "range(10)[::-3]", "range(5)", "range(1, 9, 2)", "[1][5]", "'abc'[10:]", "'abc'[1.5]", "[1, 2][true]", "number[0]", "list[none]", "dict[list]", "'abc'['upper']()", "'a\\\nb'", "'\\x41\\101\\u00e9\\U0001F600\\q'", "0x1F + 0b101 + 0o17", "1_000 + 1", "1e3", "1.5E-3", "00",
    "x.y.z is defined", "missing.x", "missing['x']", "missing()", "missing + 1", "missing | length", "missing in [missing]", "number()", "'a'()", "text.nothing", "list.append", "list.append(1)", "dict.clear is defined", "text.__class__", "text.strip is defined", "[dict.get][0]('zeta')", "text.strip is callable", "dict.keys()", "dict.values()", "{'a': 1}.items()", "dict.keys() | length", "dict.keys()[0]", "'zeta' in dict.keys()", "1 in {'a': 1}.values()", "dict.keys() is sequence", "dict.keys() | tojson", "(1, [2]) | tojson", "range(2) | tojson", "number.real", "real.is_integer()", "number.bit_length()",
]
CALLS = [
    "dict([('a', 1), ('b', 2)])", "dict([['a', 1]], c=3)", "dict({'a': 1}, a=2)", "dict(1)", "dict.fromkeys is defined", "namespace(a=1, b='x')", "namespace({'a': 1}).a", "namespace(_a=1)", "range(3, 0, -1) | list", "range(0)", "range()", "range(1000000)", "range(1.5)", "range(1, 2, 0)", "range is callable", "namespace is callable", "joiner is callable", "cycler('a').next is callable", "missing is callable", "1 is callable", "'lower' is filter", "'nope' is filter", "'odd' is test", "'nope' is test", "1 is escaped", "'a' | e is escaped", "'a' is sameas 'a'", "1 is sameas 1.0", "none is sameas none", "1 is ne 2", "1 is lt 2", "3 is greaterthan 2", "2 is lessthan 1", "1 is ge(1)", "'a' is in 'abc'", "7 is divisibleby 7", "7 is divisibleby(0)", "'a' is odd", "1.0 is integer", "1.0 is float", "true is number", "true is integer", "1 is boolean", "'aB' is lower", "'AB' is upper", "12 is lower", "list is iterable", "1 is iterable", "dict is sequence", "namespace() is mapping",
    "'Hello World' is string and 1 is number", "[] is not none", "not 1 is odd", "'x' is nope", "raise_exception('a', 1)", "raise_exception(none)", "strftime_now()", "strftime_now('%Y') | int + 1", "'abc' | nope",
]
METHODS = [
    "'hello'.find('l', 3)", "'hello'.find('l', -2, -1)", "'hello'.rfind('l', 0, 3)", "'hello'.index('l', 1)", "'wörldö'.find('ö', 2)", "'hello'.count('l', 3)", "'hello'.startswith('l', 2)", "'hello'.endswith('l', 0, 4)", "'hello'.startswith(('x', 'e'), 1)", "'abc'.startswith('', 5)", "'abc'.find('', 3)", "'abc'.find('', 4)", "'abc'.startswith(1)",
    "'Hello World'.istitle()", "'Hello world'.istitle()", "''.istitle()", "'abc'.isascii()", "'é'.isascii()", "'a_1'.isidentifier()", "'1a'.isidentifier()", "'a b'.isprintable()", "'a\\n'.isprintable()", "'²'.isdigit()", "'²'.isdecimal()", "'½'.isnumeric()", "'½'.isdigit()", "'٣'.isdecimal()", "'Straße'.casefold()", "'a\\tb\\tc'.expandtabs(4)", "'a\\tb'.expandtabs()", "'abc'.translate({97: 'x', 98: none})", "'abc'.translate('abc'.maketrans('ab', 'xy'))", "'abc'.translate(''.maketrans({'a': '1'}))", "'{a}-{b}'.format_map({'a': 1, 'b': 2})",
    "'{:>8}|{:<8}|{:^8}|{:*^9}'.format('ab', 'cd', 'ef', 'gh')", "'{:08.3f}|{:+}|{: }'.format(3.14159, 5, 7)", "'{:,} {:_} {:,.2f}'.format(1234567, 1234567, 9876543.21)", "'{:b} {:#x} {:o} {:c}'.format(10, 255, 8, 65)", "'{:.3} {:.3}'.format('abcdef', 3.14159)", "'{:e} {:g} {:%} {:.1%}'.format(12345.6, 0.0001, 0.25, 0.125)", "'{0!r} {0!s} {1!a}'.format('é', 'é')", "'{0[a]} {1[0]} {2.zeta}'.format({'a': 1}, [2], dict)", "'{:{}}|'.format('a', 5)", "'{:{w}.{p}f}'.format(2.5, w=8, p=3)", "'{{}} {}'.format(1)", "'{} {}'.format(1)", "'{a}'.format()", "'{'.format(1)", "'}'.format(1)", "'{:d}'.format('a')", "'{:s}'.format(1)", "'{}'.format(none)", "'{:5}'.format(none)", "'{:5}|{:<5}|{:05}'.format(1, 2, -3)", "'{} {}'.format(true, missing)", "'{:=+6d}'.format(7)", "'{:x<4}'.format(1)", "'{:,}'.format(1234.5)", "'{:08,}'.format(1234)", "'{:g}'.format(100000.0)", "'{:g}'.format(1000000.0)", "'{:.0f} {:.0f}'.format(0.5, 1.5)", "'{}'.format(1e16)", "'{:#.3g}'.format(1.0)",
    "'abc'.center(8)", "'abc'.ljust(6, '.')", "'abc'.zfill(5)", "'+7'.zfill(4)", "'abc'.center(8, 'xy')", "'a,b;c'.replace(',', ';').split(';')", "'aXbXc'.split('X', maxsplit=1)", "'aXbXc'.rsplit('X', maxsplit=1)", "'abc'.partition('')", "'a b'.split(sep=' ')", "'abc'.join('xyz')", "'abc'.removeprefix('ab').removesuffix('c') == ''", "'abc'.strip('ac')", "'abc'.strip(1)", "'aaa'.replace('a', 'b', -1)", "'aaa'.replace('a', 'b', 0)", "'abc'.upper(1)", "'ΑΣ'.lower()", "'ǆ'.upper()", "'ﬁ'.upper()", "'o\\'neill x'.title()", "'a1b'.title()", "[1, 2, 1].count(1)", "[1, 2, 1].index(1, 1)", "[1].index(2)", "(1, 2).index(2)", "(1, 1).count(1)", "range(5).index(3)", "dict.get()", "dict.items() | list | first",
]
FILTERS = [
    "'hello big world' | truncate(9)", "'hello big world' | truncate(9, true)", "'hello big world' | truncate(9, false, '…')", "'hello big world' | truncate(12, leeway=0)", "'hello' | truncate(2)", "'hello big world' | truncate(11)", "'one two, three-four' | wordcount", "12 | wordcount", "'' | wordcount", "'the quick brown fox jumps' | wordwrap(10)", "'the quick brown-fox jumps' | wordwrap(11)", "'abcdefghijkl' | wordwrap(5)", "'abcdefghijkl mn' | wordwrap(5, false)", "'a bb ccc' | wordwrap(4, wrapstring='|')", "'well-known e-mail x--y' | wordwrap(6)", "'a\\n\\nb c' | wordwrap(2)", "'well-known' | wordwrap(6, break_on_hyphens=false)", "'  lead in space' | wordwrap(6)",
    "'abc' | center(9) ~ '|'", "'abc' | center ~ '|'", "12 | center(6)", "'<p>Hello <b>World</b> &amp; &lt;you&gt;</p><!-- no -->  x' | striptags", "'a < b' | striptags", "'a b/c?d=é&' | urlencode", "{'a b': 'c/d', 'e': 1} | urlencode", "[('a', 1), ('b', 'x y')] | urlencode", "1 | urlencode", "{'class': 'a', 'id': 1, 'no': none, 'q': '<\"'} | xmlattr", "{'a': 1} | xmlattr(false)", "{} | xmlattr", "{'a b': 1} | xmlattr", "'<a href=\"x\">\\'&' | forceescape", "'<a>' | e | e", "'<a>' | e | forceescape", "'<b>' | safe ~ '<i>'", "('<b>' | safe) + '<i>'", "'<b>' | e | upper", "('%s' | safe) % '<'", "['<'] | join('>' | safe)", "'<a>' | escape | string",
    "1 | filesizeformat", "999 | filesizeformat", "1000 | filesizeformat", "123456789 | filesizeformat", "1024 | filesizeformat(true)", "123456789 | filesizeformat(true)", "'2000' | filesizeformat", "1e30 | filesizeformat", "0 | filesizeformat",
    "['b', 'A', 'a', 'B'] | sort(true)", "['b', 'A', 'a', 'B'] | sort(case_sensitive=true)", "['b', 'A', 'a'] | sort(true, true)", "people | sort(attribute='age,name') | map(attribute='name') | list", "people | sort(true, attribute='age') | map(attribute='name') | list", "[3, none] | sort", "[1, 'a'] | sort", "[[2, 1], [1, 2]] | sort", "dict | dictsort(true)", "{'b': 1, 'A': 2, 'a': 3} | dictsort", "{'b': 1, 'A': 2, 'a': 3} | dictsort(true)", "{'b': 1, 'A': 2} | dictsort(false, 'value')", "{'b': 1, 'A': 2} | dictsort(reverse=true)", "{'b': 1} | dictsort(by='x')", "[1] | dictsort",
    "2.5 | round(0, 'ceil')", "2.567 | round(1, 'floor')", "2.5 | round", "3.5 | round", "-2.5 | round", "2.675 | round(2)", "1234 | round(-2)", "1250 | round(-2)", "1234.5 | round(-2)", "7 | round(0, 'ceil')", "2.5 | round(0, 'x')", "'a' | round", "people | max(attribute='age')", "people | min(attribute='name')", "['b', 'A'] | max", "['b', 'A'] | max(true)", "[] | max is undefined", "[] | min", "[1, 'a'] | max", "'aaa' | replace('a', 'b', count=1)", "'aaa' | replace('a', 'b', none)", "[1, 2, 3] | sum(start=10)", "[[1], [2]] | sum(start=[])", "people | sum('age')", "['a'] | sum", "people | sum(attribute='name')",
    "people | map(attribute='x', default='d') | list", "people | map('attr', 'name') | list", "dict | attr('zeta') is defined", "dict | attr('keys') is defined", "[1, 2] | map('nope') | list", "[1] | map | list", "['a', 'b'] | map('replace', 'a', 'c') | list", "list | map('upper') | join", "[1, 2, 3, 4] | select('divisibleby', 2) | list", "[0, 1, none] | select | list", "[0, 1] | reject | list", "people | selectattr('age', 'in', [25]) | list | length", "people | selectattr | list", "people | rejectattr('tags') | map(attribute='name') | list", "[1, 2] | select('nope') | list", "(list | map('upper')) is sequence", "(list | map('upper')) is iterable", "list | map('upper') | length", "'yes' if list | select('equalto', 'zzz') else 'no'", "(list | select)[0] is defined", "list | reverse | first", "(1, 2) | reverse | list", "'abc' | reverse", "dict | reverse | list", "dict | first", "dict | last", "range(3) | last", "list | map('upper') | last", "'' | first is undefined", "1 | first", "1 | list", "none | list",
    "[1, 2, 3, 4, 5] | batch(2, 'x') | list", "[1, 2, 3, 4, 5] | slice(2) | list", "[1, 2, 3, 4, 5] | slice(3, 'x') | list", "['a', 'A', 'b', 'a'] | unique(true) | list", "people | unique(attribute='age') | map(attribute='name') | list", "[[1], [1]] | unique | list", "people | groupby('age')", "people | groupby('x', default='d') | map('first') | list", "(people | groupby('age'))[0].grouper", "(people | groupby('age'))[1].list | length", "'a' | default('b', true)", "'' | default('b', true)", "none | default", "none | default(boolean=true)", "missing | default(default_value=3)", "missing | default(x=1)", "'7' | int(base=8)", "'0x1f' | int(base=16)", "'0b11' | int(0, 2)", "'z' | int(-1)", "'1e3' | int", "none | int", "[] | int(3)", "' 12 ' | int", "'1_000' | int", "'inf' | float", "'nan' | float", "'1e400' | float", "'inf' | int(-1)", "missing | int", "none | float(1.5)", "-5 | abs", "-5.5 | abs", "'a' | abs", "true | abs",
    "'a\\nb' | indent('>>')", "'a\\nb\\n' | indent(2, true, true)", "5 | indent", "'%s %s' | format(1, 2)", "'%(a)s' | format(a=1)", "'%s' | format(1, a=2)", "'x' | format", "[1, 2] | string | length", "dict | length", "{'b': 1, 'a': [1, 2]} | pprint", "[1, 'a', none] | pprint", "range(30) | list | pprint", "'abc' | trim('a')", "'abc' | list | join('-')", "[1, 2] | join(', ', 'x')", "1 | join", "dict | join(',')", "'see http://example.com/c, ok' | urlize", "'a' | title", "'a_b-c d' | title", "'(a [b <c' | title", "none | capitalize", "dict | items | list", "(dict | items) is sequence", "'x' | tojson(indent='a')", "[1, [2]] | tojson(indent=1)", "{1: 2, none: 3, true: 4} | tojson", "{'b': 1, 'a': 2} | tojson(sort_keys=true)", "[missing] | tojson", "namespace() | tojson", "('a' | safe) | tojson", "1e100 | tojson", "'\\u2028' | tojson",
]
BLOCKS = [
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}", "{% macro m() %}{{ varargs | length }}{% for v in varargs %}{{ v }}{% endfor %}{% endmacro %}{{ m(1, 2) }}{{ m() }}", "{% macro m() %}{{ kwargs.a }}{{ kwargs | length }}{% endmacro %}{{ m(a=1, b=2) }}", "{% macro m() %}{% endmacro %}{{ m(1) }}", "{% macro m() %}{% endmacro %}{{ m(x=1) }}", "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(none) }}", "{% macro m() %}{{ caller() if caller else 'none' }}{% endmacro %}{{ m() }}{% call m() %}in{% endcall %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% macro m() %}x{% endmacro %}{% call m() %}{% endcall %}", "{% macro m() %}{{ caller(1, b=2) }}{% endmacro %}{% call(a, b) m() %}{{ a }}{{ b }}{% endcall %}", "{% macro m(a, a2=1) %}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}{{ inner is defined }}", "{% macro m() %}{{ loop is defined }}{% endmacro %}{% for x in [1] %}{{ m() }}{% endfor %}", "{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", "{{ m is defined }}{% macro m() %}{% endmacro %}{{ m is defined }}", "{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% set j = joiner() %}{% for x in list %}{{ j() }}{{ x }}{% endfor %}", "{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}", "{{ cycler() }}", "{% for x in nothing %}{% endfor %}", "{% for x in none %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for c in 'abc' %}{{ c }}{{ loop.last }}{{ loop.index }}{% endfor %}", "{% for c in 'ab' if c != 'b' %}{{ loop.length }}{{ loop.last }}{% endfor %}", "{% set ns = namespace(n=0) %}{% for x in [1, 2, 3] if ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ x }}{% endfor %}", "{% for x in [1, 2, 3, 4] if x % 2 == 0 %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}", "{% for x in [] %}{% else %}e{% endfor %}", "{% for x in [1] if false %}{% else %}e{% endfor %}", "{% for x in [1] %}{% break %}{% else %}e{% endfor %}", "{% for x in [1, 2] %}{{ y }}{% set y = x %}{% endfor %}", "{% for x, y in [[1, 2], [3]] %}{{ x }}{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for x in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in [1] %}{{ loop }}{% endfor %}", "{% for x in [1, 2] recursive %}{{ x }}{% if x == 2 %}{{ loop([3]) }}{{ loop.depth0 }}{% endif %}{% endfor %}", "{% for x in [1] %}{{ loop([1]) }}{% endfor %}", "{% for loop in [1] %}{% endfor %}", "{% for x in list | map('upper') %}{{ loop.index }}{{ x }}{{ loop.length }}{% endfor %}", "{% for k in dict.keys() %}{{ loop.length }}{% endfor %}", "{% break %}", "{% for a in [1, 2] %}{% for b in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}", "{% set x = 1, 2 %}{{ x }}", "{% set x | upper %}a{{ number }}{% endset %}{{ x }}", "{% set x | replace('a', 'b') | upper %}a{% endset %}{{ x }}", "{% set ns = namespace() %}{% set ns.a, x = 1, 2 %}{{ ns.a }}{{ x }}", "{% set x = 1 %}{% set x.a = 2 %}", "{% set ns = namespace(a=1) %}{% set ns._b = 1 %}", "{% set ns = namespace(a=1) %}{% set ns.self = ns %}{{ ns.self.self.a }}", "{{ namespace(a=1).b is defined }}{{ namespace(a=1)['a'] }}", "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}", "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}", "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}", "{% filter upper | replace('A', 'b') %}a{{ 1 }}{% endfilter %}", "{% filter indent(2) %}a\nb{% endfilter %}", "{% if false %}{{ 1 | nope }}{% endif %}x", "{% if 1 %}{{ 1 | nope }}{% endif %}", "{% if nothing %}a{% elif number == 7 %}b{% elif 1 %}c{% else %}d{% endif %}", "{% if 1 %}a", "{% endif %}", "{% nope %}", "{{ }}", "{{ 1 + }}", "{{ (1 }}", "{{ 'a }}", "{% block b %}{{ number }}{% endblock %}", "{% print 1, 2 %}", "{% include 'a' %}", "{% if false %}{% include 'a' %}{% endif %}x", "{% autoescape false %}<{{ '<' }}{% endautoescape %}", "{% raw %}{{ a }}{% b %}{% endraw %}", "a {%- raw -%} b {%- endraw -%} c", "{%- if 1 -%} a {%- endif -%} b", "{# {{ #}a{# %} -#} b", "a\n{#- c -#}\nb", "{{- 1 -}} a {{- 2 }}", "  {%+ if 1 %}a{% endif %}", "{% if 1 +%}\na{% endif %}", "a\n  {% set x = 1 %}  \n  b", "{% for x in [1, 2] -%}\n  {{ x }}\n{%- endfor %}\n", "line\n\n\n", "{{ '{{' }}{{ '%}' }}{{ {'a': {'b': 1}} }}", "{%- set x = 1 -%}\n\n{{ x }}", "{{ 1 if true }}{{ 1 if false }}", "{{ x if x is defined else 'u' }}", "{{ true }}{{ none }}{{ 1.0 }}", "{% set true = 1 %}", "{{ [1, 2, 3] | sum }}{{ loop is defined }}", "{% generation %}a{{ number }}{% endgeneration %}b", "{{ messages[0].role }}{{ messages[-1]['role'] }}{{ messages.0.role }}", "{% set m = messages[0] %}{{ m }}{{ m.items() | list }}", "{{ bos_token }}{{ eos_token }}{{ tools }}{{ documents is none }}",
    "{{ '1234567890' * 3 }}{{ ('ab' * 3) | length }}", "{{ [1, 2] | map('string') | join }}{{ [[1, 2], [3]] | map('length') | list }}{{ [[3, 1]] | map('sort') | map('first') | list }}", "{% for x in [{'a': 1}, {'a': none}] | selectattr('a') %}{{ x.a }}{% endfor %}", "{{ dict(a=1).items() | list | tojson }}", "{% set d = {} %}{% for k, v in [('a', 1), ('b', 2)] %}{% set d = dict(d, **{k: v}) %}{% endfor %}{{ d }}", "{% macro f(n) %}{{ n if n < 2 else (f(n - 1) | int + f(n - 2) | int) }}{% endmacro %}{{ f(9) }}", "{% macro r(x) %}{% if x is mapping %}{ {%- for k, v in x | items %}{{ k }}:{{ r(v) }}{{ ',' if not loop.last }}{% endfor -%} }{% elif x is sequence and x is not string %}[{% for y in x %}{{ r(y) }}{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ x | tojson }}{% endif %}{% endmacro %}{{ r(dict) }}{{ r(mixed) }}",
]


def expressions(tokenizer, sources):
    def result(source):
        tokenizer.chat_template = source
        try:
            return tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, **CONTEXT)
        except Exception:
            return None

    return {"context": CONTEXT, "cases": [[source, result(source)] for source in sources]}


def written(expressions):
    return ["{{ " + expression + " }}" for expression in expressions]


# Templates that keep, trim, cut or lose what the last message says.
CONTINUED = {
    "chatml": CHATML,
    "trimmed": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}",
    "parts": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}</>{% endfor %}",
    "reasoning": "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}</>{% endfor %}",
    "lost": "{% for m in messages %}{% if loop.first %}<{{ m.role }}>{{ m.content }}</>{% endif %}{% endfor %}",
    "no content": "{% for m in messages %}<{{ m.role }}>{% endfor %}",
    "prompts": "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{{ 'go' if add_generation_prompt }}",
}
LAST = [
    "The answer is", "The answer is ", "  Sure:\n", "", " ", "<think>\nhm\n</think>\n\nYes", "twice twice",
    [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}, {"type": "image"}], [{"type": "image"}], None,
]


def continued(tokenizer):
    """Prompts that end within the last message, or null where transformers refuses."""
    cases = []
    for name, template in CONTINUED.items():
        for role in ["assistant", "user"]:
            for last in LAST:
                messages = [{"role": "user", "content": "Say: twice"}, {"role": role, "content": last}]
                tokenizer.chat_template = template
                try:
                    result = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
                except Exception:
                    result = None
                cases.append({"template": name, "messages": messages, "expected": result})
    return {"templates": CONTINUED, "cases": cases}


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
    sources = written(STRINGS + VALUES + TESTS + JSONS) + STATEMENTS
    common.write_json(folder / "expressions.json", expressions(tokenizer, sources))
    sources = written(OPERATORS + CALLS + METHODS + FILTERS) + BLOCKS
    common.write_json(folder / "language.json", expressions(tokenizer, sources))
    common.write_json(folder / "continued.json", continued(tokenizer))


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
