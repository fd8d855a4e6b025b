"""Group scores and the objective that the encoder is trained with (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


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
    group: torch.Tensor, labels: torch.Tensor, min_label_gap: float, max_pair_weight: float
) -> torch.Tensor:
    """Return the weighted pairwise ranking loss, a scalar.

    For each test and each ordered pair of subsets with r_i - r_j >= `min_label_gap` (T_min):
    min(r_i - r_j, `max_pair_weight`) * log(1 + exp(-(f_i - f_j))); the mean over these pairs.

    Parameters
    ----------
    group: scores f, [tests, subsets]; labels: r, [tests, subsets]; NaN marks a run that diverged.
    """
    difference = labels[:, :, None] - labels[:, None, :]
    # A comparison with NaN is false, so pairs with a diverged run drop out.
    counted = (difference >= min_label_gap) & (difference > 0)
    weights = torch.where(counted, difference.clamp(max=max_pair_weight), 0.0)
    penalties = F.softplus(group[:, None, :] - group[:, :, None])
    return (weights * penalties).sum() / counted.sum().clamp(min=1)


class Objective(nn.Module):
    """The ranking loss of group scores, with the scale of the scores learned or fixed at 1.

    The scale multiplies every score, so under attention pooling it is an inverse temperature. It starts
    where pooling is near uniform, and is folded into the projection when the encoder is saved, so that the
    saved encoder's plain inner products are what was trained. `steepness` only sets how fast the loss
    saturates, and is not saved.
    """

    def __init__(self, pooling: str, min_label_gap: float, max_pair_weight: float, learned_scale: bool):
        super().__init__()
        self.pooling = pooling
        self.min_label_gap, self.max_pair_weight = min_label_gap, max_pair_weight
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=learned_scale)
        self.log_steepness = nn.Parameter(torch.zeros(()), requires_grad=learned_scale)

    @torch.no_grad()
    def start_scales(self, tests: torch.Tensor, examples: torch.Tensor, members: torch.Tensor) -> None:
        """Set both scales so that the scores' root mean square is 1/4 and group scores spread by 1."""
        root_mean_square = (tests @ examples.T).square().mean().sqrt()
        self.log_scale.copy_(-torch.log(4 * root_mean_square))
        spread = self.groups(tests, examples, members).std(dim=1).mean()
        self.log_steepness.copy_(-torch.log(spread))

    def groups(self, tests: torch.Tensor, examples: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        """Return the group scores under the current scale, float [tests, subsets]."""
        return group_scores(tests * self.log_scale.exp(), examples, members, self.pooling)

    def forward(
        self,
        tests: torch.Tensor,
        examples: torch.Tensor,
        members: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss; shapes as in `group_scores` and `ranking_loss`."""
        group = self.groups(tests, examples, members) * self.log_steepness.exp()
        return ranking_loss(group, labels, self.min_label_gap, self.max_pair_weight)
