"""Encoders by folder or hub id: loading, and the folders that one consists of."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn
from transformers import AutoModel, BertModel

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import file_hash
from workflow_scripts.encoder.initialization import random_projections
from workflow_scripts.encoder.model import DENSE_FOLDERS, SPLIT_FOLDERS, AttributionEncoder
from workflow_scripts.encoder.published_format import PROJECTOR, WEIGHTS, is_published_layout, published_config
from workflow_scripts.models.device import best_device
from workflow_scripts.models.loading import ids_beyond, load_tokenizer, load_weights, model_folder, open_weights
from workflow_scripts.study.choices import View


def load_encoder(
    model: str | Path,
    max_tokens: int,
    *,
    view: View = "joint",
    normalized: bool = False,
    dimension: int = 384,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    precision: str = "float32",
) -> AttributionEncoder:
    """Load an encoder from a folder or hub id, onto the job's GPU if it has one.

    `precision` is that of the forward passes to come, in which a GPU's packed attention is tried.

    A model that has projections keeps them, its view, and whether they read means of length 1. For one without,
    random projections to `dimension` are made from `seed` (paper, section 3.2).

    Raises
    ------
    StudyError: the model can't be loaded, or its weights aren't whole.
    """
    folder = model_folder(model, revision)
    parts = model_parts(folder)
    if len({file_hash(*sorted(part.glob("*.safetensors"))) for part in parts}) > 1:
        raise StudyError(
            f"{model}: {' and '.join(SPLIT_FOLDERS)} have different transformers. Take a whole copy of it."
        )
    tokenizer = load_tokenizer(parts[0], trust_remote_code=trust_remote_code)
    loader, options = AutoModel, {}
    if is_published_layout(folder):
        loader, options = BertModel, {"config": published_config(folder)}
    transformer = load_weights(loader, parts[0], None, trust_remote_code, unused="pooler.", **options)
    transformer.pooler = None
    embeddings = transformer.get_input_embeddings().num_embeddings
    if beyond := ids_beyond(tokenizer, embeddings, model):
        raise StudyError(
            f"{model}: the tokens {list(beyond.values())[:3]} were added to its tokenizer, and it has no embeddings "
            f"for them ({embeddings} ids). Take a whole copy of it, or one that was trained with these tokens."
        )
    projections = [projection for part in parts if (projection := stored_projection(part))]
    if projections:
        normalized = (parts[0] / DENSE_FOLDERS[True]).is_dir()
    else:
        projections = random_projections(transformer.config.hidden_size, dimension, view, seed)
    if {projection.in_features for projection in projections} != {transformer.config.hidden_size}:
        raise StudyError(
            f"{model}: its projection reads vectors of {projections[0].in_features} numbers, and its transformer makes "
            f"those of {transformer.config.hidden_size}: they come from two models. Take a whole copy of one."
        )
    encoder = AttributionEncoder(transformer, tokenizer, projections, max_tokens, normalized).to(best_device())
    if encoder.device.type == "cuda":
        # Other kernels than on the CPU, where it was made.
        encoder.use_packing(precision)
    return encoder


def load_trained_encoder(
    model: str | Path, max_tokens: int | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> AttributionEncoder:
    """Load an encoder that was trained for attribution; texts are cut where its tokenizer says, or at `max_tokens`.

    Raises
    ------
    StudyError: the model can't be loaded, or has no projection of its own.
    """
    folder = model_folder(model, revision)
    if stored_projection(model_parts(folder)[0]) is None:
        raise StudyError(
            f"{model} has no projection (2_Dense/model.safetensors), so it wasn't trained for attribution. Name "
            "the `encoder` folder of a study's results, or a published AirRep encoder."
        )
    return load_encoder(folder, max_tokens or sys.maxsize, trust_remote_code=trust_remote_code)


def model_parts(folder: Path) -> list[Path]:
    """Return the model folders that an encoder's folder consists of: itself, or one for each part of its view."""
    return [folder / part for part in SPLIT_FOLDERS if (folder / part).is_dir()] or [folder]


def stored_projection(folder: Path) -> nn.Linear | None:
    """Return the projection that lies in a model folder, or None.

    It is the Dense module of sentence-transformers, or `projector` among the model's weights, as in the
    checkpoint that the paper's authors published.
    """
    dense = [("linear.", folder / name / "model.safetensors") for name in DENSE_FOLDERS]
    for prefix, file in [*dense, (PROJECTOR, folder / WEIGHTS)]:
        if not file.exists():
            continue
        with open_weights(file) as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights = {name.removeprefix(prefix): tensors.get_tensor(name).float() for name in names}
        if weights:
            outputs, inputs = weights["weight"].shape
            layer = nn.Linear(inputs, outputs, bias="bias" in weights)
            layer.load_state_dict(weights)
            return layer
    return None
