#!/usr/bin/env python3
"""Chat templates: our engine against the one that Hugging Face runs.

Three comparisons; each prints a table, and the exit status says whether all agreed.

  templates   real templates (*.jinja below the directories named) on generated conversations: roles in and out of order,
              tool calls and tools, parts instead of text, empty and missing values, Unicode, prompts on and off
  snippets    generated template source: expressions, filters, tests, methods, loops, macros, white space control
  masks       what the assistant wrote: of templates with {% generation %} markers, transformers' spans against ours
              of the same template, which must be identical, and ours of it with the markers taken out, which must be
              the same content (some markers take in the prompt or the line's end, some leave out the last token); of
              templates without markers, that each assistant's content is in a span, from the end of the prompt to the
              token that ends the turn, and nobody else's content is. A refusal with an error of its own is counted.

Texts must be identical, and where one side fails the other must. An integer beyond 64 bits is Python's alone: counted
apart. The reference is transformers' own compiled environment (its sandbox, filters and functions) with a fixed clock.

usage: compare_templates.py [--render "edgebench render"] [--conversations 300] [--snippets 20000] DIRECTORY...
"""

import argparse
import datetime
import json
import pathlib
import random
import re
import shlex
import subprocess
import sys

import jinja2
from transformers.utils import chat_template_utils

import template_snippets

NOW = datetime.datetime(2024, 7, 26, 0, 0, 0)  # what our engine assumes when it is told no date


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock

TEXTS = [
    "", " ", "\n", "Hi", "Hello there.", "  padded  ", "line\nbreak\r\nend\n", "Größe 上海 👨‍👩‍👧 e\u0301", "\t\u00a0tab", "a" * 300,
    "<|im_end|>", "{{ 1 }} {% if %}", "<think>\nhm\n</think>\n\nAnswer", "<think>x</think>d", "</think>", "a</think>b</think>c",
    "[INST] x [/INST]", "<tool_response>\n1\n</tool_response>", "{\"a\": 1}", "it's \"quoted\" \\ <b>&amp;</b>", "0", "None",
    "<s>", "</s>", "<|start_of_role|>", "\u200b\u2028\u0000", "ΑΣ ŉ ǆ İ", "/no_think", "/think do it",
]
VALUES = [1, -2, 0, 1.5, 1e16, 1e-7, True, False, None, "Köln", "", [], {}, [1, "a", None], {"k": [{"z": 1}], "a": "é"}]


