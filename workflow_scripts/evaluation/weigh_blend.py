"""Choose the weight of two methods in the sum of their group scores, on the folds held back from the encoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.evaluation.blends import Blend, write_blend
from workflow_scripts.evaluation.held_back import held_back_lds
from workflow_scripts.study.methods import methods_of
from workflow_scripts.targets.tables import FoldTargets, read_folds

# Of the first method.
WEIGHTS = tuple(np.linspace(0, 1, 21).round(2).tolist())


def weigh_blend(
    subsets: Path,
    targets: Path,
    predictions: list[Path],
    weights: Path,
    *,
    blend: str,
    poolings: Sequence[str],
    folds: int,
) -> None:
    """Write the LDS of the sum of two methods' group scores with each of several weights, and which is the highest.

    It is measured as in `choose_pooling`, on the same folds, and on no test of an evaluation. Of weights with equal
    LDS, the one nearest 0.5 is chosen; so it is 0.5 where no fold has a defined LDS.

    Parameters
    ----------
    subsets: the subsets of the targets.
    targets: the measured targets.
    predictions: what `predict_targets` wrote for the held-back folds, one file for each of the two methods.
    weights: Parquet file to write, see `evaluation.blends`.
    blend: names of both methods, e.g. `airrep+ekfac`.
    poolings: which of each method's group scores were predicted.
    folds: number of held-back folds.

    Raises
    ------
    StudyError: a file can't be read, or the files don't belong together.
    """
    start_work()
    held_back = read_folds(subsets, targets)[-folds:]
    first, second = (_predicted(subsets, path, held_back) for path in predictions)
    methods = methods_of(blend)
    scales = [_spread(one) for one in (first, second)]
    candidates = [Blend(methods, poolings, weight, scales) for weight in WEIGHTS]
    lds = [held_back_lds(list(map(one.scores, first, second)), held_back) for one in candidates]
    chosen = max(range(len(WEIGHTS)), key=lambda place: (lds[place], -abs(WEIGHTS[place] - 0.5)))
    alone = f"{methods[0]} {lds[-1]:.3f}, {methods[1]} {lds[0]:.3f}"
    say(f"weigh_blend: {candidates[chosen]}, LDS {lds[chosen]:.3f}; alone: {alone}")
    write_blend(weights, candidates, lds, chosen)


def _spread(scores: Sequence[np.ndarray]) -> float:
    variances = np.concatenate([of_fold.astype(np.float64).var(axis=0) for of_fold in scores])
    return float(np.sqrt(variances.mean()))


def _predicted(subsets: Path, predictions: Path, held_back: Sequence[FoldTargets]) -> list[np.ndarray]:
    """Return a method's group scores for each held-back fold, float32 [subsets, tests]."""
    folds = read_folds(subsets, predictions)
    # What stands for a loss, and isn't rounded as labels are.
    scores = -read_table(predictions, ["loss"])["loss"].to_numpy()
    ends = np.cumsum([fold.labels.size for fold in folds])
    of_fold = [one.reshape(fold.labels.shape) for one, fold in zip(np.split(scores, ends[:-1]), folds, strict=True)]
    found = []
    last = slice(len(folds) - len(held_back), None)
    for measured, fold, own in zip(held_back, folds[last], of_fold[last], strict=True):
        place = {test: column for column, test in enumerate(fold.tests.tolist())}
        if missing := [test for test in measured.tests.tolist() if test not in place]:
            raise StudyError(
                f"{predictions}: {len(missing):,} of the {len(measured.tests):,} evaluated examples of a held-back "
                "fold have no score. Delete it and run again."
            )
        found.append(own[:, [place[test] for test in measured.tests.tolist()]])
    return found


if __name__ == "__main__":
    run_stage(weigh_blend)
