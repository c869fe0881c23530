"""Scoring select while training only draws a curve: it stays cheap, and moves no score."""

import math

import numpy as np
import pytest

from lora_bench.launch import estimate
from lora_bench.store.folder import Store
from lora_bench.training import curves
from lora_bench.training.resolve import pack_key, resolve
from lora_bench.training.run import run_pack
from lora_bench.training.scored import count_scored, scored_epochs
from tiny import tiny_config


@pytest.mark.parametrize("epochs", [0.3, 1, 2.5, 3, 7, 80])
@pytest.mark.parametrize(("n_train", "n_select"), [(1600, 855), (1600, 160), (8000, 100), (64, 400)])
def test_a_sparse_curve_scores_at_most_a_twentieth_of_the_rows_trained_on(epochs, n_train, n_select):
    """The last epoch's apart, whose scores are the run's; and it is as dense as that allows, and even."""
    train = tiny_config(train__epochs=epochs).train
    last = math.ceil(epochs)
    scored = sorted(scored_epochs(train, n_train=n_train, n_select=n_select))
    assert scored[-1] == last and scored[0] >= 1
    others = len(scored) - 1
    assert others * n_select <= n_train * epochs / 20
    assert len(scored) == last or (others + 1) * n_select > n_train * epochs / 20
    gaps = np.diff([0, *scored])
    assert gaps.max() - gaps.min() <= 1
    assert len(scored) == count_scored(train, np.array([epochs]), n_train=np.array([n_train]), n_select=n_select)[0]


@pytest.mark.parametrize("changed", [{"train__curve": "full"}, {"train__checkpoint": "best"}], ids=str)
def test_a_full_curve_and_the_best_epoch_score_every_epoch(changed):
    train = tiny_config(train__epochs=4, **changed).train
    assert scored_epochs(train, n_train=64, n_select=400) == {1, 2, 3, 4}


def test_a_sparse_curve_moves_neither_id_nor_score(tmp_path, monkeypatch):
    """The same run, its curve sparse and full: what differs is the curve, the rows scored and what a plan expects."""
    stored, rows = {}, {}
    predict = curves.predict
    for curve in ("sparse", "full"):
        run = resolve(tiny_config(train__epochs=4, train__curve=curve))
        passed = rows[curve] = []
        monkeypatch.setattr(
            curves, "predict", lambda pack, tokens, passed=passed, **more: passed.append(len(tokens))
            or predict(pack, tokens, **more),
        )  # fmt: skip
        store = Store(tmp_path / curve)
        (record,) = run_pack([run], store)
        stored[curve] = run, record, (store.path(run.run_id) / "predictions.parquet").read_bytes()
    (sparse, ours, predictions), (full, theirs, their_predictions) = stored["sparse"], stored["full"]
    assert sparse.run_id == full.run_id and predictions == their_predictions
    assert pack_key(sparse) != pack_key(full)  # the pack is scored as a whole
    for key in ("scores", "norms", "guards", "config"):
        assert ours[key] == theirs[key]
    assert ours["history"]["loss"] == theirs["history"]["loss"]
    n_select = len(sparse.task.splits["select"])
    assert rows == {"sparse": [n_select], "full": [n_select] * 4}
    assert ours["history"]["epochs"] == theirs["history"]["epochs"][-1:]
    assert ours["history"]["epochs"][-1]["select"] == ours["scores"]["select"]
    linear = sum(
        layer.weight.numel() for layer in sparse.blueprint.skeleton.modules() if type(layer).__name__ == "Linear"
    )
    n_tokens = int(sparse.tokens()["select"].lengths.sum())
    (ours,), (theirs,) = (estimate._operations([run])[1] for run in (full, sparse))
    assert ours - theirs == 2 * linear * 3 * n_tokens
