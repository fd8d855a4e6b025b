"""Scores of a corpus on a GPU: what `CorpusScores` computes, without scores leaving the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.scoring.corpus_scores import TESTS_PER_BLOCK, PartScores
from workflow_scripts.scoring.group_scores import GroupSums, Membership

# Below the key of every score.
NO_KEY = -(2**63)
LARGEST_ID = 2**32 - 1


@torch.inference_mode()
def score_on_device(
    tiles: Iterable[tuple[np.ndarray, torch.Tensor]],
    tests: np.ndarray,
    top: int,
    membership: Membership,
    device: torch.device,
    on_tile: Callable[[int], None] = lambda examples: None,
) -> PartScores:
    """Return the top scores and the group sums of all tiles.

    Scores are computed in float32 and summed in float64. A tile is scored for 512 tests at a time, so the device
    holds a tile and its scores whatever the sizes of corpus and tests.

    Parameters
    ----------
    tiles: (example ids int [examples], ascending; embeddings [examples, dimension] of any precision).
    tests: embeddings of the tests, float32 [tests, dimension].
    top: how many most helpful and most harmful examples to keep for each test.
    on_tile: called with the number of examples of each tile.

    Raises
    ------
    StudyError: an embedding is not finite.
    """
    queries = torch.from_numpy(tests).to(device)
    blocks = [_Block(part, top, len(membership.sizes)) for part in queries.split(TESTS_PER_BLOCK)]
    members = np.zeros(len(membership.sizes), np.int64)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for example_ids, tile in tiles:
        embeddings = tile.to(device).float()
        finite &= embeddings.sum().isfinite()
        rows = membership.rows(example_ids)
        sizes = np.array([len(own) for own in rows], np.int64)
        members += sizes
        # There may be no subset.
        chosen = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows])).to(device)
        owner = torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)).to(device)
        low = LARGEST_ID - torch.from_numpy(example_ids.astype(np.int64)).to(device)
        for block in blocks:
            block.update(embeddings @ block.queries.T, low, chosen, owner)
        on_tile(len(example_ids))
    if not finite:
        raise StudyError("an embedding is not a finite number: the encoder is damaged. Train it again.")
    helpful, harmful = (_joined([block.result(sign) for block in blocks]) for sign in (1, -1))
    sums = [torch.cat(arrays, dim=1).cpu().numpy() for arrays in zip(*(block.sums for block in blocks), strict=True)]
    return PartScores(helpful, harmful, GroupSums(members, *sums))


class _Block:
    """A slice of the tests: `keys` int64 [tests, top] by sign, `sums` as `GroupSums` without the members."""

    def __init__(self, queries: torch.Tensor, top: int, subsets: int):
        self.queries = queries
        self.keys = {sign: queries.new_full((len(queries), top), NO_KEY, dtype=torch.int64) for sign in (1, -1)}
        self.sums = tuple(queries.new_zeros(subsets, len(queries), dtype=torch.float64) for _ in range(4))

    def update(self, scores: torch.Tensor, low: torch.Tensor, chosen: torch.Tensor, owner: torch.Tensor) -> None:
        """Take in scores [examples, tests]; `low` is the inverted id, `chosen` the rows of members of `owner`."""
        for sign, keys in self.keys.items():
            # One sortable number per example: the score's order above, the inverted id below. Adding to 0 turns -0.0
            # into 0.0, an equal score.
            ordered = _order_or_bits((0.0 + sign * scores.T).contiguous().view(torch.int32))
            candidates = (ordered.long() << 32) | low
            self.keys[sign] = torch.cat([keys, candidates], dim=1).topk(keys.shape[1], dim=1).values
        members = scores[chosen]
        total, maximum, weight, weighted = self.sums
        tile_maximum = torch.zeros(total.shape, dtype=scores.dtype, device=scores.device)
        tile_maximum.scatter_reduce_(0, owner[:, None].expand_as(members), members.abs(), "amax")
        weights = torch.exp(members.abs() - tile_maximum[owner])
        larger = torch.maximum(maximum, tile_maximum.double())
        ours, theirs = torch.exp(maximum - larger), torch.exp(tile_maximum.double() - larger)
        self.sums = (
            total.index_add(0, owner, members.double()),
            larger,
            ours * weight + theirs * torch.zeros_like(weight).index_add(0, owner, weights.double()),
            ours * weighted + theirs * torch.zeros_like(weight).index_add(0, owner, (weights * members).double()),
        )

    def result(self, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self.keys[sign]
        keys = keys[:, : int((keys > NO_KEY).sum(1).max())]
        scores = _order_or_bits((keys >> 32).int()).view(torch.float32)
        return LARGEST_ID - (keys & LARGEST_ID), 0.0 + sign * scores


def _order_or_bits(integers: torch.Tensor) -> torch.Tensor:
    """Turn the bits of float32, as int32, into integers that sort as the floats do, or back."""
    return integers ^ ((integers >> 31) & 0x7FFFFFFF)


def _joined(results: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    example_ids, scores = zip(*results, strict=True)
    return torch.cat(example_ids).cpu().numpy(), torch.cat(scores).cpu().numpy()
