"""Which published claims hold on this store? A card: supported, refuted, open or not run, with the evidence.

The claims are in claims.yaml, as contrasts, each with what refutes it and the study that settles it. Each setting of
the store judges them: contrasts of cells by paired t tests, Holm-corrected over those that the setting can judge; ties
by two one-sided tests against the metric's margin; trends and pooled cells likewise, a family of their own; learning
rates by exact binomial tests over seeds; ratios and spectra by t intervals over seeds. Where a study's journal has a
word on a claim's contrast, that word counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lora_bench import wording
from lora_bench.config.schema import ALPHA_POLICIES
from lora_bench.questions import claim_kinds, claim_rates, claim_words
from lora_bench.questions.claim_sides import NOT_RUN, OPEN, REFUTED, SUPPORTED
from lora_bench.reports import tables
from lora_bench.reports.scope import Scope, gather
from lora_bench.reports.section import AGAIN, Column, Section, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.verdicts import settings, stats, tuning
from lora_bench.verdicts.arms import compare, estimate, name_arms
from lora_bench.verdicts.looks import LESS_OFTEN, MORE_OFTEN, NOT_LEARNED
from lora_bench.verdicts.note import Note

SHIPPED = Path(__file__).with_name("claims.yaml")
KINDS = {
    "placement": ("first", "second", "says"),
    "same_rank": ("first", "second", "says"),
    "rank": ("targets", "first", "second", "says"),
    "interaction": ("first", "second", "says"),
    "rank_slope": ("targets", "says"),
    "pooled": ("firsts", "seconds", "says"),
    "factor": ("by", "first", "second", "says"),
    "time_ratio": ("by", "first", "second", "at_most"),
    "spectral": ("targets", "low", "high"),
    "intruders": ("rank", "low", "high"),
    "start": ("targets", "rank", "low", "high"),
    "rate_flat": ("targets", "first", "second"),
    "rate_falls": ("targets", "first", "second"),
    "rate_tenfold": (),
}
CELLS = ("placement", "same_rank", "rank")  # kinds that compare two cells
TRENDS = ("interaction", "rank_slope", "pooled")
FACTORS = ("factor", "time_ratio")
ENDS = ("lowest", "highest")  # what `rank` may say
SAYS = ("better", "tied", "at_least", "rises", "falls", "flat")
AS_CONTRAST = {"rises": "better", "falls": "worse", "flat": "tied"}
CARD = ("setting", "claim", "text", "source", "status", "evidence", "n_runs")  # a row: a claim in a setting
STATUSES = (SUPPORTED, REFUTED, OPEN, NOT_LEARNED, NOT_RUN)


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
    if not isinstance(claims, list) or not claims:
        raise ClaimError(f"--claims: {str(path)!r} has no list of claims under `claims`")
    seen = set()
    for place, claim in enumerate(claims):
        if not isinstance(claim, dict):
            raise ClaimError(f"claim number {place + 1}: no mapping of keys to values")
        name = claim.get("id", f"number {place + 1}")
        if claim.get("kind") not in KINDS:
            raise ClaimError(f"claim {name}: no kind {claim.get('kind')!r}; kinds are {', '.join(KINDS)}")
        needed = KINDS[claim["kind"]]
        absent = [key for key in ("id", "text", "source", *needed) if claim.get(key) in (None, "", [])]
        if absent:
            raise ClaimError(f"claim {name}: no {', '.join(absent)}")
        chosen = {
            "by": tuple(settings.FACTORS),
            "policy": ALPHA_POLICIES,
            "rank": ENDS,
            "says": _may_say(claim["kind"]),
        }
        for key, words in chosen.items():
            if key in claim and (key in needed or key == "policy") and claim[key] not in words:
                raise ClaimError(f"claim {name}: {key} {claim[key]!r}; words are {', '.join(words)}")
        if name in seen:
            raise ClaimError(f"claim {name}: given twice")
        seen.add(name)
    for claim in claims:
        unknown = [other for other in claim.get("contradicts", ()) if other not in seen]
        if unknown:
            raise ClaimError(f"claim {claim['id']}: contradicts {unknown[0]!r}, which is no claim of this file")
    return claims


def _may_say(kind: str) -> tuple[str, ...]:
    return SAYS if kind in TRENDS else tuple(word for word in SAYS if word not in AS_CONTRAST)


def sections(runs: pd.DataFrame, scope: Scope, claims: list[dict] | None = None) -> list[Card]:
    """One card over all settings.

    Raises:
        NothingToShow: when no setting can be judged.
    """
    claims = claims or read_claims(SHIPPED)
    answered = scope.settings(runs)
    store = open_store(scope.store) if scope.store.is_dir() else None
    rows, refused = [], []
    if any(claim["kind"] not in FACTORS for claim in claims):
        findings = claim_words.of_store(store)
        rows, refused = gather(answered, lambda setting: judge(setting, claims, findings, scope=scope, store=store))
    rows += _of_factors(scope.within(runs), scope, claims, answered)
    rows = _whole(rows, claims, answered, store, scope.home)
    section = card_section(pd.DataFrame(rows), claims, several=len(answered) > 1)
    section.notes.extend(dict.fromkeys(note for setting in answered for note in setting.notes))
    section.notes.append(Note(f"the claims are judged at one look; {AGAIN}"))
    section.refused.extend(refused)
    return [section]


def card_section(rows: pd.DataFrame, claims: list[dict], *, several: bool) -> Card:
    """The card as a section."""
    return Card("Claims", sentence(rows), tables=[evidence_table(rows, several=several)], rows=rows, claims=claims)


def judge(
    setting: settings.Setting,
    claims: list[dict],
    findings: Sequence[Mapping[str, Any]],
    *,
    scope: Scope,
    store: StoreReader | None = None,
) -> list[dict]:
    """A row for each claim that is not on levels of a factor: status, evidence in words, and the runs behind it.

    Args:
        findings: of the store's studies, as `claim_words.of_store` gives them.
        store: with the adapters; None without.
    """
    margin = scope.margin_of(setting.metric)
    named = name_arms(setting.runs)
    settings.refuse_duplicates(setting, named)
    rates = tuning.choose_rates(named)
    estimates = estimate(named, rates["lr"])
    lora = estimates[(estimates["targets"] != "") & (estimates["n_seeds"] > 0)]
    arms = {claim["id"]: _arms(claim, lora) for claim in claims if claim["kind"] in CELLS}
    pairs = {name: pair for name, pair in arms.items() if isinstance(pair, tuple)}
    family = list({frozenset(pair): pair for pair in pairs.values()}.values())  # claims that contradict ask one thing
    flat = tuning.flat_arms(rates)
    table = compare(estimates, family, margin=margin, flat=flat)
    of_pair = dict(zip(family, table.to_dict("records"), strict=True))
    verdicts = {
        name: of_pair.get((first, second)) or claim_words.mirrored(of_pair[second, first])
        for name, (first, second) in pairs.items()
    }
    trends = _trends([claim for claim in claims if claim["kind"] in TRENDS], lora, margin, flat)
    rows = []
    for claim in claims:
        name, kind, n_runs = claim["id"], claim["kind"], 0
        if kind in FACTORS:
            continue
        if claim.get("policy", setting.facts.get("alpha_policy")) != setting.facts.get("alpha_policy"):
            judged = NOT_RUN, f"is about adapter.alpha_policy={claim['policy']}"
        elif name in verdicts:
            judged = _judge_scores(claim, verdicts[name], rates, margin)
            n_runs = int(named["arm"].isin(pairs[name]).sum())
        elif name in arms:
            judged = NOT_RUN, str(arms[name])
        elif name in trends:
            judged = trends[name]
            n_runs = 0 if judged[0] == NOT_RUN else len(setting.runs)
        elif kind == "spectral":
            judged, n_runs = claim_kinds.judge_spectral(claim, named, store)
        elif kind == "intruders":
            judged, n_runs = claim_kinds.judge_intruders(claim, named, store, scope)
        elif kind == "start":
            judged, n_runs = claim_kinds.judge_start(claim, named, store)
        elif kind == "rate_tenfold":
            judged, n_runs = claim_rates.judge_tenfold(named)
        else:
            judged, n_runs = claim_rates.judge_shift(claim, named, _rank_ends(claim, lora), rates)
        if name in pairs:
            judged = _judge_by_study(claim, findings, named, pairs[name]) or judged
        rows.append(_row(setting.title, claim, judged, n_runs, setting, store, scope.home))
    return rows


def _judge_by_study(
    claim: dict, findings: Sequence[Mapping[str, Any]], named: pd.DataFrame, pair: tuple[str, str]
) -> tuple[str, str] | None:
    """Status and evidence from a study that looked at runs of both arms; None where none did."""
    of_sides = [set(named.loc[named["arm"] == arm, "run_id"]) for arm in pair]
    word = claim_words.word_on(claim, findings, of_sides)
    return (_status(claim["says"], word["word"], is_small=word["is_small"]), word["words"]) if word else None


def _row(
    title: str,
    claim: dict,
    judged: tuple[str, str],
    n_runs: int,
    setting: settings.Setting | None = None,
    store: StoreReader | None = None,
    home: Path | None = None,
) -> dict:
    status, evidence = judged
    if status == NOT_RUN and claim.get("study") and setting is not None:
        evidence += f"; run {claim_words.command(claim['study'], setting, store, home)}"
    return {
        "setting": title, "claim": claim["id"], "text": claim["text"], "source": claim["source"],
        "status": status, "evidence": evidence, "n_runs": n_runs,
    }  # fmt: skip


def _of_factors(
    runs: pd.DataFrame, scope: Scope, claims: list[dict], answered: Sequence[settings.Setting]
) -> list[dict]:
    """A row for each claim on levels of a factor, and each setting that has runs of them: where the factor is what
    tells settings apart, the claim is about several."""
    rows = []
    of_factors = [claim for claim in claims if claim["kind"] in FACTORS]
    for title, claim, row in claim_kinds.factor_judgements(runs, scope, of_factors):
        if claim["kind"] == "factor":
            judged = _judge_scores(dict(claim), row, row["rates"], row["margin"])
        else:
            judged = claim_kinds.at_most(np.array(list(row["ratio"].values())), float(claim["at_most"]))
        titles = [setting.title for setting in answered if not row["run_ids"].isdisjoint(setting.runs["run_id"])]
        rows += [_row(of_title, dict(claim), judged, len(row["run_ids"])) for of_title in titles or [title]]
    return rows


def _whole(
    rows: list[dict],
    claims: list[dict],
    answered: Sequence[settings.Setting],
    store: StoreReader | None,
    home: Path | None,
) -> list[dict]:
    """The rows with those that a setting lacks, and with what is against a claim beside it."""
    by_title = {setting.title: setting for setting in answered}
    by_cell = {(row["setting"], row["claim"]): row for row in rows}
    made = []
    for title in dict.fromkeys(row["setting"] for row in rows) or by_title:
        of_title = [
            by_cell.get((title, claim["id"])) or _row(title, claim, _absent(claim), 0, by_title.get(title), store, home)
            for claim in claims
        ]
        status = {row["claim"]: row["status"] for row in of_title}
        for row, claim in zip(of_title, claims, strict=True):
            others = [other for other in claim.get("contradicts", ()) if status[other] != NOT_RUN]
            against = ", ".join(f"{other} is {status[other]}" for other in others)
            made.append(row | ({"evidence": f"{row['evidence']}; against it: {against}"} if against else {}))
    return made


def _absent(claim: dict) -> tuple[str, str]:
    lacks = f"needs {claim['first']} and {claim['second']} of {claim['by']}" if claim.get("by") else "needs runs"
    return NOT_RUN, f"{lacks}, all else alike"


def sentence(card: pd.DataFrame) -> str:
    """How the claims fared, over all settings."""
    if card.empty:
        return "No run here is of the method that the claims are about."
    counts = card["status"].value_counts()
    shares = [f"{counts[status]} {status}" for status in STATUSES if counts.get(status)]
    n_settings = card["setting"].nunique()
    judged = f"{card['claim'].nunique()} claims in {wording.counted(n_settings, 'setting')}"
    return f"Of {judged}: {wording.listed(shares)}."


def _arms(claim: dict, lora: pd.DataFrame) -> tuple[str, str] | str:
    """The two arms that a claim compares here, or what the store lacks for it."""
    if claim["kind"] == "same_rank":
        return claim_kinds.same_rank(claim, lora)
    if claim["kind"] == "rank":
        return _rank_ends(claim, lora)
    best: tuple | None = None
    firsts, seconds = (claim_kinds.of_targets(claim[side], lora) for side in ("first", "second"))
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


def _rank_ends(claim: dict, lora: pd.DataFrame) -> tuple[str, str] | str:
    """The two arms of a claim on two ranks, or what the store lacks for it."""
    ends = _ends(claim_kinds.of_targets(claim["targets"], lora), claim)
    return ends if isinstance(ends, tuple) else _needs_ranks(claim, ends)


def _ends(of_targets: pd.DataFrame, claim: dict) -> tuple[str, str] | str:
    ranks = {name: arm.rank for name, arm in of_targets["arm"].items() if isinstance(arm.rank, int)}
    if len(set(ranks.values())) < 2:
        return f"rank {', '.join(map(str, sorted(ranks.values())))}" if ranks else "none"
    ordered = sorted(ranks, key=lambda arm: ranks[arm])
    whole = claim_kinds.with_seeds(
        ranks, {name: len(of_targets.loc[[name], "scores"].iloc[0]) for name in ranks}, least=2
    )
    ends = {word: end(whole, key=lambda arm: ranks[arm]) for word, end in (("lowest", min), ("highest", max))}
    picked = [
        ends.get(claim[side]) or next((arm for arm in ordered if ranks[arm] == claim[side]), None)
        for side in ("first", "second")
    ]
    if None in picked or picked[0] == picked[1]:
        return f"rank {', '.join(str(ranks[arm]) for arm in ordered)}"
    return picked[0], picked[1]  # type: ignore[return-value]


def _needs_ranks(claim: dict, there: str) -> str:
    sides = sorted([claim["first"], claim["second"]], key=lambda side: isinstance(side, str))
    wanted = (
        "at two ranks"
        if not any(isinstance(side, int) for side in sides)
        else f"at rank {sides[0]} and rank {sides[1]}".replace("rank highest", "a higher one").replace(
            "rank lowest", "a lower one"
        )
    )
    return f"needs {claim['targets']} {wanted}; the store has {there}"


_STATUS_OF: dict[str, dict[str, str]] = {
    "better": {"better": SUPPORTED, "worse": REFUTED, "tied": REFUTED},
    "worse": {"worse": SUPPORTED, "better": REFUTED, "tied": REFUTED},
    "tied": {"tied": SUPPORTED, "better": REFUTED, "worse": REFUTED},
    "at_least": {"better": SUPPORTED, "tied": SUPPORTED, "worse": REFUTED},
}
"""What a claim says -> the word that a contrast got -> the claim's status; any other word leaves it open."""
for _says in _STATUS_OF.values():
    _says |= {NOT_LEARNED: NOT_LEARNED, "missing": NOT_RUN}


