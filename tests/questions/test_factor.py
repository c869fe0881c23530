"""Levels of one factor, everything else equal: analysis/factor.py, and the sweeps that end by naming it."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from commands import run
from fake_store import depth_records, fake_record, frame_of, weight_types_records, write_store
from lora_bench.launch import tell
from lora_bench.questions import depth, factor, weight_types
from lora_bench.reports.scope import Scope
from lora_bench.store.folder import Store
from lora_bench.verdicts import settings

LATER = ("first:3", "last:3")
METHODS = {
    "lora": {},
    "pissa": {"adapter": {"init": "pissa"}},
    "rslora": {"adapter": {"alpha_policy": "rslora"}},
    "lora kaiming": {"adapter": {"init": "kaiming"}},
    "dora": {"method": "dora"},
    "lora_plus ×16": {"method": "lora_plus", "adapter": {"b_lr_ratio": 16.0}},
    "full": {"method": "full"},
}


SCOPE = Scope(Path("runs"))  # of no store: the runs are given


def test_layers_are_contrasted_with_all_of_them(tmp_path, capsys, quick):
    store = write_store(tmp_path / "store", depth_records())
    assert run("factor", store, tmp_path / "out", "--by", "layers") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "first:3 (−5.0) is worse than all" in text and "last:3" in text
    table = pd.read_csv(tmp_path / "out" / "tables" / "factor_layers_minilm_cola.csv").set_index("cell")
    assert list(table.index) == ["all", "first:3", "last:3"] and set(table["lr"]) == {3e-3}
    frame = Store(store).frame().query("lr == 3e-3").pivot_table(index="seed", columns="layers", values="report")
    contrasts = pd.read_csv(tmp_path / "out" / "tables" / "factor_layers_minilm_cola_contrasts.csv")
    for one in contrasts.to_dict("records"):
        difference = (frame[one["first"]] - frame["all"]).to_numpy()
        assert one["difference"] == pytest.approx(difference.mean())
        assert one["p"] == pytest.approx(scipy_stats.ttest_1samp(difference, 0).pvalue)


def test_the_reference_can_be_named(tmp_path, capsys, quick):
    store = write_store(tmp_path / "store", depth_records(n_seeds=4))
    assert run("factor", store, tmp_path / "out", "--by", "layers", "--reference", "last:3") == 0
    assert "than last:3" in capsys.readouterr().out
    assert run("factor", store, tmp_path / "out", "--by", "layers", "--reference", "last:9") == 2
    assert "--reference: layers is never 'last:9'; it is all, first:3 and last:3" in capsys.readouterr().err


def test_levels_are_compared_within_a_placement_and_budget_in_one_family():
    records = [
        *depth_records(n_seeds=4),
        *depth_records(targets="q", n_seeds=4),
        *(fake_record(targets="v", seed=seed, adapter={"layers": "all"}) for seed in range(4)),
        *(fake_record(targets="v", rank=9, seed=seed, adapter={"layers": "first:3"}) for seed in range(4)),
    ]
    (section,) = factor.sections(frame_of(records), SCOPE, by="layers")
    contrasts = section.judged.contrasts
    pairs = [(f"{at} {level}", f"{at} all") for at in ("q r=4", "qv r=4") for level in LATER]
    assert sorted(map(tuple, contrasts[["first", "second"]].to_numpy())) == sorted(pairs)
    cells = section.judged.estimates
    assert set(cells["n_seeds"]) == {4}  # cells that mixed runs would have more
    assert all(name.startswith(f"{targets} r=4 ") for name, targets in cells["targets"].items())
    assert contrasts["p_holm"].min() == pytest.approx(4 * contrasts["p"].min())  # one family over the placements


def test_methods_are_told_apart_by_all_that_makes_them():
    records = [
        fake_record(seed=seed, lr=lr, report=0.5 + 0.01 * seed, **given)
        for given in METHODS.values()
        for seed in range(3)
        for lr in (1e-3, 3e-3, 1e-2)
    ]
    records += [fake_record(method="head_only", lr=None, seed=seed) for seed in range(3)]
    (section,) = factor.sections(frame_of(records), SCOPE, by="method")
    assert section.judged.estimates.index.tolist() == [
        "lora", *sorted(set(METHODS) - {"lora"}), "head_only",
    ]  # fmt: skip
    assert (section.judged.estimates["n_seeds"] == 3).all()
    assert set(section.judged.contrasts["second"]) == {"lora"}
    assert "head_only" not in set(section.judged.contrasts["first"])


def test_budgets_are_never_mixed_whatever_the_ranks_are_called():
    """By-matrix ranks read alike at two budgets; DoRA counts its magnitudes, and a failed run none."""
    uneven = [{"role": role, "layer": 0, "module": role, "d_in": 384, "d_out": 384, "rank": rank} for role in "qv"
              for rank in (2, 3)]  # fmt: skip
    records = [
        {**fake_record(seed=seed, adapter={"init": init}), "manifest": uneven * (1 if seed < 3 else 2)}
        for init in ("gaussian", "pissa")
        for seed in range(6)
        if init == "gaussian" or seed > 2
    ]
    (section,) = factor.sections(frame_of(records), SCOPE, by="method")
    assert section.judged.estimates["n_seeds"].tolist() == [3, 3]
    dora = [
        {**fake_record(method="dora", seed=seed, rank=rank, adapter={"layers": layers}),
         "parameters": {"adapter": spent, "head": 1, "total": spent},
         "manifest": fake_record(targets="q", rank=rank)["manifest"][:n]}
        for layers, rank, n, spent in (("all", 4, 6, 41_472), ("first:3", 8, 3, 39_168))
        for seed in range(3)
    ]  # fmt: skip
    (section,) = factor.sections(frame_of(dora), SCOPE, by="layers")
    assert section.judged.estimates.index.tolist() == ["all", "first:3"] and "dora" in section.title


@pytest.mark.parametrize(
    ("layers", "n_layers", "name"),
    [
        ("all", 6, "all"),
        ("0", 2, "first:1"),
        ("1", 2, "last:1"),
        ("0,1,2", 6, "first:3"),
        ("3,4,5", 6, "last:3"),
        ("3,4,5", 12, "3-5"),
        ("3,4,5", None, "3-5"),
        ("0,2,3,5", 6, "0,2-3,5"),
    ],
)
def test_a_level_of_depth_has_the_name_that_a_sweep_gives_it(layers, n_layers, name):
    """`first:1` and `last:1` came out as 0 and 1, which says nothing of either end."""
    assert depth.layer_name(layers, n_layers) == name


def test_levels_are_named_with_the_layers_that_the_store_knows(tmp_path):
    """Six layers, as the runs of all of them say; the reference may be given in either spelling."""
    records = [fake_record(seed=seed, adapter={"layers": layers}) for layers in ("all", [0], [5]) for seed in range(4)]
    scope = Scope(write_store(tmp_path, records))
    for asked in ("last:1", "5"):
        (section,) = factor.sections(scope.read(), scope, by="layers", reference=asked)
        assert sorted(section.judged.contrasts["first"]) == ["all", "first:1"]
        assert set(section.judged.contrasts["second"]) == {"last:1"}


def test_halves_are_compared_without_all_layers():
    """The tutorial's own sweep has first:3 and last:3 alone."""
    records = [one for one in depth_records(n_seeds=3) if one["config"]["adapter"]["layers"] != "all"]
    (section,) = factor.sections(frame_of(records), SCOPE, by="layers")
    assert section.judged.contrasts[["first", "second"]].to_numpy().tolist() == [["last:3", "first:3"]]


