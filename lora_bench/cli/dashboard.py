"""The dashboard on W&B: a saved workspace and a report that answer the question at a glance, built anew or updated.

Both are found again by their names, so that the same command updates them and never makes a second one. Panels read
the mirrored runs; the verdict, and the learning rate at which each placement is shown, come from the store.
Needs the extra `dashboard` (wandb-workspaces); with --dry-run, no key and no network.
"""


# wandb-workspaces documents `wr.Layout` and the like, and imports them without listing them as exported
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_bench import wording
from lora_bench.config.options import parsed
from lora_bench.paths import argument
from lora_bench.questions import findings
from lora_bench.reports import script
from lora_bench.store import holds_no_run, open_store
from lora_bench.store.errors import StoreError

WORKSPACE = "lora_bench: placements and ranks"
REPORT = "lora_bench: which matrices, at which rank, and how sure"
QUESTION = "Which weight matrices should LoRA adapt, at which rank, and how sure can we be?"
NEEDS = "dashboard: needs wandb-workspaces; in the clone, pip install -e '.[dashboard]' brings it"

SCORE, SELECT = "report_score", "select_score"
SECONDS, PARAMETERS = "cost/attributed_seconds", "adapter_parameters"
COLUMNS = (
    *("run:displayName", "run:state", "config:model.value", "config:task.value", "config:targets.value"),
    *("config:ranks.value", "config:lr.value", "config:seed.value", f"summary:{SELECT}", f"summary:{SCORE}"),
    *(f"config:{PARAMETERS}.value", f"summary:{SECONDS}", "config:environment.value"),
)
MANY = 1000
"""Runs that a panel may show; W&B shows ten unless it is told."""


@dataclass(frozen=True)
class Facts:
    """What the store knows: the verdict in sentences, and each placement's cell at its chosen learning rate."""

    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: list[dict[str, Any]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    n_runs: int = 0


def main(argv: list[str] | None = None) -> int:
    wording.spell_out()
    options = parsed(_parser(), argv)
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        print(f"lora-bench {NEEDS}", file=sys.stderr)
        return 2
    try:
        facts = read_facts(options.store)
    except StoreError as error:
        return script.refuse("dashboard", error)
    if not facts.n_runs:  # it may be made before anything has trained
        print(f"lora-bench dashboard: {holds_no_run(options.store)}; until then it has no verdict", file=sys.stderr)
    if options.dry_run:
        print(outline(options.entity, options.project, facts))
        return 0
    try:
        for line in save(options.entity, options.project, facts):
            print(line)
    except Exception as error:  # wandb's errors have no common class
        from lora_bench.store.secrets import scrub

        print(f"lora-bench dashboard: W&B refused ({type(error).__name__}: {scrub(str(error))})", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lora-bench dashboard",
        description=(__doc__ or "").strip().split("\n\n")[0],
        epilog="example: lora-bench dashboard entity=me project=lora_bench store=runs",
    )
    parser.add_argument("--entity", required=True, metavar="NAME", help="W&B user or team")
    parser.add_argument("--project", required=True, metavar="NAME", help="W&B project that the runs are mirrored to")
    parser.add_argument("--store", type=argument, default=Path("runs"), metavar="DIR", help="folder of records (runs)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be created, and stop")
    return parser


def read_facts(root: Path) -> Facts:
    """The verdict and the chosen rates; nothing of either when there is no store here.

    Raises:
        StoreError: when the store cannot be read.
    """
    frame = open_store(root).frame()
    by_script = findings.sections(frame, store=root) if len(frame) else {}
    made = [section for sections in by_script.values() for section in sections]
    notes = [remark for section in made for remark in section.remarks]
    return Facts(
        [section.sentence for section in made],
        list(dict.fromkeys(notes)),
        findings.chosen_cells(frame) if len(frame) else [],
        [name for section in made for name in section.figures],
        len(frame),
    )


# What is built


@dataclass(frozen=True)
class Part:
    """A part of the dashboard: its panels, how the report groups the runs that they show, and which runs those are."""

    name: str
    panels: list[Any]
    groupby: tuple[str, ...] = ()
    at_chosen_rates: bool = False


def parts() -> list[Part]:
    """The panels: the same in the workspace and in the report."""
    import wandb_workspaces.reports.v2 as wr

    config, summary = wr.Config, wr.SummaryMetric
    left, right = wr.Layout(0, 0, 12, 9), wr.Layout(12, 0, 12, 9)
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=config("targets"), display_name="targets"),
        wr.ParallelCoordinatesPlotColumn(metric=config("rank_max"), display_name="rank", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=config("lr"), display_name="learning rate", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=summary(SELECT), display_name="on select"),
        wr.ParallelCoordinatesPlotColumn(metric=summary(SCORE), display_name="on report"),
    ]
    placements = wr.BarPlot(
        title="Score on report by placement: mean, seeds as points",
        metrics=[SCORE],
        groupby=config("targets"),
        groupby_aggfunc="mean",
        groupby_rangefunc="samples",
        max_runs_to_show=MANY,
        max_bars_to_show=40,
        layout=wr.Layout(0, 0, 24, 10),
    )
    lines: tuple[tuple[str, str, dict[str, Any], Any], ...] = (
        ("Loss by cell: mean and range over seeds", "step", {"y": ["train/loss"]}, left),
        ("Scores on select by cell: mean and range over seeds", "epoch", {"metric_regex": "select/.*"}, right),
    )
    of_training = [
        wr.LinePlot(
            title=title,
            x=x,
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=MANY,
            layout=layout,
            **what,
        )
        for title, x, what, layout in lines
    ]

    def scatter(title: str, x: Any, y: str, layout: Any) -> Any:
        return wr.ScatterPlot(title=title, x=x, y=summary(y), log_x=True, layout=layout)

    return [
        Part("Placements", [placements], at_chosen_rates=True),
        Part(
            "Rank",
            [scatter("Score on report against rank, by placement", config("rank_max"), SCORE, left)],
            ("config.targets", "config.ranks"),
            at_chosen_rates=True,
        ),
        Part(
            "Learning rate",
            [scatter("Score on select against learning rate, by cell", config("lr"), SELECT, left)],
            ("config.targets", "config.ranks", "config.lr"),
        ),
        Part(
            "Everything at once", [wr.ParallelCoordinatesPlot(title="Targets, rank, rate and score", columns=columns)]
        ),
        Part(
            "Cost",
            [
                scatter("Score on report against adapter parameters", config(PARAMETERS), SCORE, left),
                scatter("Score on report against seconds of training", summary(SECONDS), SCORE, right),
            ],
            ("config.targets", "config.ranks"),
            at_chosen_rates=True,
        ),
        Part("Training", of_training),
    ]


