"""What a report says of a study: the words of its journal, wherever its runs are."""

from dataclasses import replace

import pandas as pd
import pytest

from fake_store import fake_record, write_store
from launch.test_study_runs import Lab
from lora_bench.launch import study
from lora_bench.paths import resource_root
from lora_bench.questions import families, page, studies, weight_types
from lora_bench.reports.figures import verdicts
from lora_bench.reports.publish import write_archive
from lora_bench.reports.scope import Scope
from lora_bench.store import open_store
from lora_bench.store.journal import FILE, FOLDER, Journal, journals
from lora_bench.verdicts import looks, pairwise


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("study") / "runs", stuck={("q", 3)})
    assert lab.launch().is_over
    return lab


def test_the_words_are_those_of_the_journal(lab):
    """The page says what the study said, not what its scores would say at one look."""
    (section,) = studies.sections(lab.root)
    last = lab.journal["looks"][-1]
    frame = section.tables[0].frame
    assert len(frame) == 2
    assert frame["word"].tolist() == [finding["word"] for finding in last["findings"]]
    assert "qv is better than q, tied with v" in section.sentence
    assert frame.set_index("second").at["q", "failed_shown"].startswith("q 1 of")
    assert set(section.figures) == {section.tables[0].name}


def journal_of(lab, words, **of_look):
    """The study's journal, had its look these words of qv: other placement -> (word, chance of one)."""
    look = lab.journal["looks"][-1]
    waits = (looks.OPEN, looks.UNTOLD)
    findings = [
        look["findings"][0] | {"second": name, "word": word, "look": None if word in waits else 0, "chance": chance}
        for name, (word, chance) in words.items()
    ]
    alive = {name: [1e-3] for name in ("qv", *words)}
    changed = look | {"number": 0, "findings": findings, "alive": alive} | of_look
    return lab.journal | {"looks": [changed]}


SAID = {
    looks.BETTER: "is better than {}",
    looks.WORSE: "is worse than {}",
    looks.TIED: "is tied with {}",
    looks.MORE_OFTEN: "learns more often than {}",
    looks.LESS_OFTEN: "learns less often than {}",
    looks.OPEN: "is open against {}",
    looks.NOT_LEARNED: "is not compared with {}, since one of {} did not learn at any rate tried",
    looks.UNTOLD: "is not compared with {}, since one of {} is not told from the head alone",
}


@pytest.mark.parametrize("word", [*looks.DIFFERENT, looks.TIED, looks.OPEN, looks.NOT_LEARNED, looks.UNTOLD])
def test_every_word_is_a_clause_of_its_own_verb(lab, word):
    """A published page once read `qv is learns more often than q and k`."""
    for names, of_pair in (("q", "the two"), ("qk", "each pair")):
        said = studies.sentence("tiny", journal_of(lab, dict.fromkeys(names, (word, None))))
        assert said.endswith(f": qv {SAID[word].format(' and '.join(names), of_pair)}.")


def test_a_verb_is_said_again_only_where_it_changes(lab):
    """Of `learns more often than q, open against v` a reader cannot tell what v is."""
    words = {"o": looks.OPEN, "q": looks.MORE_OFTEN, "k": looks.LESS_OFTEN, "v": looks.TIED, "qk": looks.BETTER}
    said = studies.sentence("tiny", journal_of(lab, {name: (word, None) for name, word in words.items()}))
    assert said.endswith(
        ": qv is better than qk, tied with v, learns more often than q, less often than k, is open against o."
    )


def test_what_may_yet_learn_is_not_said_to_be_no_better_than_the_head(lab):
    """No better than the head alone takes a test of its own; that it is open whether a placement learns is no such."""
    words = {"q": (looks.NOT_LEARNED, None), "k": (looks.UNTOLD, None), "v": (looks.TIED, None)}
    learning = {"qv": looks.LEARNS, "q": looks.FLAT, "k": looks.UNPROVEN, "v": looks.LEARNS}
    notes = [str(note) for note in studies.section("tiny", journal_of(lab, words, learning=learning), head="").notes]
    assert "no better than the head alone on select, at any rate tried: q" in notes
    assert "not told from the head alone on select, nor shown to be no better: k" in notes


