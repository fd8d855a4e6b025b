"""Group scores and the objective that the encoder is trained with (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def group_scores(tests: torch.Tensor, examples: torch.Tensor, members: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return f(x, S) for all tests and subsets, float [tests, subsets].

    Parameters
    ----------
    tests: embeddings [tests, dimension]; examples: embeddings [examples, dimension].
    members: int64 [subsets, size], rows of `examples`.
    pooling: `attention`, the scores weighted by the softmax of their absolute values, or `mean`.
    """
    scores = (tests @ examples.T).index_select(1, members.flatten()).unflatten(1, members.shape)
    if pooling == "mean":
        return scores.mean(-1)
    return (scores.abs().softmax(-1) * scores).sum(-1)


def ranking_loss(
    group: torch.Tensor, labels: torch.Tensor, smallest_difference: float, largest_weight: float
) -> torch.Tensor:
    """Return the weighted pairwise ranking loss, a scalar.

    For each test and each ordered pair of subsets with r_i - r_j >= `smallest_difference` (T_min):
    min(r_i - r_j, `largest_weight`) * log(1 + exp(-(f_i - f_j))); the mean over these pairs.

    Parameters
    ----------
    group: scores f, [tests, subsets]; labels: r, [tests, subsets]; NaN marks a run that diverged.
    """
    difference = labels[:, :, None] - labels[:, None, :]
    # A comparison with NaN is false, so pairs with a diverged run drop out.
    counted = (difference >= smallest_difference) & (difference > 0)
    weights = torch.where(counted, difference.clamp(max=largest_weight), 0.0)
    penalties = F.softplus(group[:, None, :] - group[:, :, None])
    return (weights * penalties).sum() / counted.sum().clamp(min=1)