def trained_filter(chosen: Sequence[dict[str, Any]] = ()) -> Any:
    """Runs that were trained; with `chosen`, only cells at their chosen learning rate."""
    from wandb_workspaces import expr

    trained = expr.Metric("JobType") == "train"
    if not chosen:
        return expr.And(trained)
    at_rates = [expr.And(*(expr.Config(name) == value for name, value in cell.items())) for cell in chosen]
    return expr.And(trained, expr.Or(*at_rates))


def build_workspace(entity: str, project: str, facts: Facts) -> Any:
    """The saved workspace: the verdict, the panels, and the run table with the columns that matter."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    text = f"{verdict(facts)}\n\nPanels below hold every learning rate; the report has placements at their chosen ones."
    sections = [
        ws.Section(name="Verdict", panels=[wr.MarkdownPanel(markdown=text)], is_open=True, pinned=True),
        *(ws.Section(name=part.name, panels=part.panels, is_open=True) for part in parts()),
        ws.Section(name="Figures of the last sweep", panels=[_figures(facts)]),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=WORKSPACE,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Or(expr.Metric("JobType") == "train", expr.Metric("JobType") == "analysis")),
            order=[expr.Ordering(expr.Summary(SCORE), ascending=False)],
            pinned_columns=list(COLUMNS),
        ),
    )


def build_report(entity: str, project: str, facts: Facts) -> Any:
    """The report: the verdict in words, then a grid of panels for each part of the question, then every run."""
    import wandb_workspaces.reports.v2 as wr

    def runs(name: str, filters: Any, groupby: tuple[str, ...] = ()) -> Any:
        return wr.Runset(
            entity=entity,
            project=project,
            name=name,
            filters=filters,
            groupby=list(groupby),
            order=[wr.OrderBy(wr.SummaryMetric(SCORE), ascending=False)],
            visible_columns=list(COLUMNS),
        )

    blocks: list[Any] = [wr.H1(text="Verdict"), wr.MarkdownBlock(text=verdict(facts))]
    for part in parts():
        chosen = facts.chosen if part.at_chosen_rates else []
        runset = runs("at chosen rates" if chosen else "all rates", trained_filter(chosen), part.groupby)
        heading = f"{part.name}, each cell at its chosen learning rate" if chosen else part.name
        blocks += [wr.H2(text=heading), wr.PanelGrid(runsets=[runset], panels=part.panels)]
    blocks += [
        wr.H2(text="Figures and tables of the last sweep"),
        wr.PanelGrid(runsets=[runs("analysis", "Metric('JobType') == 'analysis'")], panels=[_figures(facts)]),
        wr.H2(text="Every run"),
        wr.PanelGrid(runsets=[runs("every run", trained_filter())], panels=[]),
    ]
    return wr.Report(entity=entity, project=project, title=REPORT, description=QUESTION, blocks=blocks, width="fluid")


def _figures(facts: Facts) -> Any:
    """The figures that a sweep's end logs, under the names that they have on disk."""
    import wandb_workspaces.reports.v2 as wr

    keys = [f"figures/{name}" for name in facts.figures]
    return wr.MediaBrowser(title="Figures, from the store", media_keys=keys, num_columns=2)