STOPPED = "no more seeds, since the chance of a word at 8 is below 10 %"


@pytest.mark.parametrize(
    ("chances", "n_seeds", "notes"),
    [
        ({"q": 0.4, "v": None}, 4, ["open: qv − q and qv − v; the same command goes on"]),
        ({"q": 0.4, "v": 0.09}, 4, ["open: qv − q; the same command goes on", f"open: qv − v; {STOPPED}"]),
        ({"q": 0.02, "v": 0.09}, 4, [f"open: qv − q and qv − v; {STOPPED}"]),
        ({"q": 0.4, "v": None}, 8, []),
    ],
    ids=["all_go_on", "one_is_futile", "it_is_over", "no_look_is_left"],
)
def test_more_seeds_are_promised_only_where_a_study_gives_some(lab, chances, n_seeds, notes):
    """Whoever runs the same command again for a contrast that is given up trains nothing."""
    words = {name: (looks.OPEN, chance) for name, chance in chances.items()}
    section = studies.section("tiny", journal_of(lab, words, n_seeds=n_seeds), head="")
    assert [str(note) for note in section.notes if str(note).startswith("open: ")] == notes


def test_a_pair_of_little_chance_is_judged_again_where_other_pairs_bring_its_seeds(all_pairs):
    """`scheme.follow` adds seeds to placements, and judges every open pair of those."""
    look = all_pairs.journal["looks"][-1]
    chances = {("q", "v"): 0.01, ("q", "qv"): 0.5, ("v", "qv"): 0.5}
    findings = [
        finding | {"word": looks.OPEN, "look": None, "chance": chances[finding["first"], finding["second"]]}
        for finding in look["findings"]
    ]
    declared = all_pairs.journal["declaration"] | {"looks": [look["n_seeds"], 99]}
    content = all_pairs.journal | {"declaration": declared, "looks": [look | {"findings": findings}]}
    notes = [str(note) for note in studies.section("tiny", content, head="").notes]
    assert "open: q − v, q − qv and v − qv; the same command goes on" in notes


def test_failed_seeds_have_a_column_where_some_failed(lab):
    """An empty column takes a fifth of a narrow page, and makes a reader ask what is missing."""
    published = studies.sections(resource_root() / "results" / "study_sst2_1000")
    tables = [section.tables[0] for section in (*studies.sections(lab.root), *published)]
    shown = ["failed seeds" in [column.title for column in table.columns] for table in tables]
    assert shown == [any(table.frame["failed_shown"]) for table in tables]
    assert set(shown) == {True, False}


def test_many_studies_side_by_side_are_told_in_few_words(undrawn):
    """Every title beside every word was a wall of twelve lines."""
    archives = ("study_sst2_1000", "qnli_2000", "qqp_2000")
    several = [study for name in archives for study in studies.sections(resource_root() / "results" / name)]
    (section,) = families.side_by_side(several)
    assert section.sentence.startswith("4 studies give 0 of 6 contrasts the same word; qv − q is better on 3, ")
    assert "; qv − v is open on 3, better on all-MiniLM-L6-v2 · sst2; " in section.sentence


def test_studies_of_one_question_stand_side_by_side(lab, undrawn):
    """Whether a finding holds on another backbone is what a second study is for; two pages hide it."""
    (section,) = studies.sections(lab.root)
    other = replace(section, about="small · cola", words=section.words.assign(word=["better", "open"]))
    (beside,) = families.side_by_side([section, other])
    assert beside.sentence.startswith("2 studies give 1 of 2 contrasts the same word; qv − v is ")
    assert beside.sentence.endswith("tied on tiny · acceptability, open on small · cola.")
    both = [replace(section, about=name, words=section.words.assign(word=["better", "open"])) for name in "ab"]
    (open_twice,) = families.side_by_side(both)
    assert open_twice.sentence == "2 studies give 1 of 2 contrasts the same word; qv − v is settled by none."
    shown = beside.tables[0].shown()
    assert [row[0] for row in shown] == ["qv − q", "qv − v"]
    for row, words in zip(shown, section.words.to_dict("records"), strict=True):
        assert words["interval_shown"] in row[1] and row[1].endswith(f", {words['word']}")
    assert list(beside.figures) == ["studies"]
    fewer = replace(section, words=section.words.iloc[:1])
    assert families.side_by_side([section]) == families.side_by_side([section, fewer]) == []


