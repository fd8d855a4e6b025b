"""Any sentence-transformers model: its embeddings of prompt and response, compared as the model says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from workflow_scripts.methods.embedder import Embedder, unit_length
from workflow_scripts.models.device import best_device
from workflow_scripts.models.loading import model_folder, require_safetensors, require_words


def open_embedder(reader: None, fitted: dict[str, torch.Tensor], for_tests: bool, *, model: str) -> Embedder:
    """Return an embedder of texts: of unit length, unless the model's own similarity is the inner product.

    Raises
    ------
    StudyError: the model can't be loaded, or its tokenizer can't tell words apart.
    """
    folder, device = str(model_folder(model)), str(best_device())
    require_safetensors(folder)
    encoder = SentenceTransformer(folder, device=device, model_kwargs={"use_safetensors": True})
    if isinstance(encoder.tokenizer, PreTrainedTokenizerBase):
        require_words(encoder.tokenizer, model)
    by_inner_product = encoder.similarity_fn_name == "dot"

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = encoder.encode(texts, show_progress_bar=False)
        return vectors if by_inner_product else unit_length(vectors)

    return Embedder(encoder.get_embedding_dimension(), embed)
