"""A chat template that runs for ever, or reaches out of its sandbox, is found before its model is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from state.errors import Damaged
from tasks.weights import chat_template

GOOD = (
    "{{ bos_token }}{% for m in messages %}{% generation %}<|{{ m['role'] }}|>{{ m.content | trim }}{% endgeneration %}"
    "{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% if a == b %}x{% endif %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        GOOD,
        "{{ raise_exception('Conversation roles must alternate') }}",
        "{{ messages[7].content }}",
        "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = x.n + 1 %}{% endfor %}{{ x.n }}",
        "{{ strftime_now('%Y') }}",
        "{% broken",
    ],
)
def test_a_template_that_works_or_refuses_is_let_pass(template: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    chat_template.check("it", tmp_path)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOP, "does not end"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "does not end"),
        ("{{ 'x' * 10**10 }}", "does not end"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "does not end"),
        ("{{ 9**(9**9) }}", "does not end"),
        ("{{ ''.__class__.__mro__ }}", "reaches for Python's internals"),
        ("{{ messages.append(1) }}", "reaches for Python's internals"),
        ("{{ (cycler.__init__.__globals__.os.popen('id')).read() }}", "reaches for Python's internals"),
    ],
)
def test_one_that_never_ends_or_escapes_is_refused(
    template: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "CPU_S", 1)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(Damaged, match=words):
        chat_template.check("it", tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_config.json", {"chat_template": "a"}),
        ("chat_template.json", {"chat_template": "a"}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use"}, 7]}),
    ],
)
def test_a_template_is_found_wherever_it_is(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(value))
    assert chat_template.templates(tmp_path) == ["a"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"chat_template": 7}', '{"chat_template": null}', "[" * 100_000])
def test_a_file_of_any_shape_has_no_template(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert chat_template.templates(tmp_path) == []
