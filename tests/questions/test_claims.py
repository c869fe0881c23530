"""Each kind of claim is what an independent computation says, and the published scoreboard is what the records say."""

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from fake_store import D_MODEL, fake_record, frame_of, weight_types_records, write_store
from lora_bench.cli import claims as claims_command
from lora_bench.config.errors import ConfigError
from lora_bench.questions import claim_document, claim_kinds, claim_rates, claim_sides, claim_words, claims
from lora_bench.reports import explicit, publish
from lora_bench.reports.publish import write_archive
from lora_bench.reports.scope import Scope
from lora_bench.store import open_store
from lora_bench.store.folder import Store
from lora_bench.verdicts.arms import Arm, name_arms
from lora_bench.verdicts.subspace import LowRank

ROOT = Path(__file__).parents[2]
SHIPPED = claims.read_claims(claims.SHIPPED)
SEEDS = range(6)


def cells(scores_of):
    """Estimates as `verdicts.arms.estimate` gives them, of invented scores: (targets, rank) -> score of a seed."""
    rng = np.random.default_rng(3)
    rows = {}
    for (targets, rank), level in scores_of.items():
        arm = Arm(targets, rank)
        scores = {seed: level + rng.normal(0, 0.01) for seed in SEEDS}
        cost = 100 * rank * len(targets) if isinstance(rank, int) else 0
        rows[str(arm)] = {"targets": targets, "arm": arm, "scores": scores, "adapter_parameters": cost}
    return pd.DataFrame.from_dict(rows, orient="index")


def rise(points):
    """From the first x to the last, by scipy's least squares over {x: y} on log2 of x."""
    line = scipy.stats.linregress(np.log2(list(points)), list(points.values()))
    return line.slope * np.log2(max(points) / min(points))


def test_a_trend_over_ranks_is_each_seeds_least_squares_line_from_the_lowest_to_the_highest():
    """Judged a doubling, a rise of six margins over six doublings would be flat."""
    table = cells({("qv", 1): 0.5, ("qv", 4): 0.6, ("qv", 64): 0.6})
    trend = claim_kinds.trend({"kind": "rank_slope", "targets": "qv"}, table)
    for seed in SEEDS:
        by_rank = {rank: table["scores"][f"qv r={rank}"][seed] for rank in (1, 4, 64)}
        assert trend.by_seed[seed] == pytest.approx(rise(by_rank))
    assert set(trend.cells) == {"qv r=1", "qv r=4", "qv r=64"}


def test_an_interaction_is_the_trend_of_a_difference_over_budgets():
    """That an order flips is no claim on either end alone, and budgets at which one side is missing say nothing."""
    at = {("qv", 2): 0.5, ("qkvo", 1): 0.6, ("qv", 8): 0.6, ("qkvo", 4): 0.6, ("qv", 32): 0.8, ("qkvo", 16): 0.6}
    table = cells(at | {("qv", 1): 0.1})
    trend = claim_kinds.trend({"kind": "interaction", "first": "qv", "second": "attention"}, table)
    for seed in SEEDS:
        scores = {name: by_seed[seed] for name, by_seed in table["scores"].items()}
        by_budget = {400 * rank: scores[f"qv r={2 * rank}"] - scores[f"qkvo r={rank}"] for rank in (1, 4, 16)}
        assert trend.by_seed[seed] == pytest.approx(rise(by_budget))
    assert len(trend.cells) == 6 and "qv r=1" not in trend.cells


def test_a_run_beside_the_others_leaves_a_trend_its_seeds():
    """One seed of a further rank would leave one that all ranks share, and the claim open."""
    table = cells({("qv", 1): 0.5, ("qv", 4): 0.6, ("qv", 16): 0.6})
    stray = cells({("qv", 64): 0.9})
    stray.at["qv r=64", "scores"] = {0: 0.9}
    both, claim = pd.concat([table, stray]), {"kind": "rank_slope", "targets": "qv"}
    assert claim_kinds.trend(claim, both) == claim_kinds.trend(claim, table)
    ends = {"targets": "qv", "first": 1, "second": "highest"}
    assert claims._ends(both, ends) == ("qv r=1", "qv r=16")
    assert claims._ends(both, ends | {"second": 64}) == ("qv r=1", "qv r=64")  # asked for by its number


def test_pooled_placements_are_means_at_one_budget():
    table = cells({("v", 4): 0.7, ("o", 4): 0.6, ("q", 4): 0.5, ("k", 4): 0.4, ("q", 8): 0.9})
    trend = claim_kinds.trend({"kind": "pooled", "firsts": ["v", "o"], "seconds": ["q", "k"]}, table)
    scores = table["scores"]
    for seed in SEEDS:
        means = [(scores[f"{a} r=4"][seed] + scores[f"{b} r=4"][seed]) / 2 for a, b in (("v", "o"), ("q", "k"))]
        assert trend.by_seed[seed] == pytest.approx(means[0] - means[1])
    assert trend.cells == ("v r=4", "o r=4", "q r=4", "k r=4")


@pytest.mark.parametrize(
    ("claim", "lacks"),
    [
        ({"kind": "rank_slope", "targets": "qv"}, "three ranks or more; the store has rank 1, 4"),
        ({"kind": "interaction", "first": "qv", "second": "q"}, "three budgets; the store has none"),
        ({"kind": "pooled", "firsts": ["v"], "seconds": ["qv"]}, "needs v, qv at one budget"),
    ],
    ids=["rank_slope", "interaction", "pooled"],
)
def test_what_a_trend_lacks_is_said(claim, lacks):
    """A slope of two points is a contrast, and would be called a trend."""
    said = claim_kinds.trend(claim, cells({("qv", 1): 0.5, ("qv", 4): 0.6}))
    assert isinstance(said, str) and lacks in said


