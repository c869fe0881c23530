"""The page for those who read it otherwise: by keyboard, by ear, without a script, in the dark, and by a link."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fake_store import blank_figures, rank_records, weight_types_records, write_store
from lora_bench.questions import page, weight_types
from lora_bench.questions.beside import every_pair
from lora_bench.questions.drill import cells_of
from lora_bench.reports import critical
from lora_bench.reports.scope import Scope
from lora_bench.verdicts import stats

NODE, CHROMIUM, AXE = shutil.which("node"), shutil.which("chromium"), os.environ.get("AXE")
VOID = {"meta", "link", "img", "input", "br", "line", "circle", "path"}


class Outline(HTMLParser):
    """Every element with its attributes, its parents' names and the text that it holds itself."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[dict] = []
        self._open: list[dict] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "parents": [parent["tag"] for parent in self._open], "text": ""}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        while self._open and self._open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def of(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of two tasks, one of which was run at several ranks; figures are not what is read here."""
    root = tmp_path_factory.mktemp("reads")
    records = [
        *weight_types_records(n_seeds=5, rates=(1e-3, 3e-3)),
        *rank_records(ranks=(1, 8), n_seeds=4, rates=(1e-3,), task="sst2"),
    ]
    scope = Scope(write_store(root / "runs", records))
    with pytest.MonkeyPatch.context() as patch:
        blank_figures(patch)
        text = page.build(scope.read(), scope, out=root / "out", title="runs <b>")["html"]
    (root / "index.html").write_text(text, encoding="utf-8")
    return root / "index.html", text, Outline(text)


def test_headings_go_down_a_step_at_a_time(made):
    """A screen reader's list of headings is the page's contents."""
    levels = [int(element["tag"][1]) for element in made[2].of("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_control_has_a_name_and_every_table_says_of_what_its_heads_are(made):
    """A control without a name is read as `button`, a head without a scope as any cell."""
    outline = made[2]
    for control in outline.of("input", "select"):
        assert "label" in control["parents"] or control["attrs"].get("aria-label")
    for control in outline.of("button", "a", "summary"):
        assert control["text"].strip() or control["attrs"].get("aria-label")
    assert all(head["attrs"].get("scope") in ("col", "row") and head["text"].strip() for head in outline.of("th"))
    assert all(image["attrs"]["alt"].strip() for image in outline.of("img"))
    assert all(form["attrs"]["aria-label"] for form in outline.of("form"))
    named = [form["attrs"]["aria-label"] for form in outline.of("form")]
    assert len(set(named)) == len(named)


def test_places_are_named_once_and_links_lead_to_one(made):
    """A permalink to a place that is there twice leads to the first."""
    outline = made[2]
    ids = [element["attrs"]["id"] for element in outline.elements if "id" in element["attrs"]]
    assert len(set(ids)) == len(ids)
    targets = {link["attrs"]["href"][1:] for link in outline.of("a") if link["attrs"]["href"].startswith("#")}
    assert targets <= set(ids) and len(targets) > 30


def test_what_scrolls_can_be_reached_by_keyboard(made):
    """A wide table is cut for whoever has no pointer."""
    boxes = [element for element in made[2].of("div") if element["attrs"].get("class") == "scroll"]
    assert boxes and all(box["attrs"].get("tabindex") == "0" and box["attrs"].get("aria-label") for box in boxes)


def test_the_words_with_intervals_come_first_then_what_was_looked_at(made):
    """Numbers of runs answer nothing; whoever reads one screen reads the answer."""
    text = made[1].partition("<main>")[2]
    order = [text.index(f'id="{place}"') for place in ("verdict", "matrix", "looked", "claims", "missing")]
    assert order == sorted(order)
    cells = re.findall(r'<td class="[a-z ]+"><a href="#[^"]+">[^<]+</a><small>([^<]+)</small>', text)
    assert cells and all(re.fullmatch(r"[+−][\d.]+ to [+−][\d.]+", cell) for cell in cells)


def test_every_claim_has_a_place_words_and_a_row_of_latex(made):
    """A claim is cited like a contrast: its evidence, not its colour."""
    places = re.findall(r'<details class="pair" id="(claim-[^"]+)"', made[1])
    claims = [element for element in made[2].of("summary") if "supported" in element["text"]]
    assert len(places) == len(set(places)) >= 12 and claims
    for place in places:
        after = made[1].partition(f'id="{place}"')[2].partition("</details>")[0]
        assert after.count("data-copy=") == 2 and f'class="permalink" href="#{place}"' in after


def test_the_page_can_be_narrowed_to_a_task(made):
    """Each part, each row of the matrix and each column of the claims knows what it is of."""
    (choice,) = [element for element in made[2].of("select") if element["attrs"]["name"] == "task"]
    assert choice["text"] == "allcolasst2"
    tasks = {e["attrs"]["data-task"] for e in made[2].of("section", "tr", "td", "th") if "data-task" in e["attrs"]}
    assert tasks == {"cola", "sst2"}


def shine(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_every_ground_of_the_palette(scheme):
    """WCAG AA: 4.5 to 1, for words on the colours of verdicts too."""
    sets = re.findall(r":root \{([^}]+)\}", page.TEMPLATE.read_text(encoding="utf-8"))[:2]
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", sets[scheme == "dark"]))
    pairs = [("ink", ground) for ground in ("ground", "card", "better", "worse", "tied", "unresolved")]
    for letters, ground in [*pairs, ("quiet", "ground"), ("quiet", "card"), ("accent", "ground"), ("accent", "card")]:
        low, high = sorted((shine(colours[letters]), shine(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (letters, ground)


# ---------------------------------------------------------------- the line, and any two


@pytest.mark.parametrize("number", range(8))
def test_a_bar_spans_neighbours_of_which_no_pair_is_told_apart(number):
    """Checked by trying every span: a bar is the longest of its kind, and none is left out."""
    rng = np.random.default_rng(number)
    cells = [str(place) for place in range(7)]
    told = rng.choice(["better", "tied", "unresolved"], size=(7, 7), p=[0.4, 0.2, 0.4])
    words = {frozenset((cells[i], cells[j])): told[i, j] for i in range(7) for j in range(i + 1, 7)}
    whole = [
        (i, j)
        for i in range(7)
        for j in range(i + 1, 7)
        if all(words[frozenset(pair)] != "better" for pair in itertools.combinations(cells[i : j + 1], 2))
    ]
    longest = [(i, j) for i, j in whole if not any((a, b) != (i, j) and a <= i and j <= b for a, b in whole)]
    assert critical.groups(cells, words) == longest


def test_a_line_is_drawn_of_what_was_tested(made):
    """Its bars say in words, too, what they join."""
    assert made[1].count('<svg class="critical"') == 1
    estimates = pd.DataFrame({"mean": [0.5, 0.6, 0.7]}, index=["q", "v", "qv"])
    rows = [("q", "v", "unresolved"), ("q", "qv", "worse"), ("v", "qv", "tied")]
    pairs = pd.DataFrame(rows, columns=["first", "second", "verdict"]).assign(p_holm=0.5)
    line = critical.line_of(estimates, pairs)
    assert line is not None and line["words"] == "Not told apart, pair by pair: v and q; qv and v"
    assert [mark["name"] for mark in line["marks"]] == ["q", "v", "qv"]
    assert critical.line_of(estimates, pairs.assign(p_holm=np.nan)) is None


@pytest.mark.skipif(NODE is None, reason="needs node, which runs the page's script")
def test_any_two_get_the_words_of_the_library(tmp_path):
    """Two cells that a reader picks are one of all pairs, Holm-corrected as the table of every pair is."""
    records = weight_types_records(n_seeds=6, rates=(1e-3,))
    kept = [run for run in records if (run["config"]["seed"], run["config"]["adapter"].get("targets")) != (5, "qk")]
    scope = Scope(write_store(tmp_path / "runs", kept))
    (section,) = weight_types.sections(scope.read(), scope)
    asked = every_pair(section.judged, margin=0.02)
    script = tmp_path / "pairs.js"
    cells = json.dumps(cells_of(section.judged))
    script.write_text(
        f"{page.SCRIPT.read_text()}\nconsole.log(JSON.stringify(everyPair({cells}, 2, 0.95, {stats.MIN_PAIRS})))"
    )
    done = subprocess.run([str(NODE), str(script)], capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    assert len(answers) == len(asked) == 21
    for answer, row in zip(answers, asked.to_dict("records"), strict=True):
        assert answer["names"] == [row["first"], row["second"]]
        assert answer["word"] == row["verdict"] and answer["n"] == row["n_pairs"]
        assert answer["mean"] == pytest.approx(100 * row["difference"])
        assert answer["p"] == pytest.approx(row["p_holm"], rel=1e-8)


# ---------------------------------------------------------------- in a browser

PROBE = """<script>addEventListener("load", async () => {
  for (const box of document.querySelectorAll("details")) box.open = true;
  const found = await axe.run(document, {resultTypes: ["violations"]});
  document.documentElement.dataset.probe = JSON.stringify({passed: found.passes.length,
    worst: found.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id)});
});</script>"""

NARROW = """<script>addEventListener("load", () => {
  const form = document.querySelector(".filters");
  form.task.value = "sst2"; form.task.dispatchEvent(new Event("input", {bubbles: true}));
  const seen = [...document.querySelectorAll(".part")].filter((part) => part.getBoundingClientRect().height > 0);
  const two = document.querySelector(".part:not([hidden]) .two");
  two.second.selectedIndex = 0;
  two.second.dispatchEvent(new Event("input", {bubbles: true}));
  const same = two.querySelector(".copied").textContent;
  two.second.selectedIndex = 1;
  two.second.dispatchEvent(new Event("input", {bubbles: true}));
  document.documentElement.dataset.probe = JSON.stringify({seen: seen.map((part) => part.dataset.task), same,
    told: two.querySelector(".copied").textContent, dots: two.querySelectorAll("circle").length,
    said: form.querySelector(".declared").textContent});
});</script>"""


def probed(path: Path, text: str, script: str, *options: str) -> dict:
    path.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    command += [*options, f"--user-data-dir={path.parent / 'profile'}", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    answer = re.search(r'data-probe="([^"]+)"', shown)
    assert answer, shown[-500:]
    return json.loads(html.unescape(answer[1]))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_filters_and_any_two_work_in_a_browser(made, tmp_path):
    """What is hidden is not read, and the two that are chosen are told in a sentence."""
    result = probed(tmp_path / "page.html", made[1], NARROW)
    assert set(result["seen"]) == {"sst2"} and result["said"].endswith("settings shown")
    assert result["same"] == "Choose two that differ." and " minus " in result["told"] and result["dots"] == 8


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None or not AXE, reason="needs chromium, and AXE=path of axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(made, tmp_path, scheme):
    """The rules that people who cannot see the page have agreed on."""
    script = f"<script>{Path(str(AXE)).read_text(encoding='utf-8')}</script>{PROBE}"
    preferred = f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}"
    result = probed(tmp_path / "page.html", made[1], script, preferred)
    assert result["worst"] == [] and result["passed"] > 20
