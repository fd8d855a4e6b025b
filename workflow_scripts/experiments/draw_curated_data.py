"""List the runs on curated training data and on random rows, which are measured on tests that chose nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.row_formats import prompt_key
from workflow_scripts.experiments.runs import ListedRun, write_runs
from workflow_scripts.experiments.selection import RANDOM
from workflow_scripts.targets.sampling import usable_ids
from workflow_scripts.targets.tables import read_tests

ROWS_AT_ONCE = 10_000
FIELDS = [("method", pa.string()), ("examples", pa.int32()), ("draw", pa.int32())]


def draw_curated_data(
    selections: Sequence[Path],
    train: Path,
    test: Path,
    trained_on: Path | None,
    validation: Path,
    train_tokens: Path,
    test_tokens: Path,
    runs: Path,
    *,
    seed: int,
    random_draws: int,
    seeds: int,
) -> None:
    """Write the runs of the experiment: each selection, and random rows of the corpus, as many as each has.

    They are measured on the held-back tests: those of the test corpus that chose no selection, and whose prompt,
    normalised, is neither that of a test that did nor that of a row of the corpus or of the encoder's targets.

    Parameters
    ----------
    selections: `curation/<name>/selection.parquet` of each selection.
    train: `corpora/` file that was selected from.
    test: `corpora/` file of the tests.
    trained_on: `corpora/` file that the encoder's targets are drawn from; None if it was trained elsewhere.
    validation: file with the ids of the tests that the selections were made by, in one row.
    train_tokens: `tokens/` file of the corpus that was selected from.
    test_tokens: `tokens/` file of the tests.
    runs: Parquet file to write, one row per run and seed; `method` is the selection's name, or random rows.
    seed: the study's seed.
    random_draws: number of draws of random rows, for each size.
    seeds: number of fine-tuning runs per list.

    Raises
    ------
    StudyError: no test is held back, or a selection has no row that the LM can be fine-tuned on.
    """
    pool = usable_ids(train_tokens)
    tests = _held_back([train, *filter(None, [trained_on])], test, validation, test_tokens)
    nothing = pool[:0]
    rows: list[tuple[dict[str, object], ListedRun]] = []
    sizes: dict[int, None] = {}
    for path in selections:
        chosen = np.intersect1d(read_table(path, ["example_id"])["example_id"].to_numpy(), pool).astype(np.int32)
        if not len(chosen):
            raise StudyError(f"{path}: none of its rows has a response that the LM can learn. Select others.")
        sizes[len(chosen)] = None
        rows.append(
            ({"method": path.parent.name, "examples": len(chosen), "draw": 0}, ListedRun(chosen, nothing, tests))
        )
    for size in sizes:
        for draw in range(random_draws):
            some = np.sort(generator(seed, "curated_data", size, draw).choice(pool, size, replace=False))
            rows.append(({"method": RANDOM, "examples": size, "draw": draw}, ListedRun(some, nothing, tests)))
    write_runs(runs, rows, FIELDS, seeds)


def _held_back(corpora: Sequence[Path], test: Path, validation: Path, test_tokens: Path) -> np.ndarray:
    """Return the ids of the tests that chose nothing and aren't trained on, int32 [tests]."""
    used = read_tests(validation)
    # The ids of a corpus are its row numbers.
    keys = _prompt_keys(test)
    usable = usable_ids(test_tokens)
    unused = usable[~np.isin(keys[usable], keys[used])]
    held_back = unused
    for corpus in corpora:
        others = held_back[~np.isin(keys[held_back], _prompt_keys(corpus))]
        if trained_on := len(held_back) - len(others):
            say(f"draw_curated_data: {trained_on:,} tests are left out, whose prompts are among the rows of {corpus}")
        held_back = others
    if not len(held_back):
        raise StudyError(
            f"experiments.curated_data: all usable tests of {test} choose rows, or share a prompt with one that does "
            f"or with a row of {' or '.join(map(str, corpora))}, so none is held back. Lower the evaluation's "
            "`tests`, or use other tests."
        )
    return held_back


def _prompt_keys(corpus: Path) -> np.ndarray:
    """Return the key of each row's prompt, uint64 [rows]."""
    batches = (batch["prompt"].to_pylist() for batch in read_batches(corpus, ROWS_AT_ONCE, ["prompt"]))
    return np.array([prompt_key(prompt) for prompts in batches for prompt in prompts], np.uint64)


if __name__ == "__main__":
    run_stage(draw_curated_data)
