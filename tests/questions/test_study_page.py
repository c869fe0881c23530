"""What a report says of a study: the words of its journal, wherever its runs are."""

import pandas as pd
import pytest

from launch.test_study_runs import Lab
from lora_bench.questions import page, studies
from lora_bench.reports.publish import write_archive
from lora_bench.reports.scope import Scope
from lora_bench.store import open_store
from lora_bench.store.journal import journals


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
