"""What a folder's weights hold, and whether they are the weights of the model that its config.json describes."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lora_bench.config.errors import ConfigError
from lora_bench.models import backbone, files, headers, weights
from lora_bench.store.errors import GuardError
from lora_bench.training import guards
from model_folders import INDEX, WEIGHTS, change, configure, fine_tuned, planned, rename, saved

LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}
HEADS = ["bert", "distilbert", "roberta", "deberta-v2", "modernbert", "gpt2"]
CPU = torch.device("cpu")


def loaded(folder, n_labels: int = 2):
    return backbone.load(planned(folder, n_labels), precision="fp32", device=CPU)


def refused(folder) -> str:
    with pytest.raises(ConfigError) as error:
        planned(folder)
    message = str(error.value)
    assert "\n" not in message and message.startswith("model.name: ")
    return message


# A head in the weights


@pytest.mark.parametrize("name", HEADS)
def test_a_head_in_the_weights_is_known_with_the_names_of_its_labels(name, tmp_path):
    """A task starts from that head, in its order of labels: whoever plans a sweep must be told."""
    folder = fine_tuned(tmp_path, name, n_labels=3)
    configure(folder, id2label=LABELS, label2id={label: index for index, label in LABELS.items()})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    base = {id(parameter) for parameter in model.base_model.parameters()}
    head = weights.head_of(folder)
    assert head is not None and head.labels == tuple(LABELS.values())
    assert set(head.parameters) == {path for path, parameter in model.named_parameters() if id(parameter) not in base}


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "gpt2"])
def test_weights_without_a_head_have_none(name, tmp_path):
    assert weights.head_of(saved(tmp_path, name)) is None


def test_the_weights_say_how_many_labels_their_head_has(tmp_path):
    """A config.json that lost its labels counts two; a task of three would start from the head all the same."""
    folder = fine_tuned(tmp_path, "roberta", n_labels=3)
    configure(folder, id2label=..., label2id=...)
    head = weights.head_of(folder)
    assert head is not None and len(head.labels) == 3


@pytest.mark.parametrize("name", HEADS)
def test_all_of_a_fine_tuned_head_trains_and_starts_where_it_was(name, tmp_path):
    """A part of the head that stays frozen is neither the backbone's nor trained, and peft cannot save it."""
    bundle = loaded(fine_tuned(tmp_path, name))
    start = backbone.head_state(bundle, 0)
    head = weights.head_of(tmp_path)
    assert head is not None and head.parameters and set(start) == set(head.parameters)
    tensors = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(value, tensors[path]) for path, value in start.items())
    guards.require_known_start(bundle)


@pytest.mark.parametrize(
    ("name", "head", "is_other"),
    [("distilbert", True, True), ("modernbert", True, True), ("roberta", True, False), ("distilbert", False, False)],
)
def test_a_head_that_earlier_versions_froze_in_part_makes_other_runs(name, head, is_other, tmp_path, monkeypatch):
    """Records of the frozen part must not stand for these runs; all other ids stay."""
    folder = fine_tuned(tmp_path / "model", name) if head else saved(tmp_path / "model", name)
    now = planned(folder).fingerprint
    monkeypatch.setattr(weights, "kept_modules", lambda *_: ())
    before = planned(shutil.copytree(folder, tmp_path / "copy")).fingerprint
    assert (now != before) == is_other


# Weights that fit


CHECKPOINTS = {
    "base": ("bert", AutoModel),
    "masked": ("bert", AutoModelForMaskedLM),
    "causal": ("llama", AutoModelForCausalLM),
    "causal_tied": ("gpt2", AutoModelForCausalLM),
    "other_head": ("distilbert", AutoModelForTokenClassification),
    "shared_layers": ("albert", AutoModel),
    "unused_pooler": ("roberta", AutoModel),
    "fused": ("modernbert", AutoModelForMaskedLM),
}


def legacy(folder) -> None:
    """LayerNorm's old names, as the first BERT checkpoints have them."""
    rename(folder, lambda name: re.sub("LayerNorm.bias$", "LayerNorm.beta", name.replace("Norm.weight", "Norm.gamma")))


def prefixed(folder) -> None:
    rename(folder, lambda name: f"bert.{name}")


def with_ids(folder) -> None:
    """Position numbers, which were saved once."""
    change(folder, lambda tensors: tensors | {"embeddings.position_ids": torch.arange(64)[None]})


def with_half(folder) -> None:
    change(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})


def in_shards(folder) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink(missing_ok=True)
    assert (folder / INDEX).is_file()


