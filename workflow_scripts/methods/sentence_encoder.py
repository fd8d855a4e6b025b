"""Any sentence-transformers model: its embeddings of prompt and response, compared by the model's own similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from workflow_scripts.methods.embedder import Embedder, unit_length
from workflow_scripts.models.device import best_device
from workflow_scripts.models.loading import (
    LOADING_ERRORS,
    cant_be_loaded,
    model_folder,
    require_safetensors,
    require_whole_files,
    require_words,
)
from workflow_scripts.models.transformers_import import PreTrainedTokenizerBase


def open_embedder(reader: None, fitted: dict[str, torch.Tensor], for_tests: bool, *, model: str) -> Embedder:
    """Return an embedder of texts, with vectors of unit length unless the model's similarity is the inner product.

    Parameters
    ----------
    reader: not used: the method reads texts.
    fitted: not used: the method isn't fitted.
    for_tests: not used: tests are embedded as training examples are.
    model: folder or hub id of the model.

    Raises
    ------
    StudyError: the model can't be loaded, or its tokenizer can't tell words apart.
    """
    folder = model_folder(model)
    require_safetensors(folder)
    # Those of its modules, e.g. of a Dense.
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        require_whole_files(part)
    options = {"device": str(best_device()), "model_kwargs": {"use_safetensors": True}}
    try:
        encoder = SentenceTransformer(str(folder), **options)
    except LOADING_ERRORS as error:
        raise cant_be_loaded(model, error) from error
    # Its modules have the precision that they are stored in.
    encoder.float()
    if isinstance(encoder.tokenizer, PreTrainedTokenizerBase):
        require_words(encoder.tokenizer, model)
    by_inner_product = encoder.similarity_fn_name == "dot"

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = encoder.encode(texts, show_progress_bar=False).astype(np.float32, copy=False)
        return vectors if by_inner_product else unit_length(vectors)

    return Embedder(encoder.get_embedding_dimension(), embed)