def test_two_budgets_whose_ranks_read_alike_stay_apart():
    def uneven(n: int) -> list[dict]:
        return [{"role": "q", "layer": layer, "module": f"q{layer}", "d_in": 384, "d_out": 384, "rank": 2 + layer % 2}
                for layer in range(n)]  # fmt: skip

    records = [
        {**fake_record(targets="q", rank=n, seed=seed, adapter={"init": init}), "manifest": uneven(n)}
        for n in (2, 4)
        for init in ("gaussian", "kaiming")
        for seed in range(3)
    ]
    (section,) = factor.sections(frame_of(records), SCOPE, by="init")
    assert sorted(section.judged.contrasts["first"]) == [
        "q r=2-3 at 3,840 parameters kaiming", "q r=2-3 at 7,680 parameters kaiming",
    ]  # fmt: skip


def test_levels_at_other_budgets_only_are_told_so(tmp_path, capsys):
    records = [
        {**one, "manifest": one["manifest"][: 6 if layers == "all" else 3]}
        for layers in ("all", "first:3")
        for one in (fake_record(seed=seed, adapter={"layers": layers}) for seed in range(3))
    ]
    store = write_store(tmp_path / "store", records)
    assert run("factor", store, tmp_path / "out", "--by", "layers") == 2
    assert "at different numbers of parameters; adapter.rank=null adapter.budget=q@8" in capsys.readouterr().err
    mixed = [fake_record(seed=0), fake_record(seed=1, adapter={"layers": "first:3"}, train={"epochs": 9.0})]
    with pytest.raises(settings.NothingToShow, match="first:3, which differ in epochs too"):
        factor.sections(frame_of(mixed), SCOPE, by="layers")


