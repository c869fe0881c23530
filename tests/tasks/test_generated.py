"""The embedded tasks: stable rows, disjoint words, labels that logic confirms, and no score for counting words."""

import hashlib
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from lora_bench.tasks.generated import acceptability, entailment, sentiment, similarity
from lora_bench.tasks.generated.draws import Draws, sentence
from lora_bench.tasks.generated.grammars import GRAMMARS, LABEL_NAMES, generate
from lora_bench.tasks.generated.lexicon import CLOSED_CLASS, FRAME_WORDS, LEXICONS, REPORT, TRAIN

CASES = [(name, split) for name in GRAMMARS for split in LEXICONS]
CLASSIFICATION = [name for name, labels in LABEL_NAMES.items() if labels]

# sha256 of the first 1,000 rows; a change here makes every stored run on the task a run on another task
PINNED = {
    ("acceptability", "train"): "3ca521c1d25c294f0a546575130dd9938d7af3436475534ef7ababd29a7d81cb",
    ("acceptability", "report"): "c7c60f33c2e23698da0b5e3ea87a084e4d879aedc96ba26a43d60dd7fcd1722f",
    ("sentiment", "train"): "fa23a53f5af5e48037d5a1bc80704d14bf85b58ff8dbd0321c65c5f70de41e2c",
    ("sentiment", "report"): "374628eb34e99e01f2fedd07518e1c3ecdc3cfb458d4d50eccc4b059be6e6abb",
    ("entailment", "train"): "be58af5e32ab6695a8b7003a5e200b20efd8a8f5c76d4b657ca41223a74344e5",
    ("entailment", "report"): "4c6f641d59fb5c9f15632b9af502325207048780efcb2b340d55c2ee63eaaafd",
    ("similarity", "train"): "5a4f73c7b02ecb6e2ca787c6167ea237e4790d23d923c7e7ac07e9fc8a38f1dc",
    ("similarity", "report"): "1cec405feed6d4c678ff183ec08cfa56559b852edb2e31582ae5bf040442a72b",
}


def texts(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(frame[[column for column in frame if column.startswith("text_")]].itertuples(index=False, name=None))


def words(frame: pd.DataFrame) -> list[str]:
    return re.findall(r"[a-z]+", " ".join(itertools.chain.from_iterable(texts(frame))).lower())


@pytest.mark.parametrize(("name", "split"), CASES)
def test_rows_are_the_same_everywhere(name, split):
    """Runs are compared across machines by a fingerprint of their rows."""
    rows = generate(name, split, 1000)
    lines = "\n".join("\t".join([*text, str(label)]) for text, label in zip(texts(rows), rows["label"], strict=True))
    assert hashlib.sha256(lines.encode()).hexdigest() == PINNED[name, split]


@pytest.mark.parametrize(("name", "split"), CASES)
def test_more_rows_only_append(name, split):
    pd.testing.assert_frame_equal(generate(name, split, 300), generate(name, split, 900).head(300))


@pytest.mark.parametrize("name", GRAMMARS)
def test_columns(name):
    rows = generate(name, "train", 50)
    pair = ["text_b"] if name in ("entailment", "similarity") else []
    assert list(rows) == ["text_a", *pair, "label", "idx"]
    assert rows["label"].dtype == ("float64" if name == "similarity" else "int64")
    assert rows["idx"].tolist() == list(range(50))
    assert all(re.fullmatch(r"[A-Z][A-Za-z, ]+\.", text) and "  " not in text for text in itertools.chain(*texts(rows)))


@pytest.mark.parametrize("name", GRAMMARS)
def test_no_row_comes_twice(name):
    """A row in both splits would score memory."""
    train, report = texts(generate(name, "train", 9000)), texts(generate(name, "report", 2000))
    assert len(set(train)) == len(train)
    assert len(set(report)) == len(report)
    assert not set(train) & set(report)


@pytest.mark.parametrize(("name", "split"), CASES)
def test_labels_are_balanced(name, split):
    counts = generate(name, split, 1001)["label"].value_counts()
    assert len(counts) == (similarity.LEVELS if name == "similarity" else len(LABEL_NAMES[name]))
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", GRAMMARS)
def test_report_words_are_new(name):
    """At least half of the content words of report do not occur in train; by construction it is far more."""
    train, report = words(generate(name, "train", 8000)), words(generate(name, "report", 1000))
    known = set(train)
    content = [word for word in report if word not in CLOSED_CLASS]
    assert sum(word not in known for word in content) / len(content) > 0.6
    assert sum(word not in known for word in set(content)) / len(set(content)) > 0.7
    assert known & set(content) <= FRAME_WORDS


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"'grammar'.*acceptability"):
        generate("grammar", "train", 10)
    with pytest.raises(ValueError, match=r"'select'.*train, report"):
        generate("sentiment", "select", 10)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        generate("sentiment", "train", 0)


