"""Time the work of jobs that run on one core or GPU each.

`run_pilot` starts as many of these processes at a time as the study would have jobs. The argument is a folder with
`settings.json`; the result, seconds by unit of work, is printed as JSON.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workflow_scripts.core.gpus import use_deterministic_algorithms
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.corpora.near_duplicates import word_triples
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.embeddings.tiles import inner_products
from workflow_scripts.evaluation.lds import Bootstrap, bootstrap_lds
from workflow_scripts.language_model.engine import native_tuner
from workflow_scripts.language_model.losses import example_losses, load_language_model
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.models.device import autocast
from workflow_scripts.scoring.corpus_scores import CorpusScores
from workflow_scripts.scoring.group_scores import Membership
from workflow_scripts.study.sections import Corpus, Finetuning

TIMED_SECONDS = 3.0
LONGEST_CALL_SECONDS = 15.0
SCORED_EXAMPLES, SCORED_TESTS, SCORED_SUBSETS, TOP = 8192, 100, 100, 50
DRAWS = 200
GRADIENTS = 16


def typical_seconds(call: Callable[[], object], seconds: float = TIMED_SECONDS) -> float:
    """Return the median seconds of a call, which is repeated until `seconds` have passed, at least once.

    By the median, short interruptions of the machine don't count, but a constant load does.
    """
    took: list[float] = []
    while not took or sum(took) < seconds:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def per_unit(call: Callable[[int], object], units: int) -> float:
    """Return the seconds that each unit adds to `call(units)`, without what it takes to start."""
    few = max(units // 10, 1)
    call(few)  # warm-up
    short, long = (typical_seconds(partial(call, number), 0) for number in (few, units))
    return max(long - short, 0.0) / max(units - few, 1)


def repeated(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` items, cycling through `items`."""
    return list(itertools.islice(itertools.cycle(items), count))


def time_texts(sample: Path, folder: Path, tokenizing: dict[str, Any]) -> dict[str, float]:
    """Return the seconds to prepare, to tokenise and to compare a row.

    Parameters
    ----------
    sample: `corpora/` file with some rows.
    folder: for temporary files.
    tokenizing: arguments of `tokenize_corpus`.
    """
    table = read_table(sample)
    rows = [json.dumps(row) + "\n" for row in table.select(["prompt", "response", "label"]).to_pylist()]
    source = folder / "rows.jsonl"
    settings = Corpus(source=str(source), max_rejected_share=1.0).model_dump(exclude={"without"})

    def prepare(count: int) -> None:
        source.write_text("".join(rows[:count]), encoding="utf-8")
        prepare_corpus(folder / "prepared.parquet", folder / "rejected.parquet", **settings)

    def tokenize(count: int) -> None:
        write_table(folder / "few.parquet", table.slice(0, count))
        tokenize_corpus(folder / "few.parquet", folder / "few_tokens.parquet", folder / "cut.parquet", **tokenizing)

    return {
        "prepared_row": per_unit(prepare, len(rows)),
        "tokenized_row": per_unit(tokenize, len(rows)),
        "compared_row": per_unit(lambda count: word_triples(table.slice(0, count)), len(rows)),
    }


def time_finetuning(
    tokens: Path, source: Sequence[Any], finetuning: Finetuning, subset_examples: int, measured_examples: int | None
) -> dict[str, float]:
    """Return the seconds to train on a token (one pass), to evaluate it, and to compute its example's own gradient.

    A large LM's subset would take too long, so only a part of it that takes some seconds is trained on.

    Parameters
    ----------
    tokens: `tokens/` file.
    source: folder or hub id of the LM, its revision, and whether code that comes with it may run.
    finetuning: the section `finetuning` of the config.
    subset_examples: number of examples in a subset.
    measured_examples: number of examples that a run is evaluated on; None for all.
    """
    examples = list(read_examples(tokens).values())
    model, revision, trust_remote_code = source
    lm = load_language_model(model, revision, trust_remote_code, precision=finetuning.precision)
    tuner = native_tuner(lm, finetuning)
    subset, measured = repeated(examples, subset_examples), repeated(examples, measured_examples or len(examples))

    batch = subset[: tuner.batch_examples]
    tuner.finetune(batch, 0)  # warm-up
    of_batch = typical_seconds(lambda: tuner.finetune(batch, 0), 0)
    subset = subset[: max(int(LONGEST_CALL_SECONDS / of_batch), 1) * len(batch)]
    trained = typical_seconds(lambda: tuner.finetune(subset, 0)) / (tuner.epochs * _tokens(subset))
    measured = measured[: max(int(LONGEST_CALL_SECONDS / trained / _tokens(measured) * len(measured)), 1)]
    evaluated = typical_seconds(lambda: tuner.losses(measured)) / _tokens(measured)
    few = examples[:GRADIENTS]

    def differentiate() -> None:
        for example in few:
            with autocast(tuner.lm.device, tuner.precision):
                loss = example_losses(tuner.lm, [example]).sum()
            loss.backward()
            tuner.optimizer.zero_grad(set_to_none=False)
            loss.item()

    return {
        "trained_token": trained,
        "evaluated_token": evaluated,
        "gradient_token": typical_seconds(differentiate) / _tokens(few),
    }


def _tokens(examples: Sequence[TokenizedExample]) -> int:
    return sum(len(example.tokens) for example in examples)


def time_scores(dimension: int) -> dict[str, float]:
    """Return the seconds to score a pair, and those of a pair of subsets in a bootstrap draw of one test and method.

    Parameters
    ----------
    dimension: size of an embedding.
    """
    rng = np.random.default_rng(0)
    tests = rng.standard_normal((SCORED_TESTS, dimension), np.float32)
    tile = rng.standard_normal((SCORED_EXAMPLES, dimension), np.float32).astype(np.float16)
    members = [rng.choice(SCORED_EXAMPLES, 100, replace=False) for _ in range(SCORED_SUBSETS)]

    def score() -> None:
        scores = CorpusScores(SCORED_TESTS, TOP, Membership(members), ["attention", "mean"])
        scores.add_tiles([(np.arange(SCORED_EXAMPLES), tile)], inner_products(tests))

    few_tests = 4
    values = rng.standard_normal((2, few_tests, SCORED_SUBSETS))
    resamples = Bootstrap.draw(few_tests, SCORED_SUBSETS, DRAWS, rng)
    score()  # warm-up
    return {
        "scored_pair": typical_seconds(score, 0.5) / (SCORED_EXAMPLES * SCORED_TESTS),
        "bootstrapped_pair": typical_seconds(lambda: bootstrap_lds(values, values[0], resamples), 0.5)
        / (DRAWS * few_tests * 3 * SCORED_SUBSETS**2),
    }


def main(folder: Path) -> dict[str, float]:
    """Return the seconds of every unit that `settings.json` in `folder` asks for."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if settings["deterministic"]:
        use_deterministic_algorithms()
    own = Path(settings["sample"]).parent / f"process_{time.time_ns()}"
    own.mkdir()
    seconds = time_texts(Path(settings["sample"]), own, settings["tokenizing"])
    if settings["finetuning"]:
        values = settings["finetuning"]
        values["finetuning"] = Finetuning(**values["finetuning"])
        seconds |= time_finetuning(Path(settings["tokens"]), **values)
    return seconds | time_scores(settings["dimension"])


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
