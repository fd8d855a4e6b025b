"""Encoders by folder or hub id: loading, and the folders that one consists of."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import AutoModel, BertModel

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import file_hash
from workflow_scripts.encoder.initialization import random_projections
from workflow_scripts.encoder.model import DENSE_FOLDERS, SPLIT_FOLDERS, AttributionEncoder
from workflow_scripts.encoder.published_format import PROJECTOR, WEIGHTS, is_published_layout, published_config
from workflow_scripts.models.device import best_device
from workflow_scripts.models.loading import load_tokenizer, load_weights, model_folder
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

    A model that has projections keeps them, its view, and whether they read means of length 1. A model without gets
    random ones (paper, section 3.2).

    Parameters
    ----------
    model: folder or hub id.
    max_tokens: longest text in tokens; less where model or tokenizer allow less.
    view: of a model without projections, whether prompt and response are read as one text or as two.
    normalized: of a model without projections, whether means are scaled to length 1 before the projection.
    dimension: of a model without projections, the size of an embedding.
    seed: seed of random projections.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    precision: `float32` or `bfloat16`, that of later forward passes, in which packed attention on a GPU is tested.

    Raises
    ------
    StudyError: the model can't be loaded, weights are missing, or its parts come from different models.
    """
    folder = model_folder(model, revision)
    parts = model_parts(folder)
    if len({file_hash(*sorted(part.glob("*.safetensors"))) for part in parts}) > 1:
        raise StudyError(
            f"{model}: {' and '.join(SPLIT_FOLDERS)} have different transformers. Use a complete copy of it."
        )
    tokenizer = load_tokenizer(parts[0], trust_remote_code=trust_remote_code)
    loader, options = AutoModel, {}
    if is_published_layout(folder):
        loader, options = BertModel, {"config": published_config(folder)}
    transformer = load_weights(loader, parts[0], None, trust_remote_code, unused="pooler.", **options)
    transformer.pooler = None
    projections = [projection for part in parts if (projection := stored_projection(part))]
    if projections:
        normalized = (parts[0] / DENSE_FOLDERS[True]).is_dir()
    else:
        projections = random_projections(transformer.config.hidden_size, dimension, view, seed)
    if {projection.in_features for projection in projections} != {transformer.config.hidden_size}:
        raise StudyError(
            f"{model}: its projection reads vectors of {projections[0].in_features} numbers, and its transformer "
            f"outputs those of {transformer.config.hidden_size}: they come from two models. Use a complete copy of one."
        )
    encoder = AttributionEncoder(transformer, tokenizer, projections, max_tokens, normalized).to(best_device())
    if encoder.device.type == "cuda":
        # Other kernels than on the CPU, where it was made.
        encoder.use_packing(precision)
    return encoder


def load_trained_encoder(
    model: str | Path, max_tokens: int | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> AttributionEncoder:
    """Load an encoder that was trained for attribution.

    Parameters
    ----------
    model: folder or hub id.
    max_tokens: longest text in tokens; None for the limit of its tokenizer.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.

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
    """Return the model folders in an encoder's folder: itself, or `prompt` and `response` under the view `split`."""
    return [folder / part for part in SPLIT_FOLDERS if (folder / part).is_dir()] or [folder]


def stored_projection(folder: Path) -> nn.Linear | None:
    """Return the projection in a model folder, a float32 layer; None if there is none.

    It is the Dense module of sentence-transformers, or `projector` among the model's weights, as in the
    checkpoint that the paper's authors published.
    """
    dense = [("linear.", folder / name / "model.safetensors") for name in DENSE_FOLDERS]
    for prefix, file in [*dense, (PROJECTOR, folder / WEIGHTS)]:
        if not file.exists():
            continue
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights = {name.removeprefix(prefix): tensors.get_tensor(name).float() for name in names}
        if weights:
            outputs, inputs = weights["weight"].shape
            layer = nn.Linear(inputs, outputs, bias="bias" in weights)
            layer.load_state_dict(weights)
            return layer
    return None