def test_what_a_claim_on_two_ranks_lacks_names_the_known_rank_first():
    claim = {"kind": "rank", "targets": "q", "first": "highest", "second": 1}
    assert claims._needs_ranks(claim, "rank 10") == "needs q at rank 1 and a higher one; the store has rank 10"


def test_placements_at_one_rank_are_those_with_most_common_seeds():
    table = cells({("q", 2): 0.5, ("qv", 2): 0.5, ("q", 8): 0.5, ("qv", 8): 0.5, ("qv", 4): 0.5})
    table.at["q r=8", "scores"] = {0: 0.5}
    assert claim_kinds.same_rank({"first": "qv", "second": "q"}, table) == ("qv r=2", "q r=2")
    assert "the store has no such pair" in claim_kinds.same_rank({"first": "qv", "second": "k"}, table)


def test_the_stable_rank_is_that_of_the_whole_product():
    """From small factors, since the product of a large backbone's is not formed."""
    rng = np.random.default_rng(0)
    pairs = {name: LowRank(rng.normal(size=(3, 7)), rng.normal(size=(5, 3))) for name in "ab"}
    whole = [np.linalg.svd(pair.B @ pair.A, compute_uv=False) for pair in pairs.values()]
    expected = scipy.stats.gmean([np.sum(values**2) / values[0] ** 2 for values in whole])
    assert claim_kinds.stable_rank(pairs) == pytest.approx(expected)
    nothing = {"a": LowRank(np.ones((2, 3)), np.zeros((4, 2)))}
    assert math.isnan(claim_kinds.stable_rank(nothing))


def test_the_slope_of_saved_adapters_is_read_by_seed(monkeypatch):
    """A seed with one rank has no slope, and an adapter that was not kept is none."""
    ranks = {"a": 1, "b": 4, "c": 4}
    runs = pd.DataFrame({"run_id": list(ranks), "rank": list(ranks.values()), "seed": [0, 0, 1], "targets": "qv"})
    monkeypatch.setattr(claim_kinds.tuning, "at_chosen_rates", lambda named: named)
    eye = {name: {"m": LowRank(np.eye(rank, 9), np.diag(np.arange(1.0, rank + 1)))} for name, rank in ranks.items()}
    monkeypatch.setattr(claim_kinds.subspace, "read_adapter", lambda folder, manifest: eye[folder])
    store = SimpleNamespace(adapter=lambda name: name, path=lambda name: name, record=lambda name: {"manifest": []})
    slopes, n_runs = claim_kinds.spectral_slopes({"targets": "qv"}, runs, store)
    assert slopes == {0: pytest.approx(math.log((1 + 4 + 9 + 16) / 16) / math.log(4))}
    assert n_runs == 2  # of the one seed, and not the number of seeds
    assert claim_kinds.judge_spectral({"targets": "qv", "low": 0, "high": 1}, runs, store)[1] == 2
    absent = SimpleNamespace(adapter=lambda name: None)
    assert "needs saved adapters" in claim_kinds.spectral_slopes({"targets": "qv"}, runs, absent)


@pytest.mark.parametrize(
    ("values", "status"),
    [([0.25, 0.26, 0.27, 0.26], "supported"), ([0.5, 0.6, 0.55, 0.52], "refuted"), ([0.1, 0.4, 0.2, 0.5], "open")],
)
def test_a_claimed_range_is_held_against_the_t_interval(values, status):
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    said, words = claim_kinds.within(np.array(values), 0.23, 0.30)
    assert said == status and f"({low:.3f} to {high:.3f})" in words
    assert claim_kinds.within(np.array(values[:1]), 0.23, 0.30)[0] == "open"


@pytest.mark.parametrize(("value", "status"), [(0.25, "supported"), (0.0, "refuted")])
def test_a_value_that_every_seed_has_is_judged_from_four_seeds_on(value, status):
    """No intruder in any run has no t interval, and is as plain a result as there can be."""
    assert claim_kinds.within(np.full(4, value), 0.23, 0.30) == (status, f"{value:.2f} in each of 4 seeds")
    assert claim_kinds.within(np.full(3, value), 0.23, 0.30)[0] == "open"


@pytest.mark.parametrize(
    ("ratios", "status"), [([0.5, 0.6, 0.55], "supported"), ([0.95, 0.99, 0.97], "refuted"), ([0.5, 0.9, 0.8], "open")]
)
def test_a_ratio_of_times_is_judged_by_its_interval(ratios, status):
    """Of logarithms: 0.5 and 2 are as far from 1."""
    logs = np.log10(ratios)
    low, high = scipy.stats.t.interval(0.95, len(logs) - 1, np.mean(logs), scipy.stats.sem(logs))
    said, words = claim_kinds.at_most(logs, 0.8)
    assert said == status and f"({10**low:.2f} to {10**high:.2f})" in words


# ---------------------------------------------------------------- intruder dimensions

