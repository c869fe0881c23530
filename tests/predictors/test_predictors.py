"""Predictors of placements: each is its paper's formula, computed here a second time, on every family."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import architectures
from lora_bench.cli import predict as predict_command
from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import parse_rank_pattern
from lora_bench.models.budget import solve_ranks
from lora_bench.models.roles import Matrix, roles_of, split_fused
from lora_bench.models.starts import draw_A
from lora_bench.predictors import bake_off, eva
from lora_bench.predictors.allocate import pattern, rank_map
from lora_bench.predictors.evidence import Evidence
from lora_bench.predictors.predict import PREDICTORS, predict
from lora_bench.predictors.spectrum import hill_exponent
from lora_bench.predictors.stability import overlap
from lora_bench.training.resolve import resolve
from lora_bench.wording import words_of

INPUTS = frozenset({"input_ids", "attention_mask"})


def batches(n_batches=3, n_rows=4, length=9):
    stream = torch.Generator().manual_seed(5)
    made = []
    for _ in range(n_batches):
        ids = torch.randint(3, 99, (n_rows, length), generator=stream)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(n_rows) % 3})
    return tuple(made)


def evidence_of(name, **given):
    model = architectures.backbone(name)
    split_fused(model)
    return Evidence(model, tuple(roles_of(model)), batches(**given), INPUTS, seed=0)


@pytest.fixture(scope="module")
def evidence():
    return evidence_of("bert")


@pytest.fixture(scope="module")
def gradients():
    """G of every matrix and batch by plain backward: {module: (n_batches, d_out, d_in)}, and of all else by name."""
    model = architectures.backbone("bert").requires_grad_(True)
    by_name = {name: [] for name, _ in model.named_parameters()}
    for batch in batches():
        model.zero_grad()
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            by_name[name].append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
    return {name: torch.stack(parts).numpy() for name, parts in by_name.items()}


def by_hand(evidence, gradients, score):
    """A score of each matrix from (weight, gradients by batch)."""
    weights = {matrix.module: evidence.weight(matrix).detach().numpy() for matrix in evidence.matrices}
    return {module: score(module, weight, gradients[f"{module}.weight"]) for module, weight in weights.items()}


def fisher(module, weight, G):
    A = draw_A("gaussian", module, (8, weight.shape[1]), seed=0, replicate=0, dtype=torch.float64).numpy()
    return np.var(G @ A.T, axis=0, ddof=1).mean()


def hill(module, weight, G):
    logs = np.log(np.sort(np.linalg.svd(weight, compute_uv=False) ** 2))
    tail = logs[len(logs) // 2 :]  # ascending, as the authors' code has it
    return 1 + len(tail) / (tail.sum() - len(tail) * tail[0])


FORMULAS = {
    "gradient_energy": lambda module, W, G: np.mean([np.trace(g @ g.T) for g in G]) / (3 * W.shape[1]),
    "fisher": fisher,
    "sensitivity": lambda module, W, G: np.mean(np.abs(G * W)),
    "lora_ga": lambda module, W, G: np.sort(np.linalg.eigvalsh(G.mean(0) @ G.mean(0).T))[::-1][:16].sum(),
    "norm": lambda module, W, G: np.sqrt((W**2).sum()),
    "stable_rank": lambda module, W, G: (W**2).sum() / np.linalg.norm(W, 2) ** 2,
    "hill": hill,
    "parameters": lambda module, W, G: W.size,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_predictor_is_its_formula(name, evidence, gradients):
    """In double precision, from gradients of plain backward passes and numpy."""
    scores = PREDICTORS[name].scores(evidence)
    assert scores == pytest.approx(by_hand(evidence, gradients, FORMULAS[name]), rel=1e-8)


@pytest.mark.parametrize("exponent", [1.5, 2.0, 4.0])
def test_the_tail_exponent_is_that_of_the_density(exponent):
    """PL_Alpha_Hill is the exponent of a power law's density, which is one more than Hill's index of its tail."""
    shares = (np.arange(40_000) + 0.5) / 40_000
    eigenvalues = torch.from_numpy(shares ** (-1 / (exponent - 1)))  # quantiles, descending
    assert hill_exponent(eigenvalues) == pytest.approx(exponent, rel=2e-3)


def test_the_gradient_energy_is_what_the_start_of_a_run_gives(evidence, gradients):
    """The formula is derived, not read: its expectation against A as runs draw it."""
    matrix = evidence.matrices[0]
    G = gradients[f"{matrix.module}.weight"][:1]
    draws = [
        draw_A("gaussian", matrix.module, (8, matrix.d_in), seed=seed, replicate=0).double() for seed in range(400)
    ]
    measured = np.mean([np.square(G[0] @ A.numpy().T).sum() / 8 for A in draws])
    first = Evidence(evidence.model, evidence.matrices, evidence.batches[:1], INPUTS, seed=0)
    assert PREDICTORS["gradient_energy"].scores(first)[matrix.module] == pytest.approx(measured, rel=0.05)


def test_aletheia_adds_the_norms_of_all_parameters_of_a_layer(evidence, gradients):
    """Biases and layer norms included, batches added."""
    scores = PREDICTORS["aletheia"].scores(evidence)
    for matrix in evidence.matrices:
        own = [parts for name, parts in gradients.items() if name.startswith(f"bert.encoder.layer.{matrix.layer}.")]
        expected = sum(np.linalg.norm(part.ravel()) for parts in own for part in parts)
        assert scores[matrix.module] == pytest.approx(expected, rel=1e-9)


def test_plop_is_the_norm_of_real_tokens_against_chance(evidence):
    """q, k and v read the hidden states, which transformers returns; padding is no token."""
    scores = PREDICTORS["plop"].scores(evidence)
    for matrix in (matrix for matrix in evidence.matrices if matrix.role in "qkv"):
        W, ratios = evidence.weight(matrix).detach().numpy(), []
        for batch in evidence.batches:
            states = evidence.model(**batch, output_hidden_states=True).hidden_states[matrix.layer]
            tokens = states[batch["attention_mask"].bool()].numpy()
            ratios += [np.sqrt(len(z)) * np.linalg.norm(W @ z) / np.linalg.norm(W) / np.linalg.norm(z) for z in tokens]
        assert scores[matrix.module] == pytest.approx(-np.mean(ratios), rel=1e-9)


def test_eva_gives_ranks_to_the_largest_shares_of_variance():
    """Against a principal component analysis of one batch; q, k and v read the same and share its ranks."""
    evidence = evidence_of("bert", n_batches=1, n_rows=12)
    inputs, mask = {}, evidence.batches[0]["attention_mask"].bool()
    hooks = [
        evidence.model.get_submodule(matrix.module).register_forward_hook(
            lambda module, given, _, name=matrix.module: inputs.__setitem__(name, given[0][mask].numpy())
        )
        for matrix in evidence.matrices
    ]
    evidence.model(**evidence.batches[0])
    for hook in hooks:
        hook.remove()
    ratios = []
    for module, z in inputs.items():
        variances = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
        ratios += [(ratio, module) for ratio in (variances / variances.sum())[:16]]
    taken = [module for _, module in sorted(ratios, reverse=True)[: 8 * len(inputs)]]
    scores = PREDICTORS["eva"].scores(evidence)
    assert sum(scores.values()) == 8 * len(inputs)
    for layer in range(3):
        for roles in (["q", "k", "v"], ["o"], ["up"], ["down"]):
            own = [m.module for m in evidence.matrices if m.layer == layer and m.role in roles]
            expected = sum(taken.count(module) for module in own)
            assert abs(sum(scores[module] for module in own) - expected) <= 2  # components that have nearly one ratio


def test_chance_is_a_norm_of_one():
    """What PLoP divides by: Gaussian inputs, here drawn, give the closed form's denominator in a wide matrix."""
    draw = np.random.default_rng(0)
    W, z = draw.normal(size=(300, 400)), draw.normal(size=(400, 200))
    ratios = np.sqrt(400) * np.linalg.norm(W @ z, axis=0) / (np.linalg.norm(W) * np.linalg.norm(z, axis=0))
    assert ratios.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_every_predictor_reads_every_family(name):
    """Fused, shared, gated and grouped matrices: finite scores, all roles ranked, a map that can be trained."""
    evidence = evidence_of(name, n_batches=2, n_rows=3)
    budget = 4 * sum(matrix.parameters_per_rank for matrix in evidence.matrices)
    before = {key: tensor.clone() for key, tensor in evidence.model.state_dict().items()}
    settled = replace(evidence, batches=evidence.batches[:1])  # so few tokens of several batches hardly ever do
    for predictor in PREDICTORS:
        said = predict(predictor, settled if predictor == "eva" else evidence, budget)
        assert set(said.roles) == {matrix.role for matrix in evidence.matrices}
        assert said.scores.keys() == {matrix.module for matrix in evidence.matrices}
        assert 0.8 * budget <= said.parameters <= budget
        assert np.ptp(list(said.scores.values())) > 0 or (predictor, name) == ("aletheia", "albert")  # of one layer
    assert all(torch.equal(tensor, before[key]) for key, tensor in evidence.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in evidence.model.parameters())


