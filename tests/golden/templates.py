"""Chat templates in the manner of well-known families, and what transformers makes of conversations.

Every `<name>.json` holds `chat_template` as tokenizer_config.json would, the tokens it may name, and cases
of `messages` (and `tools`) with either the render, `expected`, or the message of raise_exception, `error`.
"""

import shutil

import jinja2

import common

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


def write(folder):
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = common.gpt2_tokenizer()
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        value = {
            "chat_template": as_config(template),
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "cases": [case(tokenizer, *given) for given in given_cases(name)],
        }
        common.write_json(folder / f"{name}.json", value)


def as_config(template):
    """tokenizer_config.json lists named templates."""
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def given_cases(name):
    """Conversations, each with tools and whether the assistant is to go on."""
    conversations = PLAIN + WRONG_ORDER + (THOUGHTS if name == "reasoning" else [])
    cases = [(messages, None, messages[-1]["role"] != "assistant") for messages in conversations]
    cases.append((PLAIN[2], None, False))
    return cases + ([(PLAIN[1], TOOLS, True)] if name in ("llama3", "named") else [])


def case(tokenizer, messages, tools, go_on):
    result = {"messages": messages, "tools": tools, "add_generation_prompt": go_on}
    if tools is None:
        del result["tools"]
    try:
        result["expected"] = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=go_on
        )
    except jinja2.TemplateError as error:
        result["error"] = str(error)
    return result