FROZEN, LEFT, RIGHT = (lambda u, s, v: ((u * s) @ v, u, v))(
    np.linalg.qr(np.random.default_rng(2).normal(size=(D_MODEL, D_MODEL)))[0],
    np.linspace(20, 1, D_MODEL),
    np.linalg.qr(np.random.default_rng(3).normal(size=(D_MODEL, D_MODEL)))[0],
)
SPREAD = LEFT.mean(axis=1) * np.sqrt(D_MODEL)  # of length 1, and like no old direction
INTRUDES, INTRUDES_HIGH, IS_LIKE_FULL = (claim for claim in SHIPPED if claim["kind"] == "intruders")


def at_hand(record):
    return {matrix["module"]: FROZEN for matrix in record["manifest"]}


def kept(root, *, ranks=(1,), full_by=0.0, with_full=True, intruders_of=lambda seed: 2):
    """A store of q in two layers: LoRA of each rank with planted directions at rank 1, and full fine-tuning without."""
    from safetensors.numpy import save_file

    store = Store(root)
    rng = np.random.default_rng(0)
    for rank in ranks:
        for seed in range(4):
            record = fake_record(targets="q", rank=rank, seed=seed, report=0.8 + rng.normal(0, 0.002))
            record["manifest"] = record["manifest"][:2]
            norm = float(np.linalg.norm(FROZEN))
            record["norms"] = [entry | {"weight": norm, "scale": 2.0} for entry in record["norms"][:2]]

            def save(folder, record=record, rank=rank, seed=seed):
                tensors = {}
                for place, matrix in enumerate(record["manifest"]):
                    is_planted = rank == 1 and place < intruders_of(seed)
                    outputs = np.zeros((D_MODEL, rank))
                    outputs[:, 0] = SPREAD if is_planted else LEFT[:, 5]  # an old direction is none, however large
                    inputs = np.zeros((rank, D_MODEL))
                    inputs[0] = 50 * RIGHT[0]
                    name = f"base_model.model.{matrix['module']}"
                    tensors |= {f"{name}.lora_A.weight": inputs, f"{name}.lora_B.weight": outputs}
                (folder / "adapter").mkdir(parents=True)
                save_file(tensors, folder / "adapter" / "adapter_model.safetensors")

            store.write(record, adapter=save)
    for seed in range(4) if with_full else ():
        modules = [matrix["module"] for matrix in record["manifest"]]

        def save_whole(folder, modules=modules):
            (folder / "adapter").mkdir(parents=True)
            tensors = {f"{module}.weight": (FROZEN * 1.01).astype(np.float32) for module in modules}
            save_file(tensors, folder / "adapter" / "weights.safetensors")

        score = 0.8 + full_by + rng.normal(0, 0.002)
        store.write(fake_record(method="full", seed=seed, lr=1e-4, report=score), adapter=save_whole)
    return root


def of_intruders(root, weights=at_hand):
    scope = Scope(root, weights=weights)
    (card,) = claims.sections(scope.read(), scope, [INTRUDES, INTRUDES_HIGH, IS_LIKE_FULL])
    return {row["claim"]: (row["status"], row["evidence"]) for row in card.rows.to_dict("records")}


def test_planted_directions_are_intruders_of_low_rank_runs_and_not_of_whole_ones(tmp_path):
    """One in each of two matrices at rank 1, and at rank 4 a push along an old direction."""
    rows = of_intruders(kept(tmp_path / "runs", ranks=(1, 4)))
    status, evidence = rows["lora_intrudes"]
    assert status == "supported" and "q r=1 has 1.00 intruders a matrix" in evidence
    assert "full fine-tuning 0.00: 1.00 in each of 4 seeds" in evidence
    assert rows["lora_intrudes_at_high_rank"][0] == "refuted" and rows["high_rank_is_like_full"][0] == "supported"
    assert "q r=4 has 0.00" in rows["high_rank_is_like_full"][1]


def test_intruders_are_judged_by_the_interval_over_seeds(tmp_path):
    rows = of_intruders(kept(tmp_path / "runs", intruders_of=lambda seed: seed % 2 + 1))
    values = [0.5, 1.0, 0.5, 1.0]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert rows["lora_intrudes"][0] == "supported" and f"0.750 ({low:.3f} to {high:.3f})" in rows["lora_intrudes"][1]
    assert "needs two ranks beside full fine-tuning" in rows["high_rank_is_like_full"][1]


def test_intruders_at_unequal_scores_settle_nothing(tmp_path):
    """The claim is about models that are equally good: a model that learned nothing has no intruder either."""
    rows = of_intruders(kept(tmp_path / "runs", full_by=0.1))
    assert rows["lora_intrudes"][0] == "open" and "the scores are not equal" in rows["lora_intrudes"][1]


def test_stores_side_by_side_keep_the_weights_of_full_fine_tuning(tmp_path):
    """`claims beside=` joins stores for the moment; an archive to publish has low-rank adapters alone."""
    root = kept(tmp_path / "runs")
    write_archive([Store(root)], tmp_path / "joined", adapters=None)
    write_archive([Store(root)], tmp_path / "published", adapters=["all"])
    assert of_intruders(tmp_path / "joined")["lora_intrudes"] == of_intruders(root)["lora_intrudes"]
    assert of_intruders(tmp_path / "published")["lora_intrudes"][0] == "not run"


