"""What is made of weights after they came: fitted to the back end, or converted by mlx-lm itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from state.errors import MlxqError, UsageProblem
from tasks.weights import client, convert, manifest
from tasks.weights.formats import headers
from tasks.weights.source import PullRequest

SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Make a whole bf16 Llama of two layers, small but real: mlx-lm loads it."""
    import mlx.core as mx
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "llama-bf16"
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (256, 64), "model.norm": (64,)}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in SHAPES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}"] = (64,)
    tensors = {f"{name}.weight": mx.random.normal(shape).astype(mx.bfloat16) for name, shape in shapes.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    config |= {"num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"rms_norm_eps": 1e-5, "vocab_size": 256, "tie_word_embeddings": True, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE({chr(number + 256): number for number in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def kinds(folder: Path) -> set[str]:
    """Give the types of the tensors."""
    import mlx.core as mx

    tensors: Any = mx.load(str(folder / "model.safetensors"))
    return {str(tensor.dtype).removeprefix("mlx.core.") for tensor in tensors.values()}


@pytest.mark.slow
def test_a_repo_is_converted_and_fitted_to_this_machine_with_its_own_hashes_kept(llama: Path, tmp_path: Path):
    """The 4-bit weights have bf16 scales as mlx-lm writes them, and float32 ones after the CPU's recipe."""
    request = PullRequest(f"file:{llama}#int4", str(tmp_path / "models"), log=str(tmp_path / "convert.log"))
    folder = client.fetch(request).folder
    assert folder.name.endswith("-int4")
    assert headers.inventory(folder).quantization == "4-bit g64"
    made = manifest.read(folder)
    assert made
    assert made.convert == "int4"
    assert manifest.hash_file(llama / "model.safetensors", "sha256") in {file.digest for file in made.pristine}
    assert client.verify(folder) == []
    recipe = "f32-scales" if convert.backend() == "cpu" else None
    assert recipe == made.recipe
    assert ({"uint32", "float32"} if recipe else {"uint32", "bfloat16"}) == kinds(folder)
    assert (tmp_path / "convert.log").stat().st_size > 0


def test_only_quantised_weights_on_the_cpu_are_changed(llama: Path):
    assert convert.choose_recipe("cpu", llama) is None
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}}))
    assert [convert.choose_recipe(found, llama) for found in ("metal", "cuda", "cpu")] == [None, None, "f32-scales"]


def test_the_recipe_changes_types_and_no_value(llama: Path):
    import mlx.core as mx

    before: Any = mx.load(str(llama / "model.safetensors"))
    kept = {name: tensor.astype(mx.float32) for name, tensor in before.items()}
    mx.eval(kept)
    assert list(convert.apply_recipe("f32-scales", llama)) == ["model.safetensors"]
    assert {"float32"} == kinds(llama)
    after: Any = mx.load(str(llama / "model.safetensors"))
    assert all(mx.array_equal(kept[name], tensor).item() for name, tensor in after.items())
    assert list(convert.apply_recipe("f32-scales", llama)) == []
    assert list(convert.apply_recipe(None, llama)) == []


@pytest.mark.slow
def test_a_conversion_that_fails_says_the_last_line_of_its_log(llama: Path, tmp_path: Path):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"hidden_size": 65}))
    with pytest.raises(MlxqError, match=r"mlx_lm convert ended with code 1: \w+") as caught:
        convert.convert(llama, tmp_path / "made", "int4", tmp_path / "log")
    assert caught.value.hint == f"less {tmp_path / 'log'}"


def test_an_unknown_quant_is_told_before_anything_is_fetched(tmp_path: Path):
    with pytest.raises(UsageProblem, match="int3"):
        client.fetch(PullRequest("hub:a/x#int3", str(tmp_path)))
