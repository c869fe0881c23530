"""Section 7 from end to end: norms of weights whose spectrum is known, A before training, and scripts without torch."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import rank as rank_command
from analysis import report as report_command
from analysis import subspace as subspace_command
from analysis import weight_types as weight_types_command
from fake_store import fake_record, rank_records, weight_types_records, write_store, write_with_adapters
from lora_bench.questions import subspaces
from lora_bench.reports.figures import style
from lora_bench.store.folder import Store
from lora_bench.verdicts import subspace
from patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("quick")


def shown(script, store: Path, out: Path, capsys, *options: str) -> str:
    status = script.main(["--store", str(store), "--out", str(out), *options])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return " ".join(captured.out.split())


# ---------------------------------------------------------------- norms


@pytest.fixture
def known():
    """A backbone whose first q has singular values 32 .. 1 in known directions."""
    import torch

    from lora_bench.models import backbone
    from lora_bench.training.resolve import resolve
    from tiny import tiny_config

    run = resolve(tiny_config(adapter__targets="q"))
    loaded = backbone.load(run.blueprint, precision="fp64", device=torch.device("cpu"))
    loaded = replace(loaded, model=copy.deepcopy(loaded.model))
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(32, 32)))[0] for _ in range(2))
    values = np.arange(32.0, 0, -1)
    matrix = run.matrices[0]
    weight = torch.from_numpy(left @ np.diag(values) @ right.T)
    loaded.model.get_submodule(matrix.module).get_parameter("weight").data = weight
    return loaded, matrix, left, right, values


@pytest.mark.parametrize("at", [0, 8], ids=["in_the_weights_first_directions", "further_down"])
def test_norms_in_the_record_are_those_of_a_known_spectrum(known, at):
    import torch

    from lora_bench.models.adapters import AdapterState, LowRank
    from lora_bench.training.norms import matrix_norms

    loaded, matrix, left, right, values = known
    rank = matrix.rank
    A, B = right[:, at : at + rank].T, left[:, at : at + rank]
    state = AdapterState({matrix.module: LowRank(torch.from_numpy(A), torch.from_numpy(B), 0.5)}, {})
    (row,) = matrix_norms(loaded, [matrix], state)
    assert row["weight"] == pytest.approx(np.linalg.norm(values))
    assert row["update"] == pytest.approx(0.5 * np.sqrt(rank))
    assert row["weight_in_update"] == pytest.approx(np.linalg.norm(values[at : at + rank]))
    assert row["weight_in_weight"] == pytest.approx(np.linalg.norm(values[:rank]), rel=1e-6)
    assert row["weight_in_random"] < row["weight_in_weight"] / 2
    factor = 0.5 * np.sqrt(rank) / np.linalg.norm(values[at : at + rank])
    assert subspace.amplification(row["update"], row["weight_in_update"]) == pytest.approx(factor)


def test_the_leading_direction_in_the_record_is_that_of_the_whole_update(known):
    """Against a decomposition of the update in full, which the run never forms."""
    import torch

    from lora_bench.models.adapters import AdapterState, LowRank
    from lora_bench.training.norms import matrix_norms

    loaded, matrix, left, right, values = known
    rng = np.random.default_rng(1)
    A, B = rng.normal(size=(matrix.rank, 32)), rng.normal(size=(32, matrix.rank))
    state = AdapterState({matrix.module: LowRank(torch.from_numpy(A), torch.from_numpy(B), 0.5)}, {})
    (row,) = matrix_norms(loaded, [matrix], state)
    columns, singular, rows = np.linalg.svd(0.5 * B @ A)
    assert row["update_leading"] == pytest.approx(singular[0])
    assert row["weight_in_leading"] == pytest.approx(abs(columns[:, 0] @ (left * values) @ right.T @ rows[0]))


def test_random_directions_hold_what_chance_gives(known):
    """E ||U^T W V||^2 = r^2 / d^2 ||W||^2 for random r-dimensional U and V, over many modules' streams."""
    import torch

    from lora_bench.models.adapters import AdapterState, LowRank
    from lora_bench.training.norms import matrix_norms

    loaded, matrix, left, right, values = known
    weight = loaded.model.get_submodule(matrix.module)
    parent, name = matrix.module.rsplit(".", 1)
    squares = []
    for rank in range(1, 33):
        one = replace(matrix, rank=rank)
        pair = LowRank(torch.from_numpy(right[:, :rank].T), torch.from_numpy(left[:, :rank]), 1.0)
        (row,) = matrix_norms(loaded, [one], AdapterState({matrix.module: pair}, {}))
        squares.append(row["weight_in_random"] ** 2 / (np.linalg.norm(values) ** 2 * rank**2 / 32**2))
    assert weight is loaded.model.get_submodule(f"{parent}.{name}")
    assert squares[-1] == pytest.approx(1.0), "at full rank the whole weight is inside"
    assert np.mean(squares[8:]) == pytest.approx(1.0, abs=0.1)