def test_full_fine_tuning_joins_one_placement_and_not_several():
    lora = [fake_record(seed=seed, targets=targets) for targets in ("q", "qv") for seed in range(3)]
    full = [fake_record(method="full", seed=seed) for seed in range(3)]
    (section,) = factor.sections(frame_of(lora[3:] + full), SCOPE, by="method")
    assert section.judged.contrasts[["first", "second"]].to_numpy().tolist() == [["full", "lora"]]
    with pytest.raises(settings.NothingToShow):
        factor.sections(frame_of(lora + full), SCOPE, by="method")
    dora = [fake_record(method="dora", seed=seed, targets="q") for seed in range(3)]
    (section,) = factor.sections(frame_of(lora + full + dora), SCOPE, by="method")
    assert section.judged.contrasts[["first", "second"]].to_numpy().tolist() == [["dora", "lora"]]
    assert "full has no placement" in " ".join(section.remarks)


def test_a_factor_with_one_level_says_what_to_sweep(tmp_path, capsys):
    store = write_store(tmp_path / "store", [fake_record(seed=seed) for seed in range(3)])
    assert run("factor", store, tmp_path / "out", "--by", "layers") == 2
    assert "nowhere does layers differ and all else agree; the store holds all; sweep adapter.layers" in (
        capsys.readouterr().err
    )


def test_the_page_tells_each_factor_that_the_store_varies():
    made = factor.every(frame_of(depth_records(n_seeds=3)), SCOPE)
    assert [section.by for section in made] == ["layers"]
    records = [fake_record(seed=seed, **given) for given in METHODS.values() for seed in range(3)]
    made = factor.every(frame_of(records), SCOPE)
    assert [section.by for section in made] == ["method"]  # and not init, policy and ratio once more
    assert factor.every(frame_of([fake_record()]), SCOPE) == []


@pytest.mark.parametrize(
    ("axes", "script", "option"),
    [
        (("adapter.targets", "train.lr", "seed"), "weight_types", ""),
        (("adapter.targets", "adapter.rank", "seed"), "rank", ""),
        (("adapter.layers", "train.lr", "seed"), "factor", " by=layers"),
        (("adapter", "train.lr", "seed"), "factor", " by=method"),
        (("adapter.targets", "adapter.replicate", "seed"), "weight_types", ""),
        (("adapter.budget", "train.lr", "seed"), "rank", ""),
        (("train.lr", "seed"), "learning_rate", ""),
        (("seed",), "learning_rate", ""),
    ],
)
def test_a_sweep_ends_by_naming_the_command_for_its_axes(axes, script, option, tmp_path):
    adapters = [Namespace(method=method) for method in ("lora", "dora" if "adapter" in axes else "head_only")]
    runs = {one.method: Namespace(run=Namespace(config=Namespace(adapter=one))) for one in adapters}
    told = tell.analysis_command(Namespace(axes=axes, runs=runs), Store(tmp_path / "store"))
    assert told.startswith(f"lora-bench {script}{option} store=")


