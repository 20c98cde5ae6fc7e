"""Generated template source: small programs in what chat templates use of Jinja, most of them well-typed.

`make(random)` gives one; it may refer to VARIABLES.
"""

VARIABLES = {
    "s": "Hello wOrld", "t": "  a,b;c\n d ", "u": "Größe ﬀ ΑΣ ß", "e": "", "w": "line one\nline two\r\n\n  three", "q": "it's \"x\" <b>",
    "n": 7, "m": -3, "z": 0, "f": 2.5, "g": -0.125, "h": 1e20, "b": True, "x": None,
    "l": [3, 1, 2], "k": ["b", "A", "a", "C"], "v": [], "y": [1, 2.5, True], "p": [["a", 1], ["b", 2]],
    "d": {"a": 1, "b": "two", "c": None}, "o": {"items": [1], "x": {"y": [{"z": "deep"}]}, "Key": "v", "get": 5},
    "r": [{"n": "x", "v": 2, "g": "A"}, {"n": "Y", "v": 1, "g": "b"}, {"n": "a", "v": 2, "g": "a"}, {"v": None}],
    "messages": [
        {"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi\n"},
        {"role": "assistant", "content": "<think>hm</think>\n\nYes", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "{}"}, {"role": "user", "content": ["part", {"type": "text", "text": "T"}]},
    ],
}
STRINGS = ["s", "t", "u", "e", "w", "q", "'abc'", "'a-b (c) d'", "\"it's\"", "'%s'", "'x' 'y'", "'\\n\\t\\u00e9'", "messages[1].content", "d.b", "' '", "'a'"]
INTEGERS = ["n", "m", "z", "0", "1", "2", "-1", "3", "10", "true", "l[0]", "d.a", "loop.index", "0x1f", "1_000"]
FLOATS = ["f", "g", "h", "1.0", "0.1", "2e3", "-7.25", "1e-5", "123456789.125"]
LISTS = ["l", "k", "v", "y", "p", "r", "messages", "[]", "[1, 'a', none]", "(1, 2)", "('x',)", "range(5)", "range(5, 0, -2)", "'abc'", "d", "o.x.y", "d.items()", "d.keys()", "d.values()"]
OBJECTS = ["d", "o", "{}", "{'k': 1, 'j': [true]}", "messages[0]", "r[0]", "{1: 'one', none: 2, true: 3}", "dict(a=1, b=none)", "dict(d, z=0)"]
NAMES = ["missing", "missing.a", "d.nope", "o.items", "o['items']", "o.x.y[0].z", "d['c']", "s.upper", "x", "loop", "ns.a", "d.pop", "d.update", "l.append", "none", "True"]
TESTS = [
    "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable", "sequence", "callable",
    "odd", "even", "true", "false", "lower", "upper", "not defined", "not none", "not string", "divisibleby 2", "divisibleby(3)", "in [1, 2, 'a']",
    "in 'abc'", "eq 1", "ne('a')", "gt 1", "lt(2)", "ge 2", "le 2", "sameas none", "equalto 7", "not mapping", "escaped", "filter", "test",
]
FILTERS = [
    "abs", "capitalize", "center(12)", "count", "default('D')", "d('D', true)", "dictsort", "dictsort(true, 'value')", "dictsort(reverse=true)",
    "e", "escape", "first", "float", "float(1.5)", "indent", "indent(2, true)", "indent('>', blank=true)", "int", "int(9)", "int(base=16)", "items",
    "join", "join(', ')", "join('|', attribute='n')", "last", "length", "list", "lower", "map('upper')", "map(attribute='n')", "map(attribute='v', default='-')",
    "map('default', 0)", "map('string')", "map('int')", "map('length')", "map(attribute='role')", "map('replace', 'a', 'Q')", "max", "min", "max(attribute='v')", "min(case_sensitive=true)",
    "reject('none')", "reject('in', [1, 'a'])", "rejectattr('v')", "rejectattr('n', 'defined')", "replace('a', 'XX')", "replace('l', '', 1)", "replace(1, 2)",
    "reverse", "round", "round(1)", "round(2, 'floor')", "round(method='ceil')", "round(-1)", "safe", "select", "select('string')", "select('gt', 1)", "select('odd')",
    "selectattr('n')", "selectattr('role', 'equalto', 'user')", "selectattr('v', '>', 1)", "selectattr('g', 'in', ['a', 'b'])", "selectattr('tool_calls', 'defined')",
    "slice(2)", "slice(3, 'f')", "batch(2)", "batch(2, 'f')", "sort", "sort(reverse=true)", "sort(case_sensitive=true)", "sort(attribute='g')", "sort(attribute='v,n')",
    "string", "sum", "sum(attribute='v')", "sum(start=10)", "title", "tojson", "tojson(indent=2)", "tojson(sort_keys=true)", "tojson(ensure_ascii=true)",
    "tojson(separators=(',', ':'))", "tojson(indent='\\t')", "trim", "trim('al ')", "truncate(5)", "truncate(8, true, '~')", "unique", "unique(true)", "unique(attribute='g')",
    "upper", "urlencode", "wordcount", "groupby('v')", "groupby('g', default='none')", "groupby('g')", "format(1, 'b')", "attr('x')", "forceescape",
    "map", "first(1)", "join(d='+')", "default", "default(none)", "default(value=3)", "list | length", "list | tojson", "list | join('.')", "map('trim') | join", "string | length",
]
METHODS = [
    "upper()", "lower()", "title()", "capitalize()", "swapcase()", "strip()", "lstrip()", "rstrip('\\n')", "strip('ad ')", "split()", "split(',')", "split(' ', 1)",
    "rsplit('\\n', 1)", "rsplit(none, 1)", "split(maxsplit=1)", "split('')", "splitlines()", "splitlines(true)", "replace('a', 'b')", "replace('l', 'L', 1)", "replace('', '-')",
    "startswith('a')", "startswith(('H', ' '))", "endswith('d')", "endswith('')", "startswith('b', 1)", "find('o')", "rfind('o')", "find('o', 5)", "find('o', -3, -1)",
    "index('o')", "count('l')", "count('')", "isdigit()", "isalpha()", "isalnum()", "isspace()", "isupper()", "islower()", "isascii()", "isnumeric()", "join(['a', 'b'])", "join(k)", "join(l)",
    "partition(' ')", "rpartition('o')", "removeprefix('He')", "removesuffix('d')", "center(14, '*')", "ljust(14)", "rjust(14, '-')", "zfill(14)",
    "format(1, 2)", "items()", "keys()", "values()", "get('a')", "get('nope', 'dflt')", "get('nope')", "copy()", "index(1)", "count(1)", "append(1)", "pop()", "update({})", "nosuch()",
]
FORMATS = [
    "'%s-%s' % (s, n)", "'%d|%5d|%-5d|%05d' % (n, m, n, m)", "'%.2f %e %g' % (f, g, h)", "'%x %X %o' % (255, 255, 8)", "'%(a)s=%(b)r' % d", "'%%' % ()", "'%s' % l", "'%r' % s",
    "'%10s|%-10s|%.3s' % (s, s, s)", "'%+d % d' % (n, n)", "'%s' % (1, 2)", "'%s %s' % s", "'%d' % s", "'%c' % 65", "'%5.1f%%' % f", "'%*d' % (6, n)", "'no' % d", "'%i' % f",
    "'{} {}'.format(s, n)", "'{0}{1}{0}'.format(n, m)", "'{a} {b!r}'.format(a=s, b=q)", "'{:>8}|{:<8}|{:^8}'.format(n, 'a', f)", "'{:05.1f} {:,}'.format(f, 1234567)", "'{:x}{:#x}'.format(255, 255)",
    "'{{}}'.format()", "'{}'.format()", "'{.a}'.format(d)", "'{0[b]}'.format(d)", "'{:*^12}'.format(s[:3])", "'{:d}'.format(f)", "'{:+.3e}'.format(f)", "'{:.1%}'.format(f)", "'{:08b}'.format(n)", "'{}{0}'.format(1)", "'{:s}'.format(n)",
    "'{}'.format(none)", "'{:5}'.format(b)", "'{:g}'.format(h)", "'{}'.format(l)", "'{'.format()", "'{:.2}'.format(s)",
]