@given(
    shares=st.lists(st.floats(0, 5), min_size=12, max_size=12).filter(lambda values: max(values) > 0.01),
    budget=st.integers(200, 6_000),
)
@settings(max_examples=60, deadline=None)
def test_a_map_follows_its_shares_within_its_budget_and_its_words_say_it(shares, budget):
    """Never above the budget, never the smaller rank for the larger share of equal cost; the pattern reads back."""
    matrices = [Matrix(role, layer, f"{layer}.{role}", 32, 32) for layer in range(4) for role in ("q", "v", "up")]
    of = dict(zip((matrix.module for matrix in matrices), shares, strict=True))
    try:
        adapted = rank_map(matrices, of, budget)
    except ConfigError as error:
        assert "above full rank" in str(error)
        return
    cost = sum(matrix.rank * matrix.parameters_per_rank for matrix in adapted)
    at_limit = all(matrix.rank == 32 for matrix in adapted)
    assert budget - 64 * max(1, len(adapted)) < cost <= budget or at_limit
    ranks = {matrix.module: 0 for matrix in matrices} | {matrix.module: matrix.rank for matrix in adapted}
    ordered = sorted(ranks, key=lambda module: of[module])
    assert all(ranks[low] <= ranks[high] + 1 for low, high in pairwise(ordered))
    selected = [matrix for matrix in matrices if matrix.role in {own.role for own in adapted}]
    rules = parse_rank_pattern(pattern(adapted, matrices))
    assert {m.module: m.rank for m in solve_ranks(selected, rank=1, pattern=rules)} == {
        matrix.module: ranks[matrix.module] for matrix in selected
    }


