"""The published study: its records give its scores again, and the page that tells its answer tells what they say."""

import itertools
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from analysis import rescore
from lora_bench import wording
from lora_bench.questions import amplification, claims, rank, spread, studies, weight_types
from lora_bench.questions.across import across
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Section
from lora_bench.store import open_store
from lora_bench.verdicts import arms, settings, tuning
from lora_bench.verdicts import paper as published
from lora_bench.verdicts.arms import Judgement

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "results" / "study"
PAGE = ROOT / "docs" / "replication.md"


def test_rescoring_reproduces_every_score_byte_for_byte(tmp_path, capsys):
    assert rescore.main(["--store", str(STUDY), "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "tables" / "rescored.csv")
    manifest = json.loads((STUDY / "manifest.json").read_text(encoding="utf-8"))
    assert set(table["state"]) == {"equal", "unchecked"}
    n_equal = table.loc[table["state"] == "equal", "run_id"].nunique()
    assert n_equal == manifest["runs_with_predictions"] == manifest["chosen"] > 100


def test_the_study_fits_in_the_repository():
    assert sum(path.stat().st_size for path in STUDY.rglob("*") if path.is_file()) < 20e6


# ---------------------------------------------------------------- the page


def tables_of(heading: str) -> list[list[dict[str, str]]]:
    """The tables of one section of the page, each as rows by column head."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def sections_of(question: ModuleType, *, task: str = "sst2", **asked) -> list[Section]:
    scope = Scope(STUDY, task=task)
    return question.sections(scope.read(), scope, **asked)


@pytest.fixture(scope="module")
def by_budget() -> dict[int, Judgement]:
    return {section.budget: section.judged for section in sections_of(weight_types)}


@pytest.fixture(scope="module")
def cola() -> Section:
    (section,) = sections_of(weight_types, task="cola")
    return section


def assert_cells(rows: list[dict[str, str]], estimates: pd.DataFrame, score: str = "accuracy, report (95 %)") -> None:
    """The rate and the score with its half width, of eight seeds."""
    for row, (_, one) in zip(rows, estimates.iterrows(), strict=True):
        assert one["n_seeds"] == 8
        assert float(row["rate"]) == one["lr"]
        assert row[score] == wording.plus_minus(one["mean"], one["high"])


def needed(one: pd.Series) -> str:
    """The seeds that a contrast needs with their interval: 17 (10 to 61)."""
    ends = (one["seeds_needed"], one["seeds_needed_low"], one["seeds_needed_high"])
    return "" if pd.isna(ends[0]) else "{} ({} to {})".format(*ends)


def learn(one: pd.Series) -> str:
    """The seeds that learn, of the first and of the second, where some do not: (8, 2 of 8)."""
    learning = (one["n_seeds"] - one[f"n_stuck_{side}"] for side in ("first", "second"))
    told = "{}, {} of {}".format(*learning, one["n_seeds"])
    return f" ({told})" if one["n_stuck_first"] or one["n_stuck_second"] else ""


def assert_contrasts(rows: list[dict[str, str]], contrasts: pd.DataFrame) -> None:
    """Difference, corrected p, verdict and the seeds needed."""
    for row, (_, one) in zip(rows, contrasts.iterrows(), strict=True):
        assert row["contrast"] == f"{one['first']} − {one['second']}"
        assert row["difference (95 %)"] == wording.plus_minus(one["difference"], one["high"], wording.signed)
        assert row["p, Holm"] == wording.p_value(one["p_holm"])
        assert row["verdict"] == one["verdict"] + learn(one)
        assert row["seeds needed"] == needed(one)


def test_the_answer_is_that_of_the_records(by_budget):
    placements, contrasts = tables_of("The answer")
    judged = by_budget[36_864]
    names = ["head only" if arm == settings.FLOOR else arm for arm in judged.estimates.index]
    assert [row["placement"] for row in placements] == names
    assert_cells(placements, judged.estimates)
    assert_contrasts(contrasts, judged.contrasts)
    paper = published.weight_types().set_index(["targets", "dataset"])["score"]
    for row in placements[:-1]:
        told = [row["paper, WikiSQL (±0.5)"], row["paper, MultiNLI (±0.1)"]]
        assert told == [f"{100 * paper[row['placement'], dataset]:.1f}" for dataset in ("WikiSQL", "MultiNLI")]


def test_cola_is_that_of_the_records(cola):
    placements, contrasts, _ = tables_of("CoLA")
    assert [row["placement"] for row in placements[:-1]] == list(cola.judged.estimates.index)[:-1]
    assert_cells(placements, cola.judged.estimates, "Matthews × 100, report (95 %)")
    assert_contrasts(contrasts, cola.judged.contrasts)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"(qv, eighths of the training: {losses_of('cola', 'qv', 5e-4)})" in text
    frame = open_store(STUDY).frame().query("task == 'cola' and lr == 0.003")
    assert len(frame) == 7 and not frame["report"].any()


def test_eight_seeds_chose_the_rates_that_the_page_says():
    """The mean on `select` of the first rate of each placement, and both means of the second, over all seeds."""
    frame = open_store(STUDY).frame().query("task == 'cola' and method == 'lora'")
    means = frame.groupby(["targets", "lr"])[["select", "report"]].agg(["mean", "size"])
    for row in tables_of("CoLA")[2]:
        first, second = (means.loc[(row["placement"], float(row[rate]))] for rate in ("rate", "second-best rate"))
        assert first["select", "size"] == second["select", "size"] == 8
        assert row["on select, eight seeds"] == wording.points(first["select", "mean"])
        assert row["on select"] == wording.points(second["select", "mean"])
        assert row["on report"] == wording.points(second["report", "mean"])
        assert first["select", "mean"] > second["select", "mean"]


def test_the_seeds_that_the_page_says_predict_one_class_do(cola):
    n_stuck = cola.judged.estimates["n_stuck"]
    assert n_stuck[n_stuck > 0].to_dict() == {"q": 8, "k": 6, "qk": 6}
    for page in (PAGE, ROOT / "README.md"):
        assert "20 of the 24 seeds" in " ".join(page.read_text(encoding="utf-8").split())


def test_both_tasks_are_those_of_the_records(cola):
    (rows,) = tables_of("Both tasks")
    first = next(one for one in sections_of(weight_types) if one.budget == cola.budget)
    (section,) = across([cola, first])
    for row, one in zip(rows, section.tables[0].frame.to_dict("records"), strict=True):
        assert row["placement"] == one["placement"]
        for column, name in (
            ("mean rank (95 %)", ("mean_rank", "rank_low", "rank_high")),
            ("probability that qv scores higher (95 %)", ("improvement", "improvement_low", "improvement_high")),
        ):
            value, low, high = (one[part] for part in name)
            assert row[column] == ("" if pd.isna(value) else f"{value:.2f} ({low:.2f} to {high:.2f})")


def test_attention_against_the_mlp_is_that_of_the_records():
    placements, contrasts = tables_of("Attention or the MLP")
    made = sections_of(weight_types, budget=92_160, reference="attention")
    (judged,) = (section.judged for section in made if section.budget == 92_160)
    estimates = judged.estimates
    names = {"attention": "qkvo", "MLP": "up+down", "all": "qkvo+up+down", "qv": "qv"}
    assert_cells(placements, estimates.loc[[names[row["placement"]] for row in placements]])
    words = {value: key for key, value in names.items()}
    table = judged.contrasts.replace({"first": words, "second": words})
    assert_contrasts(contrasts, table)


def at_rates(rates: dict[str, float], *pairs: tuple[str, str]) -> tuple[pd.DataFrame, list[dict]]:
    """Estimates, and contrasts as rows, at rates that the page names, whatever `select` chose."""
    (setting,) = settings.settings(settings.prepare(open_store(STUDY).frame()), task="sst2")
    runs = arms.name_arms(setting.runs)
    estimates = arms.estimate(runs, tuning.choose_rates(runs)["lr"].to_dict() | rates)
    return estimates, arms.compare(estimates, list(pairs), margin=0.01).to_dict("records")


def signed(one: dict | pd.Series) -> str:
    return wording.plus_minus(one["difference"], one["high"], wording.signed)


def test_what_the_page_says_of_other_rates_is_that_of_the_records():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    both = "qkvo+up+down r=2-3"
    _, (gain, low) = at_rates({"qv r=10": 1e-3}, ("qv r=10", "qv r=1"), ("qv r=10", both))
    assert signed(gain) == "+1.0 ± 0.9" and "its gain is 1.0 ± 0.9" in text
    assert signed(low) == "+0.3 ± 0.6" and "it would be 0.3 ± 0.6" in text
    _, (against_qv, q_high) = at_rates({}, ("qv r=10", both), ("q r=64", "qv r=1"))
    assert signed(against_qv) == "+0.8 ± 0.6" and signed(q_high) == "−2.3 ± 1.1" and "is 2.3 ± 1.1 points" in text
    by_two = {"up+down r=4": 2e-3, both: 3e-4}
    pairs = [("qkvo r=5", other) for other in ("qv r=10", *by_two)]
    estimates, rows = at_rates(by_two, *pairs)
    told = [wording.plus_minus(*estimates.loc[arm, ["mean", "high"]]) for arm in by_two]
    assert told == ["82.2 ± 2.4", "83.0 ± 0.6"] and all(one in text for one in told)
    assert (signed(rows[2]), rows[2]["verdict"], wording.p_value(rows[2]["p_holm"])) == (
        "+1.3 ± 0.8",
        "better",
        ".027",
    )


def losses_of(task: str, targets: str, rate: float) -> str:
    """The training loss in eighths of the training, averaged over eight seeds, as the page writes it."""
    store = open_store(STUDY)
    frame = store.frame().query(
        "task == @task and targets == @targets and lr == @rate and adapter_parameters == 36_864"
    )
    assert len(frame) == 8
    losses = np.mean([store.record(run_id)["history"]["loss"] for run_id in frame["run_id"]], axis=0)
    return ", ".join(f"{part.mean():.2f}"[1:] for part in np.array_split(losses, 8))


def test_the_loss_that_the_page_tells_is_that_of_the_records():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"eighths of the epoch: {losses_of('sst2', 'qv', 3e-3)})" in text


def verdict_of(one: pd.Series) -> str:
    return f"{one['verdict']}, needs {needed(one)}" if needed(one) else one["verdict"]


def test_the_ranks_are_those_of_the_records():
    rows, _ = tables_of("Rank")
    (section,) = sections_of(rank)
    assert [row["cell"] for row in rows] == list(section.judged.estimates.index)
    assert_cells(rows, section.judged.estimates)
    contrasts = section.judged.contrasts.set_index("first")
    for row in rows:
        if row["cell"] not in contrasts.index:
            assert (row["minus rank 1 (95 %)"], row["verdict"]) == ("", "")
            continue
        one = contrasts.loc[row["cell"]]
        assert row["minus rank 1 (95 %)"] == wording.plus_minus(one["difference"], one["high"], wording.signed)
        assert row["verdict"] == verdict_of(one)


def test_the_other_budgets_are_those_of_the_records():
    _, rows = tables_of("Rank")
    assert len(rows) == 5
    for row in rows:
        budget = int(row["budget"].replace(",", ""))
        (section,) = sections_of(weight_types, budget=budget)
        contrasts = section.judged.contrasts.set_index("second")
        told = list(row.values())[1:]
        for arm, (difference, verdict) in {"q": told[:2], "qkvo": told[2:]}.items():
            if arm not in contrasts.index or not contrasts.loc[arm, "n_pairs"]:
                assert difference == verdict == ""
                continue
            one = contrasts.loc[arm]
            assert (difference, verdict) == (signed(one), verdict_of(one))


def test_the_amplification_is_that_of_the_records():
    (rows,) = tables_of("Subspaces and amplification")
    (section,) = sections_of(amplification, targets="qv")
    found = section.tables[0].frame.set_index(["rank", "role"])
    for row in rows:
        matched = re.fullmatch(r"(\w) of qv, r=(\d+)", row["matrix"])
        if not matched:
            continue
        one = found.loc[(int(matched[2]), matched[1])]
        assert row["W in ΔW"] == f"{one['weight_in_update']:.2f}"
        assert row["W in random"] == f"{one['weight_in_random']:.2f}"
        assert row["ratio"] == f"{one['over_random']:.1f}"
        assert row["factor"] == f"{one['amplification']:.2g}"
    assert len(rows) == 6
    for row, one in zip(rows[-2:], published.TABLE_7.to_dict("records"), strict=True):
        assert float(row["W in ΔW"]) == one["weight_in_update"] and float(row["W in random"]) == one["weight_in_random"]


def test_the_pages_tables_of_the_language_model_are_those_of_its_journal():
    """Difference and interval of each contrast, on the page of studies; and where the replication repeats them."""
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    text = page.partition("The same question on a language model")[2]
    (decoder,) = (one for one in studies.sections(ROOT / "results" / "study_sst2_1000") if "SmolLM2" in one.title)
    shown = {}
    for one in decoder.words.to_dict("records"):
        difference, interval = wording.signed(one["difference"]), one["interval_shown"]
        row = re.search(rf"^\| {one['second']} \| (\S+) \| (\w+) \(([^;)]*)", text, flags=re.M)
        assert row and row.groups() == (difference, one["word"], interval), one["second"]
        shown[one["second"]] = difference
    rows = tables_of("On a language model")[0]
    of = {row["what of the paper"].partition(": ")[2]: row["SmolLM2, last 6 layers"] for row in rows}
    assert of["qv above q, k and qk"] == f"better: {', '.join(shown[name] for name in ('q', 'k', 'qk'))}"
    assert of["qv above v and o"] == f"open: {shown['v']}, {shown['o']}"
    assert of["qv as good as qkvo"] == f"open: {shown['qkvo']}"


def with_interval(one: dict) -> str:
    """A finding of a journal as the page tells it: +9.4 (−0.5 to +19.3)."""
    return f"{wording.signed(one['difference'])} ({wording.interval(one['low'], one['high'], wording.signed)})"


def test_the_pages_tables_of_the_further_studies_are_those_of_their_journals():
    """Difference, interval, word and spread of each contrast; and the scores that the text names."""
    root = ROOT / "results" / "further_sst2_1000"
    rows, _ = tables_of("Other rows, ranks and scales")
    shown = {row["contrast"]: row for row in rows}
    journals = [json.loads(path.read_text()) for path in (root / "studies").glob("*.json")]
    found = {
        f"{one['first']} − {one['second']}": one for journal in journals for one in journal["looks"][-1]["findings"]
    }
    assert shown.keys() == found.keys() and len(found) == 9
    for name, one in found.items():
        assert shown[name]["difference (over its study's contrasts)"] == with_interval(one), name
        assert (shown[name]["word"], shown[name]["sd over seeds"]) == (one["word"], f"{100 * one['sd']:.1f}"), name
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    (drawn,) = (journal for journal in journals if journal["setting"]["task"].get("train_draw") == "seed")
    look = drawn["looks"][-1]
    frame = open_store(root).frame()
    frame = frame[frame["run_id"].isin(look["runs"])]
    scores = {name: 100 * frame.loc[(frame["targets"] == name) & (frame["lr"] == rate), "report"]
              for name, rate in look["chosen"].items()}  # fmt: skip
    assert f"q has {scores['q'].mean():.0f} ± {scores['q'].std():.0f}, from {scores['q'].min():.0f} to" in text
    assert f"qv has {scores['qv'].mean():.1f} ± {scores['qv'].std():.1f} over samples" in text
    assert f", v {scores['v'].mean():.1f} ± {scores['v'].std():.1f} and" in text


def test_the_pages_table_of_the_budgets_is_that_of_their_journals():
    """Each budget is a family of its own; and the scores, whole or of the seeds that learn, that the text names."""
    root = ROOT / "results" / "budgets_sst2_1000"
    _, rows = tables_of("Other rows, ranks and scales")
    shown = {(row["parameters"], row["contrast at this budget"]): row for row in rows}
    frame, found, means = open_store(root).frame(), {}, {}
    for path in (root / "studies").glob("*.json"):
        (look,) = json.loads(path.read_text())["looks"]
        looked = frame[frame["run_id"].isin(look["runs"])]
        (budget,) = looked["adapter_parameters"].unique()
        found |= {(f"{budget:,.0f}", f"{one['first']} − {one['second']}"): one for one in look["findings"]}
        for name, rate in look["chosen"].items():
            targets = {"attention": "qkvo", "mlp": "up+down"}.get(name, name)
            cell = looked.loc[(looked["targets"] == targets) & (looked["lr"] == rate), "report"]
            assert len(cell) == 8
            means[name, int(budget)] = wording.points(cell.mean())
    assert shown.keys() == found.keys() and len(found) == 7
    for key, one in found.items():
        assert shown[key]["difference (over its budget's contrasts)"] == with_interval(one), key
        assert (shown[key]["word"], shown[key]["sd over seeds"]) == (one["word"], f"{100 * one['sd']:.1f}"), key
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"qv goes from {means['qv', 23_040]} to {means['qv', 92_160]}, attention" in text
    assert f"at 9,216 qv has {means['qv', 9_216]}" in text
    failing = [key for key, one in found.items() if any(one["n_failed"])]
    assert failing == [("46,080", "qv − attention")] and found[failing[0]]["n_failed"] == [0, 1]
    assert "At 46,080 one of attention's eight seeds predicts one class" in text
    behind = [found[f"{budget:,}", "qv − mlp"]["difference"] for budget in (23_040, 46_080, 92_160)]
    assert 0 < behind[0] < behind[1] < behind[2] and "by more the larger it is" in text
    least = wording.signed(found["9,216", "qv − q"]["difference"])
    assert f"too** ({least}, 9,216 parameters)" in (ROOT / "README.md").read_text(encoding="utf-8")
    whole = next(one for one in studies.sections(ROOT / "results" / "study_sst2_1000") if "MiniLM" in one.title)
    of_q = whole.words.set_index("second").loc["q", "difference"]
    assert f"as much as at 36,864 ({wording.signed(of_q)})" in text
    attention, mlp = ([means[name, budget] for budget in (23_040, 92_160)] for name in ("attention", "mlp"))
    assert f"attention from {attention[0]} to {attention[1]} and the MLP from {mlp[0]} to {mlp[1]};" in text


COMPARED = ("better", "worse", "tied", "open")
"""Words of contrasts whose two sides learn, so that their difference is told."""
PAIRS = {"QNLI": ROOT / "results" / "qnli_2000", "QQP": ROOT / "results" / "qqp_2000"}


def test_the_pages_tables_of_pairs_of_sentences_are_those_of_their_journals():
    """Difference, interval and word of each contrast, where both sides learn; and the score of each placement."""
    contrasts, placements = tables_of("Pairs of sentences: QNLI and QQP")
    for task, root in PAIRS.items():
        look, runs_of = looked_at(root)
        for row, one in zip(contrasts, look["findings"], strict=True):
            assert row["contrast"] == f"{one['first']} − {one['second']}"
            assert row[f"{task} (over its six contrasts)"] == (with_interval(one) if one["word"] in COMPARED else "–")
            assert row[f"word on {task}"] == one["word"]
        assert [row["placement"] for row in placements] == [*look["chosen"], "head only"]
        for row in placements:
            runs = runs_of[row["placement"]]
            assert (len(runs), row["rank"]) == (
                8,
                "–" if row["placement"] == "head only" else f"{runs['rank'].max():g}",
            )
            assert row[f"{task}: rate"] == f"{look['chosen'].get(row['placement'], 1e-3):g}"
            told = f"{wording.points(runs['report'].mean())} ({100 * runs['report'].std():.1f})"
            assert row[f"{task}: accuracy (sd over seeds)"] == told


def test_what_the_page_says_of_cola_on_the_language_model_is_in_the_records():
    """Words, scores, and the rates that were tried."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    root = ROOT / "results" / "smollm2_cola_2000"
    look, runs_of = looked_at(root)
    frame = open_store(root).frame()
    tried = frame.loc[frame["method"] == "lora", "lr"]
    assert (len(frame), tried.min(), tried.max()) == (94, 5e-5, 1e-2)
    assert "(94 runs, one look at eight seeds, rates searched from 1e-3 and 3e-3 down to 5e-5 and up to 1e-2)" in text
    assert {one["second"]: one["word"] for one in look["findings"]} == {
        "q": "not told from the head alone", "v": "did not learn"
    }  # fmt: skip
    means = {
        name: [wording.points(runs[split].mean()) for split in ("select", "report")] for name, runs in runs_of.items()
    }
    qv, q, v, head = (" and ".join(means[name]) for name in ("qv", "q", "v", "head only"))
    assert f"qv has {qv.replace(' and', ' on `select` and')} on report, q {q}, v {v}, the head {head}" in text


def looked_at(root: Path) -> tuple[dict, dict[str, pd.DataFrame]]:
    """The only look of the only study in an archive, and its runs at the chosen rates by placement, with the head's."""
    (path,) = (root / "studies").glob("*.json")
    (look,) = json.loads(path.read_text())["looks"]
    frame = open_store(root).frame().sort_values("seed")
    looked = frame[frame["run_id"].isin(look["runs"])]
    runs = {name: looked[(looked["targets"] == name) & (looked["lr"] == rate)] for name, rate in look["chosen"].items()}
    return look, runs | {"head only": frame[frame["method"] == "head_only"]}


def test_what_the_page_says_of_placements_that_predict_one_class_is_in_the_records():
    """Of QQP how they rank the rows, and what they score with the threshold that is best on `select`."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    _, placements = tables_of("Pairs of sentences: QNLI and QQP")
    store = open_store(PAIRS["QQP"])
    look, runs_of = looked_at(PAIRS["QQP"])
    areas, tuned = {}, {}
    for name in runs_of:
        kept = [store.predictions(run_id) for run_id in runs_of[name]["run_id"]]
        areas[name] = [100 * metrics.roc_auc_score(*of_split(of_run, "report")) for of_run in kept]
        tuned[name] = 100 * np.mean([at_the_best_threshold(of_run) for of_run in kept])
    shown = {row["placement"]: row["QQP: area under the curve"] for row in placements}
    assert shown == {name: f"{np.mean(of_name):.1f}" for name, of_name in areas.items()}
    behind = sorted(np.mean(areas["qv"]) - np.mean(areas[name]) for name in ("q", "k", "qk"))
    above = sorted(np.mean(areas[name]) - np.mean(areas["head only"]) for name in ("q", "k", "qk"))
    told = "they lie {:.1f} to {:.1f} points behind qv and {:.0f} to {:.0f} above the head alone"
    assert told.format(behind[0], behind[-1], above[0], above[-1]) in text
    last, *others = sorted(areas["v"])
    assert f"by that seed's {last:.1f}; its others have {min(others):.0f} to {max(others):.0f}" in text
    low, _, high = sorted(tuned[name] for name in ("q", "k", "qk"))
    assert (
        f"accuracy is {low:.0f} to {high:.0f}, where qv has {tuned['qv']:.1f} and the head {tuned['head only']:.1f}."
        in text
    )
    failed = {one["second"]: one["n_failed"] for one in look["findings"]}
    assert sum(failed[name][1] for name in ("q", "k", "qk")) == 18 and "with 18 of their 24 seeds" in text
    assert [failed[name] for name in ("v", "o", "qkvo")] == [[0, 1], [0, 0], [0, 0]]
    assert "on QQP 18 of the 24 seeds" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def of_split(predictions: pd.DataFrame, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and how far the logit of class 1 lies above that of class 0."""
    rows = predictions[predictions["split"] == split]
    return rows["label"].to_numpy(), (rows["logit_1"] - rows["logit_0"]).to_numpy()


def at_the_best_threshold(predictions: pd.DataFrame) -> float:
    labels, margins = of_split(predictions, "select")
    best = max(np.unique(margins), key=lambda threshold: np.mean((margins >= threshold) == labels))
    labels, margins = of_split(predictions, "report")
    return float(np.mean((margins >= best) == labels))


def losses_by_eighth(task: str, name: str) -> np.ndarray:
    """The training loss in eighths of the training, at the chosen rate, averaged over eight seeds."""
    store = open_store(PAIRS[task])
    _, runs_of = looked_at(PAIRS[task])
    losses = np.mean([store.record(run_id)["history"]["loss"] for run_id in runs_of[name]["run_id"]], axis=0)
    return np.array([part.mean() for part in np.array_split(losses, 8)])


def ends(losses: np.ndarray) -> str:
    """The last two, as the page writes them."""
    return " and ".join(f"{loss:.3f}".lstrip("0") for loss in losses[-2:])


def test_what_the_page_says_of_qnli_beside_its_words_is_in_the_records():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    store = open_store(PAIRS["QNLI"])
    look, _ = looked_at(PAIRS["QNLI"])
    losses = {name: losses_by_eighth("QNLI", name) for name in ("q", "k", "qk", "qv")}
    assert f"(q's eighths end at {ends(losses['q'])}, those of qv at {ends(losses['qv'])})" in text
    assert f"On QQP the loss of qv ends at {ends(losses_by_eighth('QQP', 'qv'))}." in text
    is_late = {name: bool((of_name[:5] > 0.685).all()) for name, of_name in losses.items()}  # chance has .693
    assert is_late == {"q": True, "k": True, "qk": True, "qv": False}
    failed = {one["second"]: one["n_failed"][1] for one in look["findings"]}
    assert failed == {"q": 0, "k": 0, "v": 0, "o": 3, "qk": 0, "qkvo": 0} and look["chosen"]["o"] == 3e-3
    frame = store.frame()
    is_higher = frame["lr"].isin([5e-3, 1e-2]) & frame["targets"].isin(["q", "k"])
    assert (is_higher.sum(), (~is_higher).sum(), len(open_store(PAIRS["QQP"]).frame())) == (32, 200, 198)
    assert "These 32 runs lie" in text and "200 runs in 55 minutes for QNLI, 198 in 34 for QQP" in text
    higher = frame[is_higher].groupby(["targets", "lr"])["report"]
    assert set(higher.size()) == {8} and not frame.loc[frame["lr"].ge(5e-3), "run_id"].isin(look["runs"]).any()
    q, q_far, k, k_far = (wording.points(higher.mean()[cell]) for cell in itertools.product("qk", (5e-3, 1e-2)))
    assert f"q has {q} and {q_far}, k {k} and {k_far}: a higher rate does not close the gap" in text
    frame = frame.query("targets == 'o' and lr == 0.002")
    assert frame["report"].min() > 0.7 and f"where o has {wording.points(frame['report'].mean())}" in text
    behind = [one["difference"] for one in look["findings"] if one["word"] == "better"]
    assert f"{100 * min(behind):.0f} to {100 * max(behind):.0f} points behind" in text


def test_what_the_page_says_beside_the_further_studies_is_in_the_records():
    """The one sample that they are held against, and the claims that their records judge."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    sample = ROOT / "results" / "study_sst2_1000"
    (journal,) = (
        journal
        for path in (sample / "studies").glob("*.json")
        if "MiniLM" in (journal := json.loads(path.read_text()))["title"]
    )
    look = journal["looks"][0]
    frame = open_store(sample).frame()
    frame = frame[frame["run_id"].isin(look["runs"])]
    scores = {name: 100 * frame.loc[(frame["targets"] == name) & (frame["lr"] == look["chosen"][name]), "report"]
              for name in ("q", "qv", "v")}  # fmt: skip
    assert {len(of_name) for of_name in scores.values()} == {8}
    ahead = (scores["qv"].mean() - scores["q"].mean()).round()
    assert (
        f"q has {scores['q'].mean():.0f} ± {scores['q'].std():.0f} points" in text
        and f"qv is {ahead:.0f} ahead" in text
    )
    assert f"and {scores['qv'].mean():.1f} ± {scores['qv'].std():.1f} over seeds on the one" in text
    assert f"and {scores['v'].mean():.1f} ± {scores['v'].std():.1f}." in text
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"qv is 9 points ahead of q, on one sample {ahead:.0f}," in readme
    scope = Scope(ROOT / "results" / "further_sst2_1000")
    asked = [
        claim for claim in claims.read_claims(claims.SHIPPED) if claim["id"] in ("qv_flat_in_rank", "rslora_over_fixed")
    ]
    (card,) = claims.sections(scope.read(), scope, asked)
    decided = {row["claim"]: row for row in card.rows.to_dict("records") if row["status"] != "not run"}
    for name, (told, p) in {
        "qv_flat_in_rank": ("+1.8 ± 1.3", ".011"),
        "rslora_over_fixed": ("−1.5 ± 0.8", ".003"),
    }.items():
        assert decided[name]["status"] == "refuted"
        assert f"{told} points, 8 seeds, p {p}" in decided[name]["evidence"] and told.lstrip("−") in text


def in_a_cell(words: pd.Series) -> str:
    """A study's word of README's table, with its difference where scores are compared, and the seeds that learn."""
    pairs = f" (8, {words['n_pairs']} of 8)" if words["n_pairs"] < words["n_seeds"] == 8 else ""
    difference = f": {wording.signed(words['difference'])}" if words["word"] in COMPARED else ""
    return f"{words['word']}{difference}{pairs}"


def test_the_headline_of_the_readme_is_that_of_the_records(by_budget, cola):
    """Words first, and the figures' intervals elsewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    of_studies = studies.sections(ROOT / "results" / "study_sst2_1000")
    decoder, encoder = (study.words.set_index("second") for study in sorted(of_studies, key=lambda one: one.title))
    qnli, qqp = (studies.sections(PAIRS[task])[0].words.set_index("second") for task in ("QNLI", "QQP"))
    tables = [judged.contrasts.set_index("second") for judged in (by_budget[36_864], cola.judged)]
    for arm in encoder.index:
        fixed = []
        for contrast in (table.loc[arm] for table in tables):
            told = learn(contrast) or f": {wording.signed(contrast['difference'])}"
            fixed.append(f"{contrast['verdict']}{told}")
        of_encoder, of_qnli, of_qqp, of_decoder = (in_a_cell(words.loc[arm]) for words in (encoder, qnli, qqp, decoder))
        row = [of_encoder, *fixed, of_qnli, of_qqp, of_decoder]
        assert f"\n| {arm} | {' | '.join(row)} |\n" in text, arm
    ranges = [table["seeds_needed"].dropna() for table in tables]
    least, most = (int(pick(pick(column) for column in ranges)) for pick in (min, max))
    assert f"the {least} to {most} seeds that would settle" in " ".join(text.split())


def test_the_pages_table_of_attention_and_the_mlp_on_the_decoder_is_that_of_its_journal():
    root = ROOT / "results" / "smollm2_budget_sst2_1000"
    rows = tables_of("On a language model")[1]
    (journal,) = (json.loads(path.read_text()) for path in (root / "studies").glob("*.json"))
    (look,) = journal["looks"]
    shown = {row["contrast on SmolLM2"]: row for row in rows}
    assert len(look["findings"]) == len(shown) == 6
    for one in look["findings"]:
        row = shown[f"{one['first']} − {one['second']}"]
        assert (row["difference (over six contrasts)"], row["word"]) == (with_interval(one), one["word"])
        assert row["sd over seeds"] == f"{100 * one['sd']:.1f}"
    frame = open_store(root).frame()
    floor, frame = frame[frame["method"] == "head_only"], frame[frame["run_id"].isin(look["runs"])]
    targets = {"attention": "qkvo", "all": "qkvo+up+gate+down", "qv": "qv", "mlp": "up+gate+down"}
    means = {
        name: frame.loc[(frame["targets"] == targets[name]) & (frame["lr"] == rate), "report"].mean()
        for name, rate in look["chosen"].items()
    }
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert (
        f"attention has {wording.points(means['attention'])}, all {wording.points(means['all'])}, "
        f"qv {wording.points(means['qv'])}, the MLP {wording.points(means['mlp'])} and the head alone "
        f"{wording.points(floor['report'].mean())}"
    ) in text
    p = {(one["first"], one["second"]): one["p_different"] for one in look["findings"]}
    worst = [wording.p_value(p[pair]) for pair in (("mlp", "all"), ("attention", "mlp"))]
    assert f"(p {worst[0]} and {worst[1]}, where Holm asks .008 of the first)" in text and round(0.05 / 6, 3) == 0.008
    store = open_store(root)
    ends = {}
    for name in ("mlp", "attention"):
        runs = frame.loc[(frame["targets"] == targets[name]) & (frame["lr"] == look["chosen"][name]), "run_id"]
        losses = [np.array_split(store.record(run_id)["history"]["loss"], 8)[-2:] for run_id in runs]
        ends[name] = [f"{mean:.3f}".lstrip("0") for mean in np.mean([[part.mean() for part in of] for of in losses], 0)]
    told = "its last two eighths are {0[0]} and {0[1]}, those of attention {1[0]} and {1[1]}."
    assert told.format(ends["mlp"], ends["attention"]) in text


def test_the_pages_table_of_spreads_is_that_of_its_archive():
    scope = Scope(ROOT / "results" / "spread_sst2_1000")
    (section,) = spread.sections(scope.read(), scope)
    (rows,) = tables_of("Where the spread comes from")
    table = section.tables[0]
    names = [column.name for column in table.columns]
    found = [dict(zip(names, cells, strict=True)) for cells in table.shown()]
    assert len(rows) == len(found) == 6
    for row, one in zip(rows, found, strict=True):
        asked = [one[name] for name in ("cell", "rate", "n_runs", "mean", "starts", "seeds", "part")]
        assert list(row.values()) == asked
    frame = table.frame.set_index(["cell", "lr"])
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    lower = frame.loc[("qv r=4", 0.001)]
    gain = [wording.points(-lower[name]) for name in ("change", "change_high", "change_low")]
    assert f"gains {gain[0]} points ({gain[1]} to {gain[2]})" in text
    assert frame.loc[("qkvo r=2", 0.003), "n_failed"] == 7
    runs = scope.read()
    of_q = runs[(runs["targets"] == "q") & (runs["lr"] == 0.003)].groupby("seed")["report"].mean().nlargest(2)
    assert f"({wording.points(of_q.iloc[1])} and {wording.points(of_q.iloc[0])} on average)" in text
    gentle = runs.loc[(runs["targets"] == "qkvo") & (runs["lr"] == 0.001), "report"]
    assert gentle.between(0.735, 0.815).all()
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{wording.points(frame.loc[('qv r=4', 0.003), 'start_sd'])} points for qv at its best rate" in readme


def test_what_the_page_says_of_single_starts_is_in_the_records():
    """Each start's difference by a textbook t test, and that of the seeds' means."""
    runs = open_store(ROOT / "results" / "spread_sst2_1000").frame()
    report = {
        (targets, lr): 100 * of.pivot_table(index="seed", columns="replicate", values="report")
        for (targets, lr), of in runs.groupby(["targets", "lr"])
    }
    apart = report["qv", 0.003] - report["qkvo", 0.001]
    means = apart.mean(axis=1)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    by_start = [f"{value:+.1f}" for value in apart.mean()]
    assert f"is {', '.join(by_start[:-1])} and {by_start[-1]} points by start" in text
    p = [stats.ttest_1samp(apart[start], 0).pvalue for start in apart]
    assert f"(p {wording.p_value(p[0])} and {wording.p_value(p[1])})" in text and min(p[2:]) > 0.05
    low, high = stats.t.interval(0.95, 7, means.mean(), stats.sem(means))
    p_all = wording.p_value(stats.ttest_1samp(means, 0).pvalue)
    assert f"it is {means.mean():+.1f} ({low:+.1f} to {high:+.1f}, p {p_all})" in text
    gentle = (report["qv", 0.001] - report["qkvo", 0.001]).mean(axis=1).mean()
    assert f"and −{-gentle:.1f} with both at 1e-3" in text
    assert f"falls from {apart.std().mean():.1f} points to {means.std():.1f}" in text