def _status(says: str, word: str, *, is_small: bool) -> str:
    """A difference that is real and smaller than the margin is as good as none: it bears out who says so, and neither
    bears out nor refutes who says that one is better."""
    if is_small and word in ("better", "worse"):
        return SUPPORTED if says in ("tied", "at_least") else OPEN
    return _STATUS_OF[says].get(word, OPEN)


def _trends(claims: list[dict], lora: pd.DataFrame, margin: float, flat: Collection[str]) -> dict[str, tuple[str, str]]:
    """The trends and pooled contrasts that a setting can judge, a family of their own; what it lacks for the others.

    Args:
        flat: arms that did not learn, on which no claim rests.
    """
    values = {claim["id"]: claim_kinds.trend(claim, lora) for claim in claims}
    trends = {name: trend for name, trend in values.items() if not isinstance(trend, str)}
    unlearned = {name: [arm for arm in trend.cells if arm in flat] for name, trend in trends.items()}
    known = {name: trend.by_seed for name, trend in trends.items() if not unlearned[name]}
    family = [
        stats.contrast(np.array(list(by_seed.values())), np.zeros(len(by_seed)), margin=margin)
        for by_seed in known.values()
    ]
    rows = dict(zip(known, stats.judge(family), strict=True))
    judged = {}
    for claim in claims:
        name = claim["id"]
        if unlearned.get(name):
            judged[name] = NOT_LEARNED, f"{wording.listed(unlearned[name])} did not learn"
            continue
        if name not in rows:
            judged[name] = NOT_RUN, str(values[name])
            continue
        row = vars(rows[name]) | {"first": claim_kinds.named(claim), "second": ""}
        judged[name] = _judge_scores(claim, row, None, margin)
    return judged