def test_one_batch_has_no_variance(evidence):
    with pytest.raises(ValueError, match="one batch has no variance"):
        PREDICTORS["fisher"].scores(replace(evidence, batches=evidence.batches[:1]))


WORDS = ("model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20", "train.max_length=32", "rows=20")


def test_the_command_says_what_a_run_can_be_given(tmp_path, capsys):
    """Its maps are configurations of runs at the budget that was asked for, in a table and as JSON."""
    out = tmp_path / "said.json"
    assert predict_command.main([*WORDS, "by=fisher,random", "adapter.budget=qv@4", f"out={out}"]) == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    assert (document["budget"], document["rows"], len(document["predictions"])) == (2 * 2 * 4 * 64, 20, 2)
    printed = capsys.readouterr().out
    for said in document["predictions"]:
        assert said["seconds"] > 0 and said["rank_pattern"] in printed and said["predictor"] in printed
        assert parse_rank_pattern(yaml.safe_load(said["rank_pattern"]))


def test_the_printed_lines_train_the_maps_as_was_asked(tmp_path, monkeypatch, capsys):
    """An alpha that was left out made each line, and the study, train another update than the one that was meant."""
    monkeypatch.chdir(tmp_path)
    asked = ["adapter=rslora", "adapter.alpha=32", "++adapter.init=kaiming", "adapter.dropout=0.1"]
    placed = ["adapter.targets=q", "adapter.rank=null", "+adapter.rank_pattern=q@2"]
    assert (
        predict_command.main([*WORDS, "by=norm,random", *asked, *placed, "out=said.json", "sweep=sweeps/chosen.yaml"])
        == 0
    )
    *lines, of_study = [line for line in capsys.readouterr().out.splitlines() if "lora-bench " in line]
    for line, said in zip(lines, predictions_of("said.json"), strict=True):
        run = resolve(predict_command._configured(words_of(line.partition("lora-bench ")[2])))
        assert {matrix.module: matrix.rank for matrix in run.matrices} == said["ranks"]
        adapter = run.config.adapter
        assert (adapter.alpha_policy, adapter.alpha, adapter.init, adapter.dropout) == ("rslora", 32, "kaiming", 0.1)
    assert [word for word in words_of(of_study) if "adapter" in word] == asked


