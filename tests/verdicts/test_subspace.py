"""Section 7 on subspaces whose overlap is known, and on a weight with a known spectrum."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import linalg
from scipy.linalg import subspace_angles

from lora_bench.verdicts import subspace

D = 64


@pytest.fixture
def basis() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]


def test_identical_subspaces_overlap_fully(basis):
    phi = subspace.overlap(basis[:, :6], basis[:, :6])
    np.testing.assert_allclose(phi, 1.0)


def test_orthogonal_subspaces_do_not_overlap(basis):
    np.testing.assert_allclose(subspace.overlap(basis[:, :6], basis[:, 6:10]), 0.0, atol=1e-12)


def test_nested_subspaces_overlap_fully_once_the_smaller_fits(basis):
    """The larger basis holds the smaller one's vectors, but later: phi(1, j) jumps to 1 at their place."""
    larger = basis[:, [10, 11, 0, 1, 12]]
    phi = subspace.overlap(basis[:, :2], larger)
    np.testing.assert_allclose(phi[0], [0, 0, 1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(phi[1, 2:], [0.5, 1, 1], atol=1e-12)


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(basis):
    """An independent route: scipy's subspace angles."""
    other = np.linalg.qr(np.random.default_rng(1).normal(size=(D, 5)))[0]
    phi = subspace.overlap(basis[:, :3], other)
    assert phi[2, 4] == pytest.approx((np.cos(subspace_angles(basis[:, :3], other)) ** 2).mean())


def test_random_subspaces_overlap_by_chance_and_stay_in_the_band():
    rng = np.random.default_rng(2)
    draws = np.array(
        [subspace.overlap(*(np.linalg.qr(rng.normal(size=(D, r)))[0] for r in (4, 16))) for _ in range(400)]
    )
    np.testing.assert_allclose(draws.mean(axis=0), subspace.chance_overlap(D, 4, 16), rtol=0.12)
    low, high = subspace.null_band(D, 4, 16, rng=rng, n_draws=400)
    inside = ((draws >= low) & (draws <= high)).mean(axis=0)
    assert inside.min() > 0.87
    assert inside.mean() == pytest.approx(0.95, abs=0.02)


def test_a_mean_over_pairs_has_a_narrower_band():
    wide = subspace.null_band(D, 2, 2, rng=np.random.default_rng(0))
    narrow = subspace.null_band(D, 2, 2, n_pairs=8, rng=np.random.default_rng(0))
    assert (narrow[1] - narrow[0])[0, 0] < (wide[1] - wide[0])[0, 0] / 2


def test_spaces_of_different_dimension_are_refused(basis):
    with pytest.raises(ValueError, match="share their dimension"):
        subspace.overlap(basis[:, :2], basis[:10, :2])


def test_right_basis_spans_the_rows_of_a():
    A = np.random.default_rng(3).normal(size=(4, D))
    basis = subspace.right_basis(A)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(A @ basis @ basis.T, A)


def test_update_basis_is_that_of_the_product():
    rng = np.random.default_rng(4)
    A, B = rng.normal(size=(3, D)), rng.normal(size=(20, 3))
    basis, values = subspace.update_basis(A, B)
    _, expected, rows = np.linalg.svd(B @ A, full_matrices=False)
    np.testing.assert_allclose(values, expected[:3])
    np.testing.assert_allclose(np.abs(basis.T @ rows[:3].T), np.eye(3), atol=1e-9)


def test_amplification_reproduces_table_7():
    """6.91 / 0.32 = 21.6 at rank 4, and 3.57 / 1.90 = 1.88 at rank 64."""
    assert subspace.amplification(6.91, 0.32) == pytest.approx(21.6, abs=0.05)
    assert subspace.amplification(3.57, 1.90) == pytest.approx(1.88, abs=0.005)


# ---------------------------------------------------------------- adapters of the store


def matrix(module: str, rank: int, d_in: int = 8) -> dict:
    return {"module": module, "rank": rank, "d_in": d_in, "d_out": 8, "role": module[-1], "layer": 0}


def write_adapter(folder, pairs: dict) -> None:
    (folder / "adapter").mkdir(parents=True)
    tensors = {}
    for module, (A, B) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = A
        tensors[f"base_model.model.{module}.lora_B.weight"] = B
    save_file(tensors, folder / "adapter" / subspace.WEIGHTS)


def test_an_adapter_is_read_by_module(tmp_path):
    A, B = np.random.default_rng(6).normal(size=(2, 8)), np.ones((8, 2))
    write_adapter(tmp_path, {"layer.0.q": (A, B)})
    read = subspace.read_adapter(tmp_path, [matrix("layer.0.q", 2)])
    np.testing.assert_array_equal(read["layer.0.q"].A, A)


def test_a_fused_pair_is_taken_apart_by_the_manifest(tmp_path):
    A, B = np.random.default_rng(7).normal(size=(5, 8)), np.random.default_rng(8).normal(size=(24, 5))
    write_adapter(tmp_path, {"h.0.c_attn": (A, B)})
    read = subspace.read_adapter(tmp_path, [matrix("h.0.c_attn.q", 2), matrix("h.0.c_attn.v", 3)])
    np.testing.assert_array_equal(read["h.0.c_attn.q"].A, A[:2])
    np.testing.assert_array_equal(read["h.0.c_attn.v"].A, A[2:])
    np.testing.assert_array_equal(read["h.0.c_attn.v"].B, B[:, 2:])


def test_an_adapter_that_does_not_fit_its_manifest_is_refused(tmp_path):
    write_adapter(tmp_path, {"layer.0.q": (np.ones((2, 8)), np.ones((8, 2)))})
    with pytest.raises(ValueError, match=r"no pair for layer\.0\.v"):
        subspace.read_adapter(tmp_path, [matrix("layer.0.v", 2)])
    with pytest.raises(ValueError, match="manifest has rank 4"):
        subspace.read_adapter(tmp_path, [matrix("layer.0.q", 4)])
    with pytest.raises(FileNotFoundError):
        subspace.read_adapter(tmp_path / "absent", [])


@pytest.mark.parametrize("shape", [(20, 20), (32, 8), (6, 24)])
@pytest.mark.parametrize("rank", [1, 4])
def test_what_random_directions_hold_is_the_mean_over_many_draws(shape, rank):
    """The null of Table 7 is exact for any shape; a single draw, as records keep it, strays by tens of percent."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape) @ np.diag(np.linspace(0.1, 3, shape[1]))
    squares = []
    for _ in range(1500):
        left, right = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in shape)
        squares.append(np.linalg.norm(left.T @ weight @ right) ** 2)
    exact = subspace.weight_in_random(float(np.linalg.norm(weight)), rank, shape)
    assert np.sqrt(np.mean(squares)) == pytest.approx(exact, rel=0.06)


# ---------------------------------------------------------------- intruder dimensions


def spectrum_of(shape, singular, seed=3):
    """(weight, left, right) of a weight with these singular values, and whole orthonormal bases of both sides."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for size in shape)
    n = len(singular)
    return (left[:, :n] * singular) @ right[:, :n].T, left, right


@pytest.mark.parametrize(("size", "n_intruders"), [(60.0, 1), (31.5, 1), (30.5, 0), (0.0, 0)])
def test_a_spike_beside_the_weight_is_one_intruder_where_it_is_among_the_first_ten(size, n_intruders):
    """Singular values 40, 39 ... 21, so the tenth is 31: an orthogonal spike above it enters, one below does not."""
    weight, left, right = spectrum_of((60, 50), np.arange(40.0, 20.0, -1))
    spiked = weight + size * np.outer(left[:, 55], right[:, 45])
    assert subspace.intruders(left[:, :50], spiked) == n_intruders
    assert subspace.intruders(left[:, :50], weight) == 0


@pytest.mark.parametrize("shape", [(48, 48), (48, 80)], ids=["square", "wide"])
def test_a_direction_made_of_all_the_old_ones_is_new(shape):
    """No direction is orthogonal to all old ones of such a weight; one that is spread over 48 is like none of them."""
    weight, left, right = spectrum_of(shape, np.arange(48.0, 0.0, -1))
    spread = left @ np.ones(48) / np.sqrt(48)
    spiked = weight + 1e4 * np.outer(spread, right[:, 0])
    assert subspace.intruders(left, spiked, top=1) == 1
    assert subspace.intruders(left, weight + 1e4 * np.outer(left[:, 30], right[:, 0]), top=1) == 0


def test_a_turn_within_two_of_the_first_directions_is_no_intruder():
    """Each stays within 45 degrees of one of the two; eight that are mixed evenly do not lie that near to any."""
    weight, left, _ = spectrum_of((40, 40), np.arange(40.0, 0.0, -1))
    mixed = np.eye(40)
    for angle in np.radians([10, 44, 60]):
        mixed[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        assert subspace.intruders(left, left @ mixed @ left.T @ weight) == 0
    mixed[:8, :8] = linalg.hadamard(8) / np.sqrt(8)  # cosines of 0.35
    assert subspace.intruders(left, left @ mixed @ left.T @ weight) == 8


@pytest.mark.parametrize("shape", [(30, 30), (45, 20), (20, 45)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize("below", [0.3, 0.5, 0.8])
def test_intruders_are_those_of_a_plain_loop_over_whole_decompositions(shape, below):
    rng = np.random.default_rng(11)
    weight = rng.normal(size=shape)
    trained = weight + 3 * rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    olds, news = (np.linalg.svd(matrix, full_matrices=False)[0] for matrix in (weight, trained))
    expected = 0
    for j in range(7):
        cosines = [abs(float(sum(a * b for a, b in zip(news[:, j], old, strict=True)))) for old in olds.T]
        expected += max(cosines) < below
    assert subspace.intruders(subspace.left_basis(weight), trained, top=7, below=below) == expected


def test_intruders_are_those_that_peft_would_take_out():
    """A foreign reading of the same paper, of a layer with its adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = torch.nn.Linear(32, 40, bias=False)

    torch.manual_seed(0)
    model = get_peft_model(Layer(), LoraConfig(r=3, lora_alpha=6, target_modules=["q"]))
    layer = model.get_submodule("base_model.model.q")
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=2.0)
    frozen = layer.base_layer.weight.detach().double().numpy()
    trained = frozen + layer.get_delta_weight("default").detach().double().numpy()
    said: list[str] = []
    reduce_intruder_dimension(model, logging_sink=said.append)
    n_intruders = subspace.intruders(subspace.left_basis(frozen), trained)
    assert n_intruders > 0 and any(line.endswith(f"Intruders: {n_intruders}") for line in said)
