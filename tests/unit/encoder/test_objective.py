"""Pooling and the ranking loss against plain loops."""

import math

import numpy as np
import pytest
import torch

from workflow_scripts.encoder.objective import group_scores, ranking_loss


def looped_pooling(tests, examples, members, pooling):
    scores = np.zeros((len(tests), len(members)))
    for t, test in enumerate(tests):
        for m, subset in enumerate(members):
            s = [float(np.dot(test, examples[i])) for i in subset]
            top = max(abs(x) for x in s)
            weights = [math.exp(abs(x) - top) if pooling == "attention" else 1.0 for x in s]
            scores[t, m] = sum(w * x for w, x in zip(weights, s, strict=True)) / sum(weights)
    return scores


@pytest.mark.parametrize("pooling", ["attention", "mean"])
@pytest.mark.parametrize("scale", [1.0, 100.0])  # inner products up to about 1e4
def test_pooling_is_that_of_a_loop(pooling, scale):
    random = np.random.default_rng(0)
    tests, examples = random.normal(size=(4, 8)) * scale, random.normal(size=(20, 8)) * scale
    members = np.stack([random.permutation(20)[:5] for _ in range(7)])
    found = group_scores(*map(torch.from_numpy, (tests, examples, members)), pooling)
    np.testing.assert_allclose(found, looped_pooling(tests, examples, members, pooling), rtol=1e-9)


def test_attention_pooling_at_very_large_scores_is_finite_in_float32():
    tests, examples = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0], [0.5]])
    members = torch.tensor([[0, 1], [0, 2], [1, 2]])
    found = group_scores(tests, examples, members, "attention")
    assert found.tolist() == [[0.0, 1e4, -1e4]]


def looped_loss(group, labels, smallest, largest):
    total, pairs = 0.0, 0
    for f, r in zip(group, labels, strict=True):
        for i in range(len(r)):
            for j in range(len(r)):
                difference = r[i] - r[j]
                if i != j and difference >= smallest and difference > 0:  # false for NaN
                    total += min(difference, largest) * math.log1p(math.exp(-(f[i] - f[j])))
                    pairs += 1
    return total / max(pairs, 1)


@pytest.mark.parametrize(("smallest", "largest"), [(0.1, 5.0), (0.0, 0.5), (1.0, 1.2)])
def test_loss_is_that_of_a_double_loop(smallest, largest):
    random = np.random.default_rng(1)
    group, labels = random.normal(size=(5, 9)), random.normal(size=(5, 9)) * 2
    labels[:, 3] = np.nan  # a run that diverged
    labels[2, 5] = labels[2, 6]
    found = ranking_loss(torch.from_numpy(group), torch.from_numpy(labels), smallest, largest)
    assert found.item() == pytest.approx(looped_loss(group, labels, smallest, largest), rel=1e-9)


def test_a_diverged_run_has_no_gradient():
    group = torch.zeros(2, 3, requires_grad=True)
    labels = torch.tensor([[1.0, math.nan, -1.0], [math.nan] * 3])
    ranking_loss(group, labels, 0.1, 5.0).backward()
    # One pair, 2 * log(1 + exp(-(f_0 - f_2))): its slope at 0 is -1.
    assert group.grad.tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_nothing_to_rank_is_no_loss():
    assert ranking_loss(torch.ones(2, 3), torch.zeros(2, 3), 0.0, 5.0).item() == 0.0