def test_an_exhausted_grammar_says_so(monkeypatch):
    monkeypatch.setattr(sentiment, "row", lambda draw, lexicon, label: (f"Only {label} and {draw.below(3)}.",))
    with pytest.raises(ValueError, match=r"about [56] different rows, asked for 100"):
        generate("sentiment", "train", 100)


@pytest.mark.parametrize("longest", [1, 2], ids=["unigrams", "bigrams"])
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_counting_words_does_not_solve_it(name, longest):
    """The tasks must measure what an adapter learns about structure."""
    train, report = generate(name, "train", 8000), generate(name, "report", 1000)
    parts = []
    for column in [column for column in train if column.startswith("text_")]:
        counts = CountVectorizer(ngram_range=(1, longest), token_pattern=r"\w+").fit(train[column])
        parts.append((counts.transform(train[column]), counts.transform(report[column])))
    x_train, x_report = (scipy.sparse.hstack(side).tocsr() for side in zip(*parts, strict=True))
    model = LogisticRegression(solver="liblinear").fit(x_train, train["label"])
    assert balanced_accuracy_score(report["label"], model.predict(x_report)) <= 0.65


def test_acceptability_has_at_least_eight_phenomena():
    assert len(acceptability.PHENOMENA) >= 8


@pytest.mark.parametrize(
    ("grammar", "phenomenon"),
    [(grammar, name) for grammar in (acceptability, sentiment, entailment) for name in grammar.PHENOMENA],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_phenomenon_has_both_labels_in_quantity(grammar, phenomenon):
    """A phenomenon that shows one label only, or a few rows, would be learnt by heart."""
    made = {True: set(), False: set()}
    draw = Draws(phenomenon)
    for _ in range(1000):
        for good in (True, False):
            made[good].add(grammar.PHENOMENA[phenomenon](draw, TRAIN, good))
    assert min(len(made[True]), len(made[False])) > 400
    assert not made[True] & made[False]


# Finite models: a noun's set has `n` members, of which `k` share the predicate.
TRUTH = {
    "all": lambda k, n: k == n,
    "some": lambda k, n: k > 0,
    "no": lambda k, n: k == 0,
    "not all": lambda k, n: k < n,
    "every one of": lambda k, n: k == n,
    "each of": lambda k, n: k == n,
    "none of": lambda k, n: k == 0,
    "not one of": lambda k, n: k == 0,
    "some of": lambda k, n: k > 0,
    "at least one of": lambda k, n: k > 0,
    "most of": lambda k, n: 2 * k > n,
}


def truth(quantifier: str):
    return TRUTH[quantifier.removesuffix(" the")]


def entails(premise, hypothesis) -> bool:
    """Whether the hypothesis holds wherever the premise does, in every set of 1 to 6 members."""
    return all(truth(hypothesis)(k, n) for n in range(1, 7) for k in range(n + 1) if truth(premise)(k, n))


def test_quantifier_labels_follow_from_their_meaning():
    assert all(entails(*pair) for pair in entailment.STRONGER)
    assert not any(entails(*pair) for pair in entailment.NOT_STRONGER)


def test_monotonicity_labels_follow_from_their_meaning():
    """`widening`: true of the narrow noun, then true of the wide one that holds it; `narrowing`: the other way."""
    models = [
        (k, n, k + more_k, n + more_k + rest)
        for n in range(1, 4)
        for k in range(n + 1)
        for more_k in range(3)
        for rest in range(3)
    ]
    for quantifier in entailment.WIDENING + entailment.NARROWING:
        holds = truth(quantifier)
        widens = all(holds(wide_k, wide_n) for k, n, wide_k, wide_n in models if holds(k, n))
        narrows = all(holds(k, n) for k, n, wide_k, wide_n in models if holds(wide_k, wide_n))
        assert (widens, narrows) == (quantifier in entailment.WIDENING, quantifier in entailment.NARROWING), quantifier


def test_similarity_scores_are_five_minus_the_prices():
    for cost, options in similarity.EDITS.items():
        assert options
        assert all(sum(similarity.PRICES[edit] for edit in edits) == cost / 2 for edits in options)


@pytest.mark.parametrize("split", LEXICONS)
def test_similarity_ends_of_the_scale(split):
    """5: the same event in other words; 0: no word of content in common."""
    rows = generate("similarity", split, 2000)
    back = {other: word for word, other in LEXICONS[split].synonyms.items()}
    singular = {}
    for nouns in (LEXICONS[split].people, LEXICONS[split].things):
        singular |= {noun.plural: noun.singular for noun in nouns}
    for verbs in (LEXICONS[split].treat, LEXICONS[split].handle):
        singular |= {form: verb.base for verb in verbs for form in (verb.past, verb.participle)}

    def content(text: str) -> set[str]:
        lemmas = (back.get(word, word) for word in re.findall(r"[a-z]+", text.lower()))
        return {singular.get(word, word) for word in lemmas} - CLOSED_CLASS

    for first, second, label in rows[["text_a", "text_b", "label"]].itertuples(index=False):
        if label == 5:
            assert content(first) == content(second)
        if label == 0:
            assert not content(first) & content(second)


def test_draws_are_uniform():
    draw = Draws("uniform")
    counts = np.bincount([draw.below(6) for _ in range(60_000)], minlength=6)
    assert abs(counts / 10_000 - 1).max() < 0.05
    assert all(len(set(draw.pick_two("abc"))) == 2 for _ in range(100))


def test_sentence_sets_articles_and_capitals():
    assert sentence("a", "", "ugly", "cup", "or a useless one") == "An ugly cup or a useless one."


def test_lexicon_forms_are_spelt_right():
    forms = {verb.base: verb for lexicon in (TRAIN, REPORT) for verb in lexicon.handle + lexicon.treat + lexicon.act}
    assert (forms["grab"].past, forms["envy"].past, forms["crush"].third, forms["hug"].past) == (
        "grabbed",
        "envied",
        "crushes",
        "hugged",
    )


def test_chosen_phenomena_are_the_only_ones_shown():
    """`quick` draws on a few constructions: its rows must be theirs alone."""
    rows = generate("acceptability", "train", 200, ["negative_polarity"])
    assert rows["text_a"].str.contains(r"\b(?:ever|any)\b").all()
    assert not generate("acceptability", "train", 200)["text_a"].str.contains(r"\b(?:ever|any)\b").all()


@pytest.mark.parametrize(
    ("name", "message"),
    [("acceptability", "those of acceptability are agreement, "), ("similarity", "similarity has none to choose from")],
)
def test_an_unknown_phenomenon_is_refused_with_what_there_is(name, message):
    with pytest.raises(ValueError, match=f"task.phenomena: no phenomenon 'passive'; {message}"):
        generate(name, "train", 10, ["passive"])