def test_a_placement_that_the_main_budget_lacks_is_shown_at_its_own():
    records = [fake_record(targets=targets, rank=rank) for targets, rank in {"q": 8, "v": 8, "qv": 4}.items()]
    records += [fake_record(targets="qv", rank=10), fake_record(targets="qkvo", rank=5)]
    records += [
        fake_record(targets="q", rank=2),
        fake_record(targets="v", rank=2),
    ]  # tells nothing new
    (setting,) = settings.settings(frame_of(records))
    found = {budget: set(runs["targets"]) for budget, runs in settings.at_budgets(setting)}
    assert found == {36864: {"q", "v", "qv"}, 92160: {"qv", "qkvo"}}


def test_counts_within_two_percent_are_one_budget():
    runs = pd.DataFrame({"adapter_parameters": [100, 101, 100, 102, 103, 200, np.nan]})
    assert settings.budget_of(runs).tolist()[:6] == [100, 100, 100, 100, 103, 200]
    assert np.isnan(settings.budget_of(runs).iloc[6])


GRIDS = "{params: {adapter.targets: 'q,qv,attention', seed: range(4)}}"
BUDGET = "adapter: {rank: null, budget: q@8}\n"


@pytest.mark.parametrize(
    ("file", "words", "others"),
    [
        (BUDGET, [], ["q", "attention"]),
        (BUDGET, ["adapter.targets=q,qv"], ["q"]),
        (BUDGET, ["adapter.targets=q,qv,mlp"], ["q", "mlp"]),
        (BUDGET, ["adapter.rank=8", "adapter.budget=null"], ["q"]),
        ("", [], ["q"]),
        ("", ["adapter.rank=null", "adapter.budget=q@8"], ["q", "attention"]),
        (None, [], ["q"]),
    ],
    ids=["all", "fewer", "others", "ranks", "ranks_of_the_file", "budget", "no_file"],
)
def test_missing_is_what_a_sweep_was_to_run_and_not_what_its_design_leaves_out(
    tmp_path, monkeypatch, file, words, others
):
    """A sweep of two placements does not miss the paper's other five; one that was stopped misses those to come."""
    monkeypatch.chdir(tmp_path)
    if file is not None:
        (tmp_path / "sweeps").mkdir()
        text = f"# @package _global_\n{file}hydra:\n  mode: MULTIRUN\n  sweeper: {GRIDS}\n"
        (tmp_path / "sweeps" / "mine.yaml").write_text(text, encoding="utf-8")
    invocation = {"overrides": ["+sweeps=mine", *words], "sweep": "mine"}
    records = [
        fake_record(targets=targets, rank=rank, seed=seed, report=0.5 + 0.01 * seed, invocation=invocation)
        for targets, rank in (("q", 8), ("qv", 4))
        for seed in range(2)
    ]
    scope = Scope(write_store(tmp_path / "runs", records))
    (section,) = weight_types.sections(scope.read(), scope)
    table = section.judged.contrasts
    assert table["second"].tolist() == others
    assert table.loc[table["verdict"] == "missing", "second"].tolist() == others[1:]


