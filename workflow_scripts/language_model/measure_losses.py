"""Measure how unlikely an LM finds the response of every row of a corpus."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.language_model.losses import evaluate, load_language_model
from workflow_scripts.language_model.tokens import read_examples

SCHEMA = pa.schema([("example_id", pa.int32()), ("loss", pa.float32())])


def measure_losses(
    tokens: Path,
    losses: Path,
    *,
    language_model: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    evaluation_tokens: int,
    precision: str,
) -> None:
    """Write the LM's loss of every row that has a response token, in nats per response token.

    Parameters
    ----------
    tokens: `tokens/` file of the corpus.
    losses: Parquet file to write, one row per row of `tokens`.
    language_model: folder of the LM, where the workflow made or fetched it; None to load `model`.
    model: folder or hub id of the LM.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    evaluation_tokens: most tokens in one forward pass.
    precision: `float32` or `bfloat16`, that of the forward passes.

    Raises
    ------
    StudyError: the LM or the tokens can't be read, or a loss is not finite.
    """
    lm = load_language_model(language_model or model, revision, trust_remote_code, precision=precision)
    start_work()
    examples = read_examples(tokens)
    ids = np.fromiter(examples, np.int32, len(examples))
    found = evaluate(lm, list(examples.values()), evaluation_tokens, precision)
    if not np.isfinite(found).all():
        raise StudyError(
            f"the loss of example_id {ids[~np.isfinite(found)][0]} in {tokens} is not a finite number: the LM is "
            "damaged, or it diverged in its warm-up. Lower warmup.learning_rate, or name another LM."
        )
    write_table(losses, pa.table({"example_id": ids, "loss": found}, schema=SCHEMA))
    say(f"measure_losses: mean loss {found.mean():.3f} of {len(ids):,} rows")


if __name__ == "__main__":
    run_stage(measure_losses)
