"""What a model does other than answering, by what its files say of it: such a model cannot be a tier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from catalog.description.repo_facts import Config, words

EMBEDS = "makes vectors of texts (an embedding model)"
RANKS = "ranks or sorts texts (a reranker or classifier)"
TASKS: Mapping[str, str] = {
    **dict.fromkeys(("feature-extraction", "sentence-similarity"), EMBEDS),
    **dict.fromkeys(("text-ranking", "text-classification", "token-classification", "zero-shot-classification"), RANKS),
    **dict.fromkeys(("automatic-speech-recognition", "audio-classification"), "listens (speech to text)"),
    **dict.fromkeys(("text-to-speech", "text-to-audio"), "speaks (text to speech)"),
    **dict.fromkeys(("text-to-image", "image-to-image", "text-to-video", "image-to-video"), "makes images or videos"),
    **dict.fromkeys(("image-classification", "object-detection", "image-segmentation"), "looks at images alone"),
    **dict.fromkeys(("depth-estimation", "image-feature-extraction"), "looks at images alone"),
    "fill-mask": "fills gaps in texts",
}
"""What the Hub calls a task, and what such a model does."""
FILES: Mapping[str, str] = {
    "modules.json": EMBEDS,
    "config_sentence_transformers.json": EMBEDS,
}
"""Files that only one kind of model has."""
CLASSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"For(?:Sequence|Token|Image)Classification|RewardModel|Reranker"), RANKS),
    (re.compile(r"ForMaskedLM|ForQuestionAnswering|ForMultipleChoice"), "fills gaps in texts"),
    (re.compile(r"Embedding|EncoderModel|^(?:Bert|XLMRoberta|Roberta|ModernBert|NomicBert)Model$"), EMBEDS),
    (re.compile(r"^(?:Gemma3Text|Qwen2|Qwen3|Llama|Mistral)Model$"), EMBEDS),
    (re.compile(r"SpeechSeq2Seq|Whisper|ForCTC"), "listens (speech to text)"),
    (re.compile(r"CLIPModel|SiglipModel|SiglipVisionModel|Dinov2"), "looks at images alone"),
)
"""What the class of a model is called, and what it does."""


ADAPTER = "is an adapter (LoRA), not a whole model"


def other_purpose(config: Config, names: Sequence[str], task: str) -> str:
    """Return what a model does other than answering; empty for one that may answer.

    `names` are its files, `task` is what the Hub calls its use, or empty.
    """
    if "adapter_config.json" in names and not any(name.startswith("model") for name in names):
        return ADAPTER
    for name, purpose in FILES.items():
        if name in names:
            return purpose
    if task in TASKS:
        return TASKS[task]
    classes = words(config, "architectures")
    return next((text for pattern, text in CLASSES for name in classes if pattern.search(name)), "")
