"""LaTeX: every table fits the narrowest column that conferences print, and says what a paper would say."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest

from lora_bench.questions import claims
from lora_bench.reports import latex
from lora_bench.reports.section import Column, Table

PROSE = "Within one placement a larger rank is no better than the lowest one, at equal rates and seeds."


def scores(*cells: str, means: tuple[float, ...] = (), extra: int = 0, name: str = "scores") -> Table:
    means = means or tuple(0.5 + 0.01 * place for place in range(len(cells)))
    frame = pd.DataFrame({"cell": cells, "mean": means, "lr": "0.003*", "verdict": "learns less often"})
    frame["score"] = [f"{100 * mean:.1f} ± 12.3" for mean in means]
    columns = [
        Column("cell", "cell", is_number=False, is_name=True),
        Column("lr", "lr"),
        Column("score", "Matthews", best_of="mean"),
        *(Column("score", f"another score {place}") for place in range(extra)),
        Column("verdict", "it is", is_number=False),
        Column("mean", "left out", on_screen=False),
    ]
    return Table(name, "all-MiniLM-L6-v2 · 100 % of my_task", frame, columns)


def prose(n_long: int, text: str = f"{PROSE} {PROSE}") -> Table:
    frame = pd.DataFrame({f"text{i}": [PROSE, text] for i in range(n_long)} | {"here": "unresolved"})
    columns = [*(Column(f"text{i}", "claim", is_number=False) for i in range(n_long)), Column("here", "here")]
    return Table("prose", "Claims, judged by this store", frame, columns)


def off_screen(table: Table) -> Table:
    return replace(table, columns=[replace(column, on_screen=False) for column in table.columns if column.on_paper])


def judged_claims(*settings: str) -> Table:
    """The claims that are shipped, in several settings, each with what it needs as its evidence."""
    shipped = claims.read_claims(claims.SHIPPED)
    rows = [
        {
            "setting": setting, "claim": claim["id"], "text": claim["text"], "source": claim["source"],
            "status": claims.STATUSES[place % 5], "n_runs": 8,
            "evidence": f"{PROSE} Run lora-bench study={claim.get('study', 'rank')} task=cola {'_' * place}",
        }
        for setting in settings
        for place, claim in enumerate(shipped)
    ]  # fmt: skip
    return claims.evidence_table(pd.DataFrame(rows), several=len(settings) > 1)


TWO_SETTINGS = ("all-MiniLM-L6-v2 · sst2", "a_backbone/of-a-long-name · a-task-of-a-long-name")
TABLES = {
    "claims": judged_claims("one setting"),
    "claims of two settings": judged_claims(*TWO_SETTINGS),
    "many rows": scores(*(f"q r={rank}" for rank in range(1, 150))),
    "placements": scores("q r=8", "qv r=4", "qkvo r=2", "q+k+v+o+up+down r=1", "head only"),
    "methods": scores("lora", "lora_plus", "dora", "full", "head_only"),
    "a long word": scores("q" * 70),
    "many columns": scores("q r=8", "v r=8", extra=6),
    "hostile": scores("$x$", "a_b^c", "[2cm]", "*", "\\input{x}", "100%", "#1", "}{", "line\nbreak"),
    "a path in prose": prose(1, f"{PROSE} /data/{'x' * 80}/run_{'1' * 40}"),
    "prose": prose(1),
    "prose twice": prose(3),
    "empty": scores(),
    "of the page alone": off_screen(scores("q r=8", "v r=8")),
}


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ("q", "$W_{q}$"),
        ("qv r=8", "$W_{q,v}$, $r=8$"),
        ("up+down r=16*", r"$W_{\mathrm{up},\mathrm{down}}$, $r=16$*"),
        ("qkvo+up+down", r"$W_{q,k,v,o,\mathrm{up},\mathrm{down}}$"),
        ("lora_plus", "LoRA+"),
        ("rslora", "rsLoRA"),
        ("qv r=8 dora", "qv r=8 dora"),
        ("vocab", "vocab"),
        ("first:1", "first:1"),
        ("r=8", "r=8"),
    ],
)
def test_cells_have_the_names_of_papers_and_other_words_stay(cell, printed):
    """A reader of papers knows W_q and LoRA+, not the words of a command line."""
    assert latex.paper_name(cell) == printed


def test_the_best_is_bold_and_of_equals_none_or_all():
    """What a reader looks for first. Equal means have no best, two best ones are both."""
    bold = [line.split(" &")[0] for line in latex.latex(scores("q", "v", "o")).splitlines() if "textbf" in line]
    assert bold == ["$W_{o}$"]
    assert "textbf" not in latex.latex(scores("q", "v", means=(0.5, 0.5)))
    assert latex.latex(scores("q", "v", "o", means=(0.4, 0.5, 0.5))).count("textbf") == 2
    assert latex.latex(scores("q", "v", means=(float("nan"), 0.5))).count("textbf") == 0


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_table_has_a_caption_a_label_and_the_columns_of_a_paper(table):
    text = latex.latex(table)
    assert re.search(r"\\caption\{.+\.\}\n\\label\{tab:[a-z]+\}", text)
    assert "left out" not in text
    n_cells = {line.count(" & ") for line in text.splitlines() if line.endswith(r" \\")}
    shown = [column for column in table.columns if column.name != table.parted_by]
    assert n_cells == {(sum(column.on_paper for column in shown) or len(shown)) - 1}


@pytest.mark.parametrize("name", ["prose", "prose twice", "claims", "claims of two settings"])
def test_texts_wrap_within_what_the_column_has_left(name):
    """Claims are sentences: on one line they were three columns wide."""
    aligned = re.findall(r"\\begin\{tabular\}(.*)", latex.latex(TABLES[name]))
    for columns in aligned:
        spans = [float(span) for span in re.findall(r"p\{(\d+)pt\}", columns)]
        assert spans and sum(spans) <= latex.COLUMN


@pytest.mark.parametrize("name", ["many rows", "claims", "claims of two settings"])
def test_what_is_too_tall_goes_on_in_further_tables_with_every_row_once(name):
    """The claims in two settings were one table of six pages, of which LaTeX prints one."""
    table = TABLES[name]
    text = latex.latex(table)
    labels = re.findall(r"\\label\{(.+)\}", text)
    assert len(labels) > 1 and len(set(labels)) == len(labels)
    assert sum(line.endswith(r" \\") for line in text.splitlines()) == len(table.frame) + len(labels)


def test_each_setting_has_a_table_of_its_own_that_its_caption_names():
    """A column of a paper has no room for the name of a setting in every row."""
    text = latex.latex(TABLES["claims of two settings"])
    captions = re.findall(r"\\caption\{(.+)\}", text)
    names = list(map(latex.escape_latex, TWO_SETTINGS))
    order = [next(place for place, name in enumerate(names) if name in caption) for caption in captions]
    assert set(order) == {0, 1} and order == sorted(order)
    assert not any(name in line for line in text.splitlines() for name in names if line.endswith(r" \\"))


@pytest.mark.parametrize("rows", [("q r=8", "v r=8"), ("q" * 30, "v r=8")], ids=["room", "none"])
def test_a_head_has_several_lines_only_where_one_is_too_wide(rows):
    """A head that is longer than its cells made whole tables smaller."""
    assert ("shortstack" in latex.latex(scores(*rows, extra=0 if rows[0] == "q r=8" else 2))) == (rows[0] != "q r=8")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs TeX")
def test_every_table_compiles_at_a_column_without_an_overfull_box(tmp_path):
    """One document, so that one start of TeX pays for all; the column is the narrowest."""
    for place, table in enumerate(TABLES.values()):
        (tmp_path / f"{place}.tex").write_text(latex.latex(table), encoding="utf-8")
    inputs = "\n".join(rf"\input{{{place}.tex}}\clearpage" for place in range(len(TABLES)))
    (tmp_path / "all.tex").write_text(
        rf"""\documentclass[11pt]{{article}}
\usepackage{{booktabs,graphicx,array}}
\setlength{{\textwidth}}{{3.03in}}\setlength{{\textheight}}{{9in}}
\begin{{document}}
{inputs}
\end{{document}}
""",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert "Overfull" not in ended.stdout
    assert "too large" not in ended.stdout  # a table that is taller than the page is cut
