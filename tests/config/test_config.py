"""Configurations: every shipped file parses, every bad value is told in one line, and identity is what it should be."""

import copy
import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from configs import ROOT, composed, names
from lora_bench.config import identity
from lora_bench.config.check import check
from lora_bench.config.compose import Template, parse, to_dict
from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import group_words, parse_budget, parse_layers, parse_targets, spell_targets
from lora_bench.config.identity import cell_id, display_name, run_id, science
from lora_bench.config.schema import RunConfig
from lora_bench.verdicts.arms import same_targets


@pytest.fixture(scope="module")
def base():
    """The default configuration on the tiny backbone, as plain values."""
    return to_dict(parse(composed("model=tiny", "tracking=none")))


def with_values(base, **values):
    """A copy of a plain configuration with values set by dotted key (written with __)."""
    changed = copy.deepcopy(base)
    for key, value in values.items():
        *sections, name = key.split("__")
        held = changed
        for section in sections:
            held = held[section]
        held[name] = value
    return changed


# Shipped files


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("model", "adapter", "tracking") for name in names(f"conf/{group}")]
)
def test_every_shipped_choice_parses(group, name):
    assert isinstance(parse(composed(f"{group}={name}")), RunConfig)


@pytest.mark.parametrize("name", names("conf/task"))
def test_every_shipped_task_parses(name):
    extra = ["task.train_file=a.csv", "task.report_file=b.csv"] if name == "files" else []
    assert isinstance(parse(composed(f"task={name}", *extra)), RunConfig)


@pytest.mark.parametrize("name", names("conf/train"))
def test_every_shipped_training_preset_parses(name):
    assert isinstance(parse(composed("task=cola", f"train={name}")), RunConfig)


@pytest.mark.parametrize("name", names("sweeps"))
def test_every_shipped_sweep_composes_states_its_question_and_needs_no_switch(name):
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n# Question: ")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("config", overrides=[f"+sweeps={name}"], return_hydra_config=True)
    assert whole.hydra.mode.name == "MULTIRUN"
    assert whole.hydra.sweeper.params or whole.hydra.sweeper.grids


def test_values_of_the_paper_and_of_its_scripts():
    """Table 9 of arXiv:2106.09685v2 against examples/NLU/roberta_base_*.sh: they differ in alpha, batch and decay."""
    paper = parse(composed("task=qnli", "train=paper_roberta_base"))
    scripts = parse(composed("task=qnli", "train=scripts_roberta_base"))
    told = [
        (c.adapter.alpha, c.train.batch_size, c.train.weight_decay, c.train.lr, c.train.epochs)
        for c in (paper, scripts)
    ]
    assert told == [(8, 32, 0.0, 4e-4, 25), (16, 256, 0.1, 4e-4, 25)]
    assert (paper.train.max_length, paper.adapter.rank, paper.adapter.targets) == (512, 8, "qv")


def test_values_on_the_command_line_win_over_a_preset():
    config = parse(composed("task=cola", "train=paper_roberta_base", "train.lr=1e-3", "adapter.alpha=4"))
    assert (config.train.lr, config.train.epochs, config.adapter.alpha) == (1e-3, 80, 4)


def test_a_preset_without_the_task_says_which_it_has():
    with pytest.raises(ConfigError, match=r"no values for task 'wnli'; it has mnli, sst2"):
        parse(composed("task=wnli", "train=paper_roberta_base"))


def test_every_key_of_the_schema_can_be_set_without_a_plus_sign():
    assert parse(composed("model.revision=abc", "task.data_dir=/x", "adapter.budget=null")).model.revision == "abc"


def test_the_schema_in_the_config_store_has_no_values_of_its_own():
    """Values live in conf/: a mandatory key must be missing until a file gives it."""
    composed()
    node = ConfigStore.instance().load("schema.yaml").node
    assert OmegaConf.is_missing(node.train, "lr")


def test_round_trip_through_plain_values(base):
    assert to_dict(parse(json.loads(json.dumps(base)))) == base


# Bad configurations: key, value, and what would work

