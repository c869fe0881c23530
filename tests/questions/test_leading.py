"""The leading direction of updates whose record keeps none: from kept adapters and the backbone's weights."""

from __future__ import annotations

import numpy as np
import pytest

from fake_store import D_MODEL, fake_record, write_store, write_with_adapters
from lora_bench.config.compose import compose, parse
from lora_bench.config.errors import ConfigError
from lora_bench.questions import amplification
from lora_bench.reports.scope import Scope
from lora_bench.store import open_store
from lora_bench.verdicts import subspace

WEIGHT = np.random.default_rng(5).normal(size=(D_MODEL, D_MODEL))


def records(rank=2, n_seeds=3):
    made = [fake_record(targets="q", rank=rank, seed=seed) for seed in range(n_seeds)]
    for record in made:
        record["manifest"] = record["manifest"][:2]
        record["norms"] = [entry | {"weight": float(np.linalg.norm(WEIGHT))} for entry in record["norms"][:2]]
    return made


def section_of(store, weights=None):
    scope = Scope(store)
    (section,) = amplification.sections(scope.read(), scope, weights=weights)
    return section


def at_hand(record):
    return {matrix["module"]: WEIGHT for matrix in record["manifest"]}


def test_the_ratio_of_the_leading_direction_is_that_of_whole_decompositions(tmp_path):
    """What Table 7 shows of a trained direction must not depend on how it is computed, nor on the start of the rest."""
    store = write_with_adapters(tmp_path / "store", records())
    row = section_of(store, at_hand).tables[0].frame.iloc[0]
    reader, squares, updates = open_store(store), [], []
    for record in reader.records():
        for module, pair in subspace.read_adapter(reader.path(record["run_id"]), record["manifest"]).items():
            left, values, right = np.linalg.svd(pair.B.astype(float) @ pair.A.astype(float))
            scale = next(entry["scale"] for entry in record["norms"] if entry["module"] == module)
            squares.append((left[:, 0] @ WEIGHT @ right[0]) ** 2)
            updates.append((scale * values[0]) ** 2)
    null = np.linalg.norm(WEIGHT) / D_MODEL
    assert row["leading_over_random"] == pytest.approx(np.sqrt(np.mean(squares)) / null, rel=1e-5)
    assert row["leading_factor"] == pytest.approx(np.sqrt(np.mean(updates) / np.mean(squares)), rel=1e-5)
    assert row["leading_over_random_seeds"] == 3
    assert row["leading_over_random_low"] < row["leading_over_random"] < row["leading_over_random_high"]


def test_records_that_keep_the_leading_direction_need_neither_adapter_nor_backbone(tmp_path):
    """Twice what random directions hold in every run is twice in the table, with its own figure."""
    made = records()
    for record in made:
        for entry in record["norms"]:
            entry |= {"weight_in_leading": 2 * entry["weight"] / D_MODEL, "update_leading": 3.0}
    section = section_of(write_store(tmp_path / "store", made))
    assert section.tables[0].frame["leading_over_random"].tolist() == pytest.approx([2])
    assert "the leading one 2 to 2 times" in section.sentence and len(section.figures) == 2
    assert not any("leading" in remark for remark in section.remarks)


def test_at_rank_1_the_whole_update_is_its_leading_direction(tmp_path):
    """Two numbers for one direction would contradict each other."""
    frame = section_of(write_store(tmp_path / "store", records(rank=1))).tables[0].frame
    assert frame["leading_over_random"].tolist() == pytest.approx(frame["over_random"].tolist())


def absent(record):
    raise ConfigError("model.name: no folder 'x'")


@pytest.mark.parametrize(
    ("weights", "is_kept", "why"),
    [
        (None, True, "leading=true reads it"),
        (at_hand, False, "no readable adapter was kept"),
        (absent, True, "model.name: no folder 'x'"),
        (lambda record: {name: 2 * W for name, W in at_hand(record).items()}, True, "of minilm at hand are not the"),
    ],
    ids=["not_asked", "no_adapter", "no_backbone", "another_backbone"],
)
def test_what_the_leading_direction_lacks_is_one_line(tmp_path, weights, is_kept, why):
    """The rest of the table stands, and the line says what would give it."""
    write = write_with_adapters if is_kept else write_store
    section = section_of(write(tmp_path / "store", records()), weights)
    (line,) = [remark for remark in section.remarks if "leading direction" in remark]
    assert line.startswith("3 runs without the leading direction: ") and why in line and "\n" not in line
    assert len(section.figures) == 1 and np.isfinite(section.tables[0].frame["over_random"]).all()


def test_the_backbone_of_a_record_is_found_again_by_its_own_words():
    """Its weights are those that the run adapted, fused or not."""
    import torch

    from lora_bench.cli.weights import weights_of
    from lora_bench.models import backbone
    from lora_bench.training.resolve import resolve

    run = resolve(parse(compose(["model=tiny", "task=sentiment", "adapter.targets=qv"])))
    loaded = backbone.load(run.blueprint, precision="fp32", device=torch.device("cpu"))
    record = {
        "config": {"model": {"name": "tiny"}},
        "invocation": {"overrides": ["task=sst2", "model=tiny", "+sweeps=gone"]},
        "manifest": run.manifest,
    }
    for words in (["task=sst2", "model=tiny", "+sweeps=gone"], []):
        found = weights_of(record | {"invocation": {"overrides": words}})
        assert found.keys() == {matrix.module for matrix in run.matrices}
        for module, weight in found.items():
            expected = loaded.model.get_submodule(module).get_parameter("weight").numpy()
            np.testing.assert_array_equal(weight.astype(np.float32), expected)
    with pytest.raises(ConfigError, match=r"^model: "):
        weights_of(record | {"invocation": {"overrides": ["model=nowhere"]}})
