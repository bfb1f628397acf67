"""Make a llama of 90 000 random weights: the real engine serves it from 150 MB and starts in three seconds."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **LAYERS,
    **HEADS,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


OFFER = "<offer>"
"""The last token of a prompt that offers tools to a caller."""


def make(folder: Path) -> Path:
    """Write the model into `folder` and give it."""
    import mlx.core as mx

    tokens = write_tokenizer(folder, TEMPLATE)
    mx.random.seed(7)  # the same weights every time
    _save(folder, CONFIG | {"vocab_size": len(tokens)}, {})
    return folder


def make_caller(folder: Path, says: Sequence[str]) -> Path:
    """Write a llama that answers an offer of tools with `says`, a token each, and all else with one word for ever.

    Its layers add nothing: an embedding that is one-hot meets a head that holds which token follows which.
    """
    import mlx.core as mx

    tokens = write_tokenizer(folder, TEMPLATE + "{% if tools %}" + OFFER + "{% endif %}", [OFFER, *says])
    size, width = len(tokens), -(-len(tokens) // 8) * 8  # four heads, each of an even width
    follows = dict.fromkeys(range(size), tokens["a"])
    chain = [OFFER, *says, "<|im_end|>"]
    follows |= {tokens[word]: tokens[after] for word, after in pairwise(chain)}
    head = mx.zeros((size, width))
    head[mx.array(list(follows.values())), mx.array(list(follows))] = 9.0
    weights = {"model.embed_tokens.weight": mx.eye(size, width), "lm_head.weight": head}
    for layer in range(CONFIG["num_hidden_layers"]):
        weights[f"model.layers.{layer}.self_attn.o_proj.weight"] = mx.zeros((width, width))
        weights[f"model.layers.{layer}.mlp.down_proj.weight"] = mx.zeros((width, CONFIG["intermediate_size"]))
    _save(folder, CONFIG | {"vocab_size": size, "hidden_size": width, "tie_word_embeddings": False}, weights)
    return folder


def write_tokenizer(folder: Path, template: str, more: Sequence[str] = ()) -> dict[str, int]:
    """Write a byte-level tokenizer with `more` tokens and the chat template; give its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    made.add_tokens(list(more))
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(told | {"chat_template": template}))
    return made.get_vocab()


def _save(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> None:
    """Write the configuration and the weights; those not given are random."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    folder.joinpath("config.json").write_text(json.dumps(config))
    parameters = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters())) | weights
    mx.save_safetensors(str(folder / "model.safetensors"), parameters, metadata={"format": "mlx"})