BAD = [
    # unknown keys
    ({"adapter__rnak": 4}, "adapter.rnak: no such key", "did you mean 'rank'"),
    ({"optimizer": "adam"}, "optimizer: no such key", "keys are model, task"),
    ({"train__learning_rate": 1}, "train.learning_rate: no such key", "keys of train are lr"),
    ({"sweeps": "quick"}, "sweeps: no sweep was loaded", "+sweeps=quick"),
    ({"model__arch": "bert"}, "model.arch: no such key", "architecture"),
    # types
    ({"train__lr": "fast"}, "train.lr: Value 'fast'", "give a number"),
    ({"train__batch_size": 1.5}, "train.batch_size: Value '1.5'", "give a whole number"),
    ({"adapter__rank": "four"}, "adapter.rank: Value 'four'", "give a whole number"),
    ({"adapter__rank": True}, "adapter.rank: true is a switch", "give a whole number"),
    ({"seed": False}, "seed: false is a switch", "give a whole number"),
    ({"train__compile": "often"}, "train.compile: Value 'often'", "give true or false"),
    ({"seed": [1, 2]}, "seed: Value '[1, 2]'", "give a whole number"),
    ({"adapter": None}, "adapter: null", "give its keys"),
    ({"adapter__targets": ["q", "v"]}, "adapter.targets: ['q', 'v'] is a list", "qv is both q and v, and with -m"),
    ({"adapter__targets": {"q": 1}}, "adapter.targets: {'q': 1} is a mapping", "qv is both"),
    ({"task__label_column": ["a"]}, "task.label_column: ['a'] is a list", "give it without brackets"),
    ({"model__name": ["a", "b"]}, "model.name: ['a', 'b'] is a list", "give it without brackets"),
    ({"task__text_columns": "text"}, "task.text_columns: one value where a list belongs", "as [a,b]"),
    # missing
    ({"train__lr": "???"}, "train.lr: no value given", "set it on the command line"),
    ({"model__name": "???"}, "model.name: no value given", "set it on the command line"),
    # model
    ({"model__name": ""}, "model.name: ''", "give a name"),
    ({"model__weights": "pretraind"}, "model.weights: no 'pretraind'", "did you mean 'pretrained'"),
    (
        {"model__packaged": {"name": "a", "package": "os.path", "sha256": "0" * 64}},
        "model.packaged.package: 'os.path' is no package",
        "without dots",
    ),
    (
        {"model__packaged": {"name": "a", "package": "", "sha256": "0" * 64}},
        "package: '' is no package",
        "give the name",
    ),
    ({"model__sha256": "abc"}, "model.sha256: 'abc'", "64 hexadecimal digits"),
    ({"model__architecture": {}}, "model.architecture: no model_type", "such as bert"),
    ({"model__roles": {"w": "x"}}, "model.roles: no role 'w'", "roles are q, k, v"),
    ({"model__roles": {"q": "("}}, "model.roles.q: '('", "no regular expression"),
    # task
    ({"task__name": "my task"}, "task.name: 'my task'", "letters, digits"),
    ({"task__source": "gule"}, "task.source: no 'gule'", "did you mean 'glue'"),
    ({"task__kind": "ranking"}, "task.kind: no 'ranking'", "classification, regression"),
    ({"task__train_rows": 0}, "task.train_rows: 0 is too small", "at least 1"),
    ({"task__report_rows": -5}, "task.report_rows: -5 is too small", "at least 1"),
    ({"task__select_rows": 0}, "task.select_rows: 0 is too small", "at least 1"),
    ({"task__source": "glue", "task__phenomena": ["tense"]}, "task.phenomena", "add task.phenomena=[]"),
    ({"task__metrics": ["bleu"]}, "task.metrics: no 'bleu'", "choices are accuracy"),
    ({"task__metrics": ["pearson"]}, "task.metrics: 'pearson'", "does not score a classification task"),
    ({"task__source": "files"}, "task.train_file: no file given", "needs train_file and report_file"),
    # adapter
    ({"adapter__method": "lorra"}, "adapter.method: no 'lorra'", "did you mean 'lora'"),
    ({"adapter__targets": "qw"}, "adapter.targets: no role 'w' in 'qw'", "roles are q, k, v, o, up, gate, down"),
    ({"adapter__targets": "query"}, "adapter.targets: no role 'query'", "groups attention, mlp, all"),
    ({"adapter__targets": ""}, "adapter.targets: no role in ''", "roles are q"),
    ({"adapter__targets": "qvq"}, "adapter.targets: role 'q' is named twice in 'qvq'", "name each once"),
    ({"adapter__targets": "q++v"}, "adapter.targets: no role ''", "roles are q"),
    ({"adapter__rank": 0}, "adapter.rank: 0 is too small", "at least 1"),
    ({"adapter__rank": None}, "adapter.rank: null without adapter.budget", "a budget such as q@8"),
    ({"adapter__budget": "q@8"}, "adapter.rank: 8 beside adapter.budget=q@8", "adapter.rank=null"),
    ({"adapter__rank": None, "adapter__budget": "q8"}, "adapter.budget: cannot read 'q8'", "q@8"),
    ({"adapter__rank": None, "adapter__budget": "w@8"}, "no role 'w'", "roles are q"),
    ({"adapter__rank": None, "adapter__budget": "q@0"}, "adapter.budget: cannot read 'q@0'", "q@8"),
    ({"adapter__rank": None, "adapter__budget": 0}, "adapter.budget: 0", "q@8"),
    ({"adapter__alpha": 0}, "adapter.alpha: 0.0 is too small", "above 0"),
    ({"adapter__alpha": float("nan")}, "adapter.alpha: nan", "not finite"),
    ({"adapter__alpha_policy": "sqrt"}, "adapter.alpha_policy: no 'sqrt'", "fixed, ratio, rslora"),
    ({"adapter__dropout": 1.0}, "adapter.dropout: 1.0 is too large", "below 1"),
    ({"adapter__init": "gausian"}, "adapter.init: no 'gausian'", "did you mean 'gaussian'"),
    ({"adapter__layers": "some"}, "adapter.layers: cannot read 'some'", "all, first:N, last:N"),
    ({"adapter__layers": [0, 0]}, "adapter.layers: [0, 0] names a layer twice", "name each once"),
    ({"adapter__layers": [-1]}, "adapter.layers: no layer -1", "0 and above"),
    ({"adapter__layers": "first:0"}, "adapter.layers: 'first:0' is out of range", "layers"),
    ({"adapter__layers": []}, "adapter.layers: cannot read []", "all, first:N"),
    ({"adapter__replicate": -1}, "adapter.replicate: -1 is too small", "at least 0"),
    ({"adapter__b_lr_ratio": 4}, "adapter.b_lr_ratio: 4.0 has no effect on lora", "use lora_plus"),
    ({"adapter__method": "lora_plus"}, "adapter.b_lr_ratio: 1 makes lora_plus plain lora", "such as 16"),
    # training
    ({"train__lr": 0}, "train.lr: 0.0 is too small", "above 0"),
    ({"train__lr": float("inf")}, "train.lr: inf", "not finite"),
    ({"train__lr": 1e9}, "train.lr: 1000000000.0 is too large", "at most"),
    ({"train__head_lr": -1e-3}, "train.head_lr: -0.001 is too small", "at least 0"),
    ({"train__epochs": 0}, "train.epochs: 0.0 is too small", "above 0"),
    ({"train__batch_size": 0}, "train.batch_size: 0 is too small", "at least 1"),
    ({"train__grad_accumulation": 3}, "train.grad_accumulation: 3", "does not divide train.batch_size=32"),
    ({"train__max_length": 2}, "train.max_length: 2 is too small", "at least 4"),
    ({"train__schedule": "cosine"}, "train.schedule: no 'cosine'", "linear, constant"),
    ({"train__warmup_ratio": 1.5}, "train.warmup_ratio: 1.5 is too large", "at most 1"),
    ({"train__weight_decay": -0.1}, "train.weight_decay: -0.1 is too small", "at least 0"),
    ({"train__max_grad_norm": 0}, "train.max_grad_norm: 0.0 is too small", "above 0"),
    ({"train__precision": "fp16"}, "train.precision: no 'fp16'", "auto, fp32, bf16"),
    ({"train__dropout": 1}, "train.dropout: 1.0 is too large", "below 1"),
    ({"train__checkpoint": "first"}, "train.checkpoint: no 'first'", "last, best"),
    # the rest
    ({"seed": -1}, "seed: -1 is too small", "at least 0"),
    ({"seed": 2**31}, "seed: 2147483648 is too large", "at most"),
    ({"store": " "}, "store: ' '", "give a name"),
    ({"device": "tpu"}, "device: no 'tpu'", "auto, cpu, cuda"),
    ({"tracking__backend": "mlflow"}, "tracking.backend: no 'mlflow'", "wandb, none"),
    ({"tracking__mode": "sometimes"}, "tracking.mode: no 'sometimes'", "auto, online, offline"),
    ({"tracking__project": ""}, "tracking.project: ''", "give a name"),
]


