"""Scores of whole subsets, accumulated from example scores tile by tile (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from workflow_scripts.core.buffers import scratch
from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.choices import WEIGHING, Pooling

POOLINGS = get_args(Pooling)


@dataclass(frozen=True)
class ChosenPooling:
    """What the pooling `chosen` stands for, as held-back folds chose it for a method.

    Parameters
    ----------
    pooling: `mean`, or `attention`.
    scale: factor of |s| inside the softmax of `attention`, in units of one over a score; not used by `mean`.
    """

    pooling: Literal["mean", "attention"]
    scale: float = 1.0

    def __str__(self) -> str:
        return self.pooling if self.pooling == "mean" else f"{self.pooling}, scale {self.scale:.3g}"


@dataclass(frozen=True)
class Weighting:
    """How members of a subset are weighed: by the softmax of `scale * |s|`, or of `s` itself.

    Parameters
    ----------
    signed: whether s is taken as it is, as the released code does, instead of |s|.
    scale: factor of |s|.
    """

    signed: bool = False
    scale: float = 1.0

    @classmethod
    def of(cls, poolings: Collection[str], chosen: ChosenPooling | None) -> Weighting:
        """Return how members are weighed for `poolings`, of which `chosen` stands for what held-back folds chose."""
        return cls("signed" in poolings, chosen.scale if chosen and "chosen" in poolings else 1.0)


class Membership:
    """Which training examples belong to which subsets, looked up tile by tile.

    Parameters
    ----------
    subsets: for each subset, int [size], the ids of its members; there may be no subset.

    Attributes
    ----------
    sizes: int64 [subsets], the number of members of each subset.
    """

    def __init__(self, subsets: Sequence[np.ndarray]):
        self.sizes = np.array([len(subset) for subset in subsets], np.int64)
        ids = np.concatenate([np.empty(0, np.int32), *subsets])
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        self._owner = np.repeat(np.arange(len(subsets)), self.sizes)[order]

    def rows(self, example_ids: np.ndarray) -> list[np.ndarray]:
        """Return for each subset the positions of its members in `example_ids`, int64 [members found].

        Parameters
        ----------
        example_ids: int [examples], the ids of a tile, each once.
        """
        first = np.searchsorted(self._ids, example_ids, "left")
        counts = np.searchsorted(self._ids, example_ids, "right") - first
        rows = np.repeat(np.arange(len(example_ids)), counts)
        entries = np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        owner = self._owner[entries]
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(1, len(self.sizes)))
        return np.split(rows[order], bounds)[: len(self.sizes)]


class GroupSums(NamedTuple):
    """Sums over the members of each subset, in a corpus or a part of it; those that no pooling needs are not computed.

    Attributes
    ----------
    members: int64 [subsets], number of members found.
    total: float64 [subsets, tests], sum of the scores s.
    maximum: float64 [subsets, tests], largest exponent: scale * |s|, or s for the pooling `signed`.
    weight: float64 [subsets, tests], sum of e^(exponent - maximum).
    weighted: float64 [subsets, tests], sum of the same times s.
    """

    members: np.ndarray
    total: np.ndarray
    maximum: np.ndarray
    weight: np.ndarray
    weighted: np.ndarray


class GroupScores:
    """Running sums from which f(x, S) follows for each subset S and test x (paper, section 3.2).

    With `attention`, f = sum_i a_i s_i where a = softmax over the members i of |s_i|; with `signed`, which the
    released code uses, a = softmax of s_i; with `chosen`, a = softmax of a scale times |s_i|, or f is the mean. Weights
    are relative to the largest of the same subset and test, so they neither overflow nor vanish, whatever the scores of
    other subsets are. `mean` and `sum` are additive.

    Parameters
    ----------
    tests: number of tests.
    membership: the subsets.
    poolings: those of `POOLINGS` that `result` will be asked for.
    chosen: what `chosen` stands for, where it is among them.

    Raises
    ------
    ValueError: `poolings` has more than one of `attention`, `signed` and `chosen`.
    """

    def __init__(
        self, tests: int, membership: Membership, poolings: Collection[str], chosen: ChosenPooling | None = None
    ):
        shape = (len(membership.sizes), tests)
        self._tests, self._membership, self._poolings, self._chosen = tests, membership, poolings, chosen
        if len(WEIGHING & set(poolings)) > 1:
            raise ValueError(f"poolings: one pass computes only one of {', '.join(sorted(WEIGHING))}")
        computed = {self._computed(pooling) for pooling in poolings}
        self._attention = bool(computed & {"attention", "signed"})
        self._additive = bool(computed & {"mean", "sum"})
        self._weighting = Weighting.of(poolings, chosen)
        self._members = np.zeros(shape[0], np.int64)
        self._total = np.zeros(shape)
        # Below every score, and finite: the difference of two is a number.
        self._maximum = np.full(shape, -1e300)
        self._weight = np.zeros(shape)
        self._weighted = np.zeros(shape)

    def empty(self) -> GroupScores:
        """Return empty sums for the same tests and subsets, to be merged into these."""
        return GroupScores(self._tests, self._membership, self._poolings, self._chosen)

    def _computed(self, pooling: str) -> str:
        if pooling != "chosen":
            return pooling
        if self._chosen is None:
            raise ValueError("poolings: nothing says what `chosen` stands for")
        return self._chosen.pooling

    def update(self, example_ids: np.ndarray, scores: np.ndarray) -> None:
        """Add the scores of a tile.

        Parameters
        ----------
        example_ids: int [examples], each once.
        scores: float32 [examples, tests].
        """
        tile = self.empty()
        for subset, rows in enumerate(self._membership.rows(example_ids)):
            if len(rows):
                members = scratch("members", (len(rows), self._tests), np.float32)
                # No row is out of range, but every mode other than the default is faster.
                tile._add(subset, np.take(scores, rows, axis=0, out=members, mode="clip"))
        self.merge(tile)

    def _add(self, subset: int, scores: np.ndarray) -> None:
        self._members[subset] = len(scores)
        # A product with ones is several times as fast as `sum`. Over tiles, sums are float64.
        ones = np.ones(len(scores), np.float32)
        if self._additive:
            self._total[subset] = ones @ scores
        if self._attention:
            weigh = np.positive if self._weighting.signed else np.abs
            weights = weigh(scores, out=scratch("weights", scores.shape, np.float32))
            if self._weighting.scale != 1:
                weights *= np.float32(self._weighting.scale)
            maximum = weights.max(axis=0)
            weights -= maximum
            np.exp(weights, out=weights)
            self._maximum[subset] = maximum
            self._weight[subset] = ones @ weights
            weights *= scores
            self._weighted[subset] = ones @ weights

    def merge(self, other: GroupScores) -> None:
        """Add the sums over another part of the corpus."""
        self.add(other.sums())

    def sums(self) -> GroupSums:
        """Return the sums so far."""
        return GroupSums(self._members, self._total, self._maximum, self._weight, self._weighted)

    def add(self, sums: GroupSums) -> None:
        """Add the sums over another part of the corpus."""
        self._members += sums.members
        self._total += sums.total
        if self._attention:
            maximum = np.maximum(self._maximum, sums.maximum)
            ours, theirs = np.exp(self._maximum - maximum), np.exp(sums.maximum - maximum)
            self._weight = ours * self._weight + theirs * sums.weight
            self._weighted = ours * self._weighted + theirs * sums.weighted
            self._maximum = maximum

    def result(self, pooling: str) -> np.ndarray:
        """Return the scores f(x, S), float32 [subsets, tests].

        Parameters
        ----------
        pooling: one of the `poolings`.

        Raises
        ------
        StudyError: members of a subset were not among the examples, or a score is not finite.
        ValueError: `pooling` is not one of `POOLINGS`.
        """
        if missing := int((self._membership.sizes - self._members).sum()):
            raise StudyError(
                f"{missing:,} members of subsets are not among the scored training examples: the subsets "
                "were drawn from another corpus than the one that is scored. Run the workflow again, so that both "
                "are made from the corpus of the evaluation's `train`."
            )
        match self._computed(pooling):
            case "attention" | "signed":
                scores = self._weighted / self._weight
            case "mean":
                scores = self._total / self._members[:, None]
            case "sum":
                scores = self._total
            case _:
                raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        if not np.isfinite(scores).all():
            raise StudyError("a score is not a finite number: the encoder or an embedding is damaged")
        return scores.astype(np.float32)
