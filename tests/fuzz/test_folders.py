"""A damaged model folder is refused in one line at planning, or trained on exactly what an independent reader finds.

pytest tests/fuzz                             the mutations of the suite, the same each time
FUZZ_EXAMPLES=20000 pytest -n0 -s tests/fuzz  as many, drawn anew; all that is wrong is listed at the end
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification

import damaged_folders as damage
from fuzz_ledger import Ledger
from lora_bench.config.errors import ConfigError
from lora_bench.models import backbone, blueprint
from lora_bench.store import Store
from lora_bench.tasks.tokens import batch
from lora_bench.training.resolve import Run, resolve
from lora_bench.training.run import run_pack
from model_folders import saved
from tiny import tiny_config

SEEDS: dict[str, tuple[str, Any, dict]] = {
    "bert": ("bert", AutoModel, {"num_hidden_layers": 2}),
    "bert with a head": ("bert", AutoModelForSequenceClassification, {"num_hidden_layers": 2, "num_labels": 2}),
    "roberta": ("roberta", AutoModel, {"num_hidden_layers": 2, "pad_token_id": 1}),
    "distilbert with a head": ("distilbert", AutoModelForSequenceClassification, {"n_layers": 2, "num_labels": 2}),
    "gpt2": ("gpt2", AutoModel, {"n_layer": 2}),
    "llama": ("llama", AutoModel, {"num_hidden_layers": 2}),
    "qwen2 with a head": ("qwen2", AutoModelForSequenceClassification, {"num_hidden_layers": 2, "num_labels": 3}),
    "albert": ("albert", AutoModel, {"num_hidden_layers": 2}),
    "gpt_neox": ("gpt_neox", AutoModel, {"num_hidden_layers": 2}),
}
VOLATILE = {
    "transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "id2label", "label2id",
    "num_labels", "problem_type", "pad_token_id", "model_type", "quantization_config", "use_cache", "return_dict",
    "output_hidden_states", "output_attentions",
}  # fmt: skip
TASK = {"task__report_rows": 8, "task__train_rows": 16, "task__select_rows": 8, "train__max_length": 16}
TRAINED_ONE_IN = 50


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, damage.Folder]:
    root = tmp_path_factory.mktemp("seeds")
    for name, (architecture, kind, more) in SEEDS.items():
        saved(root / name, architecture, kind=kind, **more)
    read = {name: {path.name: path.read_bytes() for path in (root / name).iterdir()} for name in SEEDS}
    alone = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "[PAD]": 1, "the": 2, "a": 3, "of": 4, "[SEP]": 5}, unk_token="[UNK]")
    )
    alone.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    read["words"] = {damage.TOKENIZER: alone.to_str().encode(), damage.TOKENIZER_CONFIG: json.dumps(words).encode()}
    return read


@pytest.mark.parametrize("n_suite", [60, pytest.param(120, marks=pytest.mark.slow)])
def test_a_damaged_folder_is_refused_or_read_exactly(n_suite, folders, tmp_path_factory, capsys):
    """Whatever else a folder may be, the weights and tokens of a run are those that its files hold."""
    ledger, root = Ledger("folders"), tmp_path_factory.mktemp("fuzz")
    models = {name: folder for name, folder in folders.items() if name in SEEDS}
    kinds = {
        "weights": damage.weights,
        "shards": damage.shards,
        "config": damage.config,
        "tokenizer": damage.tokenizer(list(folders.values())),
        "adapter": damage.adapter,
    }
    one = st.sampled_from(["weights"] * 3 + ["config"] * 4 + ["tokenizer"] * 2 + ["shards", "adapter"]).flatmap(
        lambda kind: kinds[kind]
    )

    @settings(**ledger.settings(n_suite=n_suite, share=4))
    @given(st.sampled_from(sorted(models)), one, st.none() | st.none() | st.none() | one, st.integers(0, 999))
    def mutate(name: str, first: damage.Damage, second: damage.Damage | None, dice: int) -> None:
        content = damage.after(models[name], first, second)
        assume(content is not None)
        with ledger.example(f"{name}: {first!r}; {second!r}") as example:
            folder = _written(root / str(ledger.n_examples), content)
            blueprint._blueprint.cache_clear()
            config = tiny_config(model={"name": str(folder), "weights": "pretrained"}, **TASK)
            try:
                run = resolve(config)
            except ConfigError as error:
                example.refused(str(error))
                return
            example.accepted()
            _require_exact(run, content)
            _require_step(run)
            if dice < 1000 // TRAINED_ONE_IN:
                (record,) = run_pack([run], Store(root / "runs" / str(ledger.n_examples)))
                if record["status"] != "finished":
                    assert record["error"]["kind"] == "guard", record["error"]
                    example.guarded(record["error"]["message"])

    ledger.play(mutate, capsys)


def _written(folder: Path, content: damage.Folder) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _require_exact(run: Run, content: damage.Folder) -> None:
    """Every weight of the base model is the file's, and what is drawn is head or a pooler that the file lacks."""
    loaded = backbone.load(run.blueprint, precision="fp32", device=torch.device("cpu"))
    model = loaded.untouched()
    stored = damage.stored_numbers(content)
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        if name in loaded.fresh_parameters:
            assert not name.startswith(prefix) or "pooler" in name, f"{name} is drawn at random"
            continue
        bare = name.removeprefix(prefix)
        old = [
            end.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            for end in (name, bare)
        ]
        places = [place for place in dict.fromkeys((name, bare, prefix + name, *old)) if place in stored]
        assert places, f"{name} is said to come from a file that lacks it"
        for place in places:
            assert np.array_equal(parameter.detach().numpy(), stored[place], equal_nan=True), f"{name} is not {place}"
    _require_configured(run, content)
    _require_tokens(run, content)


def _require_configured(run: Run, content: damage.Folder) -> None:
    values, given = run.blueprint.architecture.to_dict(), json.loads(content[damage.CONFIG])
    for key, value in given.items():
        if key in values and key not in VOLATILE and value is not None:
            assert values[key] == value, f"config.json says {key} {value!r}, the model has {values[key]!r}"


def _require_tokens(run: Run, content: damage.Folder) -> None:
    """The token ids are those of tokenizer.json, as its own library reads it."""
    reader = tokenizers.Tokenizer.from_str(content[damage.TOKENIZER].decode())
    reader.no_padding()
    reader.enable_truncation(run.config.train.max_length)
    tokens = run.tokens()
    for split, table in run.task.splits.items():
        part = tokens[split]
        for row, text in enumerate(table["text_a"]):
            ids = part.input_ids[part.offsets[row] : part.offsets[row + 1]].tolist()
            assert ids == reader.encode(text).ids, f"row {row} of {split} is {ids}"


def _require_step(run: Run) -> None:
    """What trains can be trained: a row of the greatest length goes forward and back, and the loss is finite."""
    loaded = backbone.load(run.blueprint, precision="fp32", device=torch.device("cpu"))
    assert all(torch.isfinite(parameter).all() for parameter in loaded.model.parameters()), "numbers that are none"
    tokens = run.tokens()["train"]
    rows = batch(tokens, [0, 1], run.blueprint.tokenizer.pad_token_id, run.config.train.max_length)
    given = {name: torch.from_numpy(values) for name, values in rows.items() if name in {*loaded.inputs, "labels"}}
    loss = loaded.model(**given).loss
    assert torch.isfinite(loss), f"the loss is {loss}"
