"""The bake-off on stores whose scores are known: predictors that name the order of the placements, and its reverse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from commands import run
from fake_store import RANKS, fake_record, write_store
from lora_bench import wording
from lora_bench.questions import predicted
from lora_bench.reports.scope import Scope
from lora_bench.store.journal import Journal, journals
from lora_bench.verdicts.settings import PLACEMENTS, NothingToShow

ROOT = Path(__file__).resolve().parents[2]
EFFECTS = {"q": 0.60, "k": 0.62, "v": 0.70, "o": 0.66, "qk": 0.61, "qv": 0.72, "qkvo": 0.71}
MAPS = {"wise": ("vo", 0.715), "wrong": ("qk", 0.60), "random": ("qkvo", 0.65)}
N_SEEDS = 8


def ranks_of(targets, *, seed):
    """A map of its own, some of whose layers have none."""
    rng = np.random.default_rng(seed)
    return {f"encoder.layer.{layer}.{role}": int(rng.integers(1, 9)) for layer in range(2, 6) for role in targets}


def records():
    rng = np.random.default_rng(0)
    of_seed = rng.normal(0, 0.01, N_SEEDS)
    made = []
    for targets, mean in EFFECTS.items():
        for seed in range(N_SEEDS):
            noise = rng.normal(0, 0.003, 2)
            scores = {"report": mean + of_seed[seed] + noise[0], "select": mean + of_seed[seed] + noise[1]}
            made.append(fake_record(targets=targets, rank=RANKS[targets], seed=seed, metric="accuracy", **scores))
    for place, (targets, mean) in enumerate(MAPS.values()):
        ranks = ranks_of(targets, seed=place)
        for seed in range(N_SEEDS):
            score = mean + of_seed[seed] + rng.normal(0, 0.003)
            adapter = {"rank": ranks, "layers": [2, 3, 4, 5]}
            record = fake_record(targets=targets, seed=seed, metric="accuracy", report=score, adapter=adapter)
            record["manifest"] = [
                matrix | {"rank": ranks[matrix["module"]]} for matrix in record["manifest"] if matrix["module"] in ranks
            ]
            record["parameters"]["adapter"] = 36_864
            made.append(record)
    return made


def document():
    roles = {"wise": {"v": 4.0, "o": 3.0, "k": 2.0, "q": 1.0}, "wrong": {"q": 4.0, "k": 3.0, "o": 2.0, "v": 1.0}}
    said = [
        {
            "predictor": name, "roles": list(roles.get(name, "qkvo")),
            "role_scores": list(roles[name].values()) if name in roles else [1.0] * 4,
            "ranks": ranks_of(targets, seed=place), "seconds": 2.5, "peak_bytes": None,
        }
        for place, (name, (targets, _)) in enumerate(MAPS.items())
    ]  # fmt: skip
    return {"predictions": said, "stability": {"wise": {"top": 1.0, "overlap": 0.5}}}


@pytest.fixture
def store(tmp_path):
    root = write_store(tmp_path / "store", records())
    (root / predicted.FILE).write_text(json.dumps(document()), encoding="utf-8")
    return root


def section_of(store, **asked):
    scope = Scope(store)
    (section,) = predicted.sections(scope.read(), scope, **asked)
    return section


def scores_of(name, split="report"):
    """Scores by seed of a placement or a map, straight from the records."""
    place = {key: 56 + 8 * place for place, key in enumerate(MAPS)}
    made = records()
    start = place[name] if name in place else 8 * list(EFFECTS).index(name)
    return np.array([record["scores"][split]["accuracy"] for record in made[start : start + N_SEEDS]])


def test_regret_is_what_the_placement_that_select_names_would_have_gained(store):
    """Named on select, credited on report: an interval that scipy gives for the same pairs."""
    best = max(EFFECTS, key=lambda targets: scores_of(targets, "select").mean())
    frame = section_of(store).tables[0].frame.set_index("predictor")
    assert list(frame.index) == ["wise", "wrong", "qv", "random"], "by regret, then what predicts nothing"
    for name in frame.index.drop(best, errors="ignore"):
        test = scipy_stats.ttest_rel(scores_of(best), scores_of(name))
        interval = test.confidence_interval(0.95)
        assert frame.loc[name, "regret"] == pytest.approx((interval.low + interval.high) / 2)
        assert frame.loc[name, ["regret_low", "regret_high"]].tolist() == pytest.approx([interval.low, interval.high])
    assert frame.loc["wise", "n_seeds"] == N_SEEDS


def test_orders_that_are_known_agree_or_disagree_wholly(store):
    frame = section_of(store).tables[0].frame.set_index("predictor")
    assert frame.loc["wise", ["tau", "rho"]].tolist() == [1, 1]
    assert frame.loc["wrong", ["tau", "rho"]].tolist() == [-1, -1]
    assert np.isnan(frame.loc["random", "tau"]), "roles that are all alike have no order"
    assert frame.loc["wise", "all_tau"] > 0.5 > frame.loc["wrong", "all_tau"]


def test_words_are_those_of_corrected_families_and_the_sentence_says_who_beats_random(store):
    """No map may pass for better than chance by its difference alone."""
    section = section_of(store)
    frame = section.tables[0].frame.set_index("predictor")
    assert frame["random_word"].to_dict() == {"wise": "worse", "wrong": "better", "qv": "", "random": ""}
    assert frame.loc["wrong", "reference_word"] == "better"
    assert "wise better than the random map" in section.sentence and "none shown better than qv" in section.sentence
    assert frame.loc["wise", "overlap"] == 0.5 and np.isnan(frame.loc["wrong", "overlap"])


def study_of(store, words, *, runs):
    """The journal of a study that looked at these runs, with its words of qv: other placement -> word."""
    look = dict.fromkeys(("n_seeds", "level", "spent", "alive", "chosen", "learning")) | {"number": 0, "runs": runs}
    look["findings"] = [{"first": "qv", "second": name, "word": word} for name, word in words.items()]
    setting = {"model": "m-minilm", "task": "t-cola", "adapter": {}, "train": {}}
    content = {"title": "minilm · cola", "metric": "accuracy", "declared": "", "setting": setting, "looks": [look]}
    Journal.of(store, "bake", setting).write(content | {"declaration": {"looks": [8], "margin": 0.02}})


def runs_of(name):
    place = 56 + 8 * list(MAPS).index(name)
    return [record["run_id"] for record in records()[place : place + 8]]


def whose_words(section):
    (note,) = (str(note) for note in section.notes if str(note).startswith("words against qv"))
    return note


def test_maps_of_some_layers_are_held_against_placements_of_those_layers(store, tmp_path):
    """Placements of all layers, at the same budget, are another question, and so are those of the rest."""
    layers = [2, 3, 4, 5]
    plain = []
    for (targets, mean), seed in itertools.product(EFFECTS.items(), range(N_SEEDS)):
        score = mean - 0.1 + 0.001 * seed
        given = {"targets": targets, "rank": RANKS[targets], "seed": seed, "metric": "accuracy", "report": score}
        plain.append(fake_record(**given, adapter={"layers": layers}))
        plain.append(fake_record(**given | {"report": 0.9}, adapter={"layers": [0, 1]}))
    root = write_store(tmp_path / "some", [*records(), *plain])
    (root / predicted.FILE).write_text(json.dumps(document() | {"layers": layers}), encoding="utf-8")
    section = section_of(root)
    assert section.title == "Predictors: minilm · cola · layers 2-5"
    assert section.figure_title == "minilm · cola · layers 2-5" and [*section.figures] == [
        "predictors_minilm_cola_layers-2-5"
    ]
    frame = section.tables[0].frame.set_index("predictor")
    assert frame.loc["qv", "score"] == pytest.approx(EFFECTS["qv"] - 0.1 + 0.0035)
    assert section_of(store).title == "Predictors: minilm · cola"


@pytest.mark.parametrize("is_of_these_runs", [True, False])
def test_a_study_s_words_count_where_it_looked_at_the_map(store, is_of_these_runs):
    """One on other rows of the task, or at another budget, has a map of the same predictor, and says nothing here."""
    runs = [run_id for name in MAPS for run_id in runs_of(name)] if is_of_these_runs else ["of another map"]
    study_of(store, dict.fromkeys(MAPS, "learns more often"), runs=runs)
    section = section_of(store)
    table = section.tables[0].frame.set_index("predictor")
    assert (table.loc["wise", "reference_word"] == "learns more often") == is_of_these_runs
    assert whose_words(section).startswith("words against qv are a study's, those") == is_of_these_runs


def test_words_of_a_fixed_design_are_not_said_to_be_a_study_s(store):
    """A study of the placements alone has the same reference, and its words are of no map; one may lack some maps."""
    study_of(store, {"q": "better", "v": "tied"}, runs=[record["run_id"] for record in records()[:56]])
    assert whose_words(section_of(store)).startswith("words against qv are of a fixed design, those")
    study_of(store, {"q": "better", "wise": "tied"}, runs=runs_of("wise"))
    note = whose_words(section_of(store))
    assert note.startswith("words against qv are a study's for wise, else fixed, those")
    assert "over all its contrasts" in note


def at_another_budget():
    """A map of the wise predictor at half the budget, and plain placements there: records and what was predicted."""
    ranks = ranks_of("vo", seed=9)
    made = []
    for seed in range(N_SEEDS):
        score = 0.65 + 0.01 * seed
        plain = fake_record(targets="qv", rank=2, seed=seed, metric="accuracy", report=score)
        record = fake_record(
            targets="vo", seed=seed, metric="accuracy", report=score, adapter={"rank": ranks, "layers": [2, 3, 4, 5]}
        )
        record["manifest"] = [
            matrix | {"rank": ranks[matrix["module"]]} for matrix in record["manifest"] if matrix["module"] in ranks
        ]
        record["parameters"]["adapter"] = 18_432
        made += [plain, record]
    (wise, *_) = document()["predictions"]
    return made, {"predictions": [wise | {"ranks": ranks}]}


def test_each_bake_off_of_a_setting_is_shown_once(store, tmp_path, monkeypatch):
    """A second one, at another budget, was left out in silence; a copy of the first beside its sweep is no second."""
    monkeypatch.chdir(tmp_path)
    (before,) = predicted.sections(Scope(store).read(), Scope(store))
    made, said = at_another_budget()
    root = write_store(tmp_path / "both", [*records(), *made])
    beside = tmp_path / "sweeps" / "weight_types" / predicted.FILE  # the sweep that these records name
    beside.parent.mkdir(parents=True)
    for path, content in ((root / predicted.FILE, document()), (beside, said)):
        path.write_text(json.dumps(content), encoding="utf-8")
    first, second = predicted.sections(Scope(root).read(), Scope(root))
    assert first.tables[0].frame.equals(before.tables[0].frame)
    whose = [section.title.rpartition(" · ")[2] for section in (first, second)]
    assert whose == ["bake-off 1, 36,864 parameters", "bake-off 2, 18,432 parameters"]
    assert second.tables[0].frame["predictor"].tolist() == ["wise", "qv"]
    assert second.sentence.startswith("On minilm · cola · bake-off 2, 18,432 parameters the maps of 1 predictor")
    assert first.tables[0].name != second.tables[0].name and not {*first.figures} & {*second.figures}
    beside.write_text(json.dumps(document()), encoding="utf-8")
    assert [section.title for section in predicted.sections(Scope(root).read(), Scope(root))] == [before.title]


def test_a_bake_off_without_a_placement_at_its_budget_does_not_take_another_along(tmp_path, monkeypatch):
    """What it lacks stands under the one that is shown."""
    monkeypatch.chdir(tmp_path)
    made, said = at_another_budget()
    root = write_store(tmp_path / "both", [*records(), *made[1::2]])
    beside = tmp_path / "sweeps" / "weight_types" / predicted.FILE
    beside.parent.mkdir(parents=True)
    for path, content in ((root / predicted.FILE, document()), (beside, said)):
        path.write_text(json.dumps(content), encoding="utf-8")
    section = section_of(root)
    assert "wrong" in section.tables[0].frame["predictor"].tolist()
    assert any("18,432 parameters: no plain placement was trained" in line for line in section.refused)


def test_the_command_writes_a_table_and_a_figure(store, tmp_path, capsys):
    (store / predicted.FILE).rename(tmp_path / "elsewhere.json")
    assert run("predictors", store, tmp_path / "out", "--predictions", str(tmp_path / "elsewhere.json")) == 0
    said = capsys.readouterr()
    assert "wise" in said.out and "could not be drawn" not in said.err
    assert (tmp_path / "out/figures/predictors_minilm_cola.png").is_file()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "no predictions.json in the store"),
        ("{", "is no file of lora-bench predict"),
        ("[]", "is no file of lora-bench predict"),
        ('{"predictions": [{"predictor": "wise"}]}', "is no file of lora-bench predict"),
        ('{"predictions": []}', "no run trained a map"),
        ('{"predictions": [], "layers": "last:6"}', "is no file of lora-bench predict"),
    ],
    ids=["absent", "cut", "a_list", "without_ranks", "of_other_maps", "layers_in_words"],
)
def test_what_is_lacking_is_said_in_a_line(tmp_path, written, message):
    """A report of any other store has that line in place of the section."""
    root = write_store(tmp_path / "store", records()[:16])
    if written is not None:
        (root / predicted.FILE).write_text(written, encoding="utf-8")
    with pytest.raises(NothingToShow, match=message) as told:
        section_of(root)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("archive", "head"),
    [
        ("predictors_sst2_500", "regret, points"),
        ("predictors_sentiment_800", "regret on sentiment"),
        ("predictors_smollm2_sst2_500", "regret on SmolLM2"),
    ],
)
def test_the_published_bake_offs_are_those_of_their_records(archive, head):
    """No regret from prose: the page's table is what the archive's scores and predictions give."""
    scope = Scope(ROOT / "results" / archive)
    (section,) = predicted.sections(scope.read(), scope)
    page = (ROOT / "docs" / "predictors.md").read_text(encoding="utf-8")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.partition(f"| map of | {head}")[2].splitlines()[2:9]
    ]
    by_name = section.tables[0].frame.set_index("predictor")
    assert len(lines) == len(by_name) - 1  # qv's own is zero
    for line in lines:
        row = by_name.loc[line[0].split("`")[1]]
        assert line[1] == wording.plus_minus(row["regret"], row["regret_high"], wording.signed)
        assert line[2:4] == [row["reference_word"], row["random_word"] or ""]
        assert line[4] == ("–" if np.isnan(row["tau"]) else f"{row['tau']:.2f}".replace("-", "−"))
    assert "none shown better than qv, none shown better than the random map" in section.sentence


def text_of_the_page():
    return " ".join((ROOT / "docs" / "predictors.md").read_text(encoding="utf-8").split())


def last_look(archive):
    """An archived study's runs, its last look, and there each placement's runs and score at its chosen rate."""
    store = ROOT / "results" / archive
    frame = Scope(store).read()
    (journal,) = journals(store)
    content = journal.read()
    assert content is not None
    look = content["looks"][-1]
    looked = frame[frame["run_id"].isin(look["runs"])]
    cells = {name: looked[(looked["targets"] == name) & (looked["lr"] == look["chosen"][name])] for name in PLACEMENTS}
    assert {len(cell) for cell in cells.values()} == {8}
    return frame, look, cells, {name: wording.points(cell["report"].mean()) for name, cell in cells.items()}


def test_the_scores_beside_the_second_bake_off_are_those_of_its_records():
    frame, look, cells, report = last_look("predictors_sentiment_800")
    select = {name: wording.points(cell["select"].mean()) for name, cell in cells.items()}
    page = text_of_the_page()
    head = wording.points(frame.loc[frame["method"] == "head_only", "report"].mean())
    assert select["qv"] == select["qk"]
    assert f"({select['k']} there, as qv and qk have {select['qv']})" in page
    scores = ", ".join(f"{name}{' has' * (name == 'q')} {report[name]}" for name in ("q", "k", "v", "o", "qk"))
    assert f"on report {scores}, qv {report['qv']} and qkvo {report['qkvo']}, and the head alone {head}" in page
    spreads = [100 * finding["sd"] for finding in look["findings"]]
    assert f"sd of a difference is {min(spreads):.1f} to {max(spreads):.1f} points" in page and len(spreads) == 13


def test_the_scores_beside_the_bake_off_on_the_decoder_are_those_of_its_records():
    frame, look, _, report = last_look("predictors_smollm2_sst2_500")
    page = text_of_the_page()
    head = wording.points(frame.loc[frame["method"] == "head_only", "report"].mean())
    scores = ", ".join(f"{name}{' has' * (name == 'qkvo')} {report[name]}" for name in ("qkvo", "v", "qv", "o"))
    rest = f"qk {report['qk']}, q {report['q']} and k {report['k']}, the head alone {head}"
    assert f"{scores}, {rest}" in page
    findings = {finding["second"]: finding for finding in look["findings"]}
    assert {name for name, one in findings.items() if one["word"] == "better"} == {"q", "qk"}
    maps = {name: one for name, one in findings.items() if name not in PLACEMENTS}
    assert {one["word"] for one in maps.values()} == {"open"} and len(maps) == 7 and "none of the seven is told" in page
    assert {name for name, one in maps.items() if one["n_failed"] != [0, 0]} == {"stable_rank"}
    failing = maps.pop("stable_rank")
    assert failing["n_failed"] == [0, 3] and failing["n_pairs"] == 5 and "at which three of its eight seeds" in page
    assert f"qv is {100 * failing['difference']:.1f} ahead over the five others" in page
    spreads, differences = ([100 * one[key] for one in maps.values()] for key in ("sd", "difference"))
    assert f"the sd of such a difference is {min(spreads):.1f} to {max(spreads):.1f} points" in page
    assert f"qv is {min(differences):.1f} to {max(differences):.1f} points ahead of six of the maps" in page
    plain = max(100 * one["sd"] for name, one in findings.items() if name in PLACEMENTS)
    assert f"that between qv and a placement at most {plain:.1f}" in page
    k = frame[frame["targets"] == "k"].groupby("lr")["select"].mean().max()
    floor = frame.loc[frame["method"] == "head_only", "select"].mean()
    assert f"({wording.points(k)} at best, the head {wording.points(floor)})" in page
    assert f"{wording.signed(findings['k']['difference'])} over it is no word" in page
    assert findings["k"]["word"] not in ("better", "open")


def test_what_the_page_says_of_the_maps_on_the_decoder_is_in_its_predictions():
    """The roles that come first, the share of one map that the MLP has, and a map's other rate."""
    root = ROOT / "results" / "predictors_smollm2_sst2_500"
    written = json.loads((root / predicted.FILE).read_text(encoding="utf-8"))["predictions"]
    said = {one["predictor"]: one for one in written if one["predictor"] not in predicted.NULLS}
    page = text_of_the_page()
    firsts = {next(role for role in one["roles"] if role in "qkvo") for one in said.values()}
    assert firsts == {"v"} and len(said) == 5 and "All five predictors put v first of the four roles" in page
    ranks = said["stable_rank"]["ranks"]
    costs = {"q_proj": 1152, "k_proj": 768, "v_proj": 768, "o_proj": 1152}  # of the MLP's three, 576 + 1536
    parts = {module: rank * costs.get(module.rpartition(".")[2], 2112) for module, rank in ranks.items()}
    assert sum(parts.values()) == said["stable_rank"]["parameters"]
    share = sum(part for module, part in parts.items() if ".mlp." in module) / sum(parts.values())
    assert f"its map spends {100 * share:.0f} % there" in page
    (section,) = predicted.sections((scope := Scope(root)).read(), scope)
    table = section.tables[0].frame.set_index("predictor")
    behind = table.loc["stable_rank", "regret"] - table.loc["qv", "regret"]
    assert f"where all learn and qv is {100 * behind:.1f} ahead" in page
    assert table.index[table["regret_low"] > 0].drop("qv", errors="ignore").tolist() == ["gradient_energy"]
    assert "The interval of `gradient_energy` excludes zero, by itself" in page


def test_the_page_says_over_what_words_are_corrected(store):
    """A study's family holds the placements, so its words are not corrected over the maps alone."""
    page = text_of_the_page()
    (journal,) = journals(ROOT / "results" / "predictors_sst2_500")
    content = journal.read()
    assert content is not None
    others = {finding["second"] for finding in content["looks"][-1]["findings"]}
    assert {*PLACEMENTS} - others == {"qv"} and others - {*PLACEMENTS}
    assert "Words of a fixed design are Holm-corrected over the maps, a study's over all its contrasts" in page
    assert "such are Holm-corrected over the maps, a study's over all its contrasts" in whose_words(section_of(store))