# ---------------------------------------------------------------- A before training


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "peft_gaussian"])
def test_a_at_step_zero_is_the_a_that_training_started_from(tmp_path, init):
    """Drawn again by the script, against what a run saves before its first step."""
    import torch

    from lora_bench.models import adapters, backbone
    from lora_bench.training.resolve import resolve
    from tiny import tiny_config

    run = resolve(tiny_config(seed=3, adapter__replicate=1, adapter__init=init))
    loaded = backbone.load(run.blueprint, precision="fp32", device=torch.device("cpu"))
    made = adapters.make(loaded, run.config.adapter, run.matrices, backbone.head_state(loaded, 3), 3)
    adapters.save(tmp_path / "adapter", loaded, run.config.adapter, run.matrices, made)
    pairs = subspace.read_adapter(tmp_path, run.manifest)
    about = type("Run", (), {"seed": 3, "rank": 4})
    again = subspaces.Adapter(about, {}, run.manifest, init, 1).at_start()
    assert set(again.pairs) == set(pairs) == {matrix.module for matrix in run.matrices}
    for path, pair in pairs.items():
        np.testing.assert_array_equal(again.pairs[path].A, pair.A)


def test_subspaces_at_step_zero_overlap_by_chance(tmp_path, capsys):
    """Ranks and seeds have init streams of their own: what agrees after training was learned."""
    store = write_with_adapters(tmp_path / "store", rank_records(ranks=(4, 16), n_seeds=3, rates=(3e-3,)))
    shown(subspace_command, store, tmp_path, capsys, "--targets", "qv", "--step-zero")
    table = pd.read_csv(tmp_path / "tables" / "subspace_minilm_cola.csv")
    of_a = table[table["vectors"] == "A"]
    assert (of_a["whole_step_zero"] < of_a["whole_null"] * 1.1).all()
    assert (of_a["whole"] > of_a["whole_step_zero"]).all()
    every = pd.read_csv(tmp_path / "tables" / "subspace_minilm_cola_matrices.csv")
    start = every[every["vectors"] == "A"]
    assert (
        (start["phi_step_zero"] >= start["null_low"]) & (start["phi_step_zero"] <= start["null_high"])
    ).mean() > 0.85


def test_an_init_taken_from_the_weight_cannot_be_drawn_again(tmp_path, capsys):
    records = rank_records(ranks=(4, 16), n_seeds=2, rates=(3e-3,), adapter={"init": "pissa"})
    store = write_with_adapters(tmp_path / "store", records)
    assert subspace_command.main(["--store", str(store), "--out", str(tmp_path), "--step-zero"]) == 2
    assert "init=pissa cannot be drawn again" in capsys.readouterr().err


# ---------------------------------------------------------------- gaps, blocks, imports


def test_the_generalisation_gap_is_train_minus_report_by_rank(tmp_path, capsys):
    store = write_store(tmp_path / "store", rank_records(ranks=(1, 8), n_seeds=3, rates=(3e-3,)))
    shown(rank_command, store, tmp_path, capsys)
    table = pd.read_csv(tmp_path / "tables" / "rank_minilm_cola.csv")
    np.testing.assert_allclose(table["gap"], 0.05, atol=1e-9)
    assert set(table["rank"]) == {1, 8}


def test_environments_are_joined_only_when_asked_and_the_output_says_so(tmp_path, capsys):
    """The other machine's runs are better by ten points: joined unasked, they would decide the verdict."""
    common = {"rates": (3e-3,), "with_floor": False}
    records = [
        *weight_types_records(n_seeds=4, **common),
        *weight_types_records(n_seeds=4, level=0.62, environment="gpu-b", rng=np.random.default_rng(4), **common),
    ]
    store = write_store(tmp_path / "store", records)
    apart = shown(weight_types_command, store, tmp_path / "apart", capsys)
    assert "kept apart (--mix-environments joins them)" in apart
    files = sorted((tmp_path / "apart" / "tables").glob("*_contrasts.csv"))
    assert len(files) == 2
    assert all((pd.read_csv(file)["n_pairs"] == 4).all() for file in files)
    # One seed twice: a mean over both would be no mean over seeds, so that is refused and not averaged.
    arguments = ["--store", str(store), "--out", str(tmp_path / "twice"), "--mix-environments"]
    assert weight_types_command.main(arguments) == 2
    assert "several runs of" in capsys.readouterr().err
    halves = [
        record for record in records if (record["environment"]["id"] == "gpu-b") == (record["config"]["seed"] > 1)
    ]
    store = write_store(tmp_path / "halves", halves)
    mixed = shown(weight_types_command, store, tmp_path / "mixed", capsys, "--mix-environments")
    assert "runs of 2 environments are mixed, as asked: a difference may be the machine's" in mixed
    (file,) = (tmp_path / "mixed" / "tables").glob("*_contrasts.csv")
    assert (pd.read_csv(file)["n_pairs"] == 4).all()


