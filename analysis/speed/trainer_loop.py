"""Runs with the Hugging Face Trainer and peft, one after another, as people write them; nothing of lora_bench is
imported, so that its start-up is not theirs.

    python analysis/speed/trainer_loop.py ORDER.json        the last line of its output is JSON

The order holds the backbone's folder, the rows of each split, the training arguments and the runs: peft's own
configuration, a learning rate and a seed each. A run is trained, then its predictions on select and report are made.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Carry out the order; prints {"seconds": of each run, "train_seconds": of each}: start-up is outside them."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(order["folder"])
    splits = {name: _tokenised(tokenizer, rows, order["max_length"]) for name, rows in order["rows"].items()}
    seconds, train_seconds = [], []
    for run in order["runs"]:
        start = time.perf_counter()
        set_seed(run["seed"])
        model = AutoModelForSequenceClassification.from_pretrained(order["folder"], num_labels=order["n_labels"])
        model = get_peft_model(model, LoraConfig(**run["peft"]))
        _set_dropout(model, order["dropout"])
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                learning_rate=run["rate"],
                seed=run["seed"],
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                **order["arguments"],
            )
            collator = DataCollatorWithPadding(tokenizer)
            trainer = Trainer(model=model, args=arguments, train_dataset=splits["train"], data_collator=collator)
            before = time.perf_counter()
            trainer.train()
            train_seconds.append(time.perf_counter() - before)
            for name in ("select", "report"):
                trainer.predict(splits[name])  # pyright: ignore[reportArgumentType]    any sequence of rows will do
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "train_seconds": train_seconds}))
    return 0


def _tokenised(tokenizer: Any, rows: dict[str, list[Any]], max_length: int) -> Any:
    ids = tokenizer(*rows["texts"], truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, rows["labels"], strict=True)]


def _set_dropout(model: Any, rate: float | None) -> None:
    """The backbone's own where None."""
    import torch

    for module in model.modules():
        if rate is not None and isinstance(module, torch.nn.Dropout):
            module.p = rate


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