def pick(rng, items):
    return items[rng.randrange(len(items))]


def string(rng, depth):
    roll = rng.random()
    if depth <= 0 or roll < 0.35:
        return pick(rng, STRINGS)
    if roll < 0.5:
        return f"{string(rng, depth - 1)} {pick(rng, ['+', '~'])} {string(rng, depth - 1)}"
    if roll < 0.6:
        return f"({value(rng, depth - 1)} ~ {value(rng, depth - 1)})"
    if roll < 0.72:
        return f"({string(rng, depth - 1)}).{pick(rng, METHODS)}"
    if roll < 0.8:
        return f"({string(rng, depth - 1)})[{slice_(rng)}]"
    if roll < 0.86:
        return pick(rng, FORMATS)
    if roll < 0.93:
        return f"{pick(rng, STRINGS)} | {pick(rng, FILTERS)}"
    return f"({string(rng, depth - 1)}) * {pick(rng, INTEGERS[:8])}"


def slice_(rng):
    def bound():
        return pick(rng, ["", "", "0", "1", "-1", "2", "-2", "5", "-9", "99", "n", "none"])
    return bound() + ":" + bound() + (":" + pick(rng, ["", "1", "-1", "2", "-2", "3", "0"]) if rng.random() < 0.4 else "")


def number(rng, depth):
    roll = rng.random()
    if depth <= 0 or roll < 0.4:
        return pick(rng, INTEGERS if rng.random() < 0.7 else FLOATS)
    if roll < 0.85:
        return f"{number(rng, depth - 1)} {pick(rng, ['+', '-', '*', '/', '//', '%', '**'])} {number(rng, depth - 1)}"
    if roll < 0.9:
        return f"-{number(rng, 0)}"
    if roll < 0.95:
        return f"({number(rng, depth - 1)})"
    return f"{value(rng, depth - 1)} | {pick(rng, ['length', 'int', 'round', 'abs', 'float', 'count', 'sum', 'max', 'min'])}"