def test_the_bad_configurations_are_many():
    assert len(BAD) >= 40


@pytest.mark.parametrize(("values", "said", "hint"), BAD, ids=[repr(values)[1:-1][:60] for values, _, _ in BAD])
def test_a_bad_configuration_is_told_by_key_value_and_remedy(base, values, said, hint):
    with pytest.raises(ConfigError) as caught:
        parse(with_values(base, **values))
    message = str(caught.value)
    assert said in message
    assert hint in message
    assert "\n" not in message


def test_a_refusal_shows_no_inner_error(base):
    with pytest.raises(ConfigError) as caught:
        parse(with_values(base, train__lr="fast"))
    assert caught.value.__suppress_context__


# Targets, budgets, layers


@pytest.mark.parametrize(
    ("text", "roles"),
    [("vq", "qv"), ("q+v", "qv"), ("up+q+down", "q+up+down"), ("gate", "gate"), ("okvq", "qkvo")],
)
def test_spelling_of_targets_is_canonical(text, roles):
    assert spell_targets(parse_targets(text)) == roles


@given(st.permutations(["q", "k", "v", "o", "up", "gate", "down"]), st.integers(1, 7))
def test_the_order_of_roles_never_matters(order, n):
    chosen = order[:n]
    assert spell_targets(parse_targets("+".join(chosen))) == spell_targets(sorted(chosen))