def test_panels_are_headed_by_backbone_layers_task_and_rows(lab, monkeypatch):
    """A file's name and `layers 24-29` say neither what was trained nor of how many layers."""
    drawn: list[list[str]] = []
    monkeypatch.setattr(verdicts, "contrasts_beside", lambda panels: drawn.append(list(panels)))
    published = studies.sections(resource_root() / "results" / "study_sst2_1000")
    families.side_by_side(published)
    decoder, encoder = "SmolLM2-135M-Instruct, last 6 of 30 layers", "all-MiniLM-L6-v2"
    assert drawn.pop() == [f"{name}\nsst2, 1,000 rows" for name in (decoder, encoder)]
    (section,) = studies.sections(lab.root)
    families.side_by_side([section, replace(section, about="tiny · acceptability, family 2")])
    assert drawn == [["tiny · acceptability", "tiny · acceptability, family 2"]]


@pytest.mark.parametrize(
    ("asked", "layers", "says"),
    [("last:2", [4, 5], "last 2 of 6 layers"), ("4-5", [4, 5], "layers 4-5"), ("first:2", [0, 1], "first 2 layers")],
)
def test_layers_are_told_as_their_command_asked_for_them(asked, layers, says, tmp_path):
    """That 4 and 5 are the last two is known where the command says so, of records that are there."""
    record = fake_record(adapter={"layers": layers})
    record["invocation"]["overrides"] = [f"adapter.layers={asked}"]
    store = write_store(tmp_path / "store", [record])
    content = {"title": "a.Q4_K_M.gguf · cola", "setting": {"adapter": {"layers": layers}}}
    told = [studies.head(content | {"looks": [{"runs": [run]}]}, store) for run in (record["run_id"], "0" * 16)]
    plain = says if asked != "last:2" else "layers 4-5"
    assert told == [f"a, {says}\ncola", f"a, {plain}\ncola"]


def test_the_page_begins_with_the_study(lab, tmp_path):
    """Its words hold over its looks; they stand before those of one look."""
    scope = Scope(lab.root)
    made = page.build(scope.read(), scope, out=tmp_path, title="runs")
    assert made["verdict"][0].startswith("On tiny · acceptability, after look")
    assert "Study: tiny · acceptability" in made["html"]
    assert pd.read_csv(tmp_path / "tables" / "study_tiny---acceptability.csv")["word"].tolist() == ["better", "tied"]


def test_an_archive_carries_the_journal(lab, tmp_path):
    """Whoever fetches the records reads the words as they were given, and one that lacks a run does not have them."""
    published = write_archive([open_store(lab.root)], tmp_path / "archive")
    assert published.manifest["studies"] == 1
    assert [journal.read() for journal in journals(tmp_path / "archive")] == [lab.journal]
    assert studies.sections(tmp_path / "archive")[0].sentence == studies.sections(lab.root)[0].sentence
    write_archive([open_store(tmp_path / "archive")], tmp_path / "again")
    assert len(journals(tmp_path / "again")) == 1


def test_a_store_without_a_study_has_no_such_section(tmp_path):
    """Fixed designs stay what they are."""
    assert studies.sections(tmp_path) == []


@pytest.fixture(scope="module")
def all_pairs(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("pairs") / "runs", stuck={("q", 1)})
    lab.out.width = 80
    ended = lab.launch(reference=None, pairs="all", rates=[3e-3], looks=[5])
    study.conclude(lab.families, ended, open_store(lab.root), lab.out, command=["lora-bench"])
    return lab