@pytest.mark.parametrize("mix", [False, True])
def test_the_page_says_whether_environments_are_mixed(mix, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(style, "save", _save_svg)
    records = [
        *weight_types_records(n_seeds=3, rates=(3e-3,), with_floor=False),
        *[fake_record(targets="qv", lr=3e-3, seed=seed, environment="gpu-b") for seed in (7, 8)],
    ]
    store = write_store(tmp_path / "store", records)
    arguments = ["--store", str(store), "--out", str(tmp_path / "out"), *(["--mix-environments"] if mix else [])]
    assert report_command.main(arguments) == 0
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert ("mixed, as asked" in html) == mix
    assert ("kept apart" in html) != mix


def _save_svg(figure, folder: Path, name: str, **_) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg")
    return folder / f"{name}.svg"


def test_section_7_reads_adapters_and_norms_without_torch(tmp_path):
    records = rank_records(ranks=(4, 16), n_seeds=2, rates=(3e-3,))
    store = write_with_adapters(tmp_path / "store", records)
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}\nfrom analysis import amplification, subspace\n"
        "from lora_bench.reports.figures import style\nstyle.save = lambda figure, folder, name, **_: folder / name\n"
        f"arguments = ['--store', {str(store)!r}, '--out', 'here']\n"
        "assert subspace.main(arguments) == 0 and amplification.main(arguments) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "tables" / "subspace_minilm_cola.csv").exists()


# ---------------------------------------------------------------- the page, dark and on paper

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PROBE = """<script>addEventListener("load", () => {
  const parts = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const shine = (text) => parts(text).map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => { for (let n = node; n; n = n.parentElement) { const c = getComputedStyle(n).backgroundColor;
    if (!/, 0\\)|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  const ratios = [...document.querySelectorAll("p, td, th, li, h1, h2, h3, figcaption, summary")]
    .filter((n) => n.innerText && n.innerText.trim() && n.getBoundingClientRect().width > 0)
    .map((n) => { const [a, b] = [shine(getComputedStyle(n).color), shine(ground(n))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), n.tagName + " " + n.innerText.slice(0, 30)]; });
  ratios.sort((a, b) => a[0] - b[0]);
  document.documentElement.dataset.probe = JSON.stringify({n: ratios.length, worst: ratios[0],
    dark: matchMedia("(prefers-color-scheme: dark)").matches, ground: shine(ground(document.body))});
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    records = weight_types_records(rates=(1e-3, 3e-3, 1e-2), n_seeds=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", _save_svg)
        store = write_store(root / "store", records)
        assert report_command.main(["--store", str(store), "--out", str(root / "out")]) == 0
    return root / "out" / "index.html"


def browse(*options: str) -> subprocess.CompletedProcess:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    return subprocess.run([*command, *options], capture_output=True, encoding="utf-8", timeout=PATIENCE_SECONDS)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(page, tmp_path, scheme):
    """WCAG AA asks for 4.5 to 1."""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    preferred = "0" if scheme == "dark" else "1"
    done = browse(f"--blink-settings=preferredColorScheme={preferred}", "--dump-dom", probed.as_uri())
    found = re.search(r'data-probe="([^"]+)"', done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result["dark"] == (scheme == "dark")
    assert (result["ground"] < 0.2) == (scheme == "dark")
    assert result["n"] > 30
    assert result["worst"][0] >= 4.5, result["worst"]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_prints(page, tmp_path):
    """A few pages, each of paper's size, with the figures on them."""
    pdf = tmp_path / "page.pdf"
    done = browse(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.as_uri())
    assert pdf.exists(), done.stderr[-500:]
    raw = pdf.read_bytes()
    n_pages = len(re.findall(rb"/Type\s*/Page\b", raw))
    assert 2 <= n_pages <= 30
    assert raw.count(b"/MediaBox") >= 1
    assert len(raw) > 50_000


def test_ranks_without_adapters_are_passed_over(tmp_path):
    """As in a pack that keeps the adapters of some cells: rank 8 has none, so 4 and 16 are compared."""
    records = rank_records(ranks=(4, 8, 16), n_seeds=3, rates=(3e-3,))
    root = write_with_adapters(tmp_path / "store", records)
    for record in records:
        if record["config"]["adapter"]["rank"] == 8:
            shutil.rmtree(Store(root).path(record["run_id"]) / "adapter")
    assert subspace_command.main(["--store", str(root), "--out", str(tmp_path / "out"), "--targets", "qv"]) == 0
    table = pd.read_csv(tmp_path / "out" / "tables" / "subspace_minilm_cola.csv")
    assert set(table["comparison"]) == {"rank 4 and rank 16", "seeds at rank 16", "seeds at rank 4"}
