"""Which parsers read a model's tool calls and thoughts, from its architecture and its chat template.

A template shows the model the form in which it calls; the parser is the one of that form, in vllm-mlx's names. A test
has the real parser read a call of each form.
"""

from __future__ import annotations

import re

from catalog.description.repo_facts import RepoFacts, type_of
from state.classes import dataclass

BAR, GAP = "\uff5c", "\u2581"
"""The wide bar and the low line in the special tokens of DeepSeek."""


@dataclass(frozen=True)
class Form:
    """A form in which models call tools or think, and what reads it."""

    mark: str
    """A piece of the chat template; empty where the family alone decides."""
    parser: str | None
    """None for a form that no parser of the engines reads."""
    families: str = ""
    """A pattern of the families that use it; empty for all."""


TOOLS: tuple[Form, ...] = (
    Form("", "gpt-oss", "gpt_oss"),
    Form("<|tool_call>", "gemma4", "gemma4.*"),
    Form("minimax:tool_call", "minimax"),
    Form(f"{BAR}DSML{BAR}", "dsml"),
    Form("<|tool_calls_section_begin|>", "kimi"),
    Form("```json", "deepseek_v3", "deepseek.*"),
    Form(f"<{BAR}tool{GAP}calls{GAP}begin{BAR}>", None),
    Form("<seed:tool_call>", None),
    Form("<arg_key>", "glm47"),
    Form("<function=", "step3p5", "step3p5"),
    Form("<function=", "nemotron", "nemotron.*"),
    Form("<function=", "qwen3_coder", "qwen3_moe|qwen3_next"),
    Form("<function=", "qwen3_xml"),
    Form("[TOOL_CALLS]", "mistral"),
    Form("<|python_tag|>", "llama"),
    Form("Environment: ipython", "llama", "llama.*"),
    Form("<|tool_call_start|>", None),
    Form("<|START_ACTION|>", None),
    Form("<tool_calls>", None),
    Form("<|tool_call|>", "granite", "granite.*"),
    Form("<TOOLCALL>", None),
    Form("<|from|>", "functionary"),
    Form("<tool_call>", "hermes"),
    Form("<|tool|>", "hermes", "phi.*"),
)
"""The first that applies is the one."""
THOUGHTS: tuple[Form, ...] = (
    Form("", "gpt_oss", "gpt_oss"),
    Form("enable_thinking", "gemma4", "gemma4.*"),
    Form("<seed:think>", None),
    Form("[THINK]", "mistral"),
    Form("<think>", "glm4", "glm.*"),
    Form("<think>", "step3p5", "step3p5"),
    Form("<think>", "deepseek_r1", "minimax.*|deepseek.*|kimi.*"),
    Form(f"<{BAR}Assistant{BAR}><think>", "deepseek_r1"),
    Form("</think>", "qwen3"),
    Form("<think>", "qwen3"),
)


def tool_parser(facts: RepoFacts) -> str | None:
    """Return the parser of the form in which the model calls tools; None where it does not, or no parser reads it."""
    return _first(TOOLS, facts)


def reasoning_parser(facts: RepoFacts) -> str | None:
    """Return the parser of the form in which the model thinks; None where it does not, or no parser reads it."""
    return _first(THOUGHTS, facts)


def _first(forms: tuple[Form, ...], facts: RepoFacts) -> str | None:
    """Return the parser of the first form that applies; a model without a chat template uses none."""
    family = type_of(facts.config)
    for form in forms:
        applies = not form.families or re.fullmatch(form.families, family)
        if facts.template and applies and form.mark in facts.template:
            return form.parser
    return None