@given(st.text(max_size=12))
def test_any_text_of_targets_is_read_or_refused(text):
    try:
        assert parse_targets(text)
    except ConfigError as error:
        assert str(error).startswith("adapter.targets: ")


@pytest.mark.parametrize(
    ("spelled", "words"),
    [
        (["q", "qv", "qkvo"], []),
        (["qv", "qkvo", "qkvo+up+down", "up+down"], ["qv", "attention", "all", "MLP"]),
        (["qkvo", "up+gate+down", "up+down"], ["attention", "MLP", "up+down"]),
        (["qkvo+up+down", "up+gate"], ["qkvo+up+down", "up+gate"]),
        (["qv+up+down", "up"], ["qv+up+down", "up"]),
    ],
    ids=" ".join,
)
def test_groups_have_their_words_where_the_mlp_is_among_the_placements(spelled, words):
    """Text says all and MLP where pictures said qkvo+up+down; beside q and v alone qkvo keeps its letters."""
    named = group_words(spelled)
    assert [named.get(targets, targets) for targets in spelled] == (words or spelled)
    for targets, word in named.items():
        assert same_targets(word.lower(), targets)


@pytest.mark.parametrize(
    ("given_budget", "read"), [("q@8", (("q",), 8)), ("1_000", 1000), (7, 7), ("qv@2", (("q", "v"), 2))]
)
def test_budgets_are_read(given_budget, read):
    assert parse_budget(given_budget) == read


@pytest.mark.parametrize(
    ("layers", "read"), [("all", "all"), ("first:2", ("first", 2)), ("last:1", ("last", 1)), ([5, 0], (0, 5))]
)
def test_layers_are_read(layers, read):
    assert parse_layers(layers, 6) == read


@pytest.mark.parametrize("layers", ["first:7", [6]])
def test_layers_beyond_the_backbone_are_refused(layers):
    with pytest.raises(ConfigError, match=r"adapter\.layers"):
        parse_layers(layers, 6)


# Identity


def document(base, **values):
    return science(
        parse(with_values(base, **values)),
        model_fingerprint="m" * 8,
        task_fingerprint="t" * 8,
        metrics=["matthews"],
        train_rows=7200,
        targets=values.get("adapter__targets", "qv"),
        rank=8,
        layers="all",
        precision="fp32",
    )


def test_run_ids_never_change(base):
    """Pinned: if this fails, every record that exists loses its run. Raise PROTOCOL, or give the field `later`."""
    assert run_id(document(base)) == "6abbce71b3e0a073"


