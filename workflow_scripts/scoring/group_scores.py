"""Scores of whole subsets, accumulated from example scores tile by tile (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.sparse import csc_array

from workflow_scripts.core.buffers import scratch
from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.choices import WEIGHING, Pooling

POOLINGS = get_args(Pooling)

# Powers of e up to this one, times scores and summed, stay far inside the range of float32.
LARGE = 40
# Below every exponent, and finite: the difference of two is a number.
NO_MEMBER = -1e300


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
        self._owner = np.repeat(np.arange(len(subsets), dtype=np.int32), self.sizes)[order]

    def find(self, example_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of some examples are members: their rows, int64 [found] ascending, and subsets, int32 [found].

        An example in several subsets is there for each.

        Parameters
        ----------
        example_ids: int [examples], the ids of a tile, ascending.
        """
        first, last = np.searchsorted(self._ids, [example_ids[0], example_ids[-1] + 1])
        ids, owner = self._ids[first:last], self._owner[first:last]
        rows = np.searchsorted(example_ids, ids)
        found = example_ids[rows] == ids
        return rows[found], owner[found]

    def find_by_subset(self, example_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of all members, int64 [found], subset by subset, and how many each has, int64 [subsets].

        Parameters
        ----------
        example_ids: as in `find`.
        """
        rows, owner = self.find(example_ids)
        return rows[np.argsort(owner, kind="stable")], np.bincount(owner, minlength=len(self.sizes))


class GroupSums(NamedTuple):
    """Sums over the members of each subset, in a corpus or a part of it; those that no pooling needs are not computed.

    Attributes
    ----------
    members: int64 [subsets], number of members found.
    total: float64 [subsets, tests], sum of the scores s.
    maximum: float64 [subsets, tests], what weights are relative to: 0, or the largest exponent (scale * |s|, or s for
        the pooling `signed`) where one is large; `NO_MEMBER` where there is no member.
    weight: float64 [subsets, tests], sum of e^(exponent - maximum).
    weighted: float64 [subsets, tests], sum of the same times s.
    """

    members: np.ndarray
    total: np.ndarray
    maximum: np.ndarray
    weight: np.ndarray
    weighted: np.ndarray

    def plus(self, other: GroupSums) -> GroupSums:
        """Return the sums over both parts of a corpus."""
        maximum = np.maximum(self.maximum, other.maximum)
        ours, theirs = np.exp(self.maximum - maximum), np.exp(other.maximum - maximum)
        return GroupSums(
            self.members + other.members,
            self.total + other.total,
            maximum,
            ours * self.weight + theirs * other.weight,
            ours * self.weighted + theirs * other.weighted,
        )


class GroupScores:
    """Running sums from which f(x, S) follows for each subset S and test x (paper, section 3.2).

    With `attention`, f = sum_i a_i s_i where a = softmax over the members i of |s_i|; with `signed`, which the
    released code uses, a = softmax of s_i; with `chosen`, a = softmax of a scale times |s_i|, or f is the mean. `mean`
    and `sum` are additive. Weights neither overflow nor vanish, whatever the scores of other subsets are: where an
    exponent is large, they are relative to the largest of the same subset and test.

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
        self._shape = (len(membership.sizes), tests)
        self._membership, self._poolings, self._chosen = membership, poolings, chosen
        if len(WEIGHING & set(poolings)) > 1:
            raise ValueError(f"poolings: one pass computes only one of {', '.join(sorted(WEIGHING))}")
        computed = {self._computed(pooling) for pooling in poolings}
        self._attention = bool(computed & {"attention", "signed"})
        self._additive = bool(computed & {"mean", "sum"})
        self._weighting = Weighting.of(poolings, chosen)
        self._members = np.zeros(self._shape[0], np.int64)
        # Sums of e^exponent itself, and of the same times s.
        sums: np.ndarray = np.zeros((3, *self._shape))
        self._total, self._weight, self._weighted = sums
        # Sums that were added, and those of tiles with large exponents.
        self._others: GroupSums | None = None

    def empty(self) -> GroupScores:
        """Return empty sums for the same tests and subsets, to be merged into these."""
        part = GroupScores(self._shape[1], self._membership, self._poolings, self._chosen)
        # Within a tile, float32 is as exact as its sums of members are, and takes half the time to add.
        sums: np.ndarray = np.zeros((3, *self._shape), np.float32)
        part._total, part._weight, part._weighted = sums
        return part

    @property
    def has_large_exponents(self) -> bool:
        """Whether weights are relative to the largest of a subset and test, which takes long for a few examples."""
        return self._others is not None

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
        example_ids: int [examples], ascending.
        scores: float32 [examples, tests].
        """
        rows, owner = self._membership.find(example_ids)
        if not len(rows) or not self._poolings:
            return
        self._members += np.bincount(owner, minlength=self._shape[0])
        # A member of several subsets is weighed once.
        starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1], [True]]))
        members = _taken(scores, rows[starts[:-1]])
        summed = _sum_by_subset(owner, starts, self._shape[0])
        if self._additive:
            self._total += summed @ members
        if self._attention:
            exponents = self._exponents(members)
            if exponents.max() > LARGE or (self._weighting.signed and exponents.min() < -LARGE):
                self.add(self._relative_sums(scores, rows, owner))
                return
            weights = np.exp(exponents, out=exponents)
            self._weight += summed @ weights
            weights *= members
            self._weighted += summed @ weights

    def _exponents(self, members: np.ndarray) -> np.ndarray:
        weigh = np.positive if self._weighting.signed else np.abs
        exponents = weigh(members, out=scratch("exponents", members.shape, np.float32))
        if self._weighting.scale != 1:
            exponents *= np.float32(self._weighting.scale)
        return exponents

    def _relative_sums(self, scores: np.ndarray, rows: np.ndarray, owner: np.ndarray) -> GroupSums:
        """Return the sums of weights relative to the largest of the same subset and test.

        Parameters
        ----------
        scores: float32 [examples, tests].
        rows: int64 [members], rows of `scores`.
        owner: int32 [members], the subset of each.
        """
        maximum = np.full(self._shape, NO_MEMBER)
        weight, weighted, nothing = np.zeros((3, *self._shape))
        order = np.argsort(owner, kind="stable")
        found, starts = np.unique(owner[order], return_index=True)
        for subset, own in zip(found, np.split(rows[order], starts[1:]), strict=True):
            members = _taken(scores, own)
            exponents = self._exponents(members)
            largest = exponents.max(axis=0)
            exponents -= largest
            weights = np.exp(exponents, out=exponents)
            # A product with ones is several times as fast as `sum`.
            ones = np.ones(len(own), np.float32)
            maximum[subset], weight[subset] = largest, ones @ weights
            weights *= members
            weighted[subset] = ones @ weights
        return GroupSums(np.zeros_like(self._members), nothing, maximum, weight, weighted)

    def merge(self, other: GroupScores) -> None:
        """Add the sums over another part of the corpus."""
        self._members += other._members
        self._total += other._total
        self._weight += other._weight
        self._weighted += other._weighted
        if other._others:
            self.add(other._others)

    def sums(self) -> GroupSums:
        """Return the sums so far."""
        maximum = np.where(self._weight > 0, 0.0, NO_MEMBER)
        sums = GroupSums(self._members, self._total, maximum, self._weight, self._weighted)
        return sums.plus(self._others) if self._others else sums

    def add(self, sums: GroupSums) -> None:
        """Add the sums over another part of the corpus."""
        self._others = self._others.plus(sums) if self._others else sums

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
        sums = self.sums()
        if missing := int((self._membership.sizes - sums.members).sum()):
            raise StudyError(
                f"{missing:,} members of subsets are not among the scored training examples: the subsets "
                "were drawn from another corpus than the one that is scored. Run the workflow again, so that both "
                "are made from the corpus of the evaluation's `train`."
            )
        match self._computed(pooling):
            case "attention" | "signed":
                scores = sums.weighted / sums.weight
            case "mean":
                scores = sums.total / sums.members[:, None]
            case "sum":
                scores = sums.total
            case _:
                raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        if not np.isfinite(scores).all():
            raise StudyError("a score is not a finite number: the encoder or an embedding is damaged")
        return scores.astype(np.float32)


def _taken(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # No row is out of range, but every mode other than the default is faster.
    return np.take(scores, rows, axis=0, out=scratch("members", (len(rows), scores.shape[1]), np.float32), mode="clip")


def _sum_by_subset(owner: np.ndarray, starts: np.ndarray, subsets: int) -> csc_array:
    """Return the matrix, [subsets, rows], whose product with rows is their sum by subset.

    Parameters
    ----------
    owner: int32 [entries], subsets of the first row, then those of the second, and so on.
    starts: int64 [rows + 1], where those of each row begin; the number of entries.
    subsets: how many there are.
    """
    return csc_array(
        (np.ones(len(owner), np.float32), owner, starts.astype(np.int32)), shape=(subsets, len(starts) - 1)
    )