def without_pooler(folder) -> None:
    change(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "pooler" not in name})


FORMS = [legacy, prefixed, with_ids, with_half, in_shards, without_pooler]


def assert_loads_as_transformers_does(folder, name: str) -> None:
    plan = planned(folder)
    ours, _ = backbone._instantiate(plan)
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    base = getattr(ours, ours.base_model_prefix).state_dict()
    compared = [path for path in base if path in theirs and "pooler" not in path]
    assert len(compared) > 10 and all(torch.equal(base[path], theirs[path]) for path in compared)
    guards.require_known_start(loaded(folder))


@pytest.mark.parametrize(("name", "kind"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_every_kind_of_checkpoint_is_read_as_transformers_reads_it(name, kind, tmp_path):
    """A check that refuses sound weights costs a user more than the fault that it guards."""
    assert_loads_as_transformers_does(saved(tmp_path, name, kind=kind), name)


@pytest.mark.parametrize("form", FORMS, ids=[form.__name__ for form in FORMS])
def test_every_form_that_weights_have_is_read_as_transformers_reads_it(form, tmp_path):
    form(saved(tmp_path))
    assert_loads_as_transformers_does(tmp_path, "bert")


# Weights that do not


def drop(folder, name: str) -> None:
    change(folder, lambda tensors: {path: tensor for path, tensor in tensors.items() if path != name})


def unmerged(folder) -> None:
    model = get_peft_model(AutoModel.from_pretrained(folder), LoraConfig(target_modules=["query"]))
    (folder / WEIGHTS).unlink()
    model.get_base_model().save_pretrained(folder)


def quantised(folder, dtype: torch.dtype) -> None:
    change(
        folder,
        lambda tensors: {
            name: tensor.to(dtype) if name.endswith("query.weight") else tensor for name, tensor in tensors.items()
        },
    )


def more_layers(folder) -> None:
    layers = {f"encoder.layer.{number}." for number in (3, 4)}
    change(
        folder,
        lambda tensors: (
            tensors
            | {
                name.replace("encoder.layer.2.", layer): tensor.clone()
                for layer in layers
                for name, tensor in tensors.items()
                if "encoder.layer.2." in name
            }
        ),
    )


MISFITS = {
    "compiled": (lambda f: rename(f, "_orig_mod.{}".format), r"every name starts with '_orig_mod\.'.*model\._orig_mod"),
    "compiled_in_part": (
        lambda f: rename(f, lambda name: name.replace("encoder.", "encoder._orig_mod.")),
        r"of 55 names hold '_orig_mod\.'",
    ),
    "parallel": (lambda f: rename(f, "module.{}".format), r"every name starts with 'module\.'.*model\.module"),
    "wrapped": (lambda f: rename(f, "net.model.{}".format), r"every name starts with 'net\.model\.'"),
    "sentence": (lambda f: rename(f, "0.auto_model.{}".format), r"every name starts with '0\.auto_model\.'"),
    "peft_prefix": (lambda f: rename(f, "base_model.model.{}".format), r"'base_model\.'.*merge_and_unload"),
    "peft_unmerged": (unmerged, r"'base_layer\.'.*merge_and_unload"),
    "vocabulary": (lambda f: configure(f, vocab_size=310), r"\(310, 32\).*vocab_size 310.*\(300, 32\)"),
    "positions": (lambda f: configure(f, max_position_embeddings=80), r"max_position_embeddings 80"),
    "width": (lambda f: configure(f, hidden_size=64), r"hidden_size 64"),
    "inner_width": (lambda f: configure(f, intermediate_size=96), r"intermediate_size 96"),
    "fewer_layers": (lambda f: configure(f, num_hidden_layers=4), r"config\.json says 4 layers, the weights hold 3"),
    "surplus_layers": (lambda f: configure(f, num_hidden_layers=2), r"says 2 layers, the weights hold 3"),
    "more_layers": (more_layers, r"says 3 layers, the weights hold 5"),
    "no_embedding": (lambda f: drop(f, "embeddings.word_embeddings.weight"), r"lack 'bert\.embeddings\.word_emb"),
    "no_bias": (lambda f: drop(f, "encoder.layer.1.output.dense.bias"), r"lack 'bert\.encoder\.layer\.1\.output"),
    "no_norm": (lambda f: drop(f, "embeddings.LayerNorm.weight"), r"lack 'bert\.embeddings\.LayerNorm\.weight'"),
    "half_a_pooler": (lambda f: drop(f, "pooler.dense.bias"), r"lack 'bert\.pooler\.dense\.bias'"),
    "int8": (lambda f: quantised(f, torch.int8), r"stored as I8"),
    "fp8": (lambda f: quantised(f, torch.float8_e4m3fn), r"stored as F8_E4M3"),
    "another_kind": (lambda f: (prefixed(f), configure(f, model_type="roberta")), r"every name starts with 'bert\.'"),
    "a_decoder": (lambda f: configure(f, model_type="llama"), r"lack 'model\.embed_tokens\.weight'"),
}


@pytest.mark.parametrize(("spoil", "says"), MISFITS.values(), ids=MISFITS)
def test_weights_that_are_not_the_models_are_refused_when_planning(spoil, says, tmp_path):
    """What is missing would be drawn at random, train as a head or stay frozen, and the score would look sound."""
    spoil(saved(tmp_path))
    assert re.search(says, refused(tmp_path))


def test_a_bias_that_the_model_has_no_place_for_is_refused(tmp_path):
    """Qwen's weights under Llama's config.json compute something else, and every parameter is there."""
    saved(tmp_path, "qwen2")
    configure(tmp_path, model_type="llama", architectures=["LlamaModel"])
    assert re.search(r"no place for '.*layers\.0\.self_attn\.k_proj\.bias' and 8 more", refused(tmp_path))


def test_what_planning_does_not_see_is_refused_when_the_weights_are_read(tmp_path):
    """The file may change between the plan and the run."""
    plan = planned(saved(tmp_path))
    drop(tmp_path, "embeddings.LayerNorm.weight")
    with pytest.raises(ConfigError, match=r"lack 'bert\.embeddings\.LayerNorm\.weight'"):
        backbone.load(plan, precision="fp32", device=CPU)


@pytest.mark.parametrize(
    ("trained", "fresh", "says"),
    [
        (("classifier", "bert.encoder.layer.0"), (), r"layer\.0\..* would train as part of the head"),
        (("classifier",), ("bert.embeddings.LayerNorm.bias",), r"LayerNorm\.bias is drawn at random"),
        ((), (), r"classifier\.weight is part of the head and would not train"),
    ],
    ids=["too_much", "drawn", "too_little"],
)
def test_a_run_whose_head_is_no_fresh_models_head_fails(trained, fresh, says, tmp_path):
    """Whatever let it come so far: what is trained as a head decides the floor of every table."""
    bundle = loaded(saved(tmp_path))
    bundle.new_modules, bundle.fresh_parameters = trained, frozenset(fresh)
    with pytest.raises(GuardError, match=says):
        guards.require_known_start(bundle)


# Adapters


def with_adapter(folder, base):
    """An adapter whose change is large, beside nothing."""
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(r=4, target_modules=["query", "value"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model


def test_an_adapter_beside_the_weights_is_left_out_and_told(tmp_path):
    """transformers attaches it in silence: a merged model would have it twice, and with new random matrices."""
    folder = saved(tmp_path / "model")
    alone = loaded(shutil.copytree(folder, tmp_path / "alone"))
    with_adapter(folder, folder)
    plan = planned(folder)
    assert plan.remark is not None and "adapter_config.json" in plan.remark and str(folder) in plan.remark
    assert planned(tmp_path / "alone").remark is None
    beside = backbone.load(plan, precision="fp32", device=CPU)
    assert not isinstance(beside.model, PeftModel) and beside.frozen_hash == alone.frozen_hash
    assert plan.fingerprint == planned(tmp_path / "alone").fingerprint


@pytest.mark.parametrize("task", [None, "SEQ_CLS"], ids=["plain", "classifier"])
def test_the_refusal_of_an_adapter_alone_holds_a_line_that_merges_it(task, tmp_path, monkeypatch):
    """Advice that cannot work costs an afternoon."""
    base = saved(tmp_path / "base")
    kind, more = (AutoModelForSequenceClassification, {"num_labels": 3}) if task else (AutoModel, {})
    model = get_peft_model(kind.from_pretrained(base, **more), LoraConfig(target_modules=["query"], task_type=task))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.ones_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    message = refused(tmp_path / "adapter")
    assert f"is an adapter of {str(base)!r}" in message
    monkeypatch.chdir(tmp_path)
    exec(re.search("`(.*)`", message)[1], {})
    shutil.copytree(base, tmp_path / "FOLDER", ignore=lambda *_: [WEIGHTS, "config.json"], dirs_exist_ok=True)
    tensors = load_file(tmp_path / "FOLDER" / WEIGHTS)
    merged = model.merge_and_unload().state_dict()
    assert tensors.keys() <= merged.keys() and all(torch.equal(value, merged[name]) for name, value in tensors.items())
    assert planned(tmp_path / "FOLDER", 3).matrices


# What is hashed is what is loaded


def index(folder, **files: str) -> None:
    document = {"metadata": {}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(document), encoding="utf-8")


def test_weights_in_a_subfolder_are_part_of_what_a_run_is_named_by(tmp_path):
    """Two backbones under one id: the second one's runs would be taken for finished."""
    ids = []
    for name in ("first", "second"):
        folder = saved(tmp_path / name)
        if name == "second":
            change(folder, lambda tensors: {path: tensor + 1 for path, tensor in tensors.items()})
        (folder / "parts").mkdir()
        names = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).rename(folder / "parts" / "all.safetensors")
        index(folder, **dict.fromkeys(names, "parts/all.safetensors"))
        ids.append((planned(folder).fingerprint, loaded(folder).frozen_hash))
    assert len({fingerprint for fingerprint, _ in ids}) == len({frozen for _, frozen in ids}) == 2


def test_files_that_are_not_loaded_name_no_run(tmp_path):
    before = files.weights_fingerprint(saved(tmp_path))
    shutil.copy(tmp_path / WEIGHTS, tmp_path / "consolidated.safetensors")
    assert files.weights_fingerprint(tmp_path) == before


def test_a_link_out_of_the_folder_is_followed(tmp_path):
    """The Hub's cache is made of such links."""
    folder = saved(tmp_path / "model")
    before = planned(folder).fingerprint
    (folder / WEIGHTS).rename(tmp_path / "blob")
    (folder / WEIGHTS).symlink_to(tmp_path / "blob")
    assert files.weights_fingerprint(folder) and planned(folder).fingerprint == before


# A head that classifies no texts


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, AutoModelForTokenClassification) for name in ("bert", "distilbert", "llama", "qwen2")],
)
def test_a_head_of_another_kind_and_the_same_shape_is_drawn_anew(name, kind, tmp_path):
    """The outputs of a tagger mean tags; a task that begins with them begins with what nobody chose."""
    folder = saved(tmp_path / "tagger", name, kind=kind, num_labels=2)
    tagger = load_file(folder / WEIGHTS)
    bundle = loaded(folder)
    start = backbone.head_state(bundle, 0)
    assert {path for path in start if path in tagger}, "the tagger's head has these names"
    assert not any(
        tensor.any() and torch.equal(tensor, tagger[path]) for path, tensor in start.items() if path in tagger
    )
    assert weights.head_of(folder) is None
    other = shutil.copytree(folder, tmp_path / "kept")
    configure(other, architectures=["OurForSequenceClassification"])
    assert planned(other).fingerprint != planned(folder).fingerprint, "the two begin with other heads"


