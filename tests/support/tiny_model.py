"""Make a llama of 90 000 random weights: the real engine serves it from 150 MB and starts in three seconds."""

import json
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


def make(folder: Path) -> Path:
    """Write the model into `folder` and give it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = _tokenizer(folder)
    config = CONFIG | {"vocab_size": words}
    folder.joinpath("config.json").write_text(json.dumps(config))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(told | {"chat_template": TEMPLATE}))
    _weights(folder, config)
    return folder


def _tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer and give the size of its vocabulary."""
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
    made.save(str(folder / "tokenizer.json"))
    return made.get_vocab_size()


def _weights(folder: Path, config: dict[str, Any]) -> None:
    """Write random weights, the same every time."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(7)
    parameters = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), parameters, metadata={"format": "mlx"})
