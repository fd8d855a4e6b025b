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
    """Write the trained encoder `model` to the folder `encoder`, in the layout of sentence-transformers.

    Of a model of the hub, `snapshot` is the folder that it was fetched to.

    Texts are cut at `max_tokens`, or earlier where the model's own tokenizer says so.

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
