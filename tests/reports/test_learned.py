"""Which runs learned, read from the predictions that a store keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fake_store import fake_record
from lora_bench.questions import pareto, weight_types
from lora_bench.reports.latex import latex
from lora_bench.reports.scope import Scope
from lora_bench.store.folder import Store
from lora_bench.verdicts.looks import failed_interval

ROWS = 200


def predictions(is_stuck: bool, rng: np.random.Generator) -> pd.DataFrame:
    label = np.random.default_rng(1).integers(2, size=ROWS)  # every run answers the same rows
    said = np.zeros(ROWS, int) if is_stuck else np.where(rng.random(ROWS) < 0.8, label, 1 - label)
    split = np.where(np.arange(ROWS) % 2, "report", "select")
    return pd.DataFrame(
        {"split": split, "idx": range(ROWS), "label": label, "logit_0": 1.0 - said, "logit_1": said * 1.0}
    )


@pytest.mark.parametrize("n_stuck", [0, 1, 6])
@pytest.mark.parametrize("is_kept", [True, False], ids=["predictions", "none"])
def test_seeds_that_predict_one_class_are_counted_with_their_interval(tmp_path, n_stuck, is_kept):
    """Scores alone told it in half of the cases, and never of four seeds in eight."""
    rng, store = np.random.default_rng(0), Store(tmp_path)
    for targets in ("q", "qv"):
        for seed in range(8):
            is_stuck = targets == "q" and seed < n_stuck
            score = 0.0 if is_stuck else 0.4 + 0.01 * rng.normal()
            record = fake_record(targets=targets, rank=8 if targets == "q" else 4, seed=seed, report=score)
            store.write(record, predictions=predictions(is_stuck, rng) if is_kept else None)
    scope = Scope(tmp_path)
    (section,) = weight_types.sections(scope.read(), scope)
    low, high = (round(100 * end) for end in failed_interval(n_stuck, 8))
    told = f"q r=8: {n_stuck} of 8 seeds predict one class or diverged ({low} to {high} %)".replace(" r=8", "")
    assert any(remark.startswith(told) for remark in section.remarks) == (is_kept and n_stuck > 0)
    assert ("hollow" in section.captions[section.tables[0].name]) == (is_kept and n_stuck > 0)
    assert any("one look, 8 seeds" in remark for remark in section.remarks)
    assert "one look, 8 seeds" in section.tables[1].title
    contrast = section.judged.contrasts.set_index("second").loc["q"]
    assert contrast["n_pairs"] == (8 - n_stuck if is_kept else 8)
    (words,) = [text.get_text() for text in section.figures[f"{section.tables[0].name}_contrasts"].axes[0].texts]
    assert ("\n2 pairs" in words, "\n7 pairs" in words) == (is_kept and n_stuck == 6, is_kept and n_stuck == 1)
    assert "pair" in words or not (is_kept and n_stuck)


def placed(root, stuck: dict[str, float], learned: dict[str, float]) -> str:
    """The sentence of a store of four seeds each, of placements that predict one class and of others, with scores."""
    rng, store = np.random.default_rng(0), Store(root)
    for targets, score in (stuck | learned).items():
        for seed in range(4):  # one of them learns by luck
            report = score + 0.01 * rng.normal()
            record = fake_record(targets=targets, rank=4 if targets == "qv" else 8, seed=seed, report=report)
            store.write(record, predictions=predictions(targets in stuck and seed > 0, rng))
    scope = Scope(root)
    (section,) = weight_types.sections(scope.read(), scope)
    (cost,) = pareto.sections(scope.read(), scope)
    return f"{section.sentence} {cost.sentence}\n{latex(section.tables[0])}"


def test_of_placements_that_did_not_learn_none_is_called_the_highest(tmp_path):
    """One class for all rows scores by which class it is: of three labels 30.7 where the most frequent has 37.3."""
    said = placed(tmp_path, {"q": 0.30, "qv": 0.36}, {})
    assert "no placement has learned" in said and "no cell has learned" in said
    assert "highest" not in said and "textbf" not in said


def test_what_did_not_learn_is_below_what_did_whatever_its_score(tmp_path):
    said = placed(tmp_path, {"q": 0.6}, {"v": 0.4, "qv": 0.5})
    assert "qv has the highest mean Matthews of those that learned: 49.7" in said
    assert "front of mean score against adapter parameters is qv r=4 (" in said
    (bold,) = [line for line in said.splitlines() if "textbf" in line]
    assert bold.startswith("$W_{q,v}$")
