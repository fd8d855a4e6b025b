"""Score the rows of a damaged pool by what they do to trusted tests, by one method."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table, write_batches
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.stage import run_stage
from workflow_scripts.embeddings.tiles import as_float
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.scoring.same_label import SameLabelTests
from workflow_scripts.scoring.sources import load_gpu_libraries, open_embeddings, open_texts
from workflow_scripts.targets.tables import read_tests

NEAREST_TESTS = 5
ROWS_AT_ONCE = 4096
SCHEMA = pa.schema(
    [
        ("example_id", pa.int32()),
        ("all_tests", pa.float32()),
        ("same_label", pa.float32()),
        ("nearest_tests", pa.float32()),
        ("self_influence", pa.float32()),
    ]
)


def score_harm(
    train: Path,
    test: Path,
    validation: Path,
    train_embeddings: Path | None,
    test_embeddings: list[Path],
    harm: Path,
    *,
    method: str,
    seed: int,
    tile_examples: int,
) -> None:
    """Write each row's mean score for the trusted tests, and its score for itself.

    `all_tests` is the mean over all tests. `same_label` is that over the tests with the row's label, and null
    where no test has it. `nearest_tests` is that over the five tests whose prompts are nearest to the row's, by the
    cosine of their TF-IDF vectors. The lower they are, the more a row harms, for a method that predicts effects; by a
    similarity, it is only less like these tests. `self_influence` is the inner product of a row's embedding with
    itself as it is stored, null for a method that scores texts.

    Parameters
    ----------
    train: `corpora/` file of the damaged pool.
    test: `corpora/` file that the tests are drawn from.
    validation: file with the ids of the tests, in one row.
    train_embeddings: embeddings of the damaged pool; None for a method that scores texts.
    test_embeddings: embeddings of the test corpus, one file or its parts; [] for such a method.
    harm: Parquet file to write, one row per row of the pool.
    method: name of the method, which is that of its module if it scores texts.
    seed: seed of methods that score at random.
    tile_examples: how many rows are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, the files don't belong together, or an embedding is not finite.
    """
    if train_embeddings:
        load_gpu_libraries()
    test_ids = read_tests(validation)
    if train_embeddings:
        source = open_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples)
    else:
        source = open_texts(load_text_method(method), train, test, test_ids, seed, tile_examples)
    groups = SameLabelTests.read(train, test, test_ids)
    nearest = _nearest_tests(train, test, test_ids)

    def tables() -> Iterator[pa.Table]:
        progress = Progress(f"score_harm {method}", source.examples, "training examples")
        for ids, tile in source.tiles:
            scores = source.score(tile, slice(0, len(test_ids)))
            yield pa.table(
                {
                    "example_id": ids,
                    "all_tests": scores.mean(axis=1, dtype=np.float64),
                    "same_label": groups.means(scores, ids),
                    "nearest_tests": np.take_along_axis(scores, nearest[ids], axis=1).mean(axis=1),
                    "self_influence": (
                        np.square(as_float(tile)).sum(axis=1) if train_embeddings else pa.nulls(len(ids))
                    ),
                }
            )
            progress.advance(len(ids))

    write_batches(harm, SCHEMA, tables())


def _nearest_tests(train: Path, test: Path, test_ids: np.ndarray) -> np.ndarray:
    """Return the places of the tests with the nearest prompts, int [rows, tests]; of equal ones the first."""
    # It takes a second to load.
    from sklearn.feature_extraction.text import TfidfVectorizer

    prompts = read_table(train, ["prompt"])["prompt"].to_pylist()
    tests = read_table(test, ["prompt"])["prompt"].take(pa.array(test_ids)).to_pylist()
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+", dtype=np.float32)
    number = min(NEAREST_TESTS, len(tests))
    if not any(re.search(r"\w", prompt) for prompt in prompts):
        # Without words, no test is nearer than another.
        return np.tile(np.arange(number), (len(prompts), 1))
    rows, columns = vectorizer.fit_transform(prompts), vectorizer.transform(tests).T.tocsc()
    found = [
        np.argsort(-(rows[start : start + ROWS_AT_ONCE] @ columns).toarray(), axis=1, kind="stable")[:, :number]
        for start in range(0, len(prompts), ROWS_AT_ONCE)
    ]
    return np.concatenate(found)


if __name__ == "__main__":
    run_stage(score_harm)