def test_archives_side_by_side_are_joined_once(tmp_path, monkeypatch):
    """Joining takes half of the command's time, and archives do not change. A copy that was cut is made again."""
    monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / "cache"))
    stores = []
    for task in ("cola", "sst2"):
        root = write_store(tmp_path / task, [fake_record(targets="q", rank=1, task=task)])
        write_archive([Store(root)], tmp_path / f"{task}_archive")
        stores.append(open_store(tmp_path / f"{task}_archive"))
    joined = claims_command.joined_in(tmp_path / "scratch", stores)
    assert joined.is_relative_to(tmp_path / "cache") and len(open_store(joined).statuses()) == 2
    with monkeypatch.context() as patched:
        patched.setattr(publish, "write_archive", None)  # nobody calls it
        assert claims_command.joined_in(tmp_path / "scratch", stores) == joined
    (joined / "records.jsonl.gz").write_bytes(b"")
    assert len(open_store(claims_command.joined_in(tmp_path / "scratch", stores)).statuses()) == 2
    growing = claims_command.joined_in(tmp_path / "scratch", [Store(tmp_path / "cola"), stores[1]])
    assert growing.is_relative_to(tmp_path / "scratch")


def absent(record):
    raise ConfigError("model.name: no folder 'x'")


@pytest.mark.parametrize(
    ("weights", "with_full", "why"),
    [
        (None, True, "needs the saved weights of a store, and the backbone"),
        (at_hand, False, "needs saved weights of LoRA and of full fine-tuning"),
        (absent, True, "model.name: no folder 'x'"),
        (lambda record: {name: 2 * W for name, W in at_hand(record).items()}, True, "at hand are not the run's"),
    ],
    ids=["not_asked", "no_full", "no_backbone", "another_backbone"],
)
def test_what_intruders_lack_is_said(tmp_path, weights, with_full, why):
    status, evidence = of_intruders(kept(tmp_path / "runs", with_full=with_full), weights)["lora_intrudes"]
    assert status == "not run" and why in evidence and "run lora-bench +sweeps=intruders" in evidence


# ---------------------------------------------------------------- what is left of A's start


def turned(root, *, n_left, init="gaussian"):
    """A store of q at rank 4: `n_left` rows of each A are mixtures of its start's, and the others orthogonal to it."""
    from safetensors.numpy import save_file

    from lora_bench.models.starts import draw_A

    store = Store(root)
    for seed in range(4):
        record = fake_record(targets="q", rank=4, seed=seed)
        record["config"]["adapter"]["init"] = init
        rng = np.random.default_rng(seed)

        def save(folder, record=record, seed=seed, rng=rng):
            tensors = {}
            for matrix in record["manifest"]:
                start = draw_A("gaussian", matrix["module"], (4, D_MODEL), seed=seed, replicate=0).numpy()
                away = np.linalg.svd(start)[2][4 : 8 - n_left]
                trained = np.concatenate([rng.normal(size=(n_left, 4)) @ start, 3 * away])
                name = f"base_model.model.{matrix['module']}"
                tensors |= {f"{name}.lora_A.weight": rng.normal(size=(4, 4)) @ trained}
                tensors |= {f"{name}.lora_B.weight": np.ones((D_MODEL, 4))}
            (folder / "adapter").mkdir(parents=True)
            save_file(tensors, folder / "adapter" / "adapter_model.safetensors")

        store.write(record, adapter=save)
    return root


def of_start(root, targets="q"):
    (claim,) = (claim | {"targets": targets} for claim in SHIPPED if claim["kind"] == "start")
    scope = Scope(root)
    (card,) = claims.sections(scope.read(), scope, [claim])
    return card.rows.iloc[0][["status", "evidence"]].to_list()


@pytest.mark.parametrize(("n_left", "status"), [(4, "supported"), (3, "supported"), (1, "refuted")])
def test_what_is_left_of_a_start_is_the_share_of_its_rows_that_were_left(tmp_path, n_left, status):
    """Whatever basis the trained rows are written in."""
    said, words = of_start(turned(tmp_path / "runs", n_left=n_left))
    assert said == status and f"of q at rank 4, share of A's row space within its start's: {n_left / 4:.2f}" in words


def test_a_start_that_no_seed_draws_or_that_nobody_kept_is_not_judged(tmp_path):
    said, words = of_start(turned(tmp_path / "runs", n_left=3, init="pissa"))
    assert said == "not run" and "init=pissa begins with the weight's own directions" in words
    said, words = of_start(tmp_path / "runs", targets="v")
    assert said == "not run" and "needs saved adapters of v" in words


def test_what_is_left_of_a_start_loads_torch_alone_and_that_only_where_adapters_are(tmp_path):
    """Of the seconds that the claims of a store take, peft's import would be half."""
    write_store(tmp_path / "bare", [fake_record(targets="q", rank=4, seed=seed) for seed in range(4)])
    turned(tmp_path / "runs", n_left=3)
    code = (
        "import sys, pathlib\nfrom lora_bench.questions import claims\nfrom lora_bench.reports.scope import Scope\n"
        "shipped = claims.read_claims(claims.SHIPPED)\n"
        "asked = [claim | {'targets': 'q'} for claim in shipped if claim['kind'] == 'start']\n"
        "for name, loaded in (('bare', set()), ('runs', {'torch'})):\n"
        f"    scope = Scope(pathlib.Path({str(tmp_path)!r}) / name)\n"
        "    claims.sections(scope.read(), scope, asked)\n"
        "    assert {'torch', 'transformers', 'peft'} & set(sys.modules) == loaded, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_starts_of_runs_that_learned_nothing_say_nothing(tmp_path):
    """There A has hardly moved, and would be found where it began."""
    store = Store(turned(tmp_path / "runs", n_left=1))
    named = name_arms(Scope(store.root).read())
    (claim,) = (claim | {"targets": "q"} for claim in SHIPPED if claim["kind"] == "start")
    learns = named["seed"] != 2
    rank, by_seed = claim_kinds.starts_kept(claim, named.assign(learns=learns), store)
    assert rank == 4 and set(by_seed) == {0, 1, 3}


def test_shares_near_one_support_a_start_that_is_kept():
    """A share is at most 1, and the upper end of its t interval is not."""
    (claim,) = (claim for claim in SHIPPED if claim["kind"] == "start")
    values = np.array([0.90, 0.99, 0.99, 0.99])
    assert scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))[1] > 1
    assert claim_kinds.within(values, float(claim["low"]), float(claim["high"]))[0] == "supported"


