"""The page of many backbones and tasks: small, folded, and as whole as the others."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.figure import Figure

from fake_store import blank_figures, weight_types_records, write_store
from lora_bench.questions import page
from lora_bench.questions.shown import data_uri
from lora_bench.reports.figures import style
from lora_bench.reports.scope import Scope

CHROMIUM, AXE = shutil.which("chromium"), os.environ.get("AXE")
IDS = re.compile(r' id="([^"]+)"')


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One store's page in full and crowded, and the formats that the crowded one's figures were written in."""
    root = tmp_path_factory.mktemp("crowded")
    tasks = ("rte", "sst2")
    records = [record for task in tasks for record in weight_types_records(n_seeds=3, rates=(1e-3,), task=task)]
    scope = Scope(write_store(root / "runs", records))
    runs = scope.read()
    with pytest.MonkeyPatch.context() as patch:
        blank_figures(patch)
        whole = page.build(runs, scope, out=root / "whole", title="runs")
        formats = blank_figures(patch)
        patch.setattr(page, "MOST_WHOLE", 1)
        crowded = page.build(runs, scope, out=root / "crowded", title="runs")
    return whole, crowded, formats


def opened(text: str) -> str:
    """The page as it is when every setting was opened."""
    held = re.compile(r'data-packed="([^"]+)"><summary>.*?</summary>')
    return held.sub(lambda packed: ">" + gzip.decompress(base64.b64decode(packed[1])).decode(), text)


def test_a_crowded_page_holds_all_but_the_figures_that_no_verdict_rests_on(pages):
    """Folding is only smaller: no table, contrast, claim or place is lost."""
    whole, crowded, formats = pages
    folded = crowded["html"]
    assert set(IDS.findall(whole["html"])) - set(IDS.findall(folded))  # something is folded
    assert set(IDS.findall(opened(folded))) - {"settings"} == set(IDS.findall(whole["html"]))
    rows = [text.count("<tr>") for text in (whole["html"], opened(folded))]
    assert rows[0] == rows[1] > 20
    assert 0 < crowded["n_figures"] < whole["n_figures"] and formats == {("svg",)}


def test_links_lead_into_folded_settings(pages):
    """A permalink outlives the page that it was copied from, which may have been whole."""
    folded = pages[1]["html"]
    outside = set(IDS.findall(folded))
    held = {anchor for holds in re.findall(r'data-holds="([^"]*)"', folded) for anchor in holds.split()}
    targets = {target.partition("@")[0] for target in re.findall(r'href="#([^"]+)"', opened(folded))}
    assert held <= set(IDS.findall(opened(folded))) - outside
    assert targets <= outside | held and targets & held


def test_the_verdict_of_a_crowded_page_counts_words(pages):
    """Dozens of sentences that say much the same are read by nobody; each stands with its setting."""
    whole, crowded, _ = pages
    said = [sentence for sentence in crowded["verdict"] if " in 2 of 2 comparisons" in sentence]
    assert said and len(crowded["verdict"]) <= 1 + len(re.findall(r'<th scope="col">qv − ', crowded["html"]))
    assert all(f"<p>{html.escape(line)}</p>" not in crowded["html"] for line in whole["verdict"][:-1])
    assert all(f'"finding">{html.escape(line, quote=False)}' in crowded["html"] for line in whole["verdict"][:-1])


def test_a_figure_in_the_page_is_that_on_the_disk(tmp_path):
    """Kept small by what no eye can see: a hundredth of a point, line ends, and matplotlib's own name."""
    figure = Figure(figsize=(2, 2))
    axis = figure.subplots()
    axis.plot(np.linspace(0, 1, 7), np.geomspace(1, 300, 7), marker="o", label='50 % <b> "#1" & (a)')
    axis.legend()
    style.save(figure, tmp_path, "figure", formats=("svg",))
    numbers = []
    for text in (
        (tmp_path / "figure.svg").read_text(encoding="utf-8"),
        unquote(data_uri(tmp_path / "figure.svg")[19:]),
    ):
        root = xml.etree.ElementTree.fromstring(text)
        drawn = [
            (node.tag, dict(node.attrib)) for node in root.iter() if "svg" in node.tag and "metadata" not in node.tag
        ]
        places = [value for _, attributes in drawn for key, value in attributes.items() if key in ("d", "x", "y")]
        others = [{**attributes, "d": "", "x": "", "y": "", "transform": ""} for _, attributes in drawn]
        numbers.append(([float(x) for place in places for x in re.findall(r"-?\d+\.?\d*", place)], others))
    assert numbers[0][1] == numbers[1][1] and len(numbers[0][0]) > 100
    np.testing.assert_allclose(*(places for places, _ in numbers), atol=0.0051)


OPENED = """<script>addEventListener("load", () => setTimeout(() => {
  const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const held = [...document.querySelectorAll(".held")];
  const table = held.find((box) => box.open).querySelector("table.sortable");
  table.querySelector("th button").click();
  const result = {isOpen: Boolean(place && place.open), held: held.map((box) => box.open),
    sorted: table.querySelector("th").getAttribute("aria-sort")};
  document.querySelector(".unfold").click();
  setTimeout(() => {
    result.images = [...document.querySelectorAll(".held img")].length;
    document.documentElement.dataset.probe = JSON.stringify(result);
  }, 1000);
}, 1000));</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_link_opens_the_setting_that_holds_its_place(pages, tmp_path):
    """Only a browser unpacks and opens; what is inside works as on a whole page."""
    text = pages[1]["html"]
    anchor = re.findall(r'data-holds="([^"]*)"', text)[1].split()[1]
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", f"{OPENED}</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{path.as_uri()}#{anchor}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    probe = re.search(r'data-probe="([^"]+)"', shown)
    assert probe, shown[-500:]
    result = json.loads(html.unescape(probe[1]))
    assert result["isOpen"] and result["held"] == [False, True] and result["sorted"] == "ascending"
    assert result["images"] == pages[1]["n_figures"]


SEEN = """<script>addEventListener("load", () => {
  document.querySelector(".unfold").click();
  setTimeout(async () => {
    for (const box of document.querySelectorAll("details")) box.open = true;
    const found = await axe.run(document, {resultTypes: ["violations"]});
    document.documentElement.dataset.probe = JSON.stringify({passed: found.passes.length,
      worst: found.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id)});
  }, 1000);
});</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None or not AXE, reason="needs chromium, and AXE=path of axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_once_all_is_unfolded(pages, tmp_path, scheme):
    """What a script unpacks is read by the same rules as what was there."""
    path = tmp_path / "page.html"
    script = f"<script>{Path(str(AXE)).read_text(encoding='utf-8')}</script>{SEEN}"
    path.write_text(pages[1]["html"].replace("</body>", f"{script}</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    command += [f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    probe = re.search(r'data-probe="([^"]+)"', shown)
    assert probe, shown[-500:]
    result = json.loads(html.unescape(probe[1]))
    assert result["worst"] == [] and result["passed"] > 20
