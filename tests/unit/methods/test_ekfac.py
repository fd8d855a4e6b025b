"""EK-FAC against dense Fisher algebra on gradients by autograd, and its random sketches."""

import numpy as np
import pytest
import torch
from exact_gradients import exact_gradients
from scipy.linalg import hadamard

from workflow_scripts.embeddings.binary import dequantize, quantize
from workflow_scripts.language_model.losses import load_language_model, summed_losses
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.methods import ekfac
from workflow_scripts.methods.embedder import LanguageModelReader, WarmupExamples
from workflow_scripts.methods.example_gradients import block_layers
from workflow_scripts.methods.projected_gradients import DAMPING
from workflow_scripts.study.sections import Finetuning


@pytest.fixture(scope="module")
def reader(tiny):
    return LanguageModelReader(load_language_model(tiny.language_model), 300, "float32")


@pytest.fixture(scope="module")
def examples(tiny):
    return list(read_examples(tiny.tokens).values())


@pytest.fixture(scope="module")
def fitted(reader, examples):
    return ekfac.fit(reader, WarmupExamples(examples[:60], 40, Finetuning(), seed=3))


def token_moments(lm, name, examples):
    """The mean over tokens of x x^T and of d d^T, in float64, by autograd on single examples."""
    states, slopes = [], []
    for example in examples:
        seen = []
        hook = lm.get_submodule(name).register_forward_hook(lambda module, x, y, seen=seen: seen.extend([x[0], y]))
        losses, _ = summed_losses(lm, [example])
        slopes.append(torch.autograd.grad(losses.sum(), seen[1])[0][0].double())
        states.append(seen[0][0].detach().double())
        hook.remove()
    return [rows.T @ rows / len(rows) for rows in (torch.cat(states), torch.cat(slopes))]


def test_scores_are_those_of_the_dense_inverse(reader, examples, fitted, tiny):
    """All of H is written out: the Kronecker product of the eigenvectors, and the corrected eigenvalues."""
    lm = load_language_model(tiny.language_model)
    measured, judged = examples[:40], examples[40:60]
    expected = 0
    for name in block_layers(lm):
        gradients, other = (
            torch.stack([exact_gradients(lm, one, name).flatten() for one in some]).double()
            for some in (measured, judged)
        )
        axes = [torch.linalg.eigh(moment).eigenvectors for moment in token_moments(lm, name, measured)]
        basis = torch.kron(axes[1], axes[0])
        eigenvalues = (gradients @ basis).square().mean(0)
        hessian = basis @ torch.diag(eigenvalues + DAMPING * eigenvalues.mean()) @ basis.T
        expected = expected + other @ torch.linalg.solve(hessian, other.T)
    found = ekfac.open_embedder(reader, fitted, False).embed(judged).astype(np.float64)
    assert found.shape == (20, sum(layer.weight.numel() for layer in block_layers(lm).values()))
    np.testing.assert_allclose(found @ found.T, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_a_sketch_is_the_product_with_its_matrix(reader, examples, fitted):
    whole = ekfac.open_embedder(reader, fitted, False).embed(examples[:9])
    found = ekfac.open_embedder(reader, fitted, False, dimension=128).embed(examples[:9])
    columns = []
    for name, layer in block_layers(reader.lm).items():
        buckets, signs = ekfac.sketch_buckets(layer.weight.numel(), 128, 3, name)
        columns.append(torch.nn.functional.one_hot(buckets, 128) * signs[:, None])
    np.testing.assert_allclose(found, whole @ torch.cat(columns).numpy(), rtol=1e-3, atol=1e-3 * np.abs(found).max())


def test_a_sketch_depends_on_its_seed_and_layer_alone():
    first, again, layer, seed = (
        torch.stack(ekfac.sketch_buckets(5000, 64, *chosen))
        for chosen in ((1, "mlp"), (1, "mlp"), (1, "attention"), (2, "mlp"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, layer)
    assert not torch.equal(first, seed)


def test_every_run_of_a_sketch_fills_every_bucket_once():
    buckets, signs = ekfac.sketch_buckets(200, 64, 1, "mlp")
    for run in buckets[:192].view(3, 64):
        assert sorted(run.tolist()) == list(range(64))
    assert set(signs.tolist()) == {-1, 1}


def test_inner_products_of_sketches_have_at_most_the_error_of_a_dense_projection():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 3000))
    found = []
    for seed in range(300):
        buckets, signs = (each.numpy() for each in ekfac.sketch_buckets(3000, 256, seed, "mlp"))
        a, b = (np.bincount(buckets, signs * vector, 256) for vector in (one, other))
        found.append(a @ b)
    dense = np.sqrt((one @ one * (other @ other) + (one @ other) ** 2) / 256)
    assert np.mean(found) == pytest.approx(one @ other, abs=4 * dense / 300**0.5)
    assert np.std(found) < 1.1 * dense


@pytest.mark.parametrize("dimension", [1, 2, 64, 128])
def test_a_rotation_is_the_product_with_its_orthonormal_matrix(dimension):
    random = np.random.default_rng(0)
    signs = random.choice(np.array([-1, 1], np.float32), dimension)
    found = ekfac.rotate(np.eye(dimension, dtype=np.float32), signs)
    np.testing.assert_allclose(found @ found.T, np.eye(dimension), atol=1e-5)
    matrix = hadamard(dimension) / dimension**0.5
    np.testing.assert_allclose(found, matrix @ np.diag(signs) @ matrix, atol=1e-5)
    rows = random.standard_normal((ekfac.ROWS_AT_ONCE + 3, dimension)).astype(np.float32)
    np.testing.assert_allclose(ekfac.rotate(rows.copy(), signs), rows @ found, atol=1e-4)


def test_a_rotated_sketch_is_the_sketch_rotated(reader, examples, fitted):
    plain, rotated = (
        ekfac.open_embedder(reader, fitted, False, dimension=128, rotated=rotated).embed(examples[:9])
        for rotated in (False, True)
    )
    assert not np.allclose(rotated, plain)
    np.testing.assert_allclose(
        rotated @ rotated.T, plain @ plain.T, rtol=1e-4, atol=1e-4 * np.square(plain).sum(1).max()
    )


@pytest.mark.parametrize("largest", [0, 1, 3, 10])
def test_bits_of_a_rotated_sketch_tell_inner_products_even_where_one_entry_dominates(largest):
    """On average over random signs, those of a count sketch and those of the rotation."""
    random, dimension = np.random.default_rng(1), 256
    one, other = random.standard_normal((2, dimension)).astype(np.float32) / dimension**0.5
    other += one
    one[0], other[0] = largest, 0
    found = []
    for _ in range(2000):
        first, between = random.choice(np.array([-1, 1], np.float32), (2, dimension))
        both = ekfac.rotate(np.stack([one, other]) * first, between)
        found.append(float(dequantize(quantize(both[:1]))[0] @ both[1]))
    assert np.mean(found) == pytest.approx(float(one @ other), abs=float(5 * np.std(found) / 2000**0.5) + 0.02)


def test_layers_that_no_token_passes_have_no_part(tiny, examples):
    lm = load_language_model(tiny.language_model)
    lm.model.layers[0].mlp.unused = torch.nn.Linear(4, 4)
    reader = LanguageModelReader(lm, 300, "float32")
    fitted = ekfac.fit(reader, WarmupExamples(examples[:60], 40, Finetuning(), seed=3))
    assert not any("unused" in name for name in fitted)
    assert ekfac.open_embedder(reader, fitted, False).embed(examples[:3]).any()