@pytest.mark.parametrize(
    ("rates", "status"),
    [([1e-2, 1e-3], "supported"), ([3e-3, 3e-3], "refuted"), ([1e-2, 3e-3], "refuted"), ([3e-3, 1e-3], "refuted")],
)
def test_a_best_rate_that_falls_is_a_binomial_word(rates, status):
    """Both ways: six seeds that all fall by more than a step support it, six of which none does refute it; and a step
    is one wherever it sits on the grid, though 3 is no root of ten."""
    falls = np.full(6, math.log10(rates[1] / rates[0]))
    flat, _ = claim_rates.by_seeds(falls, 0.0, "best rate")
    assert flat == {"supported": "refuted", "refuted": "supported"}[status]
    said, words = claim_rates.falling(falls, "best rate")
    p = scipy.stats.binomtest(6, 6, 0.5, alternative="greater").pvalue
    assert said == status and f"binomial p {p:.3f}"[:-1].replace("0.", ".") in words


def test_levels_of_a_factor_are_contrasted_as_the_factor_question_does(tmp_path):
    """DoRA against LoRA: paired by seed, each at its own rate; and the share of time that LoRA takes."""
    rng = np.random.default_rng(1)
    records = [
        fake_record(method=method, targets="qv", rank=4, lr=1e-3, seed=seed, report=level + rng.normal(0, 0.002))
        for method, level in (("lora", 0.8), ("dora", 0.7))
        for seed in range(6)
    ]
    claim = {"id": "c", "kind": "factor", "by": "method", "first": "dora", "second": "lora", "says": "better"}
    runs = frame_of(records)
    ((_title, _, row),) = claim_kinds.factor_judgements(runs, Scope(tmp_path), [claim])
    scores = runs.pivot_table(index="seed", columns="method", values="report")
    p = scipy.stats.ttest_rel(scores["dora"], scores["lora"]).pvalue
    assert row["p_holm"] == pytest.approx(p) and row["verdict"] == "worse"
    (card,) = claims.sections(runs, Scope(tmp_path), [claim | {"text": "t", "source": "s"}])
    assert set(card.rows["status"]) == {"refuted"}


def finding(word="better", look=1, **more):
    numbers = {"difference": 0.03, "low": 0.01, "high": 0.05, "n_seeds": 16, "n_pairs": 16, "at": 2, "n_looks": 3}
    of_study = {"margin": 0.01, "runs": frozenset({"a", "b", "c"})}
    return {"first": "qv", "second": "attention", "word": word, "look": look, **numbers, **of_study, **more}


LOOKED_AT = [{"a", "other"}, {"b"}]
"""Runs of a claim's two sides, some of which that study looked at."""


@pytest.mark.parametrize(
    ("first", "second", "word"), [("qv", "attention", "better"), ("qkvo", "qv", "worse"), ("mlp", "qv", None)]
)
def test_a_studys_word_counts_from_either_side(first, second, word):
    """A claim may name first what the study names second."""
    said = claim_words.word_on({"kind": "placement", "first": first, "second": second}, [finding()], LOOKED_AT)
    assert (said and said["word"]) == word
    if word == "worse":
        assert "qv" in said["words"] and "−3.0 points (−5.0 to −1.0)" in said["words"]


@pytest.mark.parametrize("runs", [[{"a"}, {"other"}], [{"other"}, {"b"}], [set(), set()]])
def test_a_study_of_other_runs_has_no_word(runs):
    """At another budget or rank, under another method, in another setting: its placements have the same names."""
    claim = {"kind": "placement", "first": "qv", "second": "attention"}
    assert claim_words.word_on(claim, [finding()], runs) is None


def test_studies_that_disagree_leave_a_claim_open():
    """Whichever came last in the order of their files was the claim's."""
    claim = {"kind": "placement", "first": "qv", "second": "attention"}
    for two in ([finding(), finding("worse")], [finding("worse"), finding()]):
        said = claim_words.word_on(claim, two, LOOKED_AT)
        assert said["word"] == "open" and "the studies disagree" in said["words"]
    assert claim_words.word_on(claim, [finding(), finding()], LOOKED_AT)["word"] == "better"


def test_a_difference_smaller_than_the_margin_is_judged_alike_from_a_study_and_from_a_sweep():
    """Two claims that contradict each other were both supported by it."""
    claim = {"kind": "placement", "first": "qv", "second": "attention"}
    small = claim_words.word_on(claim, [finding(difference=0.005, low=0.002, high=0.008)], LOOKED_AT)
    assert small["is_small"] and not claim_words.word_on(claim, [finding()], LOOKED_AT)["is_small"]
    statuses = {says: claims._status(says, "better", is_small=True) for says in ("better", "tied", "at_least")}
    assert statuses == {"better": "open", "tied": "supported", "at_least": "supported"}
    assert claims._status("worse", "worse", is_small=True) == "open"
    assert claims._status("at_least", "worse", is_small=True) == "supported"


