"""Which published claims hold on this store? A card: supported, refuted, unresolved or missing, with the evidence.

The claims are in claims.yaml, as contrasts. Each setting of the store judges them: score claims by paired t tests,
Holm-corrected over the score claims of the card that the setting can judge; ties by two one-sided tests against the
metric's margin; claims on learning rates by exact binomial tests over seeds, to within one step of a usual grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lora_bench import wording
from lora_bench.reports import tables
from lora_bench.reports.scope import Scope, gather
from lora_bench.reports.section import AGAIN, Column, Section, Table
from lora_bench.verdicts import settings, stats, tuning
from lora_bench.verdicts.arms import compare, estimate, name_arms, same_targets
from lora_bench.verdicts.looks import LESS_OFTEN, MORE_OFTEN
from lora_bench.verdicts.note import Note

SHIPPED = Path(__file__).with_name("claims.yaml")
KINDS = {
    "placement": ("first", "second", "says"),
    "rank": ("targets", "first", "second", "says"),
    "rate_flat": ("targets", "first", "second"),
    "rate_tenfold": (),
}
SAYS = ("better", "tied", "at_least")
CARD = ("setting", "claim", "text", "source", "status", "evidence", "n_runs")  # a row: a claim in a setting
STATUSES = ("supported", "refuted", "unresolved", "missing")


@dataclass(kw_only=True)
class Card(Section):
    """How the claims fared."""

    rows: pd.DataFrame  # a claim in a setting each, as CARD
    claims: list[dict]  # as `read_claims` gives them


class ClaimError(ValueError):
    """A claims file that cannot be read: names the claim and what is wrong with it."""


def read_claims(path: Path) -> list[dict]:
    """The claims of a file, checked.

    Raises:
        ClaimError: on an unreadable file, an unknown kind or word, or a missing key.
    """
    try:
        claims = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["claims"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ClaimError(f"--claims: cannot read {str(path)!r} as a list under `claims` ({error})") from None
    seen = set()
    for place, claim in enumerate(claims):
        name = claim.get("id", f"number {place + 1}")
        if claim.get("kind") not in KINDS:
            raise ClaimError(f"claim {name}: no kind {claim.get('kind')!r}; kinds are {', '.join(KINDS)}")
        absent = [key for key in ("id", "text", "source", *KINDS[claim["kind"]]) if not claim.get(key)]
        if absent:
            raise ClaimError(f"claim {name}: no {', '.join(absent)}")
        if "says" in claim and claim["says"] not in SAYS:
            raise ClaimError(f"claim {name}: says {claim['says']!r}; words are {', '.join(SAYS)}")
        if name in seen:
            raise ClaimError(f"claim {name}: given twice")
        seen.add(name)
    return claims


def sections(runs: pd.DataFrame, scope: Scope, claims: list[dict] | None = None) -> list[Card]:
    """One card over all settings.

    Raises:
        NothingToShow: when no setting can be judged.
    """
    claims = claims or read_claims(SHIPPED)
    answered = scope.settings(runs)
    rows, refused = gather(answered, lambda setting: judge(setting, claims, margin=scope.margin_of(setting.metric)))
    section = card_section(pd.DataFrame(rows), claims, several=len(answered) > 1)
    section.notes.extend(dict.fromkeys(note for setting in answered for note in setting.notes))
    section.notes.append(Note(f"the claims are judged at one look; {AGAIN}"))
    section.refused.extend(refused)
    return [section]


def card_section(rows: pd.DataFrame, claims: list[dict], *, several: bool) -> Card:
    """The card as a section."""
    return Card("Claims", sentence(rows), tables=[evidence_table(rows, several=several)], rows=rows, claims=claims)


def judge(setting: settings.Setting, claims: list[dict], *, margin: float) -> list[dict]:
    """One row per claim: status, evidence in words, and the number of runs behind it."""
    named = name_arms(setting.runs)
    settings.refuse_duplicates(setting, named)
    rates = tuning.choose_rates(named)
    estimates = estimate(named, rates["lr"])
    arms = {claim["id"]: _arms(claim, estimates) for claim in claims if claim["kind"] in ("placement", "rank")}
    pairs = {name: pair for name, pair in arms.items() if isinstance(pair, tuple)}
    table = compare(estimates, list(pairs.values()), margin=margin, flat=tuning.flat_arms(rates))
    verdicts = dict(zip(pairs, table.to_dict("records"), strict=True))
    rows = []
    for claim in claims:
        name = claim["id"]
        if name in verdicts:
            judged = _judge_scores(claim, verdicts[name], rates, margin)
            n_runs = int(named["arm"].isin(pairs[name]).sum())
        elif name in arms:
            judged, n_runs = ("missing", str(arms[name])), 0
        elif claim["kind"] == "rate_flat":
            judged, n_runs = _judge_flat(claim, named, estimates)
        else:
            judged, n_runs = _judge_tenfold(named)
        rows.append(
            {
                "setting": setting.title, "claim": name, "text": claim["text"], "source": claim["source"],
                "status": judged[0], "evidence": judged[1], "n_runs": n_runs,
            }
        )  # fmt: skip
    return rows


def sentence(card: pd.DataFrame) -> str:
    """How the claims fared, over all settings."""
    if card.empty:
        return "No run here is of the method that the claims are about."
    counts = card["status"].value_counts()
    shares = [f"{counts[status]} {status}" for status in STATUSES if counts.get(status)]
    n_settings = card["setting"].nunique()
    judged = f"{card['claim'].nunique()} claims in {wording.counted(n_settings, 'setting')}"
    return f"Of {judged}: {wording.listed(shares)}."


def _arms(claim: dict, estimates: pd.DataFrame) -> tuple[str, str] | str:
    """The two arms that a claim compares here, or what the store lacks for it."""
    lora = estimates[(estimates["targets"] != "") & (estimates["n_seeds"] > 0)]
    if claim["kind"] == "rank":
        of_targets = _of(claim["targets"], lora)
        ends = _ends(of_targets, claim)
        return ends if isinstance(ends, tuple) else _needs_ranks(claim, ends)
    best: tuple | None = None
    firsts, seconds = (_of(claim[side], lora) for side in ("first", "second"))
    for first, cell in firsts.to_dict("index").items():
        for second, other in seconds.to_dict("index").items():
            counts = (cell["adapter_parameters"], other["adapter_parameters"])
            if max(counts) <= min(counts) * (1 + settings.SAME_BUDGET):
                # where several budgets meet, the one with most common seeds; then the one at which most placements meet
                is_near = np.isclose(lora["adapter_parameters"], counts[0], rtol=settings.SAME_BUDGET)
                meeting = lora[is_near]["targets"].nunique()
                key = (len(set(cell["scores"]) & set(other["scores"])), meeting, counts[0])
                best = max(best or (key, ()), (key, (first, second)))
    return (
        best[1] if best else f"needs {claim['first']} and {claim['second']} at one budget; the store has no such pair"
    )


def _ends(of_targets: pd.DataFrame, claim: dict) -> tuple[str, str] | str:
    ranks = {name: arm.rank for name, arm in of_targets["arm"].items() if isinstance(arm.rank, int)}
    if len(set(ranks.values())) < 2:
        return f"rank {', '.join(map(str, sorted(ranks.values())))}" if ranks else "none"
    ordered = sorted(ranks, key=lambda arm: ranks[arm])
    ends = {"lowest": ordered[0], "highest": ordered[-1]}
    picked = [
        ends.get(claim[side]) or next((arm for arm in ordered if ranks[arm] == claim[side]), None)
        for side in ("first", "second")
    ]
    if None in picked or picked[0] == picked[1]:
        return f"rank {', '.join(str(ranks[arm]) for arm in ordered)}"
    return picked[0], picked[1]  # type: ignore[return-value]


def _needs_ranks(claim: dict, there: str) -> str:
    sides = [claim["first"], claim["second"]]
    wanted = (
        "at two ranks"
        if not any(isinstance(side, int) for side in sides)
        else f"at rank {sides[0]} and rank {sides[1]}".replace("rank highest", "a higher one").replace(
            "rank lowest", "a lower one"
        )
    )
    return f"needs {claim['targets']} {wanted}; the store has {there}"


def _of(word: str, estimates: pd.DataFrame) -> pd.DataFrame:
    return estimates[estimates["targets"].map(lambda targets: same_targets(word, str(targets))).astype(bool)]


def _judge_scores(claim: dict, row: dict, rates: pd.DataFrame, margin: float) -> tuple[str, str]:
    verdict, small = row["verdict"], row["note"] == stats.SMALL
    uncertified = [arm for arm in (row["first"], row["second"]) if rates.loc[arm, "certificate"] in tuning.UNCERTIFIED]
    status = {
        "better": {"better": "supported", "worse": "refuted", "tied": "refuted"},
        "tied": {"tied": "supported", "better": "refuted", "worse": "refuted"},
        "at_least": {"better": "supported", "tied": "supported", "worse": "refuted"},
    }[claim["says"]].get(verdict, "missing" if verdict == "missing" else "unresolved")
    if small and claim["says"] in ("tied", "at_least"):
        status = "supported"
    if row["n_seeds"] == 0:
        return "missing", f"{row['first']} and {row['second']} share no seed"
    difference = wording.plus_minus(row["difference"], row["high"], wording.signed)
    evidence = f"{row['first']} − {row['second']}: {difference} points, {row['n_pairs']} seeds"
    if np.isfinite(row["p_holm"]):
        evidence += f", p {wording.p_value(row['p_holm'])}"
        evidence += f", tie within {100 * margin:g} p {wording.p_value(row['p_equivalent_holm'])}"
    if verdict in (MORE_OFTEN, LESS_OFTEN):
        evidence += f"; {row['first']} {verdict}"
    if row["note"]:
        evidence += f"; {row['note']}"
    if status == "unresolved" and not pd.isna(row["seeds_needed"]):
        evidence += f"; about {tables.seeds_needed(row)} seeds would show a difference of {100 * margin:g}, or none"
    if uncertified:
        evidence += f"; the rate of {wording.listed(uncertified)} is not certified"
    return status, evidence


def _judge_flat(claim: dict, runs: pd.DataFrame, estimates: pd.DataFrame) -> tuple[tuple[str, str], int]:
    of_targets = _of(claim["targets"], estimates[estimates["n_seeds"] > 0])
    ends = _ends(of_targets, claim)
    if not isinstance(ends, tuple):
        return ("missing", _needs_ranks(claim, ends)), 0
    best = pd.DataFrame(np.log10(tuning.best_rates_by_seed(runs[runs["arm"].isin(ends)]).astype(float)))
    if len(best) < 2 or runs[runs["arm"].isin(ends)].groupby("arm")["lr"].nunique().min() < 3:
        return ("missing", f"needs three rates or more for {ends[0]} and {ends[1]}"), 0
    shift = (best.loc[ends[1]] - best.loc[ends[0]]).dropna().to_numpy()
    return _by_seeds(shift, 0.0, f"best rate of {ends[1]} over that of {ends[0]}"), int(runs["arm"].isin(ends).sum())


def _judge_tenfold(runs: pd.DataFrame) -> tuple[tuple[str, str], int]:
    if tuning.FULL not in set(runs["arm"]):
        return ("missing", "needs full fine-tuning at its own rates beside LoRA (adapter=full)"), 0
    ratio = tuning.over_full(runs).to_numpy()
    if not ratio.size:
        needs = "needs three rates or more of full fine-tuning and of LoRA, and a seed with a score at all of them"
        return ("missing", needs), 0
    return _by_seeds(ratio, 1.0, "best LoRA rate over that of full fine-tuning"), len(tuning.beside_full(runs))


def _by_seeds(log_ratios: np.ndarray, center: float, what: str) -> tuple[str, str]:
    if not len(log_ratios):
        return "missing", "no seed has a score at every rate of both"
    status, share, p = tuning.judge_log_ratios(log_ratios, center)
    low, high = 10 ** (center - tuning.HALF_DECADE), 10 ** (center + tuning.HALF_DECADE)
    n = len(log_ratios)
    evidence = (
        f"{what}: {10 ** log_ratios.mean():.2g} (geometric mean), {round(share * n)} of {n} seeds between "
        f"{low:.2g} and {high:.2g}; binomial p {wording.p_value(p)}"
    )
    return status, evidence


def evidence_table(card: pd.DataFrame, *, several: bool) -> Table:
    """The card with its evidence; `several` shows the setting of every row."""
    columns = [
        *([Column("setting", "setting", wording.text, is_number=False)] if several else []),
        Column("text", "claim", wording.text, is_number=False),
        Column("status", "here", wording.text, is_number=False),
        Column("evidence", "evidence", wording.text, is_number=False),
        Column("n_runs", "runs", wording.count, in_paper=False),
        Column("source", "source", wording.text, is_number=False, on_screen=False),
    ]
    return Table("claims", "Claims, judged by this store", card, columns)