def list_(rng, depth):
    roll = rng.random()
    if depth <= 0 or roll < 0.4:
        return pick(rng, LISTS)
    if roll < 0.55:
        return f"({list_(rng, depth - 1)})[{slice_(rng)}]"
    if roll < 0.7:
        return f"({list_(rng, depth - 1)}) | {pick(rng, FILTERS)}"
    if roll < 0.8:
        return f"{list_(rng, depth - 1)} + {list_(rng, depth - 1)}"
    if roll < 0.9:
        return "[" + ", ".join(value(rng, depth - 1) for _ in range(rng.randrange(4))) + "]"
    return "(" + ", ".join(value(rng, depth - 1) for _ in range(2)) + ")"


def object_(rng, depth):
    if depth <= 0 or rng.random() < 0.7:
        return pick(rng, OBJECTS)
    return "{" + ", ".join(f"{pick(rng, ['s', '1', chr(39) + 'k' + chr(39), 'n', 'none', '1.5', 'true'])}: {value(rng, depth - 1)}" for _ in range(rng.randrange(3))) + "}"


def value(rng, depth):
    return pick(rng, [string, string, number, list_, object_, name])(rng, depth)


def name(rng, depth):
    return pick(rng, NAMES)


def condition(rng, depth):
    roll = rng.random()
    if roll < 0.3:
        return f"{value(rng, depth - 1)} is {pick(rng, TESTS)}"
    if roll < 0.5:
        return f"{value(rng, depth - 1)} {pick(rng, ['==', '!=', 'in', 'not in'])} {value(rng, depth - 1)}"
    if roll < 0.65:
        kind = pick(rng, [string, number, number, list_])
        operator = pick(rng, ["<", "<=", ">", ">="])
        return f"{kind(rng, 0)} {operator} {kind(rng, 0)}" + (f" {operator} {kind(rng, 0)}" if rng.random() < 0.2 else "")
    if depth > 0 and roll < 0.85:
        return f"{condition(rng, depth - 1)} {pick(rng, ['and', 'or'])} {condition(rng, depth - 1)}"
    return f"not {value(rng, 0)}"


def expression(rng, depth=2):
    roll = rng.random()
    if roll < 0.5:
        return value(rng, depth)
    if roll < 0.65:
        return condition(rng, depth)
    if roll < 0.75:
        return f"{value(rng, depth)} if {condition(rng, 1)}" + (f" else {value(rng, depth - 1)}" if rng.random() < 0.7 else "")
    if roll < 0.92:
        base = pick(rng, [list_, list_, string, object_, number])(rng, 1)
        return f"({base}) | {pick(rng, FILTERS)}" + (f" | {pick(rng, FILTERS)}" if rng.random() < 0.4 else "")
    if roll < 0.96:
        return pick(rng, FORMATS)
    return f"{value(rng, 1)}, {value(rng, 1)}"


def tag(rng, inside):
    return "{%" + pick(rng, ["", "", "-", "+"]) + f" {inside} " + pick(rng, ["", "", "-", "+"]) + "%}"


def output(rng):
    return "{{" + pick(rng, ["", "", "-", "+"]) + f" {expression(rng)} " + pick(rng, ["", "", "-"]) + "}}"


def space(rng):
    return pick(rng, ["", "", "", " ", "\n", "\n  ", "  \n\n", "text", " . \n", "\t", "\r\n", "{# note #}", "{#- note -#}\n", "\n  {# x #}  \n"])


def body(rng, depth):
    return "".join(space(rng) + statement(rng, depth) for _ in range(rng.randint(1, 2))) + space(rng)


LOOP = ["index", "index0", "first", "last", "length", "revindex", "revindex0", "depth", "depth0", "previtem", "nextitem", "cycle('a', 'b')", "changed(i)", "nope"]