def _judge_scores(claim: dict, row: dict, rates: pd.DataFrame | None, margin: float) -> tuple[str, str]:
    verdict = row["verdict"]
    uncertified = [
        arm
        for arm in (row["first"], row["second"])
        if rates is not None and rates.loc[arm, "certificate"] in tuning.UNCERTIFIED
    ]
    says = AS_CONTRAST.get(str(claim["says"]), str(claim["says"]))
    status = _status(says, verdict, is_small=row["note"] == stats.SMALL)
    if row["n_seeds"] == 0:
        return NOT_RUN, f"{row['first']} and {row['second']} share no seed"
    difference = wording.plus_minus(row["difference"], row["high"], wording.signed)
    contrasted = f"{row['first']} − {row['second']}" if row["second"] else row["first"]
    contrasted = f"{claim['by']} {contrasted}" if claim.get("by", "method") != "method" else contrasted
    evidence = f"{contrasted}: {difference} points, {row['n_pairs']} seeds"
    if np.isfinite(row["p_holm"]):
        evidence += f", p {wording.p_value(row['p_holm'])}"
        evidence += f", tie within {100 * margin:g} p {wording.p_value(row['p_equivalent_holm'])}"
    if verdict in (MORE_OFTEN, LESS_OFTEN):
        evidence += f"; {row['first']} {verdict}"
    if row["note"]:
        evidence += f"; {row['note']}"
    if status == OPEN and not pd.isna(row["seeds_needed"]):
        evidence += f"; about {tables.seeds_needed(row)} seeds would show a difference of {100 * margin:g}, or none"
    if uncertified:
        evidence += f"; the rate of {wording.listed(uncertified)} is not certified"
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
    return Table("claims", "Claims, judged by this store", card, columns, parted_by="setting" if several else None)
