"""Roles mean the same matrix everywhere, and what does not exist is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from architectures import ARCHITECTURES, backbone, skeleton, tiny_config
from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import ROLES
from lora_bench.models.families import FAMILIES
from lora_bench.models.roles import (
    Matrix,
    canonical_targets,
    manifest_table,
    roles_of,
    select_layers,
    select_targets,
    split_fused,
)

GOLDEN = Path(__file__).parent / "golden" / "manifests.json"


def manifest_lines(name: str) -> list[str]:
    return [
        f"{row['role']}: {row['module']} ({row['shape']}), layers {row['layers']}"
        + (f", in {row['fused']}" if row["fused"] else "")
        for row in manifest_table(roles_of(skeleton(name)))
    ]


def from_settings(model_type: str, **settings: object) -> nn.Module:
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            tiny_config(model_type, {**small, "vocab_size": 99, **settings})
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_manifest_matches_its_golden_file(name):
    """A changed manifest changes what every sweep on this architecture trains: look before accepting it.

    `python tests/models/test_targets.py` rewrites the file.
    """
    assert manifest_lines(name) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_manifest_is_the_same_on_skeleton_weights_and_split_backbone(name):
    """Plans are made on skeletons; runs must train the matrices that the plan named."""
    model = backbone(name)
    planned = roles_of(skeleton(name))
    assert roles_of(model) == planned
    split_fused(model)
    assert roles_of(model) == planned
    for matrix in planned:
        module = model.get_submodule(matrix.module)
        assert isinstance(module, nn.Linear)
        assert (module.in_features, module.out_features) == (matrix.d_in, matrix.d_out)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_role_does_what_its_name_says(name):
    """Names and layouts could both be wrong in the same way; what a matrix does to the computation cannot.

    One token's output of each first-layer matrix is shifted. Only q moves that token's attention row alone, only k
    moves other rows; v reaches other tokens through fixed attention; the rest stay at their token. A closed gate
    closes the MLP; a shifted `up` does not.
    """
    model = backbone(name)
    split_fused(model)
    first = {matrix.role: model.get_submodule(matrix.module) for matrix in roles_of(model) if matrix.layer == 0}
    token = 2
    plain = observe(model, first)
    moved = {role: observe(model, first, shift=role, token=token) for role in first}

    def tokens(role: str, what: str) -> set[int]:
        """Tokens (attention: query rows) whose `what` moves when `role` is shifted at one token."""
        gap = (moved[role][what] - plain[what]).abs()
        axes = (0, 1, 3) if what == "attention" else (0, 2)
        return set(torch.nonzero(gap.amax(axes) > 1e-9).flatten().tolist())

    assert tokens("q", "attention") == {token}
    assert tokens("k", "attention") - {token}
    for role in set(first) - {"q", "k"}:
        assert not tokens(role, "attention"), role
    assert tokens("v", "into_o") - {token}
    assert not tokens("o", "into_o")
    assert tokens("o", "layer") == tokens("up", "layer") == tokens("down", "layer") == {token}
    assert tokens("up", "into_down") == {token}
    assert not tokens("up", "into_o")
    assert not tokens("down", "into_down")
    if "gate" in first:
        closed = observe(model, first, shift="gate", token=token, by=-1e4)["into_down"]
        assert closed[:, token].abs().max() < 1e-6
        assert observe(model, first, shift="up", token=token, by=-1e4)["into_down"][:, token].abs().max() > 1


def observe(
    model: nn.Module, first: dict[str, nn.Module], *, shift: str | None = None, token: int = 0, by: float = 1.0
) -> dict[str, torch.Tensor]:
    """The first layer's attention and output and what enters `o` and `down`, with one role's output shifted."""
    seen: dict[str, torch.Tensor] = {}
    ids = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(1))

    def note(what):
        def hook(module, inputs):
            seen.setdefault(what, inputs[0].reshape(3, 11, -1))

        return hook

    def push(module, inputs, output):
        if output.shape[:-1].numel() != 33:  # DeBERTa also projects its relative positions
            return output
        pattern = torch.linspace(0.5, 1.0, output.shape[-1], dtype=output.dtype)
        shifted = output.reshape(3, 11, -1).clone()  # OPT's MLP sees its tokens without a batch axis
        shifted[:, token] += by * pattern
        return shifted.view_as(output)

    hooks = [first[role].register_forward_pre_hook(note(f"into_{role}")) for role in ("o", "down")]
    if shift:
        hooks.append(first[shift].register_forward_hook(push))
    with torch.no_grad():
        out = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, output_hidden_states=True
        )
    for hook in hooks:
        hook.remove()
    return {**seen, "attention": out.attentions[0], "layer": out.hidden_states[1]}


@pytest.mark.parametrize("name", [name for name, (kind, _) in ARCHITECTURES.items() if not FAMILIES[kind].fused])
def test_structure_alone_finds_what_the_table_says(name, monkeypatch):
    """Two independent ways to the same manifest; ALBERT's nesting and DeBERTa's positions need the table."""
    by_table = roles_of(skeleton(name))
    monkeypatch.delitem(FAMILIES, ARCHITECTURES[name][0])
    if name.startswith("albert") or name == "deberta-v2":
        with pytest.raises(ConfigError, match="cannot be told"):
            roles_of(skeleton(name))
    else:
        assert roles_of(skeleton(name)) == by_table


@pytest.mark.parametrize(
    ("model_type", "roles"),
    [
        ("stablelm", "qkvo+up+gate+down"),
        ("starcoder2", "qkvo+up+down"),
        ("helium", "qkvo+up+gate+down"),
        ("gemma2", "qkvo+up+gate+down"),
        ("roformer", "qkvo+up+down"),
        ("seed_oss", "qkvo+up+gate+down"),
        ("olmo", "qkvo+up+gate+down"),
        ("nystromformer", "qkvo+up+down"),
        ("rembert", "qkvo+up+down"),
        ("xlm-roberta-xl", "qkvo+up+down"),
    ],
)
def test_unknown_families_are_read_from_their_structure(model_type, roles):
    assert canonical_targets(roles_of(from_settings(model_type)), "all") == roles


@pytest.mark.parametrize(
    ("model_type", "settings", "why"),
    [
        ("t5", {"d_model": 32, "d_ff": 48, "num_layers": 2}, "encoder-decoder"),
        ("bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}, "encoder-decoder"),
        ("mixtral", {"num_key_value_heads": 2, "num_local_experts": 2}, None),
        ("longformer", {"attention_window": 8}, "query_global"),
        ("xlnet", {"d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 48}, "no layer is recognised as 'q'"),
        ("squeezebert", {"embedding_size": 32}, "no layer is recognised as 'q'"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_way_out(model_type, settings, why):
    model = from_settings(model_type, **settings)
    if why is None:  # experts and router are no linear layers, so only attention is there to be found
        assert canonical_targets(roles_of(model), "attention") == "qkvo"
        with pytest.raises(ConfigError, match="no mlp matrices; it has q, k, v, o"):
            canonical_targets(roles_of(model), "all")
        return
    with pytest.raises(ConfigError, match=why) as refusal:
        roles_of(model)
    assert "model.name" in str(refusal.value)
    if why != "encoder-decoder":
        assert "Its linear layers are" in str(refusal.value)
        assert "model.roles" in str(refusal.value)


class Odd(nn.Module):
    """A decoder with names that no lexicon holds."""

    def __init__(self, names=("to_queries", "to_keys", "to_values", "merge", "widen", "narrow")):
        super().__init__()
        shapes = [(8, 8)] * 4 + [(8, 24), (24, 8)]
        self.config = AutoConfig.for_model("bert", hidden_size=8)
        self.config.model_type = "odd"
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attend": nn.ModuleDict({n: nn.Linear(*s) for n, s in zip(names[:4], shapes[:4], strict=True)}),
                    "mlp": nn.ModuleDict({n: nn.Linear(*s) for n, s in zip(names[4:], shapes[4:], strict=True)}),
                }
            )
            for _ in range(2)
        )
        self.score = nn.Linear(8, 2)


def test_overrides_map_what_structure_cannot():
    """Suffixes and regular expressions both work, and only the mapped roles and the certain ones are offered."""
    with pytest.raises(ConfigError, match=r"'q'.*blocks\.\*\.attend\.to_queries \(8 -> 8\).*model\.roles"):
        roles_of(Odd())
    found = roles_of(Odd(), {"q": "attend.to_queries", "v": r"blocks\.\d+\.attend\.to_val.*"})
    assert [(m.role, m.layer, m.module) for m in found if m.role in "qv"] == [
        ("q", 0, "blocks.0.attend.to_queries"),
        ("v", 0, "blocks.0.attend.to_values"),
        ("q", 1, "blocks.1.attend.to_queries"),
        ("v", 1, "blocks.1.attend.to_values"),
    ]
    assert {m.role for m in found} == {"q", "v", "up", "down"}  # the MLP by shape
    with pytest.raises(ConfigError, match="odd has no 'k' matrix; it has q, v, up, down"):
        select_targets(found, "qk", backbone="odd")


def test_two_stacks_of_layers_are_refused():
    """`layer 0` would be two layers."""
    both = Odd(("q", "k", "v", "o", "fc1", "fc2"))
    assert canonical_targets(roles_of(both), "all") == "qkvo+up+down"
    both.others = Odd(("q", "k", "v", "o", "fc1", "fc2")).blocks
    with pytest.raises(ConfigError, match=r"several stacks of layers \(blocks, others\)"):
        roles_of(both)


def test_overrides_win_over_the_table():
    swapped = roles_of(skeleton("bert"), {"q": "attention.self.key", "k": "attention.self.query"})
    assert swapped[0].role == "q"
    assert swapped[0].module.endswith("self.key")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "bert",
            {"q": "attention.self.qeury"},
            r"model\.roles\.q: 'attention\.self\.qeury' matches no linear layer.*attention\.self\.query",
        ),
        ("bert", {"w": "attention.self.query"}, r"model\.roles: no role 'w'"),
        ("bert", {"q": "(("}, r"model\.roles\.q: '\(\(' is no regular expression"),
        ("bert", {"o": "dense"}, r"layer 0 has 3 matrices for 'o'"),
        ("bert", {"q": "self.query", "k": "self.query"}, r"one fused weight for q, k"),
        ("gpt2", {"q": "c_attn"}, r"model\.roles\.q: 'c_attn' matches .*c_attn, one fused weight for q, k, v"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        roles_of(skeleton(name), overrides)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_misspelt_roles_are_refused_on_every_architecture(name, manifests):
    for targets in ("w", "qq", "qw", "upp", "query", "q_proj", ""):
        with pytest.raises(ConfigError, match=r"adapter\.targets"):
            select_targets(manifests[name], targets)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_absent_roles_are_refused_with_what_is_there(name, manifests):
    matrices = manifests[name]
    has = [role for role in ROLES if any(matrix.role == role for matrix in matrices)]
    for role in set(ROLES) - set(has):
        with pytest.raises(ConfigError, match=f"{name} has no '{role}' matrix; it has {', '.join(has)}"):
            select_targets(matrices, f"q+{role}", backbone=name)
    without_v = [matrix for matrix in matrices if matrix.role != "v"]
    with pytest.raises(ConfigError, match="no 'v' matrix"):
        select_targets(without_v, "qv")


def test_a_role_that_one_layer_lacks_is_refused():
    """peft would train the layers that have it and keep the label."""
    matrices = [m for m in roles_of(skeleton("bert")) if (m.role, m.layer) != ("v", 1)]
    with pytest.raises(ConfigError, match=r"no 'v' matrix in layers \[1\]; adapter\.layers=\[0,2\] has it"):
        select_targets(matrices, "qv")
    assert len(select_targets(matrices, "qv", [0, 2])) == 4


def test_targets_are_full_paths():
    """`output.dense` as a suffix would also hit `attention.output.dense`."""
    down = [m.module for m in select_targets(roles_of(skeleton("bert")), "down")]
    assert down == [f"bert.encoder.layer.{i}.output.dense" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "targets", "canonical"),
    [
        ("bert", "vq", "qv"),
        ("bert", "attention", "qkvo"),
        ("bert", "mlp", "up+down"),
        ("bert", "all", "qkvo+up+down"),
        ("bert", "down+ovkq+up", "qkvo+up+down"),
        ("llama", "mlp", "up+gate+down"),
        ("llama", "attention+mlp", "qkvo+up+gate+down"),
        ("gpt2", "v+q", "qv"),
        ("modernbert", "mlp", "up+gate+down"),
    ],
)
def test_one_spelling_per_set_of_roles(name, targets, canonical, manifests):
    matrices = manifests[name]
    assert canonical_targets(matrices, targets) == canonical
    assert select_targets(matrices, targets) == select_targets(matrices, canonical)


def test_a_role_named_by_itself_and_by_its_group_is_refused(manifests):
    with pytest.raises(ConfigError, match="role 'q' is named twice"):
        select_targets(manifests["bert"], "attention+q")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", [0, 1, 2]), ("first:2", [0, 1]), ("last:1", [2]), ("last:3", [0, 1, 2]), ([2, 0], [0, 2])],
)
def test_layers_select_by_depth(layers, expected, manifests):
    matrices = manifests["bert"]
    assert select_layers(matrices, layers) == expected
    assert [m.layer for m in select_targets(matrices, "q", layers)] == expected


@pytest.mark.parametrize("layers", ["first:4", "last:0", [3], [-1], [0, 0], [], "middle", "first:x", 2])
def test_layers_out_of_range_are_refused(layers, manifests):
    with pytest.raises(ConfigError, match=r"adapter\.layers"):
        select_targets(manifests["bert"], "q", layers)


def test_shared_layers_count_once(manifests):
    """ALBERT runs one layer three times: there is one matrix to adapt, and one layer to choose."""
    assert len(select_targets(manifests["albert"], "q")) == 1
    assert [m.layer for m in select_targets(manifests["albert_two_groups"], "q")] == list(range(6))
    with pytest.raises(ConfigError, match="out of range"):
        select_targets(manifests["albert"], "q", "first:2")


def test_table_sums_what_it_lists(manifests):
    matrices = manifests["phi3"]
    table = manifest_table(matrices)
    assert [row["role"] for row in table] == list(ROLES)
    assert sum(row["parameters_per_rank"] for row in table) == sum(m.parameters_per_rank for m in matrices)
    assert table[1] == {
        "role": "k",
        "module": "model.layers.*.self_attn.qkv_proj.k",
        "fused": "model.layers.*.self_attn.qkv_proj",
        "shape": "16 x 32",
        "layers": "0-2",
        "matrices": 3,
        "parameters_per_rank": 3 * 48,
        "rank": "0",
        "parameters": 0,
    }


def test_a_plan_of_many_cells_can_afford_roles():
    """24 layers take milliseconds, so 2,000 cells take seconds, whoever else uses the machine."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model("bert", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
        )
    spent = []
    for _ in range(5):
        began = time.process_time()
        matrices = roles_of(model)
        spent.append(time.process_time() - began)
    assert min(spent) < 0.1
    assert len(matrices) == 24 * 6


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[Matrix]]:
    return {name: roles_of(skeleton(name)) for name in ARCHITECTURES}


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(
        json.dumps({name: manifest_lines(name) for name in ARCHITECTURES}, indent=1) + "\n", encoding="utf-8"
    )
