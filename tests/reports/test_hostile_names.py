"""Names of models, tasks and files that mean something to matplotlib, LaTeX or HTML: they are shown as they stand."""

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import report
from fake_store import fake_record, write_store
from lora_bench.reports import latex, output
from lora_bench.reports.figures import compose, style, verdicts
from lora_bench.reports.section import Column, Section, Table

NAMES = [
    *("$x$", "a$b_c$d^e", "$\\frac{1}$", "$5 or $6_", "_", "a^b", "\\", "\\input{x}", "100%", "#1", "{", "}{", "~"),
    *("a&b", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "line\nbreak", "car\rriage", "[2cm]", "*"),
]


@style.styled
def drawing(name):
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], label=name)
    axis.set_title(name)
    axis.set_yticks([0], [name])
    if not name.startswith("_"):  # which matplotlib leaves out of a legend
        axis.legend()
    return figure


@pytest.mark.filterwarnings("ignore:Glyph 13 :UserWarning")  # no font draws a carriage return
@pytest.mark.parametrize("usetex", [False, True])
def test_no_name_is_read_as_a_formula(tmp_path, usetex):
    """Two $ in a model's name were, and no report was made. A caller's own settings must not matter either."""
    with matplotlib.rc_context({"text.usetex": usetex, "text.parse_math": True}):
        for name in NAMES:
            figure = drawing(name)
            with matplotlib.rc_context(style.STYLE):
                figure.draw_without_rendering()
            assert not figure.get_label()
            shown = [text for text in figure.findobj(Text) if text.get_text() == name]
            assert len(shown) >= 2
            assert not any(text.get_parse_math() or text.get_usetex() for text in shown)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_a_command_of_latex(name):
    r"""Neither in a cell nor in the caption; a row must not begin with `[` or `*`
    after another's `\\\\`."""
    frame = pd.DataFrame({"cell": [name, name]})
    text = latex.latex(Table("t", f"{name}{name}", frame, [Column("cell", name, is_number=False)]))
    assert not any(line.startswith(("[", "*")) for line in text.splitlines())
    assert sum(line.endswith(r" \\") for line in text.splitlines()) == 3
    cell = latex.escape_latex(name)
    bare = cell
    for kept in (
        "\\textbackslash{}",
        "\\textasciitilde{}",
        "\\textasciicircum{}",
        "$<$",
        "$>$",
        *(f"\\{c}" for c in "&%$#_{}"),
    ):
        bare = bare.replace(kept, "")
    assert not set(bare) & set("\\&%$#_{}~^\n\r")


def broken(*_, **__):
    raise ValueError("no such glyph\nmore")


@pytest.mark.parametrize("when", ["drawn", "saved"])
def test_a_figure_that_fails_costs_that_figure_alone(tmp_path, monkeypatch, when):
    """It cost the page, hours of reading a store included. The note of the section says which one, and why."""
    if when == "drawn":
        failing = style.styled(broken)()
    else:
        failing = drawing("x")
        monkeypatch.setattr(failing, "savefig", broken)
    section = Section("t", "s", figures={"first": failing, "second": drawing("y")})
    paths = output.write_section(section, tmp_path)
    assert len(paths) == 2
    assert {path.suffix for path in (tmp_path / "figures").glob("first.*")} == {".pdf", ".png", ".svg"}
    (note,) = section.notes
    assert note.is_gap
    assert note.text == "figure first could not be drawn (ValueError: no such glyph); its numbers are in the tables"


def test_a_report_of_hostile_names_has_all_its_figures_and_a_failed_one_is_named(tmp_path, monkeypatch, unrendered):
    """The page is what a study is read from."""
    model, task = "evil/a$b_c$d^e<script>alert(1)</script>", "t$x_{y}$"
    records = [
        fake_record(targets=targets, rank=rank, seed=seed, lr=1e-3, report=0.5 + 0.01 * seed, model=model, task=task)
        for targets, rank in (("q", 8), ("qv", 4))
        for seed in range(3)
    ]
    write_store(tmp_path / "runs", records)
    monkeypatch.setattr(compose, "is_blank", lambda: False)
    monkeypatch.setattr(verdicts, "placements", style.styled(broken))
    assert report.main(["--store", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = next((tmp_path / "out").glob("*.html")).read_text("utf-8")
    assert "<script>alert(1)" not in page
    assert "could not be drawn (ValueError: no such glyph)" in page