def verdict(facts: Facts) -> str:
    """The verdict as Markdown."""
    if not facts.sentences:
        return "No finished sweep yet: run the command again with the sweep's store (`store=runs`)."
    lines = [f"**{QUESTION}**", "", *(f"- {_markdown(sentence)}" for sentence in facts.sentences)]
    if facts.notes:
        lines += ["", "Notes", "", *(f"- {_markdown(note)}" for note in facts.notes)]
    return "\n".join([*lines, "", f"From {facts.n_runs:,} runs of the store; W&B is its mirror."])


def _markdown(text: str) -> str:
    """Text that Markdown shows as it stands: names of users' own tasks come into it."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!" else letter for letter in text.replace("\n", " "))


def outline(entity: str, project: str, facts: Facts) -> str:
    """What would be created, in words."""
    workspace, report = build_workspace(entity, project, facts), build_report(entity, project, facts)
    lines = [f"workspace {workspace.name!r} in {entity}/{project}"]
    for section in workspace.sections:
        lines.append(f"  {section.name}")
        lines += [f"    {_panel(panel)}" for panel in section.panels]
    lines.append(f"report {report.title!r} in {entity}/{project}")
    for block in report.blocks:
        kind = type(block).__name__
        if kind == "PanelGrid":
            names = ", ".join(runset.name for runset in block.runsets)
            lines.append(f"    {len(block.panels)} panels over the runs {names}")
        elif kind in ("H1", "H2"):
            lines.append(f"  {block.text}")
    n_cells = len(facts.chosen)
    lines.append(f"from the store: {len(facts.sentences)} sentences, {n_cells} cells at their chosen rates")
    lines += [f"  {sentence}" for sentence in facts.sentences]
    return "\n".join(lines)


def _panel(panel: Any) -> str:
    return f"{type(panel).__name__}: {getattr(panel, 'title', None) or 'the verdict'}"


# Saving


VIEWS = """
query LoraBenchViews($entity: String!, $project: String!, $type: String!) {
    project(name: $project, entityName: $entity) {
        allViews(viewType: $type) { edges { node { id name displayName } } }
    }
}
"""


def save(entity: str, project: str, facts: Facts) -> list[str]:
    """Create both, or update those that are there; returns what was done, in lines."""
    lines = []
    workspace = build_workspace(entity, project, facts)
    views = find_views(entity, project, "project-view", WORKSPACE)
    if views:
        workspace._internal_id, workspace._internal_name = views[0]["id"], views[0]["name"]
    workspace.save()
    lines.append(f"workspace {'updated' if views else 'created'}: {workspace.url}{_spare(views)}")
    report = build_report(entity, project, facts)
    views = find_views(entity, project, "runs", REPORT)
    if views:
        report.id = views[0]["id"]
    report.save()
    lines.append(f"report {'updated' if views else 'created'}: {report.url}{_spare(views)}")
    return lines


def find_views(entity: str, project: str, kind: str, name: str) -> list[dict[str, Any]]:
    """The project's saved views of a kind that have this name, oldest first; none when there is no such project."""
    import wandb
    from wandb_workspaces._graphql import execute_graphql

    variables = {"entity": entity, "project": project, "type": kind}
    answer = execute_graphql(wandb.Api(), VIEWS, variables)
    edges = ((answer.get("project") or {}).get("allViews") or {}).get("edges") or []
    return [edge["node"] for edge in edges if edge["node"]["displayName"] == name]


def _spare(views: list[dict[str, Any]]) -> str:
    return f" ({len(views) - 1} more of this name are left alone)" if len(views) > 1 else ""


def specs(entity: str, project: str, facts: Facts) -> dict[str, Any]:
    """The documents that W&B is sent, as plain values; needs no network when entity and project are empty."""
    workspace = build_workspace(entity, project, facts)._to_model()
    report = build_report("", "", facts)._to_model()
    return {
        "workspace": json.loads(workspace.spec.model_dump_json(by_alias=True, exclude_none=True)),
        "report": json.loads(report.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }
