"""The layout in which the paper's authors published their encoder, read and written.

`model.safetensors` holds BERT under `bert.` and the projection as `projector`, in bfloat16; `config.json` is BERT's.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import publish_folder
from workflow_scripts.models.loading import open_weights
from workflow_scripts.models.transformers_import import BertConfig

if TYPE_CHECKING:
    from workflow_scripts.encoder.model import AttributionEncoder

WEIGHTS = "model.safetensors"
BERT = "bert."
PROJECTOR = "projector."


def is_published_layout(folder: Path) -> bool:
    """Return whether a model folder has the published layout."""
    file = Path(folder) / WEIGHTS
    if not file.exists():
        return False
    with open_weights(file) as tensors:
        return any(name.startswith(PROJECTOR) for name in tensors.keys())  # noqa: SIM118


def published_config(folder: Path) -> BertConfig:
    """Return the config of the BERT in a folder of the published layout, whatever its `model_type` says."""
    values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return BertConfig.from_dict({**values, "model_type": BertConfig.model_type})


def save_published(encoder: AttributionEncoder, folder: Path) -> None:
    """Write an encoder to `folder` in the published layout, its weights rounded to bfloat16.

    Raises
    ------
    StudyError: the layout can't hold the encoder: it isn't a BERT, reads prompt and response apart, scales means to
        length 1, or its projection isn't square with a bias.
    """
    folder = Path(folder)
    hidden = encoder.transformer.config.hidden_size
    kind = encoder.transformer.config.model_type
    if kind != BertConfig.model_type:
        raise StudyError(
            f"the published layout is for BERT, and this encoder is {kind!r}; write another release.layout"
        )
    if encoder.view != "joint":
        raise StudyError(
            "the published layout has one projection, and this encoder reads prompt and response apart (encoder.view: "
            "split); write another release.layout"
        )
    if encoder.normalized:
        raise StudyError(
            "the published layout doesn't scale means to length 1, and this encoder does (encoder.normalized: true); "
            "write another release.layout"
        )
    (projection,) = encoder.projections
    if encoder.dimension != hidden or projection.bias is None:
        raise StudyError(
            f"the published layout has a square projection, and this one makes {encoder.dimension} numbers from "
            f"{hidden}; write encoder.dimension: {hidden}, or another release.layout"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    config = copy.deepcopy(encoder.transformer.config)
    config.architectures, config.dtype = ["BertModel"], torch.bfloat16
    config.save_pretrained(temporary)
    encoder.tokenizer.model_max_length = encoder.max_tokens
    encoder.tokenizer.save_pretrained(temporary)
    parts = {BERT: encoder.transformer, PROJECTOR: projection}
    weights = {
        prefix + name: tensor.to("cpu", torch.bfloat16).contiguous()
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
    publish_folder(temporary, folder)