def statement(rng, depth):
    roll = rng.random()
    if depth <= 0 or roll < 0.4:
        return output(rng)
    if roll < 0.52:
        middle = tag(rng, "else") + body(rng, depth - 1) if rng.random() < 0.5 else ""
        if rng.random() < 0.3:
            middle = tag(rng, f"elif {condition(rng, 1)}") + body(rng, depth - 1) + middle
        return tag(rng, f"if {condition(rng, 1)}") + body(rng, depth - 1) + middle + tag(rng, "endif")
    if roll < 0.7:
        target, items = pick(rng, [("i", list_(rng, 1)), ("i", list_(rng, 1)), ("a, c", pick(rng, ["d.items()", "p", "d | dictsort", "r | groupby('v')", "o | items", "l"]))])
        guard = pick(rng, ["", "", f" if {condition(rng, 0)}", " if i", " if not ns.stop"])
        inside = body(rng, depth - 1) + "".join("{{ loop.%s }}" % pick(rng, LOOP) for _ in range(rng.randrange(3))) + pick(rng, ["{{ i }}", "{{ a }}", ""])
        if rng.random() < 0.15:
            inside += "{% if " + condition(rng, 0) + " %}{% " + pick(rng, ["break", "continue"]) + " %}{% endif %}" + body(rng, 0)
        if rng.random() < 0.2:
            inside += pick(rng, ["{% set ns.a = i %}", "{% set x = i %}{{ x }}", "{% set ns.stop = true %}", "{% set ns.n = ns.n + 1 %}"])
        otherwise = tag(rng, "else") + body(rng, 0) if rng.random() < 0.3 else ""
        return tag(rng, f"for {target} in {items}{guard}") + inside + otherwise + tag(rng, "endfor")
    if roll < 0.8:
        return pick(rng, [
            tag(rng, f"set x = {expression(rng)}") + "{{ x }}",
            tag(rng, f"set a, c = {pick(rng, ['1, 2', 'p[0]', 'l', chr(39) + 'xy' + chr(39), 'd.items() | first'])}") + "{{ a }}{{ c }}",
            tag(rng, "set x") + body(rng, depth - 1) + tag(rng, "endset") + "[{{ x }}]",
            tag(rng, f"set x | {pick(rng, ['upper', 'trim', 'length', 'replace(1, 2)'])}") + body(rng, 0) + tag(rng, "endset") + "[{{ x }}]",
            tag(rng, f"set ns = namespace(a={value(rng, 1)}, n=0)") + "{{ ns.a }}", tag(rng, f"set ns.a = {expression(rng)}") + "{{ ns.a }}",
            tag(rng, f"set g = ({list_(rng, 0)}) | {pick(rng, ['map(%supper%s)' % (chr(39), chr(39)), 'select', 'reverse', 'unique', 'list'])}") + "{{ g | list }}{{ g | list }}{{ g | first }}",
        ])
    if roll < 0.9:
        parameters = pick(rng, ["", "a", "a, c=2", "a, c=a", "a=s, c=none"])
        call = pick(rng, ["m()", "m(1)", "m(1, 2)", "m(c=3, a=4)", "m(1, 2, 3)", "m(zz=1)", "m(*l)", "m(**{'a': 1})", "m(1, a=2)", "m"])
        inner = pick(rng, ["{{ a }}", "{{ a }}|{{ c }}", "{{ varargs }}{{ kwargs }}", "{{ varargs | length }}", "{{ caller() }}", "{{ caller is defined }}", "{{ caller(1, 2) }}", "{{ x }}{{ s }}"])
        definition = tag(rng, f"macro m({parameters})") + inner + body(rng, depth - 1) + tag(rng, "endmacro")
        if rng.random() < 0.4:
            return definition + tag(rng, f"call{pick(rng, ['', '(i)', '(i, j=5)'])} {call}") + "{{ i }}" + body(rng, 0) + tag(rng, "endcall")
        return definition + "{{ " + call + " }}"
    return pick(rng, [
        tag(rng, f"filter {pick(rng, ['upper', 'trim', 'indent(2)', 'title', 'replace(%sa%s, %sb%s) | upper' % ((chr(39),) * 4)])}") + body(rng, depth - 1) + tag(rng, "endfilter"),
        tag(rng, "raw") + space(rng) + "{{ raw }} {% if %}" + space(rng) + tag(rng, "endraw"),
        tag(rng, "generation") + body(rng, depth - 1) + "{% set x = 5 %}" + tag(rng, "endgeneration") + "{{ x }}",
        tag(rng, f"with a = {value(rng, 1)}, c = 2") + "{{ a }}{{ c }}" + body(rng, 0) + tag(rng, "endwith"),
        "{{ raise_exception(" + value(rng, 1) + ") }}", "{{ strftime_now(%r) }}" % pick(rng, ["%d %b %Y", "%Y-%m-%dT%H:%M:%S", "%A, %-d %B %y %I:%M %p", "%j %e %F %T %D", "100%% %H"]),
    ])


def make(rng):
    prefix = "{% set ns = namespace(a=1, n=0, stop=false) %}" if rng.random() < 0.5 else ""
    return prefix + body(rng, rng.randint(0, 2))
