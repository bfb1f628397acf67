"""The parser that a chat template asks for reads a call of its form, and thoughts of its form, in the real engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from catalog.description.parsers import BAR, GAP, THOUGHTS, TOOLS, reasoning_parser, tool_parser
from catalog.description.repo_facts import RepoFacts

CALLS: dict[str, tuple[str, str, str]] = {
    "hermes": (
        "qwen3",
        "return a json object within <tool_call></tool_call> XML tags",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    ),
    "granite 4": (
        "granite",
        "return a json object with function name and arguments within <tool_call></tool_call> XML tags",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    ),
    "granite 3": (
        "granite",
        "respond with <|tool_call|> followed by a JSON list of tools used",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]',
    ),
    "qwen3.5": (
        "qwen3_5",
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    ),
    "qwen3-coder": (
        "qwen3_moe",
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    ),
    "nemotron 3": (
        "nemotron_h",
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    ),
    "step": (
        "step3p5",
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    ),
    "glm": (
        "glm4_moe",
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
    ),
    "mistral": (
        "mistral",
        "{{- '[TOOL_CALLS] [' }}",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]',
    ),
    "llama": (
        "llama",
        "{{- '<|python_tag|>' + tool_call.name }}",
        '{"name": "weather", "parameters": {"city": "Paris"}}',
    ),
    "minimax": (
        "minimax_m2",
        "{%- set toolcall_begin_token = '<minimax:tool_call>' -%}",
        (
            '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
            "</minimax:tool_call>"
        ),
    ),
    "kimi": (
        "kimi_k2",
        "<|tool_calls_section_begin|>",
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            '{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>'
        ),
    ),
    "deepseek": (
        "deepseek_v3",
        f"<{BAR}tool{GAP}calls{GAP}begin{BAR}> ```json",
        (
            f"<{BAR}tool{GAP}calls{GAP}begin{BAR}><{BAR}tool{GAP}call{GAP}begin{BAR}>function<{BAR}tool{GAP}sep{BAR}>weather\n"
            f'```json\n{{"city": "Paris"}}\n```<{BAR}tool{GAP}call{GAP}end{BAR}><{BAR}tool{GAP}calls{GAP}end{BAR}>'
        ),
    ),
    "gemma 4": (
        "gemma4",
        "<|tool_call>call:",
        '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>',
    ),
    "gpt-oss": (
        "gpt_oss",
        "<|channel|>commentary to=functions.",
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
    ),
}
"""By the name of a form: an architecture that uses it, what its chat template says, and a call."""

SILENT: dict[str, tuple[str, str]] = {
    "seed": ("seed_oss", "<seed:tool_call>"),
    "lfm": ("lfm2", "<|tool_call_start|>"),
    "command": ("cohere2", "<|START_ACTION|>"),
    "hunyuan": ("hunyuan_v1_dense", "<tool_calls>"),
    "nemotron 2": ("nemotron_h", "<TOOLCALL>"),
    "deepseek 3.1": ("deepseek_v3", f"<{BAR}tool{GAP}calls{GAP}begin{BAR}>"),
    "no tools": ("llama", "{{ message.content }}"),
    "no template": ("qwen3", ""),
}
"""Forms that no parser reads, by an architecture and what its chat template says."""


def facts(family: str, template: str) -> RepoFacts:
    return RepoFacts("hub:someone/something", {"model_type": family}, 1, template=template)


@pytest.mark.parametrize("form", sorted(CALLS))
def test_the_parser_of_a_template_reads_its_calls(form: str):
    from vllm_mlx.tool_parsers import ToolParserManager

    family, template, call = CALLS[form]
    name = tool_parser(facts(family, template))
    assert name

    read: Any = ToolParserManager.get_tool_parser(name)(None).extract_tool_calls(call)

    assert [(one["name"], json.loads(one["arguments"])) for one in read.tool_calls] == [("weather", {"city": "Paris"})]


@pytest.mark.parametrize("form", sorted(SILENT))
def test_a_form_that_nothing_reads_has_no_parser(form: str):
    assert tool_parser(facts(*SILENT[form])) is None


THINKING: dict[str, tuple[str, str, str]] = {
    "qwen3": ("qwen3", "{{- '<think>\\n\\n</think>' }}", "<think>\nso it is\n</think>\n\nParis"),
    "implicit": ("smollm3", "{{- '<think>' }}", "so it is</think>Paris"),
    "glm": ("glm4_moe", "<think></think>", "<think>so it is</think>Paris"),
    "minimax": ("minimax_m2", "<think>", "<think>so it is</think>Paris"),
    "distilled": ("qwen2", f"<{BAR}Assistant{BAR}><think>\\n", "so it is</think>Paris"),
    "mistral": ("mistral", "[THINK]", "[THINK]so it is[/THINK]Paris"),
    "gpt-oss": (
        "gpt_oss",
        "<|channel|>",
        "<|channel|>analysis<|message|>so it is<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>",
    ),
    "gemma 4": ("gemma4", "{%- if enable_thinking %}", "<|channel>thought\nso it is<channel|>Paris"),
}


@pytest.mark.parametrize("form", sorted(THINKING))
def test_the_parser_of_a_template_reads_its_thoughts(form: str):
    from vllm_mlx.reasoning import get_parser

    family, template, answer = THINKING[form]
    name = reasoning_parser(facts(family, template))
    assert name

    thoughts, content = get_parser(name)().extract_reasoning(answer)

    assert "so it is" in (thoughts or "")
    assert (content or "").strip() == "Paris"


@pytest.mark.parametrize("family", ["llama", "seed_oss", "qwen3"])
def test_a_model_that_does_not_think_has_no_parser(family: str):
    assert reasoning_parser(facts(family, "<seed:think>" if family == "seed_oss" else "{{ message.content }}")) is None


def test_every_form_names_a_parser_that_the_engine_has():
    from vllm_mlx.reasoning import list_parsers
    from vllm_mlx.tool_parsers import ToolParserManager

    assert {form.parser for form in TOOLS} - {None} <= set(ToolParserManager.list_registered())
    assert {form.parser for form in THOUGHTS} - {None} <= set(list_parsers())
