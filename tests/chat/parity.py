"""Compares hxq's rendering of chat templates with Jinja's, set up as transformers sets it, run side by side.

Templates of the shapes of published models go over conversations of many kinds, with and without tools; small ones test
one part of the language each; and random ones are put together of pieces. Where Jinja fails, hxq must fail. Exits 77
(skipped) without jinja2.
"""

import argparse
import datetime
import itertools
import json
import random
import subprocess
import sys

import expressions
import templates

SKIPPED = 77
SEED = 20250211


def environment():
    """As transformers' chat_template_utils: the sandbox, trimmed blocks, loop controls, generation blocks."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return made


class Driver:
    def __init__(self, executable):
        self.process = subprocess.Popen([executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def render(self, template, context):
        """The text, or None and the error."""
        self.process.stdin.write(json.dumps({"template": template, "context": context}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer.get("text"), answer.get("error")


class Comparison:
    def __init__(self, executable):
        self.jinja = environment()
        self.driver = Driver(executable)
        self.checks = self.refused = 0
        self.failures = []

    def check(self, name, template, context):
        self.checks += 1
        try:
            expected, why = self.jinja.from_string(template).render(**context), None
        except Exception as error:  # whatever Python raises, the template failed
            expected, why = None, f"{type(error).__name__}: {error}"
        self.refused += expected is None
        text, error = self.driver.render(template, context)
        if text != expected:
            self.failures.append((name, template, context, expected or why, text or error))

    def report(self, what):
        print(f"{what}: {self.checks} renderings ({self.refused} refused by Jinja), {len(self.failures)} differ", flush=True)
        for name, template, context, expected, got in self.failures[:8]:
            print(f"  {name}: {template[:300]!r}\n    with {json.dumps(context)[:300]}\n    expected {expected!r}\n    got      {got!r}")
        return len(self.failures)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather \u2014 \"now\".\nIn one place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "\u00celes <b>&'s"},
                    "days": {"type": ["integer", "string"]},
                    "tags": {"type": "array", "items": {"type": "number"}},
                    "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
                },
                "required": ["place"],
            },
            "return": {"type": "null"},
        },
    },
    {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "123456789", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "\u65e5\u672c", "days": 1.5, "x": None, "y": [True, 1e30]}}}


def conversations():
    def say(*turns):
        return [{"role": role, "content": content} for role, content in turns]

    plain = [
        say(("user", "Hello")),
        say(("system", " You are brief.\n"), ("user", "  Hi there! \n"), ("assistant", "\n Hello <b>you</b>  "), ("user", "caf\u00e9 \U0001f600 {{ x }} {% y %}")),
        say(("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"), ("assistant", "<think>q</think>d")),
        say(("assistant", "first")),
        say(("user", "one"), ("user", "two")),
        say(("narrator", "?")),
        say(("user", "")),
        [],
    ]
    tool = say(("system", "s"), ("user", "weather?"))
    tool += [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "name": "get_weather", "content": "sunny", "tool_call_id": "123456789"}]
    tool += say(("assistant", "It is sunny."), ("user", "thanks"))
    silent = [dict(message) for message in tool]
    silent[2] = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    parts = [{"role": "user", "content": [{"type": "text", "text": " look "}, {"type": "image"}]}]
    return [*plain, tool, silent, parts]


def contexts():
    for messages, prompt, tools in itertools.product(conversations(), (True, False), (None, TOOLS)):
        context = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        yield {**context, "bos_token": "<s>", "eos_token": "</s>"}
        yield {**context, "eos_token": "<|im_end|>", "enable_thinking": False, "builtin_tools": ["code_interpreter", "search"]}


def random_template(rng):
    """Pieces in a row, some nested in blocks, with white space and its control at random."""
    if rng.random() < 0.25:
        return rng.choice(["", " ", "\n", "\n\n", "  \n  ", "\t", "text", " text \n", "\r\n", "{", "}", "%}", "}}", "# "])
    left, right = rng.choice(["", "", "-", "+"]), rng.choice(["", "", "-", "+"])
    printed = rng.choice(expressions.SIMPLE)
    if rng.random() < 0.45:
        return "{{" + left.replace("+", "") + " " + printed + " " + right.replace("+", "") + "}}"
    if rng.random() < 0.2:
        return "{#" + left + " note " + right + "#}"
    inner = "".join(random_template(rng) for _ in range(rng.randint(0, 3)))
    begin, end = rng.choice(
        [
            (f"if {printed}", "endif"),
            ("for x in items", "endfor"),
            ("for x in items if x != 2", "endfor"),
            ("set y", "endset"),
            ("filter upper", "endfilter"),
            ("generation", "endgeneration"),
            ("raw", "endraw"),
            ("set y = x", ""),
        ]
    )
    tag = "{%" + left + " " + begin + " " + right + "%}"
    if not end:
        return tag
    left, right = rng.choice(["", "", "-", "+"]), rng.choice(["", "", "-", "+"])
    return tag + inner + "{%" + left + rng.choice([" ", ""]) + end + " " + right + "%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True, help="the executable template_driver")
    arguments = parser.parse_args()
    failures = 0

    comparison = Comparison(arguments.driver)
    for (name, template), context in itertools.product(templates.ALL.items(), contexts()):
        comparison.check(name, template, context)
    rendered = comparison.checks - comparison.refused
    failures += comparison.report("templates as published models have them")
    assert rendered > comparison.checks / 2, "most of the conversations must be accepted"

    comparison = Comparison(arguments.driver)
    for template in expressions.TEMPLATES:
        comparison.check("language", template, expressions.CONTEXT)
    for expression in expressions.EXPRESSIONS:
        comparison.check("expression", "{{ " + expression + " }}", expressions.CONTEXT)
    failures += comparison.report("parts of the language")

    comparison = Comparison(arguments.driver)
    rng = random.Random(SEED)
    for _ in range(8_000):
        template = "".join(random_template(rng) for _ in range(rng.randint(1, 5)))
        comparison.check("random", template, expressions.CONTEXT)
    failures += comparison.report(f"random templates, seed {SEED}")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        import jinja2  # noqa: F401
    except ImportError:
        print("skipped: the Python library `jinja2` is not installed")
        sys.exit(SKIPPED)
    sys.exit(main())
