"""What is said of W&B before a sweep trains."""

from types import SimpleNamespace

import pytest

from lora_bench.launch import carry_out
from lora_bench.store import open_store
from lora_bench.store.journal import Journal

SMALL = ("-m", "model=tiny", "task.train_rows=40", "task.report_rows=20", "seed=0,1")


@pytest.mark.parametrize("workers", [1, 2])
def test_that_there_is_no_key_is_said_once_and_before_anything_trains(command, training, monkeypatch, workers):
    """It came below a sweep's last table, when the runs had been mirrored offline for hours."""
    said = []
    monkeypatch.setattr("lora_bench.tracking.live._has_key", lambda url: False)
    monkeypatch.setattr("lora_bench.tracking.live.log.info", lambda text, *_: said.append((text, len(training.packs))))
    if workers > 1:
        launch = "lora_bench.launch.jobs.Crew.train"
        monkeypatch.setattr(launch, lambda crew, references, n_workers: training.packs.append(references) or [])
    command(*SMALL, "tracking.mode=auto", "hydra.sweeper.pack_size=1", f"hydra.sweeper.workers={workers}")
    notices = [before for text, before in said if "no W&B key" in text]
    assert notices == [0]
    assert training.packs


def test_a_studys_words_are_in_the_summary_of_its_analysis(tmp_path):
    """The mirror shows what was found, not curves alone; families of other plans are none of its findings."""
    findings = [{"first": "qv", "second": "q", "word": "better"}, {"first": "qv", "second": "v", "word": "open"}]
    look = {"n_seeds": 8, "findings": findings, "runs": ["a", "b"], "number": 0, "level": 0.05, "spent": 0.05}
    look |= {"alive": {}, "chosen": {}, "learning": {}}
    head = {"metric": "accuracy", "declared": "", "declaration": {}, "setting": {}}
    families = {"of it": [look, {**look, "n_seeds": 16}], "not looked at": [], "other": [{**look, "runs": ["z"]}]}
    for name, looks in families.items():
        Journal.of(tmp_path, name, {}).write({"title": name, "looks": looks, **head})
    plan = SimpleNamespace(runs={"b": None})
    said = carry_out._looks(open_store(tmp_path), plan)
    assert said == {"of it": {"looks": 2, "seeds": 16, "qv - q": "better", "qv - v": "open"}}