@pytest.mark.parametrize("layers", ["[1]", "last\\:1"])
def test_maps_within_some_layers_are_all_that_is_scored_printed_and_studied(layers, tmp_path, command, capsys):
    """They gave the budget of a few layers to maps that went over all: lines, maps and placements stay within."""
    given = [*WORDS, f"adapter.layers={layers}"]
    assert predict_command.main([*given, "by=norm,random", "adapter.budget=qv@4", "sweep=sweeps/chosen.yaml"]) == 0
    *lines, of_study = [line for line in capsys.readouterr().out.splitlines() if "lora-bench " in line]
    document = json.loads((tmp_path / "sweeps/chosen/predictions.json").read_text(encoding="utf-8"))
    assert document["layers"] == [1] and document["budget"] == 2 * 4 * 64
    for line, said in zip(lines, document["predictions"], strict=True):
        assert said["scores"].keys() >= said["ranks"].keys() and all(".1." in module for module in said["scores"])
        run = resolve(predict_command._configured(words_of(line.partition("lora-bench ")[2])))
        assert {matrix.module: matrix.rank for matrix in run.matrices} == said["ranks"]
    assert "adapter.layers" not in of_study, "its file says it, since a map's file is all that is said of a map"
    written = yaml.safe_load((tmp_path / "sweeps/chosen.yaml").read_text(encoding="utf-8"))
    assert str(written["adapter"]["layers"]).replace(" ", "") == layers.replace("\\", "")
    planned = command(*words_of(of_study.partition("lora-bench ")[2]))
    assert planned.status == 0, planned.err
    assert "qv against q, k, v, o, qk, qkvo, norm, random" in planned.out


def test_long_predictions_say_how_far_they_are(monkeypatch, capsys):
    """On a decoder they take minutes, which passed without a word."""
    for pause in ("QUIET_SECONDS", "QUIET_SHARE"):
        monkeypatch.setattr(f"lora_bench.launch.progress.{pause}", 0.0)
    assert predict_command.main([*WORDS, "by=norm,random", "adapter.budget=qv@4", "draws=2", "adapter.layers=[1]"]) == 0
    said = capsys.readouterr().out.splitlines()
    steps = [line.partition("  ")[0] for line in said if line.startswith("draw ")]
    assert steps == [f"draw {draw} of 2: {name}" for draw in (1, 2) for name in ("norm", "random")]
    assert any("adapter parameters in layers 1" in line for line in said)


def test_all_layers_by_number_are_all(capsys):
    assert predict_command.main([*WORDS, "by=norm", "adapter.budget=qv@4", "adapter.layers=last\\:2"]) == 0
    assert "adapter.layers" not in capsys.readouterr().out


