"""Group scores and the training objective of the encoder (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def group_scores(tests: torch.Tensor, examples: torch.Tensor, members: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return the group scores f(x, S) of all tests and subsets, float [tests, subsets] (paper, section 3.2).

    Parameters
    ----------
    tests: float [tests, dimension], embeddings of the tests.
    examples: float [examples, dimension], embeddings of the training examples.
    members: int64 [subsets, size], rows of `examples`.
    pooling: `attention`, the scores weighted by the softmax of their absolute values, or `mean`.
    """
    scores = (tests @ examples.T).index_select(1, members.flatten()).unflatten(1, members.shape)
    if pooling == "mean":
        return scores.mean(-1)
    return (scores.abs().softmax(-1) * scores).sum(-1)


def ranking_loss(
    group: torch.Tensor, labels: torch.Tensor, min_label_gap: float, max_pair_weight: float
) -> torch.Tensor:
    """Return the weighted pairwise ranking loss, a scalar (paper, section 3.3).

    For each test and each ordered pair of subsets with r_i - r_j >= `min_label_gap` (T_min):
    min(r_i - r_j, `max_pair_weight`) * log(1 + exp(-(f_i - f_j))); the mean over these pairs.

    Parameters
    ----------
    group: float [tests, subsets], the group scores f.
    labels: float [tests, subsets], the labels r; NaN for a run that diverged, whose pairs are left out.
    min_label_gap: T_min, at least 0; pairs of equal labels never count.
    max_pair_weight: T_max.
    """
    difference = labels[:, :, None] - labels[:, None, :]
    # A comparison with NaN is false, so pairs with a diverged run drop out.
    counted = (difference >= min_label_gap) & (difference > 0)
    weights = torch.where(counted, difference.clamp(max=max_pair_weight), 0.0)
    penalties = F.softplus(group[:, None, :] - group[:, :, None])
    return (weights * penalties).sum() / counted.sum().clamp(min=1)


class Objective(nn.Module):
    """The ranking loss of group scores, with the scale of the scores learned or fixed at 1.

    The scale multiplies every score, so under attention pooling it is an inverse temperature. It starts where pooling
    is near uniform, and is folded into the projection when the encoder is saved, so that the plain inner products of
    the saved encoder are the scores that were trained. The steepness only sets how fast the loss saturates, and is not
    saved.

    Parameters
    ----------
    pooling: `attention` or `mean`, see `group_scores`.
    min_label_gap: T_min, see `ranking_loss`.
    max_pair_weight: T_max, see `ranking_loss`.
    learned_scale: whether scale and steepness are learned; otherwise both stay 1.
    """

    def __init__(self, pooling: str, min_label_gap: float, max_pair_weight: float, learned_scale: bool):
        super().__init__()
        self.pooling = pooling
        self.min_label_gap, self.max_pair_weight = min_label_gap, max_pair_weight
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=learned_scale)
        self.log_steepness = nn.Parameter(torch.zeros(()), requires_grad=learned_scale)

    @torch.no_grad()
    def start_scales(self, tests: torch.Tensor, examples: torch.Tensor, members: torch.Tensor) -> None:
        """Set the scale so that scores have root mean square 1/4, and the steepness so that group scores spread by 1.

        Shapes as in `group_scores`.
        """
        root_mean_square = (tests @ examples.T).square().mean().sqrt()
        self.log_scale.copy_(-torch.log(4 * root_mean_square))
        spread = self.groups(tests, examples, members).std(dim=1).mean()
        self.log_steepness.copy_(-torch.log(spread))

    def groups(self, tests: torch.Tensor, examples: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        """Return the group scores under the current scale, float [tests, subsets]; shapes as in `group_scores`."""
        return group_scores(tests * self.log_scale.exp(), examples, members, self.pooling)

    def forward(
        self,
        tests: torch.Tensor,
        examples: torch.Tensor,
        members: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss, a scalar; shapes as in `group_scores` and `ranking_loss`."""
        group = self.groups(tests, examples, members) * self.log_steepness.exp()
        return ranking_loss(group, labels, self.min_label_gap, self.max_pair_weight)
