"""What is said of W&B before a sweep trains."""

import pytest

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
