"""Choose how a method's scores of examples become scores of groups, on the folds held back from the encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.evaluation.held_back import held_back_lds
from workflow_scripts.scoring.chosen_pooling import write_chosen_pooling
from workflow_scripts.scoring.fold_scores import ScoreFold, load_fold_scorer
from workflow_scripts.scoring.group_scores import ChosenPooling
from workflow_scripts.targets.tables import FoldTargets, read_folds

# Scales of attention, in units of one over the standard deviation of a method's scores: from near the mean to near the
# maximum.
RELATIVE_SCALES = tuple(2.0**exponent for exponent in np.arange(-3, 4.5, 0.5))


def choose_pooling(
    corpus: Path,
    subsets: Path,
    targets: Path,
    train_embeddings: list[Path],
    test_embeddings: list[Path],
    pooling: Path,
    *,
    tokens: Path | None = None,
    language_model: Path | None = None,
    fitted: Path | None = None,
    unstored: Mapping[str, Any] | None = None,
    method: str,
    folds: int,
    seed: int,
    tile_examples: int,
) -> None:
    """Write the LDS of the mean and of attention with each of several scales, and which of them is the highest.

    It is measured on the last folds of the encoder's targets, which the encoder isn't trained on, and on no test of an
    evaluation. Ties go to the mean, then to the smaller scale. A fold without a defined LDS doesn't count; if none has
    one, the mean is chosen, and its LDS is given as 0.

    Parameters
    ----------
    corpus: `corpora/` file that the targets were made from.
    subsets: the subsets of the targets.
    targets: the targets.
    train_embeddings: embeddings of the corpus as training examples, several files where it is split; [] for methods
        that store none.
    test_embeddings: embeddings of the corpus as tests; likewise.
    pooling: Parquet file to write, see `scoring.chosen_pooling`.
    tokens: `tokens/` file of the corpus, for a method whose embeddings aren't stored.
    language_model: folder of the LM of such a method.
    fitted: file that `fit_method` wrote for it.
    unstored: how it computes its embeddings, see `scoring.unstored.load_unstored`; None for other methods.
    method: name of the method, which is that of its module if it scores texts.
    folds: number of held-back folds.
    seed: seed of methods that score at random.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, or the files don't belong together.
    """
    held_back = read_folds(subsets, targets)[-folds:]
    score_fold = load_fold_scorer(
        method,
        corpus,
        train_embeddings,
        test_embeddings,
        tokens=tokens,
        language_model=language_model,
        fitted=fitted,
        unstored=unstored,
        tests_of_folds=[fold.tests for fold in held_back],
        seed=seed,
        tile_examples=tile_examples,
    )
    start_work()
    progress = Progress(f"choose_pooling {method}", len(held_back), "folds")
    found = []
    for fold in held_back:
        found.append(_member_scores(score_fold, fold))
        progress.advance()
    spread = float(np.sqrt(np.mean([scores.var() for scores in found])))
    candidates = [ChosenPooling("mean")]
    if spread > 0:
        candidates += [ChosenPooling("attention", relative / spread) for relative in RELATIVE_SCALES]
    lds = [held_back_lds([_pooled(scores, one) for scores in found], held_back) for one in candidates]
    chosen = int(np.argmax(lds))
    say(f"choose_pooling {method}: {candidates[chosen]}, LDS {lds[chosen]:.3f}; mean {lds[0]:.3f}")
    write_chosen_pooling(pooling, candidates, lds, chosen)


def _member_scores(score_fold: ScoreFold, fold: FoldTargets) -> np.ndarray:
    """Return the scores of the members of a fold's subsets for its tests, float32 [subsets, size, tests]."""
    members, places = np.unique(fold.members, return_inverse=True)
    scores = np.full((len(members), len(fold.tests)), np.nan, np.float32)
    for example_ids, of_tile in score_fold(fold.tests, members):
        _, rows, found = np.intersect1d(example_ids, members, assume_unique=True, return_indices=True)
        scores[found] = of_tile[rows]
    if missing := int(np.isnan(scores).any(axis=1).sum()):
        raise StudyError(
            f"{missing:,} of {len(members):,} members of a held-back fold have no score: the subsets were drawn from "
            "another corpus than the one that is scored. Run the workflow again, so that both are made from the corpus "
            "of targets.corpus."
        )
    return scores[places.reshape(fold.members.shape)]


def _pooled(scores: np.ndarray, candidate: ChosenPooling) -> np.ndarray:
    """Return group scores, float64 [subsets, tests], of the members' scores, float32 [subsets, size, tests]."""
    if candidate.pooling == "mean":
        return scores.mean(axis=1, dtype=np.float64)
    pooled = np.empty((len(scores), scores.shape[2]))
    for subset, own in enumerate(scores):
        exponents = np.abs(own) * np.float32(candidate.scale)
        weights = np.exp(exponents - exponents.max(axis=0))
        pooled[subset] = (weights * own).sum(axis=0) / weights.sum(axis=0)
    return pooled


if __name__ == "__main__":
    run_stage(choose_pooling)
