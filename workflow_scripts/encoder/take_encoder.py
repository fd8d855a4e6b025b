"""Take an encoder that is trained already, by folder or hub id."""

from pathlib import Path

from workflow_scripts.core.stage import run_stage
from workflow_scripts.encoder.loading import load_trained_encoder


def take_encoder(
    encoder: Path,
    *,
    snapshot: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    max_tokens: int,
) -> None:
    """Copy a trained encoder into the study, in the layout of sentence-transformers.

    Parameters
    ----------
    encoder: folder to write.
    snapshot: folder that a model of the hub was fetched to; None to load `model`.
    model: folder or hub id of the trained encoder.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    max_tokens: longest text in tokens; less where the model's tokenizer allows less.

    Raises
    ------
    StudyError: the model can't be loaded, or wasn't trained for attribution.
    """
    trained = load_trained_encoder(
        snapshot or model, max_tokens, revision=revision, trust_remote_code=trust_remote_code
    )
    trained.save(encoder)


if __name__ == "__main__":
    run_stage(take_encoder)