@pytest.mark.parametrize(
    ("name", "part", "twin"),
    [
        ("bert", "encoder.layer.1.output.dense.weight", "bert.encoder.layer.1.output.dense.weight"),
        ("gpt2", "h.0.ln_1.bias", "transformer.h.0.ln_1.bias"),
        ("llama", "layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("bert", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
        ("bert", "embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.beta"),
        ("bert", "encoder.layer.0.output.dense.bias", "bert.bert.encoder.layer.0.output.dense.bias"),
        ("llama", "norm.weight", "model.model.norm.weight"),
    ],
)
def test_a_parameter_that_the_weights_hold_twice_is_refused(name, part, twin, tmp_path):
    """Two checkpoints in one file: transformers takes either, and which one depends on the order of names."""
    folder = saved(tmp_path, name)
    change(folder, lambda tensors: tensors | {twin: tensors[part] + 1})
    assert f"one parameter twice, as {min(part, twin)!r} and as {max(part, twin)!r}" in refused(folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bert", torch.uint8), ("distilbert", torch.float8_e4m3fn), ("distilbert", torch.int64), ("qwen2", torch.bool)],
    ids=str,
)
def test_a_part_of_the_head_that_is_no_float_is_drawn_anew(name, dtype, tmp_path):
    """Planning does not count it as the checkpoint's, so training must not start from its rounded numbers."""
    fine_tuned(tmp_path, name)
    part = next(name for name in load_file(tmp_path / WEIGHTS) if name.startswith(("classifier", "score")))
    change(tmp_path, lambda tensors: tensors | {part: tensors[part].to(dtype)})
    plan = planned(tmp_path)
    fresh = weights.fit_of(plan.skeleton, headers.stored(tmp_path)).fresh
    assert part in fresh
    assert backbone.load(plan, precision="fp32", device=torch.device("cpu")).fresh_parameters == fresh
