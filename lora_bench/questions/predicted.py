"""Do predictors find where the adapter should go? What their maps lose to the placement that training shows to be best.

Each map that `lora-bench predict` chose is held against the best of the plain placements at its budget: the one that
`select` names, scored on `report`, paired by seed. Beside the regret stand the words against qv and against the random
map, the agreement of each predictor's roles with the measured order, how stable its choice is, and what it costs.
What was predicted is read from predictions.json: in the store, or beside the sweep that trained the maps.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.config.grammar import layers_in_words, parse_targets
from lora_bench.questions import claim_words
from lora_bench.reports.figures import predictors as figures
from lora_bench.reports.figures import style
from lora_bench.reports.scope import Scope, gather
from lora_bench.reports.section import Column, SettingSection, Table, one_look
from lora_bench.store import StoreReader, open_store
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import arms, regret, settings, tuning
from lora_bench.verdicts.note import Note, gap
from lora_bench.verdicts.settings import PLACEMENTS, NothingToShow, Setting, slug_of

FILE = "predictions.json"
NULLS = ("random", "parameters")  # maps that predict nothing: what the others must beat
RANDOM = "random"
SINGLE = PLACEMENTS[:4]  # placements of one role
AGREED = ("tau", "tau_low", "tau_high", "rho")  # columns of a `regret.Agreement`
HOW = "lora-bench predict sweep=sweeps/NAME.yaml writes the study that trains them"


@dataclass(frozen=True)
class Predicted:
    """What one predictor said, as predictions.json has it."""

    name: str
    ranks: Mapping[str, int]  # module -> rank
    scores: Mapping[str, float]  # role -> mean score
    seconds: float
    peak_bytes: float  # nan where it was not measured
    top: float  # nan where it was drawn once, as is overlap
    overlap: float
    layers: str  # that its map could choose from, as a store's frame has them: `all`, or `24,25`


def sections(runs: pd.DataFrame, scope: Scope, *, predictions: Path | None = None) -> list[SettingSection]:
    """One section per setting and bake-off of which a map was trained there.

    Args:
        predictions: the file of `lora-bench predict`; None looks in the store, and beside the sweeps of its runs.

    Raises:
        NothingToShow: when none was, or what was predicted is not at hand.
    """
    store = open_store(scope.store)
    files = [predictions] if predictions else _files(runs, scope.store)
    if not files:
        raise NothingToShow(f"no {FILE} in the store or beside its sweeps: no predictor's map to judge; {HOW}")
    documents = [read(path) for path in files]

    def of(setting: Setting) -> list[SettingSection]:
        bake_offs = _bake_offs(setting.runs, documents, store)
        if not bake_offs:
            raise NothingToShow(f"{setting.title}: no run trained a map of {wording.listed([*map(str, files)])}; {HOW}")
        made, refused = gather(bake_offs, lambda bake_off: [section(setting, *bake_off, scope)])
        made[-1].refused.extend(refused)
        return made

    made, refused = gather(scope.settings(runs, free=("layers",)), of)  # a map may leave whole layers out
    made[-1].refused.extend(refused)
    return made


def read(path: Path) -> dict[str, Predicted]:
    """What each predictor said, by its name.

    Raises:
        NothingToShow: when the file is none of `lora-bench predict`.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        stability = document.get("stability") or {}
        layers = document.get("layers", "all")
        spelled = layers if layers == "all" else ",".join(str(int(layer)) for layer in layers)
        return {
            said["predictor"]: _predicted(said, stability.get(said["predictor"]), spelled)
            for said in document["predictions"]
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NothingToShow(f"--predictions: {str(path)!r} is no file of lora-bench predict ({why})") from None


def _predicted(said: Mapping[str, Any], stable: Mapping[str, float] | None, layers: str) -> Predicted:
    return Predicted(
        name=str(said["predictor"]),
        ranks={str(module): int(rank) for module, rank in said["ranks"].items()},
        scores=dict(zip(map(str, said["roles"]), map(float, said["role_scores"]), strict=True)),
        seconds=float(said["seconds"]),
        peak_bytes=math.nan if said["peak_bytes"] is None else float(said["peak_bytes"]),
        top=float((stable or {}).get("top", math.nan)),
        overlap=float((stable or {}).get("overlap", math.nan)),
        layers=layers,
    )


def _files(runs: pd.DataFrame, store: Path) -> list[Path]:
    sweeps = sorted({str(sweep) for sweep in runs["sweep"].dropna()} if "sweep" in runs else ())
    paths = [store / FILE, *(Path("sweeps") / sweep / FILE for sweep in sweeps)]
    return [path for path in paths if path.is_file()]


def _bake_offs(
    runs: pd.DataFrame, documents: Sequence[Mapping[str, Predicted]], store: StoreReader
) -> list[tuple[str, pd.DataFrame, Mapping[str, Predicted]]]:
    """What tells each of a setting from the others, its runs (`name_maps`) and what was predicted; no copies."""
    of_maps: dict[frozenset, tuple[int, pd.DataFrame, Mapping[str, Predicted]]] = {}
    for predicted in documents:
        named = name_maps(runs, predicted, store)
        maps = named[named["arm"].isin(predicted)]
        if len(maps):
            key = frozenset(zip(maps["arm"], maps["cell_id"], strict=True))
            of_maps.setdefault(key, (int(maps["adapter_parameters"].max()), named, predicted))
    which = " · bake-off {}, {:,} parameters" if len(of_maps) > 1 else ""
    return [(which.format(n, spent), named, said) for n, (spent, named, said) in enumerate(of_maps.values(), 1)]


def _on_layers(setting: Setting, predicted: Mapping[str, Predicted]) -> Setting:
    """The setting by the name that it has in other sections, where maps could choose from some layers alone."""
    for layers in {said.layers for said in predicted.values()} - {"all"}:
        words = layers_in_words([*map(int, layers.split(","))])
        setting = replace(
            setting, title=f"{setting.title} · layers {words}", slug=f"{setting.slug}_layers-{slug_of(words)}"
        )
    return setting


def name_maps(runs: pd.DataFrame, predicted: Mapping[str, Predicted], store: StoreReader) -> pd.DataFrame:
    """The runs of predictors' maps, by the names of their predictors, and the plain placements at the maps' budget.

    A map is told by its manifest, matrix by matrix. Of predictors that chose one map the first gives it its name.
    """
    names: dict[frozenset, str] = {}
    for said in predicted.values():
        names.setdefault(frozenset(said.ranks.items()), said.name)
    adapted = runs[runs["targets"] != ""]
    cells = adapted.groupby("cell_id", sort=False)["run_id"].first()
    of_cell: dict[str, str] = {}
    for cell, run_id in cells.items():
        manifest = store.record(str(run_id))["manifest"]
        map_name = names.get(frozenset((matrix["module"], matrix["rank"]) for matrix in manifest))
        if map_name is not None:
            of_cell[str(cell)] = map_name
    is_map = adapted["cell_id"].isin(of_cell)
    budget = adapted.loc[is_map, "adapter_parameters"].max()
    near = (adapted["adapter_parameters"] / budget - 1).abs() <= settings.SAME_BUDGET
    allowed = {said.layers for said in predicted.values()}
    is_there = adapted["layers"].isin(allowed) if "layers" in adapted else True
    is_plain = near & adapted["targets"].isin(PLACEMENTS) & (adapted["map"] == "") & ~is_map & is_there
    kept = adapted[is_map | is_plain]
    return kept.assign(
        arm=[of_cell.get(str(cell), str(word)) for cell, word in zip(kept["cell_id"], kept["targets"], strict=True)]
    )


def section(
    setting: Setting, which: str, runs: pd.DataFrame, predicted: Mapping[str, Predicted], scope: Scope
) -> SettingSection:
    """The table, the figure and the sentence for one bake-off of a setting.

    Raises:
        NothingToShow: when no plain placement was trained at the maps' budget.
    """
    setting = _on_layers(setting, predicted)
    title, name = f"{setting.title}{which}", f"predictors_{setting.slug}{slug_of(which) if which else ''}"
    runs = arms.sort_arms(runs)
    settings.refuse_duplicates(setting, runs)
    trained = [map_name for map_name in predicted if map_name in set(runs["arm"])]
    margin, reference = scope.margin_of(setting.metric), settings.REFERENCE_TARGETS
    judged = arms.judge(runs, [(reference, map_name) for map_name in trained], margin=margin)
    plain = [arm for arm in judged.estimates.index if arm in PLACEMENTS and judged.estimates.loc[arm, "n_seeds"]]
    if not plain:
        raise NothingToShow(f"{title}: no plain placement was trained at the budget of the predictors' maps")
    best = str(judged.rates.loc[plain, "select"].idxmax())
    flat = tuning.flat_arms(judged.rates)
    others = [(RANDOM, map_name) for map_name in trained if map_name != RANDOM] if RANDOM in trained else []
    against_random = arms.compare(judged.estimates, others, margin=margin, flat=flat)
    words = dict(zip(judged.contrasts["second"], judged.contrasts["verdict"], strict=True))
    of_study = _study_words(runs, trained, open_store(scope.store), reference)
    frame = _frame(judged.estimates, predicted, trained, best)
    frame["reference_word"] = [of_study.get(row, words.get(row, "")) for row in frame["predictor"]]
    random_words = dict(zip(against_random["second"], against_random["verdict"], strict=True))
    frame["random_word"] = [random_words.get(row, "") for row in frame["predictor"]]
    points = frame.assign(**{column: 100 * frame[column] for column in ("regret", "regret_low", "regret_high")})
    notes = [
        *setting.notes,
        Note(
            f"the best placement, {best}, is the one that select names; regret is scored on report, paired by seed, "
            "each interval by itself"
        ),
        _whose_words(trained, of_study, reference, one_look(against_random)),
        Note(
            "τ: Kendall's, of role scores with mean scores of the placements of one role; its interval draws seeds, "
            "and with four roles it takes few values"
        ),
        *_lacking(trained, predicted, judged.estimates, plain),
    ]
    return SettingSection(
        title=f"Predictors: {title}",
        sentence=sentence(title, frame, best, reference),
        tables=[_table(name, title, frame, reference, best, metric=setting.metric)],
        figures={name: figures.predictors(points, best=best)},
        captions={
            name: f"Regret of each predictor's map on report against {best}, which select names best, and agreement of "
            "its roles with the measured order of q, k, v and o, with 95 % intervals over seeds. Grey: maps that "
            "predict nothing, and qv."
        },
        notes=notes,
        setting=setting,
    )


def _study_words(runs: pd.DataFrame, trained: Sequence[str], store: StoreReader, reference: str) -> dict[str, str]:
    """Map -> the word of the reference against it by a study that looked at its runs; empty where a journal cannot be
    read, which is said in its own section.

    A name alone does not tell: a bake-off at another budget has another map of the same predictor.
    """
    runs_of = {name: {*runs.loc[runs["arm"] == name, "run_id"]} for name in trained}
    with contextlib.suppress(StoreError):
        return {
            finding["second"]: finding["word"]
            for finding in claim_words.of_store(store)
            if finding["first"] == reference and not finding["runs"].isdisjoint(runs_of.get(finding["second"], ()))
        }
    return {}


def _whose_words(trained: Sequence[str], of_study: Mapping[str, str], reference: str, look: str) -> Note:
    """What each word rests on, and over what it was corrected."""
    own = wording.listed([name for name in trained if name in of_study])
    whose = {0: "of a fixed design", len(trained): "a study's"}.get(len(of_study), f"a study's for {own}, else fixed")
    return Note(
        f"words against {reference} are {whose}, those against the random map of a fixed design ({look}); such are "
        "Holm-corrected over the maps, a study's over all its contrasts and looks"
    )


def _frame(
    estimates: pd.DataFrame, predicted: Mapping[str, Predicted], trained: Sequence[str], best: str
) -> pd.DataFrame:
    """A row per trained map, by rising regret, then those that predict nothing, and qv where it was trained."""
    scores = {str(name): of_seeds for name, of_seeds in estimates["scores"].items()}
    rng = np.random.default_rng(0)
    shown = [*trained, *(arm for arm in (settings.REFERENCE_TARGETS,) if arm in scores)]
    rows = []
    for row_name in shown:
        lost = regret.regret(scores[best], scores[row_name])
        said = predicted.get(row_name)
        row = {
            "predictor": row_name, "is_null": row_name in NULLS or said is None, "n_seeds": lost.n_pairs,
            "score": estimates.loc[row_name, "mean"],
            "regret": lost.mean, "regret_low": lost.low, "regret_high": lost.high,
            **{key: getattr(said, key, math.nan) for key in ("seconds", "peak_bytes", "top", "overlap")},
        }  # fmt: skip
        for kind, placements in {"": SINGLE, "all_": PLACEMENTS}.items():
            agreed = _agreement(said, placements, scores, rng)
            row |= {f"{kind}{key}": value for key, value in zip(AGREED, agreed, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["is_null", "regret"], kind="stable", ignore_index=True)


def _agreement(
    said: Predicted | None,
    placements: Sequence[str],
    scores: Mapping[str, Mapping[int, float]],
    rng: np.random.Generator,
) -> regret.Agreement:
    """Of a predictor's scores, of a placement the mean of its roles', with the placements that were trained."""
    there = [word for word in placements if scores.get(word)]
    if said is None or not there or any(role not in said.scores for word in there for role in parse_targets(word)):
        return regret.agreement([], np.empty((0, 0)), rng=rng)
    seeds = sorted(set.intersection(*(set(scores[word]) for word in there)))
    measured = np.array([[scores[word][seed] for word in there] for seed in seeds])
    means = [float(np.mean([said.scores[role] for role in parse_targets(word)])) for word in there]
    return regret.agreement(means, measured, rng=rng)


def sentence(title: str, frame: pd.DataFrame, best: str, reference: str) -> str:
    """What was found here, in one sentence."""
    real = frame[~frame["is_null"] & np.isfinite(frame["regret"])]
    if real.empty:
        return f"On {title} no predictor's map has a score beside that of {best}."
    start = (
        f"On {title} the maps of {wording.counted(len(real), 'predictor')} score "
        f"{wording.signed(-real['regret'].max())} to {wording.signed(-real['regret'].min())} points against {best}, "
        "the best placement by select"
    )
    parts = []
    for column, other in (("reference_word", reference), ("random_word", "the random map")):
        better = [str(row) for row in real["predictor"][real[column] == "worse"]]  # the other is worse than it
        parts.append(f"{wording.listed(better)} better than {other}" if better else f"none shown better than {other}")
    return f"{start}; {', '.join(parts)}."


def _table(name: str, title: str, frame: pd.DataFrame, reference: str, best: str, *, metric: str) -> Table:
    regrets = zip(frame["regret"], frame["regret_high"], strict=True)
    shown = frame.assign(
        regret_shown=[wording.plus_minus(mean, high, wording.signed) for mean, high in regrets],
        tau_shown=[_tau(*row) for row in frame[["tau", "tau_low", "tau_high"]].to_numpy()],
        memory_shown=["–" if math.isnan(peak) else wording.size(peak) for peak in frame["peak_bytes"]],
    )
    stable = [
        Column("top", "same top, %", wording.percent, on_screen=False),
        Column("overlap", "same map, %", wording.percent, on_screen=False),
    ] * bool(frame["top"].notna().any())
    columns = [
        Column("predictor", "map of", wording.text, is_number=False, is_name=True),
        Column("n_seeds", "seeds", wording.count),
        Column("score", style.short_metric(metric), wording.points, on_screen=False, best_of="score"),
        Column("regret_shown", "regret", wording.text),
        Column("reference_word", f"{reference} is", wording.text, is_number=False),
        Column("random_word", "random is", wording.text, is_number=False),
        Column("tau_shown", "τ (95 %)", wording.text),
        Column("rho", "ρ", _two, on_screen=False),
        Column("all_tau", "τ, all placements", _two, on_screen=False),
        Column("all_rho", "ρ, all placements", _two, on_screen=False),
        *stable,
        Column("seconds", "s", _short),
        Column("memory_shown", "memory", wording.text, on_screen=False),
    ]
    title = f"{title}: maps of predictors, report score lost to {best} ± 95 %"
    return Table(name, title, shown, columns)


def _lacking(
    trained: Sequence[str], predicted: Mapping[str, Predicted], estimates: pd.DataFrame, plain: Sequence[str]
) -> list[Note]:
    notes = []
    absent = [name for name in predicted if name not in trained]
    if absent:
        notes.append(gap(f"not trained, or of a map that another predictor has too: {wording.listed(absent)}"))
    lacking = [word for word in PLACEMENTS if word not in plain]
    if lacking:
        notes.append(gap(f"placements that were not trained at this budget: {wording.listed(lacking)}"))
    n_seeds = estimates["n_seeds"].astype(int).to_dict()
    few = [name for name in trained if n_seeds[name] < 8]
    if few:
        notes.append(gap(f"fewer than eight seeds: {wording.listed(few)}"))
    return notes


def _tau(tau: float, low: float, high: float) -> str:
    return _two(tau) if math.isnan(tau) or math.isnan(low) else f"{_two(tau)} ({_two(low)} to {_two(high)})"


def _two(value: object) -> str:
    return "–" if not np.isfinite(float(value)) else f"{float(value):.2f}".replace("-", "−")  # type: ignore[arg-type]


def _short(value: object) -> str:
    seconds = float(value)  # type: ignore[arg-type]
    if not np.isfinite(seconds):
        return "–"
    return f"{seconds:.2g}" if seconds >= 0.05 else "0"  # what looks at no model takes none