def test_a_studys_word_is_of_settings_that_hold_what_it_compares(monkeypatch):
    """A study of maps leaves layers out of what its runs share: some of them are a setting without its placements."""
    looked_at = frozenset(frame_of(weight_types_records(n_seeds=3, rates=(1e-3,)))["run_id"])
    monkeypatch.setattr(claim_words, "of_store", lambda _: [finding(second="q", runs=looked_at)])
    claim = [claim for claim in SHIPPED if claim["id"] == "qv_over_q"]
    statuses = []
    for placement in ("q", "v"):
        runs = frame_of(weight_types_records(n_seeds=3, rates=(1e-3,)))
        kept = runs["targets"].isin(["qv", placement]) | (runs["method"] == "head_only")
        (card,) = claims.sections(runs[kept], Scope(Path("nowhere")), claim)
        statuses += list(card.rows["status"])
    assert statuses == ["supported", "not run"]


def test_the_words_of_the_published_studies_count_on_some_layers_too():
    """A journal has layers as a list and a store's frame as text: unlike, they left a claim to one look."""
    scope = Scope(ROOT / "results" / "study_sst2_1000")
    (card,) = claims.sections(scope.read(), scope, [claim for claim in SHIPPED if claim["id"] == "qv_over_q"])
    assert all(evidence.startswith("study, look ") for evidence in card.rows["evidence"])
    titles = list(card.rows["setting"])
    assert "SmolLM2-135M-Instruct.Q4_1.gguf · sst2 · layers 24-29" in titles and len(titles) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", ["model=smollm2"]),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ["model.name=HuggingFaceTB/SmolLM2-135M-Instruct"]),
        ("mine.gguf", ["model.gguf=mine.gguf"]),
    ],
)
def test_a_printed_line_names_the_backbone_that_was_trained(name, words):
    """The full-precision model is another backbone than the file that was made of it, and a file is no Hub name."""
    assert explicit.preset_words("model", name, []) == words


def test_a_printed_line_reads_the_files_that_were_trained_on():
    """A task of own files that was named as one of GLUE's: the line trained on the Hub's rows."""
    typed = [
        "task=files",
        "task.name=cola",
        "task.train_file=a.csv",
        "task.report_file=b.csv",
        "task.text_columns=[x,y]",
    ]
    record = fake_record(task="cola") | {
        "invocation": {"overrides": ["+sweeps=weight_types", *typed, "train.epochs=1"]}
    }
    assert explicit.task_words("cola", record, given=[]) == typed
    assert explicit.task_words("cola", fake_record(task="cola"), given=[]) == ["task=cola"]


def test_a_final_word_counts_before_an_open_one():
    said = claim_words.word_on(
        {"kind": "placement", "first": "qv", "second": "qkvo"}, [finding(), finding("open", None)], LOOKED_AT
    )
    assert said["word"] == "better"


def test_claims_that_contradict_are_one_question_in_the_family():
    """Asked twice, they would make each other's correction harder."""
    runs = frame_of(weight_types_records(n_seeds=6, noise=0.002, effects={"v": 0.05, "o": 0.0}, rates=(1e-3,)))
    pair = [claim for claim in SHIPPED if claim["id"] in ("v_over_o", "o_over_v")]
    (both,) = claims.sections(runs, Scope(Path("nowhere")), pair)
    (alone,) = claims.sections(runs, Scope(Path("nowhere")), [pair[0] | {"contradicts": []}])
    assert both.rows["evidence"][0].startswith(alone.rows["evidence"][0])
    assert list(both.rows["status"]) == ["supported", "refuted"]
    assert "against it: o_over_v is refuted" in both.rows["evidence"][0]


def test_every_claim_that_ships_says_what_refutes_it_and_what_settles_it():
    """A rule that is written after the run refutes nothing."""
    assert len(SHIPPED) >= 24
    shipped = {path.stem for path in (ROOT / "sweeps").glob("*.yaml")}
    for claim in SHIPPED:
        assert claim["refuted"], claim["id"]
        name = claim["study"].split()[0].partition("=")[2]
        assert name in shipped, claim["id"]
        others = [other for other in SHIPPED if other["id"] in claim.get("contradicts", ())]
        assert all(claim["id"] in other["contradicts"] for other in others)
    assert {claim["kind"] for claim in SHIPPED} == set(claims.KINDS)


def test_the_line_of_a_claim_has_layers_draws_and_the_store_of_its_runs(tmp_path):
    """Without them the line would train another setting, or write where the claim is not judged."""
    record = fake_record(targets="q", task="acceptability", adapter={"layers": [0]})
    record["config"]["task"]["train_draw"] = "seed"
    joined = write_archive([open_store(write_store(tmp_path / "runs", [record]))], tmp_path / "joined").root
    scope = Scope(joined, home=tmp_path / "mine")
    (card,) = claims.sections(scope.read(), scope, [claim for claim in SHIPPED if claim["id"] == "qv_over_q"])
    (line,) = (re.search(r"; run (lora-bench .*)", evidence)[1] for evidence in card.rows["evidence"])
    assert {"adapter.layers=[0]", "task.train_draw=seed", f"store={tmp_path / 'mine'}"} < set(shlex.split(line))