def test_identity_ignores_names_paths_tracking_and_the_order_of_keys(base):
    first = document(base)
    other = document(
        base,
        model__name="./elsewhere/tiny",
        model__revision="main",
        task__data_dir="/data",
        store="/elsewhere",
        device="cpu",
        tracking__backend="wandb",
        tracking__tags=["a"],
        train__compile=True,
    )
    backwards = {key: dict(reversed(v.items())) if isinstance(v, dict) else v for key, v in reversed(first.items())}
    assert run_id(first) == run_id(other) == run_id(backwards)


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1},
        {"train__lr": 1e-4},
        {"train__head_lr": 2e-3},
        {"adapter__alpha": 8},
        {"adapter__replicate": 1},
        {"adapter__init": "kaiming"},
        {"train__epochs": 4},
        {"train__dropout": 0.0},
        {"adapter__targets": "q"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_identity_changes_with_the_science(base, values):
    assert run_id(document(base, **values)) != run_id(document(base))


def test_a_null_head_rate_is_the_rate_itself(base):
    assert run_id(document(base, train__head_lr=None)) == run_id(document(base, train__head_lr=3e-3, train__lr=3e-3))


def test_head_only_is_one_run_whatever_the_placement(base):
    plain = document(base, adapter__method="head_only")
    other = document(base, adapter__method="head_only", adapter__targets="o", adapter__rank=2, train__lr=1.0)
    assert run_id(plain) == run_id(other)


def test_cells_leave_out_the_seed_only(base):
    assert cell_id(document(base)) == cell_id(document(base, seed=5)) != cell_id(document(base, train__lr=1e-4))


def test_a_field_added_later_enters_only_away_from_its_default(base, monkeypatch):
    """Old records keep their ids when the science learns a new field."""
    before = document(base)
    grown = copy.deepcopy(before)
    grown["train"]["label_smoothing"] = 0.0
    grown["novelty"] = None
    assert run_id(grown) != run_id(before)
    monkeypatch.setattr(identity, "LATER_FIELDS", {"train.label_smoothing": 0.0, "novelty": None})
    assert run_id(grown) == run_id(before)
    grown["train"]["label_smoothing"] = 0.1
    assert run_id(grown) != run_id(before)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a/b", "a/b"), ("./x/y", "y"), ("/data/models/z/", "z"), ("tiny", "tiny"), ("C:\\m\\n", "n"), ("a/b/c", "c")],
)
def test_backbones_are_shown_without_their_folder(name, shown):
    assert display_name(name) == shown


# Parsing again and again


@given(
    lr=st.floats(1e-6, 1.0),
    rank=st.one_of(st.integers(-1, 70), st.booleans(), st.just("x"), st.none()),
    layers=st.sampled_from(["all", "last:1", [0, 1], [1], "none", []]),
    seed=st.integers(-1, 3),
)
def test_a_template_parses_as_parsing_anew_does(base, lr, rank, layers, seed):
    """The planner's short cut must not accept, refuse or read anything else than the long way."""
    values = {"train.lr": lr, "adapter.rank": rank, "adapter.layers": layers, "seed": seed}
    long_way = with_values(base, train__lr=lr, adapter__rank=rank, adapter__layers=layers, seed=seed)

    def outcome(parsed):
        try:
            return to_dict(parsed())
        except ConfigError as error:
            return str(error)

    template = Template(OmegaConf.create(base))
    assert outcome(lambda: template.parse(values)) == outcome(lambda: parse(long_way))


@pytest.mark.parametrize(
    ("keys", "is_fit"),
    [
        (["train.lr", "seed"], True),
        (["train"], False),
        (["train.lr.x"], False),
        (["model.architecture"], False),
        (["x"], False),
    ],
)
def test_a_template_takes_single_values_of_the_schema_only(base, keys, is_fit):
    assert Template.is_fit(OmegaConf.create(base), keys) is is_fit


def test_a_template_is_not_used_where_values_refer_to_each_other(base):
    referring = with_values(base, train__head_lr="${train.lr}")
    assert not Template.is_fit(OmegaConf.create(referring), ["train.lr"])


def test_check_is_what_parse_ends_with(base):
    config = parse(base)
    config.train.lr = -1.0
    with pytest.raises(ConfigError, match=r"train\.lr"):
        check(config)


@pytest.mark.parametrize(
    "words",
    [["model.roles={q: query}"], ["model.roles.q=query"], ["+model.roles={q: query}"]],
    ids=lambda words: words[0],
)
def test_roles_are_given_with_a_plus_or_without(words):
    """Every other key is; that this one is a mapping, which begins empty, is nothing that who gives it can know."""
    assert parse(composed("model=tiny", *words)).model.roles == {"q": "query"}
    with pytest.raises(ConfigError, match=r"model\.roles: no role 'query'; roles are q, k"):
        parse(composed("model=tiny", "model.roles={query: q}"))
