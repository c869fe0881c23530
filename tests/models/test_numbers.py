"""Weights of the right names and shapes whose numbers are not those of a trained model."""

import re
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_bench.config.errors import ConfigError
from model_folders import change, fine_tuned, planned, saved

Tensors = dict[str, torch.Tensor]
FAMILIES = {
    "bert": ("embeddings.LayerNorm.weight", "embeddings.word_embeddings.weight"),
    "distilbert": ("transformer.layer.1.sa_layer_norm.weight", "embeddings.word_embeddings.weight"),
    "deberta-v2": ("encoder.layer.1.output.LayerNorm.weight", "embeddings.word_embeddings.weight"),
    "gpt2": ("ln_f.weight", "wte.weight"),
    "gpt_neox": ("final_layer_norm.weight", "embed_in.weight"),
    "llama": ("layers.0.input_layernorm.weight", "embed_tokens.weight"),
    "qwen3": ("layers.1.self_attn.k_norm.weight", "embed_tokens.weight"),
}


def filled(name: str, value: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.full_like(tensors[name], value)}


def with_number(value: float, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    """One number of the last matrix, as a file of this type has it."""

    def edit(tensors: Tensors) -> Tensors:
        name = max(name for name, tensor in tensors.items() if tensor.ndim == 2)
        matrix = tensors[name].to(dtype)
        matrix[-1, -1] = value
        return tensors | {name: matrix}

    return edit


@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_that_lets_nothing_through_is_refused(family, tmp_path):
    """Behind it every text is the same: no adapter moves, and a guard would fail each run after its training."""
    name = FAMILIES[family][0]
    saved(tmp_path, family)
    change(tmp_path, filled(name, 0.0))
    with pytest.raises(ConfigError, match=rf"^model\.name: '{name}' in .* is 0 everywhere, so nothing of a text"):
        planned(tmp_path)


def test_a_norm_that_adds_one_to_its_weight_may_be_zero(tmp_path):
    """Gemma's norms begin at zero, and compute what others do at one."""
    saved(tmp_path, "gemma")
    change(tmp_path, lambda tensors: {k: torch.zeros_like(v) if v.ndim == 1 else v for k, v in tensors.items()})
    assert planned(tmp_path).matrices


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_token_embeddings_that_are_all_alike_are_refused(family, value, tmp_path):
    """A copy that broke off in a file made beforehand is zeros to its end, of the right size."""
    name = FAMILIES[family][1]
    saved(tmp_path, family)
    change(tmp_path, filled(name, value))
    with pytest.raises(ConfigError, match=rf"^model\.name: '{name}' in .* is {value:g} everywhere, so every token"):
        planned(tmp_path)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.bfloat16),
        (-float("inf"), torch.float16),
        (1e300, torch.float64),
        (-3e9, torch.float32),
    ],
    ids=["nan", "inf in bf16", "-inf in fp16", "beyond fp32", "too large"],
)
def test_a_number_that_is_none_is_refused(value, dtype, tmp_path):
    """One of them makes every loss NaN; a sweep would plan all of its runs and fail each at its first step."""
    saved(tmp_path)
    change(tmp_path, with_number(value, dtype))
    with pytest.raises(ConfigError, match=rf"^model\.name: '.*' in .* holds {re.escape(f'{value:g}')}, and no"):
        planned(tmp_path)


def test_every_file_that_the_index_names_is_looked_at(tmp_path):
    """Shards are downloaded one by one, and one may be damaged."""
    saved(tmp_path, shards="20KB")
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    save_file({name: tensor * float("nan") for name, tensor in load_file(last).items()}, last)
    with pytest.raises(ConfigError, match=rf"^model\.name: '.*' in '.*{last.name}' holds nan, and"):
        planned(tmp_path)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "bert.embeddings.position_ids", "lm_head.weight"])
def test_numbers_that_no_run_reads_may_be_anything(name, tmp_path):
    """An unused head of another task is left out whatever it holds."""
    saved(tmp_path)
    change(tmp_path, lambda tensors: tensors | {name: torch.full((8,), float("nan"))})
    assert planned(tmp_path).matrices


MATRICES = {
    "bert": "encoder.layer.1.attention.self.key.weight",
    "distilbert": "transformer.layer.0.ffn.lin2.weight",
    "gpt2": "h.1.attn.c_attn.weight",
    "gpt_neox": "layers.1.mlp.dense_4h_to_h.weight",
    "llama": "layers.0.self_attn.o_proj.weight",
}


@pytest.mark.parametrize("family", MATRICES)
def test_a_matrix_that_is_zero_is_refused(family, tmp_path):
    """A part that was never fetched into a file made beforehand: the model still computes, and is another."""
    name = MATRICES[family]
    saved(tmp_path, family)
    change(tmp_path, filled(name, 0.0))
    with pytest.raises(ConfigError, match=rf"^model\.name: '{re.escape(name)}' in .* is 0 everywhere, so nothing"):
        planned(tmp_path)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_file_that_ends_in_zeros_is_refused(share, tmp_path):
    """It has the size that its header says, and its last matrices, or a part of the last one, are not there."""
    content = (saved(tmp_path) / "model.safetensors").read_bytes()
    n_zeros = int(share * len(content))
    (tmp_path / "model.safetensors").write_bytes(content[:-n_zeros] + bytes(n_zeros))
    with pytest.raises(ConfigError, match=r"^model\.name: '.*' in .* (ends in zeros|is 0 everywhere)"):
        planned(tmp_path)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "opt", "deberta-v2"])
def test_what_may_be_zero_passes(family, tmp_path):
    """Biases that training left where they began, RoBERTa's one type of token, tables of positions, rows of tokens that
    no text has, and a head."""
    fine_tuned(tmp_path, family)

    def edit(tensors: Tensors) -> Tensors:
        edited = {}
        for name, tensor in tensors.items():
            is_table = any(part in name for part in ("token_type", "position", "wpe"))
            is_head = name.startswith(("classifier", "score"))
            if is_table or is_head or name.endswith("bias"):
                tensor = torch.zeros_like(tensor)
            elif "word_embeddings" in name or "embed_tokens" in name or "wte" in name:
                tensor[200:] = 0
            edited[name] = tensor
        return edited

    change(tmp_path, edit)
    assert planned(tmp_path).matrices