@pytest.mark.parametrize(
    ("study", "policy", "held"),
    [
        ("study=weight_types", "ratio", {"adapter.alpha_policy=ratio", "adapter.dropout=0.1"}),
        ("study=weight_types", "rslora", {"adapter=rslora", "adapter.dropout=0.1"}),
        ("study=alpha", "ratio", {"adapter.dropout=0.1"}),
        ("+sweeps=rank adapter.alpha_policy=ratio", "rslora", {"adapter.alpha_policy=ratio", "adapter.dropout=0.1"}),
    ],
)
def test_the_line_of_a_claim_has_the_adapter_of_its_setting(study, policy, held, tmp_path):
    """Runs of another policy of alpha are another setting, in which the claim stayed unjudged; what the sweep varies it
    says itself."""
    record = fake_record(task="acceptability", adapter={"alpha_policy": policy, "dropout": 0.1})
    scope = Scope(write_store(tmp_path / "mine", [record]))
    claim = next(claim for claim in SHIPPED if claim["study"] == study)
    (card,) = claims.sections(scope.read(), scope, [claim | {"contradicts": []}])
    (line,) = (re.search(r"; run (lora-bench .*)", evidence)[1] for evidence in card.rows["evidence"])
    assert {word for word in shlex.split(line) if word.startswith("adapter")} - {"adapter.targets=qv"} == held


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"low": 0.0}, None),
        ({"rank": "low"}, "words are lowest, highest"),
        ({"high": None}, "no high"),
        ({"policy": "fixd"}, "policy 'fixd'; words are fixed, ratio, rslora"),
        ({"kind": "factor", "by": "nonsense", "first": 1, "second": 2, "says": "better"}, "by 'nonsense'; words are"),
        ({"kind": "placement", "first": "q", "second": "v", "says": "rises"}, "says 'rises'; words are better, tied"),
    ],
)
def test_a_claims_file_is_checked(tmp_path, changed, told):
    """A bound of zero is a bound, and a rank that is no end would be judged at the highest."""
    (claim,) = (claim for claim in SHIPPED if claim["kind"] == "start")
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [claim | changed]}))
    if told is None:
        assert claims.read_claims(path)[0]["low"] == 0.0
    else:
        with pytest.raises(claims.ClaimError, match=told):
            claims.read_claims(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [("claims:\n", "no list of claims"), ("claims: qv\n", "no list of claims"), ("claims: [foo]\n", "claim number 1")],
)
def test_a_claims_file_without_claims_is_refused(tmp_path, text, told):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(claims.ClaimError, match=told):
        claims.read_claims(path)


def scores_of(levels, rates, *, method="lora"):
    """Runs of qv at ranks -> level, the best rate of each that of `rates`, and the head alone at .5."""
    rng = np.random.default_rng(5)
    made = [
        fake_record(
            targets="qv", rank=rank, lr=lr, seed=seed, report=level + rng.normal(0, 1e-3) + 0.01 * (lr == rates[rank])
        )
        for rank, level in levels.items()
        for lr in (1e-3, 3e-3, 1e-2)
        for seed in range(6)
    ]
    head = [fake_record(method="head_only", targets="", lr=1e-3, seed=seed, report=0.5) for seed in range(6)]
    return frame_of([*made, *head])


def statuses(runs, *names):
    asked = [claim for claim in SHIPPED if claim["id"] in names]
    (card,) = claims.sections(runs, Scope(Path("nowhere")), asked)
    return card.rows.set_index("claim")[["status", "evidence"]].T.to_dict("list")


def test_no_claim_rests_on_what_did_not_learn():
    """At the head's own level a slope over ranks is flat, the best rates are alike, and neither says anything."""
    told = statuses(
        scores_of({1: 0.5, 4: 0.5, 16: 0.5}, {1: 0, 4: 0, 16: 0}), "qv_flat_in_rank", "best_rate_flat_in_rank"
    )
    assert {status for status, _ in told.values()} == {"did not learn"}
    assert all("qv r=1" in evidence for _, evidence in told.values())


def test_a_best_rate_at_the_edge_of_the_grid_settles_nothing():
    """The best may lie beyond, for one rank and not for the other."""
    inside = statuses(scores_of({1: 0.8, 16: 0.8}, {1: 3e-3, 16: 3e-3}), "best_rate_flat_in_rank")
    edge = statuses(scores_of({1: 0.8, 16: 0.8}, {1: 1e-2, 16: 1e-2}), "best_rate_flat_in_rank")
    assert inside["best_rate_flat_in_rank"][0] == "supported"
    assert edge["best_rate_flat_in_rank"][0] == "open" and "at an edge" in edge["best_rate_flat_in_rank"][1]


def test_a_claim_on_a_factor_is_one_of_the_settings_that_it_tells_apart():
    """Its title, without the factor, stood as a third setting, whose other claims wanted runs that are there."""
    rng = np.random.default_rng(2)
    records = [
        fake_record(targets="qv", rank=4, lr=1e-3, seed=seed, train={"batch_size": size}, report=score)
        for size, level in ((4, 0.8), (32, 0.7))
        for seed, score in enumerate(level + rng.normal(0, 1e-3, 6))
    ]
    asked = [claim for claim in SHIPPED if claim["id"] in ("small_batches_suit_lora", "qv_over_q")]
    (card,) = claims.sections(frame_of(records), Scope(Path("nowhere")), asked)
    of_factor = card.rows[card.rows["claim"] == "small_batches_suit_lora"]
    assert card.rows["setting"].nunique() == 2 and len(of_factor) == 2
    assert set(of_factor["status"]) == {"supported"}
    assert all(evidence.startswith("batch_size 4 − 32: +10.0") for evidence in of_factor["evidence"])
    assert all("not certified" in evidence for evidence in of_factor["evidence"])  # one rate was tried


