"""Turn one small GGUF file into a folder that MLX can serve. Runs in a child process: it needs mlx.core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from state.errors import Damaged

# llama.cpp's tensor names and what mlx-lm calls the same tensors.
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GROUP = 32  # values that share a scale in Q4_0, Q4_1 and Q8_0
_CONTROL = 3  # llama.cpp's token type of <|im_start|> and its like

_Metadata = dict[str, Any]
_Tensors = dict[str, Any]


def convert(source: Path, folder: Path) -> None:
    """Write the GGUF file `source` into the existing `folder` as config, tokenizer and safetensors.

    Weights keep their quantisation (4 or 8 bit, groups of 32, f16 scales). Raises Damaged when the
    file is not a Llama model with SmolLM's tokenizer, or holds a tensor MLX would have to rewrite.
    """
    import mlx.core as mx

    try:
        # cast: mlx's stub gives one type for all formats; of GGUF it is tensors and metadata.
        tensors, raw = cast("tuple[_Tensors, _Metadata]", mx.load(str(source), return_metadata=True))
    except RuntimeError as problem:
        raise Damaged(f"{source.name} cannot be read as GGUF: {problem}.") from problem
    metadata = {key: value.item() if _is_scalar(value) else value for key, value in raw.items()}
    _check(source, metadata)
    # One type throughout: a float32 norm would lift every activation of a float16 model to float32.
    half = {name: t.astype(mx.float16) if t.dtype == mx.float32 else t for name, t in tensors.items()}
    weights, quantization = _rename(half)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(folder / "config.json", _config(metadata, quantization, tied="lm_head.weight" not in weights))
    _write(folder / "generation_config.json", _special_ids(metadata))
    _write(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    _tokenizer(metadata).save(str(folder / "tokenizer.json"))


def _is_scalar(value: Any) -> bool:
    return hasattr(value, "item") and value.size == 1


def _check(source: Path, metadata: _Metadata) -> None:
    """Refuse what this converter was not proved right for (1004 strings and logits against llama.cpp)."""
    wanted = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }
    for key, value in wanted.items():
        if metadata.get(key) != value:
            raise Damaged(
                f"{source.name} has {key} = {metadata.get(key)!r}; only {value!r} can be converted.",
                hint="Pull a repo that holds MLX weights, for example one of mlx-community.",
            )


def _rename(tensors: _Tensors) -> tuple[_Tensors, dict[str, Any]]:
    """Rename the tensors as MLX does, and return them with the `quantization` block of config.json.

    The block names 4 bits for all and each 8-bit module by itself, as mlx-lm reads it.
    """
    quantization: dict[str, Any] = {"group_size": _GROUP, "bits": 4, "mode": "affine"}
    renamed: _Tensors = {}
    for name, tensor in tensors.items():
        module, kind = _module(name)
        renamed[f"{module}.{kind}"] = tensor
        if kind == "scales":
            bits = tensors[name.removesuffix("scales") + "weight"].shape[-1]
            bits = 32 * bits // (tensor.shape[-1] * _GROUP)
            if bits != quantization["bits"]:
                quantization[module] = {"group_size": _GROUP, "bits": bits}
    return renamed, quantization


def _module(name: str) -> tuple[str, str]:
    """Split `blk.9.attn_q.weight` into mlx-lm's module name and the kind of tensor."""
    *path, module, kind = name.split(".")
    if module not in _TENSORS or kind not in {"weight", "scales", "biases"}:
        raise Damaged(f"The GGUF file holds a tensor {name!r} that no Llama model has.")
    prefix = f"model.layers.{path[1]}." if path else ""
    return prefix + _TENSORS[module], kind


def _config(metadata: _Metadata, quantization: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """Write down the architecture in the words of a Hugging Face config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        # llama.cpp stores q and k for interleaved rotation; mlx-lm calls that traditional.
        "rope_traditional": True,
        "max_position_embeddings": metadata["llama.context_length"],
        "vocab_size": metadata["llama.vocab_size"],
        "tie_word_embeddings": tied,
        "quantization": quantization,
        **_special_ids(metadata),
    }


def _special_ids(metadata: _Metadata) -> dict[str, int]:
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer_config(metadata: _Metadata) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = _special_ids(metadata)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "add_bos_token": bool(metadata["tokenizer.ggml.add_bos_token"]),
        "add_prefix_space": bool(metadata["tokenizer.ggml.add_space_prefix"]),
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "chat_template": metadata["tokenizer.chat_template"],
    }


def _tokenizer(metadata: _Metadata) -> Any:
    """Build SmolLM's tokenizer: byte-level BPE with every digit a word of its own.

    transformers' own GGUF loader leaves the digit splitting out and reads 36 of 1004 strings wrong.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))  # pyright: ignore[reportArgumentType]  # the stub wants lists, the code takes tuples
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]  # the stub calls it read-only
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  # the stub calls it read-only
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
