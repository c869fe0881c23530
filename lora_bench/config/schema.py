"""The configuration of a run: its fields and what is known of each (`facts.Fact`).

Values live in conf/; a field's type, its limits, its part in a run's identity and its words live here and nowhere else.
"""

from dataclasses import dataclass, field
from typing import Any

from lora_bench.config.facts import Key, fact, keys_of
from lora_bench.config.grammar import HIGHEST_RANK

METHODS = ("lora", "lora_plus", "dora", "head_only", "bitfit", "full")
TUNED_METHODS = ("lora", "lora_plus", "dora", "bitfit", "full")  # that train more than the head
LORA_METHODS = ("lora", "lora_plus", "dora")
INITS = ("gaussian", "kaiming", "peft_gaussian", "pissa", "olora")
ALPHA_POLICIES = ("fixed", "ratio", "rslora")
SCHEDULES = ("linear", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp64")
SOURCES = ("glue", "generated", "files", "planted")
KINDS = ("classification", "regression")
TRAIN_DRAWS = ("fixed", "seed")
METRICS = ("accuracy", "balanced_accuracy", "matthews", "f1", "pearson", "spearman")
KEEP_ADAPTERS = ("all", "best", "none")
MOST_ROWS = 2**31 - 1


@dataclass
class ModelConfig:
    """A frozen backbone: a Hub name, a local folder, or (`weights: random`) an architecture with seeded weights."""

    name: str = fact(filled=True, path=True, help="a Hub name or a local folder")
    revision: str | None = fact(
        None, help="commit or branch on the Hub; pin one where safetensors are not on the main branch"
    )
    weights: str = fact(
        choices=("pretrained", "random"),
        help="`pretrained`, or `random`: seeded weights of `model.architecture`, for tests",
    )
    packaged: dict[str, str] = fact(
        {},
        help="a Python package that carries the weights of the Hub's `name`, and their hash; the Hub is the fallback. "
        "Another `model.name`, or a `model.revision`, leaves it out",
    )
    gguf: str | None = fact(
        None,
        filled=True,
        path=True,
        help="a GGUF file of a Llama-type language model, or `pkg://PACKAGE/FILE` of an installed package: dequantised "
        "once, and read in place of `model.name`",
    )
    sha256: str | None = fact(None, help="of model.safetensors, or of the GGUF file; checked before loading")
    architecture: dict[str, Any] = fact({}, help="transformers configuration values, for random weights")
    roles: dict[str, str] = fact(
        {}, help="role -> regular expression of module paths, where the matrices of a backbone are not recognised"
    )
    trust_remote_code: bool = fact(False, help="run code that a Hub repository brings; off unless you say so")


@dataclass
class TaskConfig:
    """A task and where its rows come from: what can change a result is in the fingerprint of those rows."""

    name: str = fact(filled=True, help="a GLUE or embedded task; for `task=files`, what tables call it")
    source: str = fact(choices=SOURCES, help="`glue`, `generated`, `files` or `planted`; set by the task's file")
    data_dir: str | None = fact(
        None,
        path=True,
        help="GLUE: a folder of local parquet, csv, tsv or jsonl files in the Hub's schema; files: their folder",
    )
    revision: str | None = fact(None, help="of the data on the Hub")
    train_rows: int | None = fact(
        None, at_least=1, at_most=MOST_ROWS, help="first rows of a seeded shuffle; null takes all"
    )
    train_draw: str = fact(
        "fixed",
        choices=TRAIN_DRAWS,
        of="task",
        later="fixed",
        label="train rows drawn",
        help="`fixed`: every seed trains on the same `train_rows`; `seed`: each on `train_rows` of its own, so that "
        "words are about the data and not about one sample of it",
    )
    report_rows: int | None = fact(
        None, at_least=1, at_most=MOST_ROWS, help="first rows of report, for a quick look; null takes all"
    )
    select_rows: int | None = fact(
        None,
        at_least=1,
        at_most=MOST_ROWS,
        help="rows cut from train to choose rates on; null takes a tenth, at most 1,000",
    )
    phenomena: list[str] = fact([], help="constructions of an embedded task; empty takes all")
    kind: str = fact("classification", choices=KINDS, help="files: `classification` or `regression`")
    train_file: str | None = fact(None, path=True, help="files: required")
    select_file: str | None = fact(None, path=True, help="files: null cuts select from train")
    report_file: str | None = fact(None, path=True, help="files: required; scored once, at the end")
    text_columns: list[str] = fact([], help="files: one column, or two for pairs")
    label_column: str | None = fact(None, help="files: text or whole numbers; for regression any numbers")
    metrics: list[str] = fact(
        [],
        choices=METRICS,
        help="`accuracy`, `balanced_accuracy`, `matthews`, `f1`; `pearson`, `spearman`; empty takes the task's own",
    )
    planted_texts: str | None = fact(
        None, filled=True, help="planted: the embedded task whose sentences the teacher labels"
    )
    planted_targets: str | None = fact(None, help="planted: the teacher's roles")
    planted_rank: int | None = fact(None, at_least=1, at_most=65536, help="planted: the teacher's rank")
    planted_strength: float | None = fact(
        None,
        above=0,
        at_most=1e3,
        help="planted: norm of the teacher's update over that of the weight, in every matrix",
    )
    planted_noise: float | None = fact(
        None, at_least=0, at_most=0.5, help="planted: share of train and select labels that are turned over"
    )
    planted_seed: int | None = fact(None, at_least=0, at_most=2**31 - 1, help="planted: another teacher")

    @property
    def is_drawn_by_seed(self) -> bool:
        """Whether each seed trains on rows of its own."""
        return self.train_draw == "seed"


@dataclass
class AdapterConfig:
    """Which matrices are adapted, how, and how much."""

    method: str = fact(
        choices=METHODS,
        of="adapter",
        factor=True,
        brief="",
        help="`lora`, `lora_plus`, `dora`, `head_only`, `bitfit`, `full`; set by `adapter=`, which also knows "
        "`rslora`, `pissa`, `olora`",
    )
    targets: str = fact(
        of="adapter",
        methods=LORA_METHODS,
        brief="targets (letters of qkvo, up, gate, down joined by +; attention, mlp, all)",
        help="letters of `qkvo`, `up`, `gate`, `down` joined by `+`; groups `attention`, `mlp`, `all`",
    )
    rank: int | None = fact(
        None,
        at_least=1,
        at_most=HIGHEST_RANK,
        of="adapter",
        methods=LORA_METHODS,
        brief="rank, or rank=null budget=q@8 (a number of parameters, or what a placement costs)",
        help="of every adapted matrix; null where a budget is given",
    )
    budget: int | str | None = fact(
        None,
        brief="",
        help="adapter parameters, as a number or as what a placement costs: `q@8`",
    )
    rank_pattern: Any = fact(
        None,
        brief="rank_pattern (ranks by role and layers: q@4+v.first:3@16; the others take rank, or share budget)",
        help="ranks by role and layers, as `q@4+v.first:3@16` or `{q: 4, v.0-2: 16}`; of several that fit a matrix the "
        "last holds, 0 leaves it out, and what none fits takes `adapter.rank` or shares what is left of "
        "`adapter.budget`",
    )
    like: str | None = fact(
        None,
        filled=True,
        path=True,
        brief="like (an adapter_config.json of peft: its matrices at its ranks)",
        help="an `adapter_config.json` of peft, or its folder: the matrices that it adapts at its ranks, in place of "
        "`targets`, `layers`, `rank`, `budget` and `rank_pattern`. Alpha, dropout and all else stay as set here",
    )
    alpha: float = fact(
        above=0, of="adapter", methods=LORA_METHODS, factor=True, help="numerator of the update's scale"
    )
    alpha_policy: str = fact(
        choices=ALPHA_POLICIES,
        of="adapter",
        methods=LORA_METHODS,
        factor=True,
        brief=f"alpha_policy ({', '.join(ALPHA_POLICIES)})",
        help="scale of the update: `fixed` alpha / rank, `ratio` alpha, `rslora` alpha / sqrt(rank)",
    )
    dropout: float = fact(
        at_least=0,
        below=1,
        of="adapter",
        methods=LORA_METHODS,
        column="adapter_dropout",
        factor=True,
        help="on the adapter's input only",
    )
    init: str = fact(
        choices=INITS,
        of="adapter",
        methods=LORA_METHODS,
        factor=True,
        label="init of A",
        help="of A: `gaussian` (standard deviation independent of the rank), `kaiming`, `peft_gaussian`, `pissa`, "
        "`olora`",
    )
    layers: Any = fact(
        of="adapter",
        methods=LORA_METHODS,
        factor=True,
        help="`all`, `first:N`, `last:N`, or a list such as `[0,2,5]`",
    )
    replicate: int = fact(
        at_least=0,
        at_most=2**31 - 1,
        of="adapter",
        methods=LORA_METHODS,
        factor=True,
        label="",
        help="another draw of A and nothing else, for A/A comparisons",
    )
    b_lr_ratio: float = fact(  # arXiv:2402.12354
        1.0,
        above=0,
        of="adapter",
        methods=("lora_plus",),
        factor=True,
        brief="",
        label="",
        help="learning rate of B over that of A (LoRA+)",
    )


@dataclass
class TrainConfig:
    """The optimisation: AdamW, one schedule, per-run clipping."""

    lr: float = fact(above=0, at_most=1e7, of="train", methods=TUNED_METHODS, help="peak learning rate of the adapter")
    head_lr: float | None = fact(
        None,
        at_least=0,
        at_most=1e7,
        of="train",
        factor=True,
        brief="head_lr (null: lr)",
        label="head's rate",
        help="peak learning rate of the head; null takes `train.lr`",
    )
    epochs: float = fact(
        above=0, at_most=10_000, of="train", factor=True, help="passes over the train split; fractions work"
    )
    batch_size: int = fact(
        at_least=1, at_most=MOST_ROWS, of="train", factor=True, label="batch", help="rows per optimizer step"
    )
    grad_accumulation: int = fact(at_least=1, of="train", label="", help="a step's rows are taken in this many parts")
    max_length: int = fact(
        at_least=4, at_most=1_000_000, of="train", label="longest input, tokens", help="tokens; longer rows are cut"
    )
    schedule: str = fact(
        choices=SCHEDULES, of="train", factor=True, help="`linear` to zero, or `constant`, after the warm-up"
    )
    warmup_ratio: float = fact(at_least=0, at_most=1, of="train", factor=True, label="", help="fraction of all steps")
    weight_decay: float = fact(
        at_least=0, at_most=10, of="train", factor=True, help="of AdamW; biases and norms are spared"
    )
    max_grad_norm: float = fact(
        above=0, of="train", factor=True, label="", help="per run, over adapter and head together"
    )
    precision: str = fact(
        choices=PRECISIONS,
        of="train",
        factor=True,
        brief=f"precision ({', '.join(PRECISIONS)})",
        help="`auto`, `fp32`, `bf16`, `fp64`. On CUDA, auto is bf16 where the card multiplies it; on a CPU where a "
        "product in bf16 was measured at 1.5 times the rate of fp32. The store keeps what it came to, the record says "
        "it, and `show=config` shows both rates",
    )
    dropout: float | None = fact(
        None,
        at_least=0,
        below=1,
        of="train",
        column="train_dropout",
        factor=True,
        label="dropout",
        help="of the backbone; null keeps its own",
    )
    checkpoint: str = fact(
        choices=("last", "best"),
        of="train",
        label="",
        help="`last`, or `best` by the primary metric on select at the ends of epochs",
    )
    curve: str = fact(
        "sparse",
        choices=("sparse", "full"),
        help="at which epochs' ends select is scored besides the last: `sparse`, evenly spread and at most a row for "
        "20 that are trained on, or `full`, all of them, as `checkpoint=best` does",
    )
    compile: bool = fact(False, help="torch.compile")


@dataclass
class TrackingConfig:
    """Where runs are mirrored to. The store stays the truth."""

    backend: str = fact(choices=("wandb", "none"), help="`wandb` or `none`; set by `tracking=`")
    project: str = fact("lora_bench", filled=True, help="on W&B")
    entity: str | None = fact(None, help="on W&B; null is your default")
    mode: str = fact(
        "auto",
        choices=("auto", "online", "offline"),
        help="`auto` (online with a key and a server that answers), `online`, `offline`",
    )
    tags: list[str] = fact([], help="added to those of the run")
    artifacts: str = fact(
        "none",
        choices=("none", "records", "all"),
        help="what of a run is kept on W&B as files: `none`, `records` (its record), `all` (record, predictions, "
        "adapter, and a table of predictions with their texts)",
    )


@dataclass
class RunConfig:
    """One run: a cell and a seed."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = fact(
        at_least=0,
        at_most=2**31 - 1,
        of="run",
        help="head, order, dropout and adapter start, each through a stream of its own; `range(8)` in sweeps",
    )
    store: str = fact(filled=True, path=True, help="the folder of records")
    keep_adapters: str = fact(
        "all",
        choices=KEEP_ADAPTERS,
        alias="store.keep_adapters",
        help="`all`, `best` (each placement's runs at its chosen rate) or `none`; also as `store.keep_adapters`",
    )
    device: str = fact("auto", choices=("auto", "cpu", "cuda"), help="`auto`, `cpu`, `cuda`")


KEYS = tuple(keys_of(RunConfig))
"""Every field of a run's configuration, in order."""


def scientific(part: str) -> list[Key]:
    """The fields that enter a part of a run's science, those that count for every method first."""
    return sorted((key for key in KEYS if key.fact.of == part), key=lambda key: key.fact.methods is not None)