def test_what_predictors_chose_is_a_study_beside_the_placements(tmp_path, monkeypatch, capsys):
    """A ranking is believed once its own map was trained: each of them is an adapter of its ranks at the budget."""
    monkeypatch.chdir(tmp_path)
    words = ["by=fisher,random", "adapter.budget=qv@4", "out=said.json", "sweep=sweeps/chosen.yaml"]
    assert predict_command.main([*WORDS, *words]) == 0
    assert "lora-bench study=chosen " in capsys.readouterr().out.splitlines()[-1]
    sweeper = yaml.safe_load((tmp_path / "sweeps/chosen.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]
    placements, maps = sweeper["grids"]
    assert placements["adapter.targets"].split(",") == ["q", "k", "v", "o", "qk", "qv", "qkvo"]
    for like, said in zip(maps["adapter.like"].split(","), predictions_of("said.json"), strict=True):
        words = [word for word in WORDS if word.partition("=")[0] not in predict_command.OPTIONS]
        run = resolve(predict_command._configured([*words, f"adapter.like={like}"]))
        assert like.endswith(said["predictor"])
        assert {matrix.module: matrix.rank for matrix in run.matrices} == said["ranks"]
        assert run.adapter_parameters == said["parameters"] <= 2 * 2 * 4 * 64


def test_more_draws_say_how_stable_a_choice_is_and_change_none(tmp_path, monkeypatch, capsys):
    """The first draw is the prediction; what needs no data is wholly stable, and a draw of chance is not."""
    monkeypatch.chdir(tmp_path)
    for out, draws in (("first.json", 1), ("said.json", 3)):
        words = ["by=fisher,norm,random", "adapter.budget=qv@4", f"draws={draws}", f"out={out}", "sweep=sweeps/x.yaml"]
        assert predict_command.main([*WORDS, "rows=10", "batch=5", *words]) == 0
    first, said = (
        [{key: value for key, value in entry.items() if key not in ("seconds", "peak_bytes")} for entry in entries]
        for entries in map(predictions_of, ("first.json", "said.json"))
    )
    assert first == said
    document = json.loads((tmp_path / "sweeps/x/predictions.json").read_text(encoding="utf-8"))
    assert document == json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    assert document["stability"]["norm"] == {"top": 1, "overlap": 1}
    assert document["stability"]["random"]["overlap"] < 0.9
    assert "same map" in capsys.readouterr().out


def test_the_overlap_of_two_maps_is_counted_in_parameters():
    """Of 2 x 10 and 1 x 30 parameters against 1 x 10 and 2 x 30, shared are 10 and 30 of 20 and 60."""
    costs = {"a": 10, "b": 30, "c": 7}
    assert overlap({"a": 2, "b": 1}, {"a": 1, "b": 2}, costs) == pytest.approx(40 / 80)
    assert overlap({"a": 2}, {"b": 1}, costs) == 0


def predictions_of(name):
    with open(name, encoding="utf-8") as file:
        return json.load(file)["predictions"]


def test_a_backbone_that_shares_matrices_between_roles_has_no_such_study(tmp_path):
    """One rank of peft's is that of the whole matrix, so the map would be another."""
    shared = [Matrix(role="q", layer=0, module="h.0.q", d_in=4, d_out=4, fused="h.0.c_attn")]
    with pytest.raises(ConfigError, match=r"sweep: gpt keeps several roles in 'h\.0\.c_attn'.*lines that predict"):
        bake_off.write(tmp_path / "x.yaml", [], shared, {"model": "gpt"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("by=plopp", "by: no predictor 'plopp'; predictors are plop, aletheia"),
        ("adapter=full", "adapter.method: full has no matrices to place"),
        ("adapter.rank=zero", "adapter.rank: "),
        ("by=fisher batch=20", "rows: one batch has no variance"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_line(word, message, capsys):
    assert predict_command.main([*WORDS, *word.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_predictor_that_cannot_read_the_evidence_does_not_take_the_others_along(monkeypatch, tmp_path, capsys):
    """Of all that were asked, those that can answer do, and the output says which could not and why."""
    monkeypatch.setattr(eva, "MOST_PASSES", 3)
    assert predict_command.main([*WORDS, "batch=20", f"out={tmp_path / 'said.json'}"]) == 0
    document = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    assert {said["predictor"] for said in document["predictions"]} | set(document["left_out"]) == set(PREDICTORS)
    assert "fisher" in document["left_out"] and "plop" not in document["left_out"]
    assert "fisher: left out: rows: one batch has no variance" in capsys.readouterr().out
