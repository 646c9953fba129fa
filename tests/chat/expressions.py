"""Small templates and expressions, each for a part of the language, and what they are evaluated with."""

CONTEXT = {
    "items": [1, 2, 3],
    "words": ["b", "A", "c", "a"],
    "empty": [],
    "text": "Hello, W\u00f6rld \u65e5\u672c\u8a9e",
    "spaced": " \n\t two  words \u00a0 ",
    "none": None,
    "flag": True,
    "x": 7,
    "pi": 3.5,
    "user": {"name": "Ann", "age": 30, "items": "field", "nested": {"deep": [1, {"k": "v"}]}},
    "people": [{"name": "Bo", "age": 4}, {"name": "al", "age": 31}, {"name": "Cy"}],
    "mixed": [1, "one", None, True, 2.0, [1], {"a": 1}],
}

SIMPLE = ["x", "text", "items", "y", "user.name", "flag", "none", "pi", "loop.index", "'a' ~ x", "items|length", "words|join", "missing", "{'a': {'b': 1}}"]

EXPRESSIONS = """
1 + 2 * 3 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7.5 % 2, -7.5 // 2, 2 ** 10, 2 ** -1
1 / 3
10 / 5
1e3, 1.5e-7, 1e16, 123456789.123, 1_000
-x, +x, --x, -(2 + 3)
-3 | abs
not flag, not none, not not flag
1 < 2 < 3, 1 < 3 < 2, 1 == 1.0, true == 1, 'a' < 'b', 2 >= 2, 3 != 3
'a' in text, 'W' in 'World', 2 in items, 'name' in user, 'q' not in user, none in mixed, 1 in missing
flag and x or 0, none or 'other', empty or none, items and 'some'
'yes' if flag else 'no', 'yes' if none, 'a' if none else 'b' if none else 'c'
'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x'] ~ {'k': 'v'}
'con' 'cat' "enated"
'tab\\tnew\\nline \\x41 \\u00e9 \\101 \\q \\' \\\\'
text[0], text[-1], text[7:], text[:5], text[::-1], text[1:8:2], text[-3:], text[8:7], text[100:], text[100]
items[0], items[-1], items[1:], items[::-1], items[5], items[:-1], items[-2:], items[::2]
user.name, user['name'], user.missing, user['missing'], user.nested.deep[1].k, user.nested['deep'][0]
user.items() | list, user.keys() | list, user.values() | list, user.get('name'), user.get('q'), user.get('q', 5)
user.items is string, user.items is defined, user['items']
missing, missing is defined, user.q is defined, missing is not defined, missing | default('d'), missing | d
missing.attribute
missing['item']
missing + 1
missing ~ 'x'
missing == none, missing == missing, missing is none
missing | length, missing | list, missing | upper
none | default('d'), none | default('d', true), '' | default('e', boolean=true), 0 | default(1, true)
none.attribute, none['x']
x.y, x[0]
[1, 'a', none, true, 2.5, "it's", 'say "q"', 'both \\' "', '\\n\\t\\\\', '\u00e9'] | string
(1, 2), (1,), (), [(1, 2)], {'a': (1,)}
{'a': 1, 'b': [1, 2], 'a': 3}
{} , [], [[]], [{}]
text | upper, text | lower, text | title, text | capitalize, 'stra\u00dfe \u01c6' | upper, '\u00c9I' | lower, 'ab-cd (ef) g_h i\\'j' | title
text.upper(), text.lower(), "ab-cd (ef) g_h i'j 3x".title(), 'aBC dE'.capitalize()
spaced | trim, spaced.strip(), spaced.lstrip(), spaced.rstrip(), 'xxaxx'.strip('x'), 'xyaxy' | trim('xy'), '\u00e9a\u00e9'.strip('\u00e9')
spaced.split(), 'a,b,,c'.split(','), 'a b  c'.split(' '), 'a,b,c'.split(',', 1), ' a b c '.split(none, 1), ''.split(), ''.split(',')
'a\\nb\\r\\nc\\n'.splitlines(), ''.splitlines()
text.startswith('He'), text.endswith('x'), text.startswith(('x', 'H')), text.find('o'), text.find('q'), text.rfind('o'), text.count('l'), ''.count('')
text.replace('l', 'L'), text.replace('l', 'L', 1), 'aaa' | replace('a', 'b', 2), 'ab'.replace('', '-'), text | replace('Hello', '')
'abc'.removeprefix('a'), 'abc'.removesuffix('c'), 'abc'.removesuffix('x')
'-'.join(words), ', '.join([]), '12'.isdigit(), ''.isdigit(), ' '.isspace()
'a'.append('b')
items.append(4)
user.update({'a': 1})
user.pop('name')
items | length, text | length, user | length, user | count, '\U0001f600' | length
items | first, items | last, empty | first, text | first, text | last
items | join, items | join(', '), people | join('; ', attribute='name'), empty | join('x'), user | join
words | sort, words | sort(reverse=true), words | sort(case_sensitive=true), people[:2] | sort(attribute='age') | map(attribute='name') | list
user | dictsort, {'b': 1, 'A': 2} | dictsort, {'b': 1, 'A': 2} | dictsort(by='value'), {'b': 1, 'A': 2} | dictsort(true), {'b': 1, 'A': 2} | dictsort(reverse=true)
items | reverse | list, text | reverse, items | list, text | list, user | list
items | max, items | min, words | max, words | min, empty | max, people[:2] | max(attribute='age')
items | sum, people[:2] | sum(attribute='age'), items | sum(start=10)
words | unique | list, [1, 1.0, true, 2] | unique | list
people | map(attribute='name') | list, people | map(attribute='age', default=0) | list, words | map('upper') | list, items | map('string') | join
people | selectattr('age') | map(attribute='name') | list, people | selectattr('age', 'defined') | list | length
people | selectattr('name', 'equalto', 'Bo') | list, people | rejectattr('name', 'equalto', 'Bo') | list | length
people | selectattr('name', '==', 'Bo') | list | length
mixed | select('string') | list, mixed | reject('none') | list | length, items | select('gt', 1) | list, mixed | select | list | length
items | select('odd') | list, items | reject('even') | list, items | select('divisibleby', 2) | list, items | select('in', [1, 9]) | list
user | tojson, mixed | tojson, text | tojson, 'a"\\\\\\n\\x01\\x7f<>&' | tojson, none | tojson, 1.0 | tojson, 1e30 | tojson
user | tojson(indent=2), [] | tojson(indent=2), {} | tojson(indent=4), [[], {}, [1]] | tojson(indent=1), items | tojson(indent=0)
missing | tojson
'12' | int, '12.7' | int, 'x' | int, 'x' | int(5), 3.9 | int, -3.9 | int, true | int, none | int, ' 12 ' | int, '+3' | int
'1.5' | float, 'x' | float, 2 | float, 'x' | float(1.5)
2.567 | round, 2.567 | round(2), 2.5 | round, 3.5 | round, 2.1 | round(0, 'ceil'), 2.9 | round(method='floor'), 7 | round
'a\\nb\\n\\nc' | indent, 'a\\nb' | indent(2, true), 'a\\n\\nb' | indent(2, blank=true), 'a\\nb' | indent('> '), 'a\\n' | indent(first=true)
('<a href="x">\\'&' | e) ~ ('<b>' | safe), 5 | string, text | string
user | items | list, missing | items | list
1 is number, 1.0 is number, true is number, '1' is number, 1 is integer, true is integer, 1.0 is float, 1 is float
true is boolean, 1 is boolean, true is true, 1 is true, false is false, none is false, none is none, missing is none
'a' is string, 1 is string, [] is sequence, 'a' is sequence, {} is sequence, 1 is sequence, {} is mapping, [] is mapping
[] is iterable, 'a' is iterable, 1 is iterable, missing is iterable, range is callable, 1 is callable
3 is odd, 3 is even, 4 is divisibleby 2, 4 is divisibleby(3), 3 is eq 3, 3 is ne 3, 3 is lt 4, 3 is gt 4, 3 is ge 3, 3 is le 2
3 is equalto(3), 'a' is in 'abc', 3 is in(items), 3 is sameas 3, none is sameas none, true is sameas 1, 1 is sameas true
'ab' is lower, 'AB' is upper, 'Ab' is upper, '1' is lower
x is defined and x > 3, x is not none and flag, not x is defined, x is number == true
range(3) | list, range(1, 4) | list, range(5, 0, -2) | list, range(0) | list
range(100001) | list
dict(a=1, b='c'), dict(), namespace(a=1).a
'a' * 3, 3 * 'ab', [1] * 2, 'a' * -1
[1] + [2], 'a' + 'b'
'a' + 1
[1] + 'a'
1 + none
1 / 0
1 // 0
1 % 0
items.1, items.0
(1 + 2) * 3, ((x))
flag | nosuchfilter
flag is nosuchtest
nosuchfunction()
x()
'a'.nosuch()
{'a': 1}.a, [1, 2][0], 'abc'[1], (1, 2)[1]
{'a': {'b': {}}}
[1, 2,], {'a': 1,}, (1, 2,)
true, True, false, False, none, None
text.split(', ')[1].upper()[:2] ~ '!'
- 2 ** 2, 2 ** 3 ** 2, -2 | string | length
1 - 2 ~ 3 * 4, 1 ~ 2 + 3
1 if 2 else
(1
[1, 2
{'a' 1}
1 +
| upper
'unclosed
x y
a.b.
not
if
1 ** 2 **
user.name.upper() if user.name is string else 'x'
'x' if missing is defined and missing.y else 'z'
(items | length) == 3, items | length == 3, items | length > 2 and flag
namespace(a=[1]).a[0]
raise_exception('stop')
strftime_now('%Y-%m-%d'), strftime_now('%d %b %Y'), strftime_now('')
loop
[1, 2] == [1, 2], (1, 2) == [1, 2], {'a': 1} == {'a': 1.0}, {'a': 1} == {'b': 1}, 'a' == 1, none == false
'a' < 1
none < none
""".strip().splitlines()