def make_tool(rng):
    properties = {
        name: rng.choice([
            {"type": "string", "description": rng.choice(TEXTS)}, {"type": "integer"}, {"type": ["string", "null"]},
            {"type": "array", "items": {"type": "number"}}, {"type": "string", "enum": ["a", "b"], "default": "a"},
            {"type": "object", "properties": {"q": {"type": "boolean"}}, "required": ["q"]},
            {"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "array"},
            {"oneOf": [{"type": "string", "description": "d"}, {"type": "array", "items": {"type": "string"}}]},
        ])
        for name in rng.sample(["city", "days", "unit", "opts", "items", "get"], rng.randint(0, 4))
    }
    function = {"name": rng.choice(["weather", "f", "get_time"]), "description": rng.choice(TEXTS)}
    if rng.random() < 0.9:
        function["parameters"] = {"type": "object", "properties": properties}
        if rng.random() < 0.7:
            function["parameters"]["required"] = list(properties)[:2]
    if rng.random() < 0.2:
        function["return"] = {"type": "string", "description": "what"}
    return {"type": "function", "function": function} if rng.random() < 0.9 else function


def make_call(rng, number):
    arguments = {rng.choice(["city", "days", "x", "items"]): rng.choice(VALUES) for _ in range(rng.randint(0, 3))}
    function = {"name": rng.choice(["weather", "f"]), "arguments": arguments if rng.random() < 0.8 else json.dumps(arguments)}
    if rng.random() < 0.15:
        return function
    call = {"type": "function", "function": function}
    if rng.random() < 0.6:
        call["id"] = rng.choice(["abcdefghi", "call_%d" % number, "123456789"])
    return call


def make_content(rng):
    roll = rng.random()
    if roll < 0.88:
        return rng.choice(TEXTS)
    if roll < 0.95:
        parts = [{"type": "text", "text": rng.choice(TEXTS)} for _ in range(rng.randint(0, 2))]
        return parts + ([{"type": "image"}] if rng.random() < 0.3 else [])
    return None


def make_conversation(rng):
    """Mostly what a data set has, and now and then what it should not have."""
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": rng.choice(["system"] * 9 + ["developer"]), "content": rng.choice(TEXTS)})
    for _ in range(rng.randint(0, 4)):
        messages.append({"role": "user", "content": make_content(rng)})
        if rng.random() < 0.3:
            calls = [make_call(rng, n) for n in range(rng.choice([1, 1, 1, 2]))]
            turn = {"role": "assistant", "content": rng.choice([None, "", rng.choice(TEXTS)]), "tool_calls": calls}
            if rng.random() < 0.2:
                del turn["content"]
            messages.append(turn)
            for call in calls:
                result = {"role": rng.choice(["tool"] * 5 + ["ipython"]), "content": rng.choice(TEXTS + [{"a": 1}, ["b"]])}
                if rng.random() < 0.6:
                    result["tool_call_id"] = call.get("id", "abcdefghi")
                if rng.random() < 0.5:
                    result["name"] = "weather"
                messages.append(result)
        turn = {"role": "assistant", "content": make_content(rng)}
        if rng.random() < 0.15:
            turn[rng.choice(["reasoning_content", "thinking", "reasoning"])] = rng.choice(TEXTS)
        if rng.random() < 0.1:
            turn["name"] = "bot"
        messages.append(turn)
    if messages and rng.random() < 0.35:
        messages.pop()
    if messages and rng.random() < 0.1:
        rng.shuffle(messages)
    if messages and rng.random() < 0.05:
        rng.choice(messages).pop(rng.choice(["role", "content"]), None)
    variables = {
        "messages": messages, "tools": [make_tool(rng) for _ in range(rng.randint(1, 3))] if rng.random() < 0.4 else None,
        "documents": None, "add_generation_prompt": rng.random() < 0.5,
    }
    if rng.random() < 0.95:
        variables |= {"bos_token": "<s>", "eos_token": "</s>"}
    if rng.random() < 0.3:
        variables["enable_thinking"] = rng.random() < 0.5
    for name, values in {
        "date_string": ["26 Jul 2024"], "tools_in_user_message": [True, False], "builtin_tools": [["code_interpreter"], ["brave_search"]],
        "custom_tools": [None], "thinking": [True, False], "reasoning_effort": ["high"],
        "documents": [[{"title": "T", "text": "some text", "doc_id": 1}]], "controls": [{"length": "short"}],
    }.items():
        if rng.random() < 0.06:
            variables[name] = rng.choice(values)
    if rng.random() < 0.1:
        variables[rng.choice(["xml_tools", "python_tools"])] = [make_tool(rng)]
    return variables


class Renderer:
    """Our engine as a process: a line in, a line out."""

    def __init__(self, command):
        self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, requests):
        """Answers in the order of the requests; written and read in turns that fit the pipes."""
        answers = []
        for request in requests:
            self.process.stdin.write(json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the renderer died of: " + json.dumps(request, ensure_ascii=False)[:3000])
            answers.append(json.loads(line))
        return answers


def reference(template, variables):
    try:
        return {"output": template.render(**variables)}
    except Exception as error:
        return {"error": type(error).__name__ + ": " + str(error), "raised": type(error) is jinja2.exceptions.TemplateError}


def compiled(source):
    try:
        return chat_template_utils._cached_compile_jinja_template(source), None
    except Exception as error:
        return None, {"error": type(error).__name__ + ": " + str(error)}


def verdict(expected, got):
    """agree, beyond (an integer that only Python has), address (of a generator, which Python prints), or differ."""
    # Beyond what ours has by design: Python's generators and functions print as an address, its integers grow.
    if "has no text" in got.get("error", ""):
        return "address"
    if "output" in expected:
        if got.get("output") == expected["output"]:
            return "agree"
        return "beyond" if "64 bits" in got.get("error", "") else "differ"
    if "error" not in got:
        return "differ"
    if expected.get("raised") and not got["error"].endswith(": " + expected["error"].removeprefix("TemplateError: ")):
        return "differ"
    return "agree"


def report(source, variables, expected, got):
    print("---", source if len(source) < 600 else source[:80], flush=True)
    if variables is not None:
        print("   variables", json.dumps(variables, ensure_ascii=False)[:1500])
    print("   expected ", json.dumps(expected, ensure_ascii=False)[:1500])
    print("   got      ", json.dumps(got, ensure_ascii=False)[:1500])


def compare_templates(paths, renderer, count, seed, shown):
    print("| template | conversations | identical text | both refuse | differ |\n|---|---|---|---|---|")
    total = [0, 0, 0, 0]
    for path in paths:
        source = path.read_text(encoding="utf-8")
        template, failure = compiled(source)
        answer = renderer.ask([{"template": source}])[0]
        if failure or "error" in answer:
            print(f"| {path.name} | does not compile: {failure and failure['error']} / {answer.get('error')} |")
            total[3] += (failure is None) != ("error" not in answer)
            continue
        rng = random.Random(f"{seed} {path.name}")
        row = [0, 0, 0, 0]
        for _ in range(count):
            variables = make_conversation(rng)
            expected = reference(template, json.loads(json.dumps(variables)))
            got = renderer.ask([{"variables": variables, "now": list(NOW.timetuple()[:6])}])[0]
            outcome = verdict(expected, got)
            row[0] += 1
            row[1 if outcome != "differ" and "output" in expected else 2 if outcome != "differ" else 3] += 1
            if outcome == "differ" and row[3] <= shown:
                report(path.name, variables, expected, got)
        total = [a + b for a, b in zip(total, row)]
        print(f"| {path.stem} | {row[0]} | {row[1]} | {row[2]} | {row[3]} |", flush=True)
    print(f"| {len(paths)} templates | {total[0]} | {total[1]} | {total[2]} | {total[3]} |", flush=True)
    return total[3]


def compare_snippets(renderer, count, seed, shown):
    rng = random.Random(f"snippets {seed}")
    tally = {"agree": 0, "beyond": 0, "differ": 0, "address": 0, "errors": 0}
    for _ in range(count):
        source = template_snippets.make(rng)
        template, expected = compiled(source)
        if template is not None:
            expected = reference(template, template_snippets.VARIABLES)
        if re.search(r" at 0x|<(generator|bound|built-in|class|function) ", expected.get("output", ""), re.I):
            tally["address"] += 1
            continue
        got = renderer.ask([{"template": source}])[0]
        if "error" not in got:
            got = renderer.ask([{"variables": template_snippets.VARIABLES, "now": list(NOW.timetuple()[:6])}])[0]
        outcome = verdict(expected, got)
        tally[outcome] += 1
        tally["errors"] += "error" in expected
        if outcome == "differ" and tally["differ"] <= 5 * shown:
            report(source, None, expected, got)
    print(f"snippets: {count}, of which {tally['agree']} agree ({tally['errors']} of them by failing on both sides), "
          f"{tally['beyond']} need integers beyond 64 bits, {tally['address']} print an address, {tally['differ']} differ")
    return tally["differ"]


SPECIAL = r"<\|[a-zA-Z_/]+\|>|</?s>|<(?:start|end)_of_turn>|<\|?turn\|?>|<[a-z_]*end[a-z_]*>|\[/?[A-Z_]+\]|\[\|[a-z]+\|\]|<｜[^｜\s]+｜>|\[e~\[|\]~b\]"
MARKERS = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


def without_markers(source):
    """An `if` trims and strips as the marker does."""
    return MARKERS.sub(lambda m: "{%" + m[1] + (" endif " if "end" in m[0] else " if true ") + m[2] + "%}", source)


def plain_conversation(rng, number):
    """What a data set has, each content to be told from every other."""
    messages = []

    def text(role):
        body = rng.choice(["one", "zwei Wörter", "три", "a\nb", "<x>", "x" * 40])
        return f"{role}{number}.{len(messages)} {body} {role}{len(messages)}end"

    if rng.random() < 0.3:
        messages.append({"role": "system", "content": text("s")})
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": text("u")})
        messages.append({"role": "assistant", "content": text("a")})
    return messages


def compare_masks(paths, renderer, count, seed, shown):
    print("| template | special tokens | conversations | spans as expected | refused | differ |\n|---|---|---|---|---|---|")
    differ = 0
    for path in paths:
        source = path.read_text(encoding="utf-8")
        template, _ = compiled(source)
        if template is None:
            continue
        has_markers = bool(MARKERS.search(source))
        special = sorted(set(re.findall(SPECIAL, source)) | {"<s>", "</s>"})
        rng = random.Random(f"masks {seed} {path.name}")
        versions = [source] + ([without_markers(source)] if has_markers else [])
        row = [0, 0, 0, 0]
        for version in versions:
            renderer.ask([{"template": version}])
            for number in range(count):
                messages = plain_conversation(rng, number)
                request = {"conversation": {"messages": messages}, "special": special, "bos": "<s>", "eos": "</s>"}
                got = renderer.ask([request])[0]
                problem, refused = check_mask(template, has_markers, has_markers and version is source, messages, got)
                row[0] += 1
                row[3 if problem else 2 if refused else 1] += 1
                if problem and row[3] <= shown:
                    report(path.name, messages, problem, got)
        print(f"| {path.stem}{' (markers, and without)' if has_markers else ''} | {len(special)} | {row[0]} | {row[1]} | {row[2]} | {row[3]} |", flush=True)
        differ += row[3]
    return differ


def check_mask(template, has_markers, is_marked, messages, got):
    """What is wrong with our segments, or None; and whether both sides refuse."""
    variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>", "eos_token": "</s>"}
    try:
        if has_markers:
            text, indices = chat_template_utils._render_with_assistant_indices(template, **variables)
            expected = [text[a:b] for a, b in indices if b > a]
        else:
            text = template.render(**variables)
    except Exception as error:
        return (None, True) if "error" in got else (f"transformers fails: {error}", False)
    if got.get("kind") == "refused":
        return None, True
    if "error" in got:
        return "an error where transformers renders", False
    segments = got["segments"]
    if "".join(s["text"] for s in segments) != text:
        return "another text: " + text, False
    spans = [s["text"] for s in segments if s["carriesLoss"]]
    if is_marked:
        return (None, False) if spans == expected else ("spans " + json.dumps(expected, ensure_ascii=False), False)
    if has_markers:
        # Markers take in, as they please, the prompt, white space after the turn, the token that ends it, and one that
        # ends the conversation: the same content, and around it nothing that a message says.
        expected = [e for e in expected if any(m["content"] in e for m in messages)]
        contents = [m["content"] for m in messages if m["role"] == "assistant"]
        same = len(spans) == len(expected) == len(contents) and all(
            c in s and c in e and (s.strip() in e or e.strip() in s) for c, s, e in zip(contents, spans, expected))
        return (None, False) if same else ("spans " + json.dumps(expected, ensure_ascii=False), False)
    contents = [m["content"] for m in messages if m["role"] == "assistant"]
    if len(spans) != len(contents) or not all(c in s for c, s in zip(contents, spans)):
        return "not one span for each assistant's content", False
    if any(m["content"] in s for m in messages if m["role"] != "assistant" for s in spans):
        return "somebody else's content in a span", False
    # The span starts where the prompt for the turn ends, wherever the prompt is how the conversation begins.
    position = 0
    turns = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    for turn, span in zip(turns, spans):
        start = text.index(span, position)
        position = start + len(span)
        prompt = template.render(**variables | {"messages": messages[:turn], "add_generation_prompt": True})
        if text.startswith(prompt) and start != len(prompt):
            return f"the span of turn {turn} starts at {start}, its prompt ends at {len(prompt)}", False
        rest = span[span.index(messages[turn]["content"]) + len(messages[turn]["content"]):]
        after = text[position:position + 12]
        if not re.fullmatch(r"\s*(\S{2,40}\s*){0,2}", rest) or (rest.strip() == "" and re.match(r"\s*(</s>|<\|(im_end|end|eot_id|endoftext|end_of_text)\|>|<end_of_turn>)", after)):
            return f"the span of turn {turn} ends with {rest!r} before {after!r}", False
    return None, False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=pathlib.Path)
    parser.add_argument("--render", default=".build/release/edgebench render", help="our engine")
    parser.add_argument("--conversations", type=int, default=300, help="for each template")
    parser.add_argument("--snippets", type=int, default=20000)
    parser.add_argument("--masks", type=int, default=40, help="conversations for each template")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shown", type=int, default=3, help="differences printed for each template")
    arguments = parser.parse_args()
    paths = sorted({p.resolve() for d in arguments.directories for p in d.rglob("*.jinja")}, key=lambda p: p.name)
    renderer = Renderer(arguments.render)
    print(f"jinja2 {jinja2.__version__}, seed {arguments.seed}\n")
    differ = compare_templates(paths, renderer, arguments.conversations, arguments.seed, arguments.shown) if arguments.conversations else 0
    differ += compare_masks(paths, renderer, arguments.masks, arguments.seed, arguments.shown) if arguments.masks else 0
    differ += compare_snippets(renderer, arguments.snippets, arguments.seed, arguments.shown) if arguments.snippets else 0
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
