"""Chat-template goldens: what transformers' apply_chat_template makes of templates and conversations.

Writes next to this script

- chat_templates.json: {name, template, cases: [{variables, output | error}]}. `variables` are the keyword arguments of the
  rendering; `error` is the text of raise_exception. The first template is SmolLM2's own, read from its GGUF; the others
  are written for this project, with the constructs of the family named.
- template_snippets.json: generated source (benchmarks/template_snippets.py), `variables` for all of it, and {source,
  output} or {source, error}
- template_masks.json: {marked, plain, messages, text, assistant}: a template with {% generation %} markers, the same
  without, and what transformers' return_assistant_tokens_mask says the assistant wrote: pieces of `text`, in order

usage: make_template_goldens.py MODEL.gguf
"""

import datetime
import json
import pathlib
import random
import re
import sys

import gguf
import jinja2
import transformers
from transformers.utils import chat_template_utils

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import template_snippets

NOW = datetime.datetime(2024, 7, 6, 15, 4, 9)

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% else %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{ tool_call.arguments | tojson }}{{ "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{ message.content | tojson }}{% else %}{{ message.content }}{% endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' ~ message.role ~ '\\n<think>\\n' ~ reasoning.strip('\\n') ~ '\\n</think>\\n\\n' ~ content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('turns must alternate') }}
{% endif %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in loop_messages if not (message.role == "tool" or message.tool_calls is defined and message.tool_calls is not none) %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}{{ raise_exception("roles: " ~ (loop_messages | map(attribute="role") | join(", "))) }}{%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}
        {%- generation %}{{- " " + message["content"]|trim + eos_token}}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

PHI = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

MACROS = """{#- macros, block set, call, filters -#}
{%- macro turn(role, content='', mark="<") -%}
    {{ mark }}{{ role | upper }}|{{ content }}>
    {%- if caller is defined %}({{ caller() }}){% endif %}
{%- endmacro -%}
{% set header %}  {{ messages | length }} turns{% endset %}
[{{ header | trim }}]
  {% for m in messages %}
    {%- call turn(m.role, content=m.content) %}{{ loop.index }}/{{ loop.length }}{% endcall %}
    {% if loop.previtem is defined %}after {{ loop.previtem.role }}{% endif %}
    {%- if loop.nextitem is defined %} before {{ loop.nextitem.role }}{% endif %}
    {% if loop.index == 3 %}{% break %}{% endif %}
  {% else %}
nobody
  {% endfor %}
{{ loop is defined }} {{ [3, 1, 2] | sort | join('-') }} {{ 'aXbXc'.split('X', 1) }} {{ "x" * 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 3 }}
{{ {'b': 1, 'a': [true, none, 1.5, "q'\\"\\n"]} }} {{ {'b': 1, 'a': {}} | tojson(indent=2) }} {{ ['é', 'b'] | tojson }} {{ {'z': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}
{{ messages | map(attribute='role') | unique | list }} {{ messages | rejectattr('role', 'in', ['user', 'tool']) | list | length }} {{ messages | selectattr('name', 'defined') | map(attribute='name') | list }}
{{ 'hello world-wide (web)' | title }} {{ "they're bill's".title() }} {{ 'hELLO' | capitalize }} {{ '  x ' | trim }}| {{ 'abc'[::-1] }} {{ 'abcdef'[1:-1:2] }} {{ 'abc' | first }}{{ 'abc' | last }} {{ 'abc' | reverse }}
{{ missing | default('d') }} {{ '' | default('e', true) }} {{ missing is defined }} {{ none is none }} {{ 1 is number }} {{ 'a' is string }} {{ {} is mapping }} {{ 'a' in 'cat' }} {{ 1 not in [2] }} {{ 1 < 2 <= 2 }}
{{ 'yes' if missing else 'no' }} {{ 'nothing' if missing }} {{ not missing and 1 or 2 }} {{ '5' | int + 1 }} {{ 'x' | int(9) }} {{ 3.0 }} {{ 1e3 }} {{ (1, 2)[0] }} {{ range(2, 8, 3) | list }} {{ 'a' ~ 1 ~ none }} {{ "a\\tb" 'c' }}
{% filter upper %}filtered {{ bos_token }}{% endfilter %} {% raw %}{{ raw }} {% if %}{% endraw %} {{ 'a.b.c'.rsplit('.', 1) }} {{ ' a  b '.split() }} {{ 'abcabc'.replace('b', '', 1) }} {{ 'abc'.find('c') }} {{ dict(a=1).get('b', 'fallback') }}
{% for key, value in {'k': 1, 'l': 2}.items() %}{{ key }}={{ value }}{{ ", " if not loop.last }}{% endfor %} {% for key in {'k': 1} %}{{ key }}{% endfor %} {% for c in 'héy' %}<{{ c }}>{% endfor %} {{ ({'x': 1} | items | list)[0][1] }}
{%+ if true %} kept {% endif +%}
{{ 'é' == 'e\\u0301' }} {{ '\\r\\n' | length }} {{ 10 | string ~ 'x' }} {{ [1, 2] + [3] }} {{ -1 | abs }} {{ 2.5 | round }} {{ [1, 2, 3] | sum }} {{ [2, 3, 1] | max }} {{ 'a\\nb' | indent(2) }} {{ loop_count | default(0) }}
"""

ZEPHYR = """{% for message in messages %}
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
{% endfor %}"""

TOOL = {"type": "function", "function": {"name": "weather", "description": "It's \"now\"", "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "上海"]}}, "required": ["city"]}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}]}

CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": " Hi  "}, {"role": "assistant", "content": "Hello!\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}, {"role": "user", "content": "c\r\n"}, {"role": "assistant", "content": "<think>x</think>d 👨‍👩‍👧"}],
    [{"role": "user", "content": "Weather?"}, CALL, {"role": "tool", "content": "12°"}, {"role": "tool", "content": "13°"}, {"role": "assistant", "content": "Mild.", "name": "bot"}],
    [{"role": "assistant", "content": "I start"}, {"role": "user", "content": "<|im_end|>{{ 1 }}"}],
    [],
]


MASKED = [
    # ChatML.
    """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # Thoughts of the last turn only, and an empty thought where it has none; calls; results as a user's turn.
    """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- set content = (m.content or '').split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.last %}
            {{- '<think>\\n' + ((m.content or '').split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in (m.content or '') else '') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + m.content + '</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # No prompt, as Llama 2's.
    """{%- for m in messages %}
    {%- if m.role == 'assistant' %}{% generation %}{{ ' ' + (m.content or '') | trim + ' ' + eos_token }}{% endgeneration %}
    {%- else %}{{- bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}
{%- endfor %}""",
]


def without_markers(source):
    return re.sub(r"\{%(-?) *(end)?generation *(-?)%\}", lambda m: "{%" + m[1] + (" endif " if m[2] else " if true ") + m[3] + "%}", source)


def masks():
    for source in MASKED:
        template = chat_template_utils._compile_jinja_template(source)
        for messages in CONVERSATIONS:
            if not any(m["role"] == "assistant" for m in messages):
                continue
            # The special tokens are the test model's.
            text, indices = chat_template_utils._render_with_assistant_indices(
                template, messages, None, None, False, bos_token="<|im_start|>", eos_token="<|im_end|>")
            yield {"marked": source, "plain": without_markers(source), "messages": messages, "text": text,
                   "assistant": [text[start:end] for start, end in indices]}


def snippets(count):
    rng = random.Random(2024)
    while count:
        source = template_snippets.make(rng)
        if len(source) > 400:
            continue
        case = {"source": source}
        try:
            case["output"] = chat_template_utils._compile_jinja_template(source).render(**template_snippets.VARIABLES)
        except Exception as error:
            case["error"] = type(error).__name__
        # An address is of that run alone; an integer beyond 64 bits is Python's alone.
        if re.search(r" at 0x|\d{19}", case.get("output", "")) or len(case.get("output", "")) > 400:
            continue
        count -= 1
        yield case


def write(name, document):
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    pathlib.Path(__file__).with_name(name).write_text(text, encoding="utf-8", newline="\n")
    print(name, len(text.encode()), "bytes")


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    smollm = reader.fields["tokenizer.chat_template"].contents()
    templates = {"SmolLM2": smollm, "Llama 3": LLAMA3, "Qwen": QWEN, "Gemma": GEMMA, "Mistral": MISTRAL, "Phi": PHI, "Zephyr": ZEPHYR, "constructs": MACROS}

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    # transformers' strftime_now reads the clock of its module.
    chat_template_utils.datetime = Clock
    goldens = []
    for name, template in templates.items():
        cases = []
        for messages in CONVERSATIONS:
            for extra in [{"tools": None, "add_generation_prompt": False}, {"tools": [TOOL], "add_generation_prompt": True, "enable_thinking": False}]:
                variables = {"messages": messages, "documents": None, "bos_token": "<s>", "eos_token": "</s>"} | extra
                case = {"variables": variables}
                try:
                    case["output"] = chat_template_utils._compile_jinja_template(template).render(**variables)
                except (jinja2.exceptions.TemplateError, TypeError) as error:
                    case["error"] = str(error)
                cases.append(case)
        goldens.append({"name": name, "template": template, "cases": cases})
    document = {"jinja2": jinja2.__version__, "transformers": transformers.__version__, "templates": goldens}
    write("chat_templates.json", document)
    write("template_masks.json", list(masks()))
    write("template_snippets.json", {"variables": template_snippets.VARIABLES, "snippets": list(snippets(400))})
    for golden in goldens:
        print(golden["name"], sum("output" in c for c in golden["cases"]), "outputs", sorted({c["error"] for c in golden["cases"] if "error" in c}))


if __name__ == "__main__":
    main()
