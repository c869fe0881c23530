"""What a study's placements are called, where their searches start, and which of them are a family."""

import functools
import re
from typing import Any

import pytest
from test_study_runs import DECLARED, Lab, compose

from lora_bench.config.errors import ConfigError
from lora_bench.launch import placements
from lora_bench.launch.families import Declared, families
from lora_bench.launch.plan import Candidate
from lora_bench.store import open_store
from lora_bench.store.journal import journals
from tiny import tiny_config

PRESETS = {"lora": {}, "dora": {"method": "dora"}, "pissa": {"init": "pissa"}, "full": {"method": "full"}}
FAMILIES = {
    "placements": ([("q",), ("qv",)], ["adapter.targets"], ["q", "qv"]),
    "ranks_of_one": ([("qv", 1), ("qv", 64)], ["adapter.rank"], ["r=1", "r=64"]),
    "ranks_of_two": (
        [("q", 1), ("qv", 1), ("qv", 4)], ["adapter.targets", "adapter.rank"], ["q r=1", "qv r=1", "qv r=4"]
    ),
    "depths": ([("qv", None, "all"), ("qv", None, r"first\:1")], ["adapter.layers"], ["all layers", "first:1"]),
    "methods": (
        [("qv", None, None, "lora"), ("qv", None, None, "dora"), ("qv", None, None, "pissa"), ("", None, None, "full")],
        ["adapter"],
        ["LoRA", "DoRA", "PiSSA", "full fine-tuning"],
    ),
    "methods_and_placements": (
        [("q", None, None, "dora"), ("qv", None, None, "dora"), ("", None, None, "full")],
        ["adapter.targets", "adapter"],
        ["q DoRA", "qv DoRA", "full fine-tuning"],
    ),
}  # fmt: skip


def candidate(targets, rank=None, layers=None, preset=None):
    given = {"adapter.targets": targets, "adapter.rank": rank, "adapter.layers": layers, "adapter": preset}
    config = tiny_config(**{f"adapter__{key}": value for key, value in PRESETS[preset or "lora"].items()})
    config.adapter.targets = targets or "qv"
    return Candidate(config, tuple(f"{key}={value}" for key, value in given.items() if value))


@pytest.mark.parametrize(("points", "axes", "names"), FAMILIES.values(), ids=FAMILIES)
def test_a_placement_is_called_what_a_paper_calls_it(points, axes, names):
    """Words of a study are read apart from the sweep file that knows what `adapter=` means."""
    candidates = [candidate(*point) for point in points]
    axes = [axis for axis in axes if any(axis in " ".join(given.overrides) for given in candidates)]
    assert placements.names(candidates, axes) == names


def test_a_placement_of_a_file_is_called_by_its_folder():
    """The targets of its configuration are not what the file adapts."""
    named = candidate("qv")
    named.config.adapter.like = "maps/plop/adapter_config.json"
    named = Candidate(named.config, ("adapter.like=maps/plop/adapter_config.json", "adapter.budget=null"))
    axes = ["adapter.targets", "adapter.like", "adapter.budget"]
    assert placements.names([candidate("q"), candidate("qv"), named], axes) == ["q", "qv", "plop"]


def test_names_that_two_placements_would_share_have_the_keys_in_them():
    """`4` of the layers and `4` of another setting must not be one placement."""
    first, second = candidate("qv", 4), candidate("qv", 4)
    made = placements.names([first, second], ["adapter.rank"])
    assert made == placements.written_out([first, second], ["adapter.rank"])


def test_a_placement_starts_at_its_own_rates_and_a_change_of_them_is_refused(tmp_path):
    """Full fine-tuning at LoRA's rates diverges, and rates chosen after a look choose its words."""
    lab = Lab(tmp_path)
    own = {"q": [3e-3, 1e-2, 3e-2]}
    ended = lab.launch(rates_of=own, looks=[4])
    assert ended.is_over
    tried = ended.courses[0].tried
    assert set(own["q"]) <= set(tried["q"]) and not set(own["q"]) <= set(tried["v"])
    written: Any = lab.journal
    assert written["declaration"]["rates_of"] == own
    assert "q from 0.003, 0.01, 0.03" in lab.said
    with pytest.raises(ConfigError, match=r"rates_of q 0.003, 0.01, 0.03 \(now none\)"):
        lab.launch(looks=[4])


def test_a_journal_from_before_goes_on_under_its_names(tmp_path, monkeypatch):
    """It has no rates by placement, and calls placements as sweeps do: neither is a change of what was declared."""
    lab = Lab(tmp_path)
    lab.launch(looks=[4])
    (journal,) = journals(tmp_path)
    written: Any = lab.journal
    del written["declaration"]["rates_of"]
    journal.write(written)
    monkeypatch.setattr(placements, "names", lambda candidates, axes: ["Q", "V", "QV"])
    n_runs = len(lab.trained)
    assert lab.launch(looks=[4]).is_over and len(lab.trained) == n_runs
    assert lab.families[0].declaration.placements == ("q", "v", "qv")


def declare(root, **section):
    declared = Declared.read(DECLARED | section, sweep="mine")
    points = [(f"adapter.targets={name}",) for name in ("q", "v", "qv")]
    return families("mine", declared, points, functools.partial(compose, root), open_store(root))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rates_of": {"full": [1e-4]}}, "study.rates_of.full: no placement has this value; values are q, qv and v"),
        ({"rates_of": {"q": "slow"}}, "study.rates_of.q: no 'slow'; give such as [1e-4,3e-4,1e-3]"),
        ({"rates_of": [1e-4]}, "study.rates_of: no [0.0001]; give rates by value, such as full: [1e-4,3e-4,1e-3]"),
        ({"rates_of": {"q": [-1e-4]}}, "study.rates: ascending and above 0; got -0.0001"),
        ({"apart": "train.epochs"}, "study.apart: no 'train.epochs'; give a key of the adapter"),
        ({"apart": "adapter.targets"}, "study.placements: two or more"),
    ],
)
def test_rates_and_families_that_cannot_be_are_told(tmp_path, section, said):
    """By the key, the value and what would work."""
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        declare(tmp_path, **section)
    assert "\n" not in str(refused.value)


def test_a_reference_is_found_in_any_spelling(tmp_path):
    """Whoever types `QV` or `lora` means the placement."""
    (family,) = declare(tmp_path, reference="QV")
    assert family.declaration.reference == "qv"


def test_families_that_a_key_sets_apart_have_journals_and_titles_of_their_own(command):
    """Each placement's ranks are compared with its own rank 1, and not with another placement's."""
    ended = command(
        *("study=rank", "model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20"),
        *("adapter.rank=1,2", "dry_run=true"),
    )
    assert ended.status == 0, ended.text
    for targets in ("q", "qv", "qkvo"):
        assert f"study of tiny · acceptability · {targets}: r=1 against r=2;" in ended.out
    assert ended.out.count("task acceptability:") == 1
