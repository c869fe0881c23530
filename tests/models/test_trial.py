"""Values of a configuration that a model can be built with, and cannot compute with."""

import pytest
import torch
from transformers import AutoConfig

from architectures import ARCHITECTURES, skeleton
from lora_bench.config.errors import ConfigError
from lora_bench.models import backbone, blueprint, trial, weights
from lora_bench.training.resolve import resolve
from model_folders import configure, planned, saved
from tiny import tiny_config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_computes_passes_the_trial(name):
    """A pass without data must refuse no model that works: some of their code does not run on the meta device."""
    trial.require_runs(skeleton(name))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bert", {"chunk_size_feed_forward": 2}),
        ("roberta", {"chunk_size_feed_forward": 5}),
        ("mistral", {"sliding_window": 0}),
    ],
)
def test_values_that_no_step_can_compute_with_are_refused_at_planning(tmp_path, name, values):
    """transformers builds such a model, and its first step ends in an inner error."""
    configure(saved(tmp_path, name), **values)
    with pytest.raises(ConfigError, match=r"^model\.name: no backbone can be built from the config\.json of .*\)$"):
        planned(tmp_path)


@pytest.mark.parametrize(("name", "heads"), [("llama", 3), ("qwen2", 3), ("mistral", 8)])
def test_key_value_heads_that_no_query_heads_share_evenly_are_refused_at_planning(tmp_path, name, heads):
    """The weights fit such a config.json: they were saved with it."""
    saved(tmp_path, name, num_key_value_heads=heads)
    with pytest.raises(ConfigError, match=r"^model\.name: no backbone can be built from .*size of tensor a \(4\)"):
        planned(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "key"),
    [
        ("bert", {"chunk_size_feed_forward": "0"}, "chunk_size_feed_forward '0'"),
        ("gpt2", {"chunk_size_feed_forward": "1e1"}, "chunk_size_feed_forward '1e1'"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}}, "rope_parameters.rope_theta"),
        ("llama", {"rope_parameters": ..., "rope_theta": "10000"}, "rope_parameters.rope_theta"),
        ("gpt_neox", {"rope_parameters": ..., "rotary_pct": "0.25"}, "rope_parameters.partial_rotary_factor"),
    ],
)
def test_numbers_written_as_text_are_refused_by_their_key(tmp_path, name, values, key):
    """transformers checks the types of keys that a class declares; any other fails in the middle of a step."""
    configure(saved(tmp_path, name), **values)
    with pytest.raises(ConfigError, match=rf"config\.json of .* says {key}.*; write the number"):
        planned(tmp_path)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize(
    ("name", "key"),
    [("bert", "layer_norm_eps"), ("llama", "rms_norm_eps"), ("gpt2", "layer_norm_epsilon"), ("modernbert", "norm_eps")],
)
def test_what_norms_add_to_a_variance_must_be_small(tmp_path, name, key, value):
    """Every output is NaN or the same with it; a guard failed each run, before its first step or after its last."""
    configure(saved(tmp_path, name), **{key: value})
    with pytest.raises(
        ConfigError, match=rf"^model\.name: config\.json of .* says {key} .*; it must be at least 0 and"
    ):
        planned(tmp_path)


@pytest.mark.parametrize("key", [{"return_dict": False}, {"torchscript": True}], ids=str)
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "modernbert"])
def test_a_model_that_was_saved_to_return_tuples_computes_the_same(tmp_path, name, key):
    """What traced a model leaves this in its config.json, and every run of it ended in an inner error."""
    ids = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    saved(tmp_path, name)
    logits = []
    for values in ({}, key):
        configure(tmp_path, **values)
        blueprint._blueprint.cache_clear()
        backbone._LOADED.clear()
        model = backbone.load(planned(tmp_path), precision="fp32", device=torch.device("cpu")).model
        logits.append(model(**ids).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("model_type", ["granite", "cohere"])
def test_an_architecture_without_a_classifier_is_refused_by_its_name(tmp_path, model_type):
    """That the kind of model is what is wrong is said in our words; what works is another kind."""
    saved(tmp_path)
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"'{model_type}', for which this version of transformers has no sequence"):
        planned(tmp_path)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_an_encoder_that_was_made_a_decoder_is_refused(name, tmp_path):
    """Its head reads the first token, which sees no other: a run trained to its end, and a guard failed it then."""
    configure(saved(tmp_path, name), is_decoder=True)
    with pytest.raises(ConfigError, match=r"^model\.name: no backbone can .*is_decoder true .*; set is_decoder"):
        planned(tmp_path)


@pytest.mark.parametrize("name", ["distilbert", "albert", "mpnet", "deberta", "modernbert", "gpt2", "llama", "opt"])
def test_a_key_that_an_architecture_does_not_read_refuses_nothing(name, tmp_path):
    configure(saved(tmp_path, name), is_decoder=True)
    assert planned(tmp_path).matrices


def test_attention_that_takes_rows_of_one_length_is_refused(tmp_path):
    """Rows are padded to the longest of their batch, and most batches ended in an inner error."""
    values = {"model_type": "nystromformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    values |= {"intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 128, "num_landmarks": 8}
    said = r"^model\.architecture: segment_means_seq_len 64 beside num_landmarks 8 .*set segment_means_seq_len to 8"
    with pytest.raises(ConfigError, match=said):
        resolve(tiny_config(model__architecture=values | {"segment_means_seq_len": 64}))
    assert resolve(tiny_config(model__architecture=values | {"segment_means_seq_len": 8})).steps


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_attention_that_is_not_installed_is_replaced_and_told(tmp_path, caplog, name, key):
    """It is how the weights were trained, in no way what they are: the run is that of a folder that does not say it."""
    plain = planned(saved(tmp_path / "plain", name))
    configure(saved(tmp_path / "flash", name), **{key: "flash_attention_2"})
    plan = planned(tmp_path / "flash")
    assert "asks for flash_attention_2, which is not installed here" in caplog.text
    assert plan.fingerprint == plain.fingerprint
    assert backbone.load(plan, precision="fp32", device=torch.device("cpu")).model.config._attn_implementation == "sdpa"
    assert weights.head_of(tmp_path / "flash") is None