@pytest.mark.parametrize(
    ("changed", "titles"),
    [
        ({"train": {"epochs": 5.0}}, ["epochs 2", "epochs 5"]),
        ({"adapter": {"layers": [0, 1, 3]}}, ["", "layers 0-1, 3"]),
        ({"adapter": {"dropout": 0.5}}, ["adapter.dropout 0", "adapter.dropout 0.5"]),
        ({"task": {"train_rows": 100}}, ["train rows 200", "train rows 100"]),
        ({"train": {"dropout": 0.5}}, ["train.dropout None", "train.dropout 0.5"]),
        ({"model": "another"}, None),
        ({"train": {"epochs": 1.0, "batch_size": 9, "max_length": 32}}, ["batch size 8", "batch size 9"]),
        ({"task": {"train_draw": "seed"}, "train": {"epochs": 1.0, "batch_size": 9}}, ["", "train draw seed"]),
    ],
)
def test_studies_of_one_title_are_told_apart_by_what_differs(lab, tmp_path, changed, titles):
    """Of "family 1" and "family 2" a reader cannot know which was which. They stand in the order of declaration."""
    setting = {"model": "backbone", "adapter": {"layers": "all", "dropout": 0.0}, "first_seed": 0}
    setting |= {"task": {"name": "topics", "fingerprint": "rows", "train_rows": 200}}
    setting |= {"train": {"epochs": 2.0, "batch_size": 8, "max_length": 64, "dropout": None}}
    other = {
        key: value | changed.get(key, {}) if isinstance(value, dict) else changed.get(key, value)
        for key, value in setting.items()
    }
    for name, day, of_family in (("z", 1, setting), ("a", 2, other)):
        declared = {"declared": f"2026-01-0{day}", "setting": of_family}
        Journal(tmp_path / FOLDER / name / FILE).write(lab.journal | declared)
    told = [section.title.removeprefix("Study: tiny · acceptability") for section in studies.sections(tmp_path)]
    named = [f" · {title}" if title else "" for title in titles or []]
    assert told == (named or [", family 1", ", family 2"])


def test_all_pairs_are_one_matrix_of_words_wherever_a_reader_looks(all_pairs):
    """Twenty-one lines hide who is ahead: terminal and page have the words of the journal side by side."""
    (section,) = studies.sections(all_pairs.root)
    matrix = next(table.frame.set_index("it is, against") for table in section.tables if table.name.endswith("_matrix"))
    findings = all_pairs.journal["looks"][-1]["findings"]
    assert len(findings) == 3
    for finding in findings:
        first, second = finding["first"], finding["second"]
        assert matrix.at[first, second] == finding["word"]
        assert matrix.at[second, first] == pairwise.OPPOSITE.get(finding["word"], finding["word"])
    last = all_pairs.said[all_pairs.said.rindex("it is, against") :].splitlines()
    for name, line in zip(matrix.index, last[1:], strict=False):
        assert line.split() == [name, *(word for word in matrix.loc[name] if word)]
    assert "qv is better than q" in section.sentence and section.sentence.split(": ")[-1][:-1] in last[4]


def test_all_pairs_take_a_line_each_on_eighty_columns(all_pairs):
    """With differences and intervals; what several share, such as failed seeds, is said once below."""
    table = all_pairs.said[all_pairs.said.index("contrast ") :].splitlines()[:7]
    assert [line.split("  ")[0] for line in table[1:4]] == ["q − v", "q − qv", "v − qv"]
    assert all(len(line) <= 80 for line in table)
    assert sum("q 1 of 5" in line for line in table) == 1


@pytest.mark.parametrize("is_asked", [True, False])
def test_placements_are_held_against_each_other_where_a_study_asked_for_it(is_asked, all_pairs, lab):
    """A reference that nobody declared hides the pairs without it."""
    root = (all_pairs if is_asked else lab).root
    scope = Scope(root)
    (section,) = weight_types.sections(scope.read(), scope)
    on_screen = {table.name for table in section.tables if any(column.on_screen for column in table.columns)}
    of_pairs = {name for name in on_screen if "_pairs" in name}
    assert len(of_pairs) == 2 * is_asked
    assert any(name.endswith("_contrasts") for name in on_screen) != is_asked
    assert ("v is better than q; qv is better than q" in section.sentence) == is_asked
    shown = {column.name for column in section.tables[0].columns if column.on_screen}
    assert ("chance_of_best" in shown) == is_asked
