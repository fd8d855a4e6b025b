"""Scores of a corpus on a GPU: the same as `CorpusScores` computes, and no single score leaves the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.embeddings.binary import SCALE_BYTES, sign_table
from workflow_scripts.embeddings.tiles import NOT_FINITE
from workflow_scripts.models.device import to_device, without_tf32
from workflow_scripts.scoring.corpus_scores import TESTS_PER_BLOCK, PartScores
from workflow_scripts.scoring.group_scores import GroupSums, Membership, Weighting

# Below the key of every score.
NO_KEY = -(2**63)
LARGEST_ID = 2**32 - 1


@torch.inference_mode()
@without_tf32()
def score_on_device(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],
    tests: np.ndarray,
    top: int,
    membership: Membership,
    device: torch.device,
    weighting: Weighting,
    on_tile: Callable[[int], None] = lambda examples: None,
) -> PartScores:
    """Return the top scores and the group sums of all tiles.

    Scores are computed in float32, never in TF32, and summed in float64 in the order of the examples, so the same
    tiles give the same bits. A tile is scored for 512 tests at a time, so the device holds a tile and its scores
    whatever the sizes of corpus and tests.

    Parameters
    ----------
    tiles: pairs of example ids, int [examples], ascending over all tiles, and embeddings, as they are stored
        (`embeddings.tiles.embedding_tiles`).
    tests: float32 [tests, dimension], embeddings of the tests.
    top: how many most helpful and most harmful examples to keep for each test.
    membership: the subsets to compute group sums for.
    device: where to compute.
    weighting: how members of a subset are weighed.
    on_tile: called with the number of examples of each tile.

    Raises
    ------
    StudyError: an embedding is not finite.
    """
    queries = to_device(tests, device)
    blocks = [_Block(part, top, len(membership.sizes), weighting) for part in queries.split(TESTS_PER_BLOCK)]
    members = np.zeros(len(membership.sizes), np.int64)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for example_ids, tile in tiles:
        embeddings = _as_float(_tile_on(device, tile))
        finite &= embeddings.sum().isfinite()
        rows = membership.rows(example_ids)
        sizes = np.array([len(own) for own in rows], np.int64)
        members += sizes
        # There may be no subset.
        chosen = to_device(np.concatenate([np.empty(0, np.int64), *rows]), device)
        owner = to_device(np.repeat(np.arange(len(rows)), sizes), device)
        low = LARGEST_ID - to_device(example_ids.astype(np.int64), device)
        for block in blocks:
            scores = embeddings @ block.queries.T
            block.add_top(scores, low)
            if len(chosen):
                block.add_groups(scores.index_select(0, chosen), owner, to_device(sizes, device))
        on_tile(len(example_ids))
    if not finite:
        raise StudyError(f"an embedding {NOT_FINITE}")
    helpful, harmful = (_joined([block.result(sign) for block in blocks]) for sign in (1, -1))
    sums = [torch.cat(arrays, dim=1).cpu().numpy() for arrays in zip(*(block.sums for block in blocks), strict=True)]
    return PartScores(helpful, harmful, GroupSums(members, *sums))


class _Block:
    """A slice of the tests: `keys`, int64 [tests, top] by sign, and `sums`, those of `GroupSums` without `members`."""

    def __init__(self, queries: torch.Tensor, top: int, subsets: int, weighting: Weighting):
        self.queries, self.weighting = queries, weighting
        self.keys = {sign: queries.new_full((len(queries), top), NO_KEY, dtype=torch.int64) for sign in (1, -1)}
        total, maximum, weight, weighted = queries.new_zeros(4, subsets, len(queries), dtype=torch.float64)
        # Below every exponent, and finite: the difference of two is a number.
        self.sums = (total, maximum - 1e300, weight, weighted)

    def add_top(self, scores: torch.Tensor, low: torch.Tensor) -> None:
        """Add the scores of a tile to the top lists.

        Parameters
        ----------
        scores: float32 [examples, tests].
        low: int64 [examples], the inverted id of each example.
        """
        for sign, keys in self.keys.items():
            # One sortable number per example: the score's order above, the inverted id below. Adding to 0 turns -0.0
            # into 0.0, an equal score.
            ordered = _order_or_bits((0.0 + sign * scores.T).contiguous().view(torch.int32))
            candidates = (ordered.long() << 32) | low
            self.keys[sign] = torch.cat([keys, candidates], dim=1).topk(keys.shape[1], dim=1).values

    def add_groups(self, members: torch.Tensor, owner: torch.Tensor, sizes: torch.Tensor) -> None:
        """Add the scores of subsets' members to the group sums.

        Parameters
        ----------
        members: float32 [members, tests], at least one member; those of a subset are consecutive.
        owner: int64 [members], the subset of each.
        sizes: int64 [subsets], the number of members of each subset.
        """
        total, maximum, weight, weighted = self.sums
        exponents = members if self.weighting.signed else members.abs() * self.weighting.scale
        tile_maximum = _by_subset("max", exponents, sizes)
        weights = torch.exp(exponents - tile_maximum.index_select(0, owner))
        larger = torch.maximum(maximum, tile_maximum.double())
        ours, theirs = torch.exp(maximum - larger), torch.exp(tile_maximum.double() - larger)
        self.sums = (
            total + _by_subset("sum", members.double(), sizes),
            larger,
            ours * weight + theirs * _by_subset("sum", weights.double(), sizes),
            ours * weighted + theirs * _by_subset("sum", (weights * members).double(), sizes),
        )

    def result(self, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self.keys[sign]
        keys = keys[:, : int((keys > NO_KEY).sum(1).max())]
        scores = _order_or_bits((keys >> 32).int()).view(torch.float32)
        return LARGEST_ID - (keys & LARGEST_ID), 0.0 + sign * scores


def _by_subset(reduction: str, values: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the `sum` or `max` of `values` [members, tests] over each subset, [subsets, tests].

    That of an empty one is 0, or the lowest number.
    """
    initial = 0 if reduction == "sum" else torch.finfo(values.dtype).min
    # Unlike `index_add`, it adds in a fixed order on a GPU; `unsafe` skips a check that waits for the GPU.
    return torch.segment_reduce(values, reduction, lengths=sizes, initial=initial, unsafe=True)


def _tile_on(device: torch.device, tile: np.ndarray) -> torch.Tensor:
    # A tile is in Arrow's memory, which is read-only and pageable: no copy from there is asynchronous.
    dtype = torch.from_numpy(np.empty(0, tile.dtype)).dtype
    staged = torch.empty(tile.shape, dtype=dtype, pin_memory=device.type != "cpu")
    np.copyto(staged.numpy(), tile)
    return staged.to(device, non_blocking=True)


def _as_float(tile: torch.Tensor) -> torch.Tensor:
    """Return embeddings as they are stored as float32 [n, dimension], as `embeddings.tiles.as_float` does on a CPU."""
    if tile.dtype != torch.uint8:
        return tile.float()
    packed, scales = tile[:, :-SCALE_BYTES], tile[:, -SCALE_BYTES:].contiguous().view(torch.float32)
    signs = to_device(sign_table(), tile.device)
    return torch.nn.functional.embedding(packed.int(), signs).flatten(1).mul_(scales)


def _order_or_bits(integers: torch.Tensor) -> torch.Tensor:
    """Turn the bits of float32, as int32, into integers that sort as the floats do, or back."""
    return integers ^ ((integers >> 31) & 0x7FFFFFFF)


def _joined(results: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    example_ids, scores = zip(*results, strict=True)
    return torch.cat(example_ids).cpu().numpy(), torch.cat(scores).cpu().numpy()
