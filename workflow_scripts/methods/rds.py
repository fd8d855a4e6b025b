"""RDS (Hanawa et al. 2021): the cosine of the LM's last hidden states, averaged over an example's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.embedder import Embedder, LanguageModelReader, unit_length
from workflow_scripts.models.device import autocast
from workflow_scripts.models.packing import PackedBatch, example_means, pack, token_budget
from workflow_scripts.models.sharing import apart_from, forget_lengths, shared_passes
from workflow_scripts.models.transformers_import import PreTrainedModel


def open_embedder(reader: LanguageModelReader, fitted: Mapping[str, torch.Tensor], for_tests: bool) -> Embedder:
    """Return an embedder of mean last hidden states, over prompt and response, of unit length.

    Parameters
    ----------
    reader: the LM.
    fitted: not used: the method isn't fitted.
    for_tests: not used: tests are embedded as training examples are.
    """

    # Not always the hidden size that the config says: OPT may project its last states.
    with torch.inference_mode():
        width = _mean_states(reader, [np.zeros(1, np.int64)]).shape[1]

    @torch.inference_mode()
    def embed(examples: Sequence[TokenizedExample]) -> np.ndarray:
        lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
        vectors = np.empty((len(examples), width), np.float32)
        for batch in token_budget(lengths, reader.batch_tokens):
            for chosen in shared_passes(reader.lm, lengths[batch]):
                vectors[batch[chosen]] = _mean_states(reader, [examples[i].tokens for i in batch[chosen]])
        return unit_length(vectors)

    return Embedder(width, embed)


def _mean_states(reader: LanguageModelReader, examples: Sequence[np.ndarray]) -> np.ndarray:
    lm, batch = reader.lm, pack(examples, reader.lm.device, apart_from(reader.lm))
    forget_lengths(lm)
    with autocast(lm.device, reader.precision):
        states = _packed_states(lm, batch) if lm.airrep_packed else _padded_states(lm, batch)
    return example_means(states, batch).cpu().numpy()


def _packed_states(lm: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Return the last hidden states of all tokens, [tokens, hidden], in packed order."""
    return _decoder(lm)(
        input_ids=batch.tokens, position_ids=batch.positions, packing=batch, use_cache=False
    ).last_hidden_state[0]


def _padded_states(lm: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    rows = []
    for bucket, tokens in batch.by_bucket(batch.tokens[0]):
        states = _decoder(lm)(input_ids=bucket.rectangle(tokens), attention_mask=bucket.attention_mask, use_cache=False)
        rows.append(bucket.row(states.last_hidden_state))
    return torch.cat(rows)


def _decoder(lm: PreTrainedModel) -> torch.nn.Module:
    """Return the LM without its head; Llama 4 names itself as its base."""
    return lm.base_model.model if lm.base_model is lm else lm.base_model
