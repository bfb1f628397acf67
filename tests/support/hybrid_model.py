"""Make small models of random weights of the families that mlxq prefers, for measuring what is read again.

`plain` has full attention (llama), and so has `thirds`, which three ranks can split; `hybrid` is qwen3_5 as text, three
recurrent layers to one of full attention, and `vision` the same with a vision tower and processor, as the published
Qwen 3.5 to 3.8 folders are. The last two carry a chat template with the logic of Qwen 3.6 and later: the thoughts of a
turn come as `reasoning_content` or in <think> at the start of its text, those of turns before the last user message are
dropped unless `preserve_thinking` is true, a system message that is not the first fails, and a prompt ends with an open
<think> unless `enable_thinking` is false. <think> and </think> are one token each, as they are there; random weights
never write the second one, so that only a budget ends what they think.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

NAMES = ("plain", "hybrid", "vision")
WHOLE = 49_152
"""Tokens of the built-in model's tokenizer, which all use."""
TOKENS = 4_096
"""Size of the vocabulary that is kept: with all of it, most of a token's time is spent in the last layer and the
sampler."""
CONTEXT = 32_768

TEMPLATE = Path(__file__).with_name("hybrid_template.jinja")
RENAMED = {"<issue_start>": "<think>", "<issue_closed>": "</think>"}
"""Tokens of the built-in model -> what they are called in those that think."""
SEEING = {
    "<reponame>": "<|vision_start|>",
    "<file_sep>": "<|image_pad|>",
    "<filename>": "<|video_pad|>",
    "<gh_stars>": "<|vision_end|>",
}
"""The same for one that sees: the template writes them where an image stands."""
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
ROPE = {"rope_theta": 1e7, "partial_rotary_factor": 0.5}
TEXT = SIZES | {
    "model_type": "qwen3_5_text",
    "head_dim": 32,
    "full_attention_interval": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    **ROPE,
    "rope_parameters": {"type": "default", "mrope_section": [4, 2, 2], **ROPE},
}
TOWER = {
    "model_type": "qwen3_5",
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 16,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [],
}
IMAGES = {"vision_start_token_id": 4, "image_token_id": 5, "video_token_id": 6, "vision_end_token_id": 7}
PROCESSOR = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "processor_class": "Qwen3VLProcessor",
}
PROCESSORS = {
    "preprocessor_config": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
        **PROCESSOR,
    },
    "video_preprocessor_config": {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"longest_edge": 25_165_824, "shortest_edge": 4096},
        **PROCESSOR,
    },
}


def make(name: str, folder: Path, builtin: Path, tokens: int = TOKENS) -> Path:
    """Write one of them into `folder`, with the first tokens of the built-in model's tokenizer, and return it."""
    import mlx.core as mx

    mx.random.seed(1)
    config, model = {"plain": _plain, "hybrid": _hybrid, "vision": _vision, "thirds": _thirds}[name](tokens)
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("config.json").write_text(json.dumps(config))
    for each in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(builtin / each, folder)
    _write_tokenizer(builtin / "tokenizer.json", folder / "tokenizer.json", tokens)
    _save(folder / "model.safetensors", model, _no_text(folder / "tokenizer.json"))
    if name in {"hybrid", "vision"}:
        _write_template(folder, vision=name == "vision")
        _name_tokens(folder / "tokenizer.json", RENAMED | (SEEING if name == "vision" else {}))
    return folder


def make_builtin(models: Path, builtin: Path) -> Path:
    """Write `plain` where a home has its built-in model, and return it: what is served with it answers at once."""
    from tasks.weights import builtin as built_in
    from tasks.weights import manifest

    made, record = make("plain", built_in.folder(models), builtin), manifest.read(builtin)
    assert record
    files = [
        manifest.File(path.name, path.stat().st_size, "sha256", manifest.hash_file(path, "sha256"))
        for path in sorted(made.iterdir())
    ]
    manifest.write(made, replace(record, files=tuple(files)))
    return made


def _plain(tokens: int) -> tuple[dict[str, Any], Any]:
    from mlx_lm.models import llama

    config = SIZES | {"vocab_size": tokens, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return config, llama.Model(llama.ModelArgs.from_dict(config))


def _thirds(tokens: int) -> tuple[dict[str, Any], Any]:
    from mlx_lm.models import llama

    heads = {"hidden_size": 96, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}
    config = SIZES | heads | {"vocab_size": tokens, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return config, llama.Model(llama.ModelArgs.from_dict(config))


def _hybrid(tokens: int) -> tuple[dict[str, Any], Any]:
    from mlx_lm.models import qwen3_5

    text = TEXT | {"vocab_size": tokens}
    config = {"model_type": "qwen3_5", "text_config": text, "eos_token_id": 2, "tie_word_embeddings": True}
    config |= {"architectures": ["Qwen3_5ForCausalLM"]}
    return config, qwen3_5.Model(qwen3_5.ModelArgs.from_dict(config))


def _vision(tokens: int) -> tuple[dict[str, Any], Any]:
    from mlx_vlm.models import qwen3_5

    text = TEXT | {"vocab_size": tokens}
    config: dict[str, Any] = {"model_type": "qwen3_5", "text_config": text, "vision_config": TOWER, "eos_token_id": 2}
    config |= {"architectures": ["Qwen3_5ForConditionalGeneration"], "tie_word_embeddings": True, "vocab_size": tokens}
    config |= IMAGES
    return config, qwen3_5.Model(qwen3_5.ModelConfig.from_dict(config))


def _no_text(tokenizer: Path) -> list[int]:
    """Return the tokens that are no text by themselves: control tokens, and a part of a character's bytes."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tokenizer))
    return [token for token in range(made.get_vocab_size()) if made.decode([token]).strip("\ufffd") == ""]


def _save(file: Path, model: Any, unlikely: list[int]) -> None:
    """Write the weights. The rows of `unlikely` tokens are zero, so that no greedy answer has one."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    parameters: Any = tree_flatten(model.parameters())
    weights = {name: value.astype(mx.bfloat16) if value.dtype == mx.float32 else value for name, value in parameters}
    for name, rows in weights.items():
        if name.endswith("embed_tokens.weight"):
            rows[mx.array(unlikely)] = 0
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})


def _write_tokenizer(whole: Path, file: Path, tokens: int) -> None:
    """Write a byte-pair tokenizer with the first tokens of another one; their ids are in the order of its merges."""
    told = json.loads(whole.read_text())
    vocabulary = {token: number for token, number in told["model"]["vocab"].items() if number < tokens}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in told["model"]["merges"]]
    told["model"]["vocab"] = vocabulary
    told["model"]["merges"] = [pair for pair in merges if "".join(pair) in vocabulary]
    file.write_text(json.dumps(told))


def _write_template(folder: Path, *, vision: bool) -> None:
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text()) | {"chat_template": TEMPLATE.read_text()}
    if vision:
        told["processor_class"] = "Qwen3VLProcessor"
        for name, content in PROCESSORS.items():
            folder.joinpath(f"{name}.json").write_text(json.dumps(content))
    file.write_text(json.dumps(told))


def _name_tokens(file: Path, names: dict[str, str]) -> None:
    """Call tokens that no text of ours has by other names; those of thoughts are shown as text, no control tokens."""
    told = json.loads(file.read_text())
    for token in told["added_tokens"]:
        if new := names.get(token["content"]):
            told["model"]["vocab"][new] = told["model"]["vocab"].pop(token["content"])
            token |= {"content": new, "special": new.startswith("<|")}
    file.write_text(json.dumps(told))