def test_a_name_with_marks_is_a_name_in_the_document():
    """A bar in a model's name added a column to every table, and a tag of a claim's text was one of the page."""
    claim = {"id": "c", "text": "<b>q</b> | v", "source": "[x](y)", "refuted": "worse", "contradicts": []}
    rows = [{"setting": "a|b · sst2", "claim": "c", "text": claim["text"], "source": claim["source"],
             "status": "open", "evidence": "nothing", "n_runs": 0}]  # fmt: skip
    card = claims.card_section(pd.DataFrame(rows), [claim], several=False)
    made = claim_document.document(card, command="lora-bench claims")
    tables = [line for line in made.splitlines() if line.startswith("|")]
    assert tables and all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 7) for line in tables)
    assert "<b>" not in made.replace(r"\<b\>", "") and "[x](y)" not in made


@pytest.mark.usefixtures("unrehearsed", "uncounted")
@pytest.mark.parametrize("study", sorted({claim["study"] for claim in SHIPPED}))
def test_the_line_of_a_claim_that_was_not_run_plans_runs_of_its_setting(study, command, tmp_path):
    """Another batch size or length would be another setting, in which the claim would be as little run as before."""
    trained = {"epochs": 1.0, "batch_size": 4, "max_length": 16, "dropout": 0.0, "precision": "fp32"}
    splits = {name: {"rows": 40, "seed": 1234} for name in ("train", "select", "report")}
    data = {"source": "generated", "splits": splits}
    backbone = "sentence-transformers/all-MiniLM-L6-v2"
    record = fake_record(task="acceptability", model=backbone, targets="ko", train=trained, data=data)
    store = write_store(tmp_path / "other", [record])
    claim = next(claim for claim in SHIPPED if claim["study"] == study)
    scope = Scope(store)
    (card,) = claims.sections(scope.read(), scope, [claim | {"contradicts": []}])
    (line,) = (re.search(r"; run (lora-bench .*)", evidence)[1] for evidence in card.rows["evidence"])
    words = shlex.split(line)[1:]
    assert {"train.max_length=16", "task.train_rows=40", f"store={store}"} < set(words)
    assert {"train.batch_size=4", "train.batch_size=4,32"} & set(words)
    ended = command(*words, "tracking=none", "dry_run=true")
    assert ended.status == 0, ended.text
    assert "task acceptability: 2 labels (40 train, 40 select, 40 report)" in ended.out


def test_settings_of_a_document_are_called_by_what_tells_them_apart():
    """Three settings of one backbone and task made headings of a hundred letters."""
    apart = ["b · sst2 · train rows 1000 · batch size 8", "b · sst2 · train rows 10 · batch size 8", "b · cola", "c"]
    heads = claim_document._heads(apart)
    assert list(heads.values()) == ["b · sst2 · train rows 1000", "b · sst2 · train rows 10", "b · cola", "c"]
    legend = "".join(claim_document._legend(heads)).splitlines()
    assert legend[:2] == [f"- {heads[title]}: batch size 8" for title in apart[:2]] and not any(legend[2:])
    assert claim_document._legend({"b · cola": "b · cola"}) == []


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("supported", "refuted", "the first"),
        ("open", "supported", "the second"),
        ("refuted", "open", "not the first"),
        ("not run", "refuted", "not the second"),
        ("supported", "supported", "both"),
        ("refuted", "refuted", "neither"),
        ("open", "not run", "open"),
        ("not run", "not run", "not run"),
    ],
)
def test_the_side_that_the_records_take(first, second, taken):
    """What is refuted does not prove what contradicts it."""
    assert claim_sides.side(first, second) == taken


def test_what_is_decided_and_which_side_is_taken_stand_first_in_the_document():
    """A newcomer reads how the claims fared before the first table of thirty rows."""
    given = [("a", ["b"]), ("b", ["a"]), ("c", ["d"]), ("d", ["c"])]
    made = [{"id": name, "text": f"Claim {name}.", "source": "x", "contradicts": others} for name, others in given]
    words = {"a": ["open", "supported"], "b": ["open", "refuted"], "c": ["not run"] * 2, "d": ["supported"] * 2}
    rows = pd.DataFrame(
        {"setting": f"m · t{at}", "claim": name, "text": "", "source": "x", "status": words[name][at], "evidence": ""}
        for at in (0, 1)
        for name in words
    )
    rows.loc[2, "evidence"] = "needs more; run lora-bench study=rank task=cola"
    text = claim_document.document(claims.card_section(rows, made, several=True), command="x")
    assert "| m · t1 | 2 | 1 |  |  | 1 |" in text
    assert "- [Claim d](#d) (2 of 2 settings)\n- [Claim a](#a) (1 of 2 settings)\n" in text
    assert "| [Claim a](#a) | [Claim b](#b) | open | the first |\n" in text
    assert "| [Claim c](#c) | [Claim d](#d) | the second | the second |\n" in text
    assert text.index("(2 of 2 settings)") < text.index("contradict each other") < text.index("## Every claim")
    assert "**not run**. Needs more; run `lora-bench study=rank task=cola`." in text