TEMPLATES = [
    "",
    "\n",
    "\n\n",
    "text\n",
    "a\r\nb\rc\n",
    "{{ x }}\n",
    "{{ x }}\n\n",
    "{% if flag %}\n  yes\n{% endif %}\nend",
    "  {% if flag %}  yes  {% endif %}  \nend",
    "a  {%- if flag -%}  yes  {%- endif -%}  \nend",
    "\t{%+ if flag +%}\nyes\n  {%+ endif +%}\nend",
    "a {{- x -}} b {{ x }} c",
    "a {{- '' -}} b",
    "a\n  {# note #}\n  b {# one\n two #}\nc {#- x -#} d\n{#+ y +#}\ne",
    "{{ '{{ x }}' }}{{ '%}' }}{% if '%}' %}a{% endif %}",
    "{% raw %}{{ x }}\n{% if %}{% endraw %}\nb",
    " {%- raw -%} {{ x }} {%- endraw -%} b",
    "{% for i in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }} {% endfor %}",
    "{% for i in items %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }}{% endfor %}",
    "{% for i in items %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in items if i != 2 %}{{ i }}/{{ loop.length }} {% else %}none{% endfor %}",
    "{% for i in empty %}x{% else %}none{% endfor %}",
    "{% for i in missing %}x{% else %}none{% endfor %}",
    "{% for i in x %}x{% endfor %}",
    "{% for c in 'h\u00e9' %}[{{ c }}]{% endfor %}",
    "{% for k in user %}{{ k }} {% endfor %}",
    "{% for k, v in user.items() %}{{ k }}={{ v }} {% endfor %}",
    "{% for k, v in user|dictsort %}{{ k }} {% endfor %}",
    "{% for (a, b) in [(1, 2), [3, 4]] %}{{ a + b }} {% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for a, in [(1,)] %}{{ a }}{% endfor %}",
    "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}",
    "{% for i in items %}{% for j in items %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for i in items %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in items %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% else %}e{% endfor %}",
    "{% for i in items %}{% set x = i %}{% endfor %}{{ x }}",
    "{% for i in items %}{{ x }}{% set x = i %}{{ x }} {% endfor %}",
    "{% set x = 1 %}{% if flag %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set ns = namespace(n=0, s='') %}{% for i in items %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.q }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set a, b = 'xy' %}{{ a }}{{ b }}",
    "{% set user.name = 1 %}",
    "{% set missing.name = 1 %}",
    "{% set t %}in {{ x }}\n{% endset %}[{{ t }}]",
    "{% set t | upper | trim %} in {{ user.name }} {% endset %}[{{ t }}]",
    "{% set t %}{% set x = 9 %}{{ x }}{% endset %}{{ t }}{{ x }}",
    "{% macro m(a, b=2, c='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c=3) }} {{ m(b=5, a=4) }} {{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=1) }}",
    "{% macro m(n) %}{{ n }}{% if n > 0 %},{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% macro m() %}{{ x }}{% set x = 3 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro m() %} a {% endmacro %}[{{ m() | trim }}] {{ m() is string }} {{ m() == ' a ' }}",
    "{% macro outer() %}{% for i in items %}{{ inner(i) }}{% endfor %}{% endmacro %}{% macro inner(i) %}<{{ i }}>{% endmacro %}{{ outer() }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}",
    "{% set v = 1 %}{% macro m() %}{{ v }}{% endmacro %}{% set v = 2 %}{{ m() }}",
    "{% filter upper | replace('A', 'b') %}abc {{ user.name }}{% endfilter %}",
    "{% generation %}g{{ x }}{% endgeneration %}",
    "{% if none %}a{% elif x == 7 %}b{% elif flag %}c{% else %}d{% endif %}",
    "{% if none %}a{% elif empty %}b{% else %}d{% endif %}",
    "{%if flag%}a{%endif%}{{x}}{{-x-}}",
    "{% if flag %}a",
    "{% endif %}",
    "{% for i in items %}a{% endif %}",
    "{% nosuchtag %}",
    "{% else %}",
    "{% break %}",
    "{{ x",
    "{% if x",
    "{# x",
    "{% raw %}x",
    "{{ }}",
    "{% set %}",
    "{% set 1 = 2 %}",
    "{% if %}a{% endif %}",
    "{% for %}{% endfor %}",
    "{% for x in %}{% endfor %}",
    "{% macro %}{% endmacro %}",
    "{{ x ! y }}",
    "{{ x & y }}",
    "{{ ] }}",
    "{{ (] }}",
    "a { b } c {x} %} }} #}",
    "{{ {'a': 1} }}{{ {'a': {'b': 2}}['a']['b'] }}",
    "{{\nx\n}}\n{%\nif flag\n%}\ny\n{%\nendif\n%}\n",
    "{% if flag %}\n\n{% endif %}\n\n{{ x }}",
    "   {% set a = 1 %}   \n   {{ a }}   \n   {%- set b = 2 %}   \n{{ b }}",
    "{% for m in people %}\n  {% if m.age is defined %}\n    {{ m.name }}: {{ m.age }}\n  {% endif %}\n{% endfor %}",
    "\u00a0{% if flag %}x{% endif %}\u2003{%- if flag -%}\u00a0y{% endif %}",
]