def test_another_reference_holds_the_placements_against_it(tmp_path, capsys, quick):
    records = [
        fake_record(
            targets=targets,
            rank=rank,
            seed=seed,
            lr=lr,
            report=0.5 + 0.001 * seed + gain,
            invocation={"overrides": ["adapter.budget=q@8", "adapter.targets=qv,qkvo,vo"], "sweep": None},
        )
        for targets, rank, gain in (("qkvo", 2, 0.0), ("qv", 4, 0.1), ("vo", 4, 0.05))
        for seed in range(4)
        for lr in (1e-3, 3e-3, 1e-2)
    ]
    store = write_store(tmp_path / "store", records)
    assert run("weight_types", store, tmp_path / "out", "--reference", "attention") == 0
    table = pd.read_csv(tmp_path / "out" / "tables" / "weight_types_minilm_cola_contrasts.csv")
    assert table[["first", "second"]].values.tolist() == [["qkvo", "qv"], ["qkvo", "vo"]]
    assert "qkvo is better" not in capsys.readouterr().out
    assert run("weight_types", store, tmp_path / "out", "--reference", "ko") == 2
    assert "--reference: no run of 'ko' at 36,864 adapter parameters; there are qv, qkvo, vo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "at"),
    [
        (depth_records(n_seeds=3, rates=(1e-3, 2e-3)), "'adapter.layers='\"'\"'first:3'\"'\"''"),
        (
            [
                fake_record(lr=lr, seed=seed, report=lr, **given)
                for given in METHODS.values()
                for seed in range(3)
                for lr in (1e-3, 3e-3, 1e-2)
            ],
            "adapter=pissa",
        ),
        (
            [
                fake_record(lr=lr, seed=seed, report=lr, adapter={"layers": [0, 2]} if seed > 2 else {})
                for seed in range(6)
                for lr in (1e-3, 3e-3, 1e-2)
            ],
            "'adapter.layers=[0,2]'",
        ),
        (
            [
                fake_record(lr=lr, seed=seed, report=lr, adapter={"init": "kaiming"} if seed > 2 else {})
                for seed in range(6)
                for lr in (1e-3, 3e-3, 1e-2)
            ],
            "adapter.init=kaiming",
        ),
    ],
)
def test_the_line_to_paste_holds_what_its_sweep_varies(records, at, tmp_path, capsys, quick):
    assert run("learning_rate", write_store(tmp_path / "store", records), tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "to settle" in line]
    assert len([line for line in lines if at in line]) == 1, lines


def test_the_paper_s_values_stand_beside_its_own_placements_only():
    """And its accuracies are drawn beside accuracies: other tasks' stood beside CoLA's Matthews correlation."""
    few = [fake_record(targets=targets, rank=rank, seed=seed) for targets, rank in (("qv", 4), ("qkvo", 2), ("vo", 4))
           for seed in range(2)]  # fmt: skip
    of_paper = weight_types_records(n_seeds=2, rates=(1e-3,))
    by_accuracy = weight_types_records(n_seeds=2, rates=(1e-3,), task="sst2", metric="accuracy")
    for records, has_paper, is_drawn in ((few, 0, 0), (of_paper, 1, 0), (by_accuracy, 1, 1)):
        (unasked,) = weight_types.sections(frame_of(records), SCOPE)
        assert not any(name.startswith("paper_") for name in unasked.tables[0].frame)
        assert not any("paper" in caption for caption in unasked.captions.values())
        (section,) = weight_types.sections(frame_of(records), replace(SCOPE, with_paper=True))
        assert any(name.startswith("paper_") for name in section.tables[0].frame) == has_paper
        assert ["paper" in caption for caption in section.captions.values()] == [is_drawn, is_drawn]
        (drawn, _) = section.figures.values()
        assert (len(drawn.axes) > 1) == is_drawn


def test_figures_call_groups_by_their_words_and_captions_spell_them():
    """Tables and files keep the letters, which a sweep takes."""
    records = [fake_record(targets=targets, rank=rank, seed=seed, report=0.5 + 0.01 * seed)
               for targets, rank in (("qv", 4), ("qkvo", 2), ("up+down", 2)) for seed in range(4)]  # fmt: skip
    for record in records:
        record["parameters"]["adapter"] = 36_864
    (section,) = weight_types.sections(frame_of(records), SCOPE, reference="attention")
    placements, contrasts = (figure.axes[0].get_yticklabels() for figure in section.figures.values())
    assert [text.get_text().split(" ")[0].rstrip("*") for text in placements] == ["qv", "attention", "MLP"]
    assert [text.get_text() for text in contrasts] == ["attention − qv", "attention − MLP"]
    first, second = section.captions.values()
    assert "Attention: qkvo; MLP: up+down." in first and second.startswith("attention minus")
    assert section.tables[0].frame["cell"].tolist() == ["qv", "qkvo", "up+down"]


def test_the_page_of_a_method_without_claims_is_made(tmp_path, unrendered, capsys):
    """The depth of DoRA: its factors are told, and LoRA's claims judged by nothing."""
    records = depth_records(n_seeds=3)
    for record in records:
        record["config"]["adapter"]["method"] = "dora"
    store = write_store(tmp_path / "store", records)
    assert run("report", store, tmp_path / "out") == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "No run here is of the method that the claims are about." in page
    assert "first:3" in page
