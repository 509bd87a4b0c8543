"""Chat templates that no machine should run to their end, or that raise."""

from __future__ import annotations

# What makes a text or a loop that is too long for any machine, or raises.
HOSTILE = {
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in "
    "range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "endless calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "calls without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a wide number": "{{ '%10000000000d' % 1 }}",
    "a wide place": "{{ 'a' | center(10 ** 10) }}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "a power": "{{ 7 ** 7 ** 9 }}",
    "a long list": "{{ [messages] * 10 ** 9 }}",
    "long but not endless": "{% for i in range(90000) %}{{ 'x' * 100 }}{% endfor %}",
    "its own error": "{{ raise_exception('roles must alternate') }}",
    "an unknown function": "{{ nothing_of_the_kind(messages) }}",
    "an unknown filter": "{{ messages | nothing_of_the_kind }}",
    "an unknown attribute": "{{ messages.a.b.c }}",
    "no syntax": "{% for m in messages %}{{ m",
    "a wrong type": "{{ 1 + 'a' + messages }}",
    "division": "{{ 1 / 0 }}",
    "the system": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "nothing": "",
    "without a picture": "{{ messages[0].role }}",
}
