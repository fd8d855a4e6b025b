"""Which examples may share a forward pass: those whose numbers don't depend on their neighbours.

Most models read an example as if it were alone, whatever stands beside it in a batch. Some don't: rotary positions that
change with the longest example of the batch (longrope, dynamic NTK), attention in chunks, convolutions that see the
padding. Such models read examples beyond a length, or all of them, only beside examples of the same length.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from workflow_scripts.core.progress import say
from workflow_scripts.models.transformers_import import PreTrainedModel

# Rotary positions that depend on the longest example of a batch.
DYNAMIC_ROPE = ("dynamic", "longrope", "su")
# Settings whose product is the number of keys that sparse attention selects.
SELECTED_KEYS = (("index_topk",), ("index_topk_blocks", "index_block_size"), ("keep_window_size",))
# How far a number may be from that of the example alone, relative to the largest: more than rounding, less than padding
# that is seen.
TOLERANCE = 1e-4


def find_dependence(model: PreTrainedModel, read: Callable[[], torch.Tensor]) -> None:
    """Find from which length on an example's numbers depend on its neighbours, for `apart_from`.

    `read` returns numbers of the output for a few short examples, some of which are padded.
    """
    limits = [sys.maxsize, *_rope_limits(model), *_chunk_limits(model), *_selection_limits(model)]
    model.airrep_apart_from = 0
    with torch.no_grad():
        alone = read()
        model.airrep_apart_from = min(limits)
        padded = read()
    if not (padded - alone).abs().max() <= TOLERANCE * alone.abs().max().clamp(min=1):
        model.airrep_apart_from = 0
        say(f"{type(model).__name__}: padding changes its numbers, so batches hold examples of one length each.")


def apart_from(model: PreTrainedModel) -> int:
    """Return the number of tokens beyond which an example shares a forward pass with its like in length alone."""
    return getattr(model, "airrep_apart_from", sys.maxsize)


def allows_packing(model: PreTrainedModel) -> bool:
    """Return whether examples may lie end to end: not where layers besides attention see their neighbours.

    Nor where attention is in chunks or selects keys, which packed attention doesn't know.
    """
    return apart_from(model) > 0 and not [*_chunk_limits(model), *_selection_limits(model)]


def shared_passes(model: PreTrainedModel, lengths: np.ndarray) -> list[np.ndarray]:
    """Return which examples may share a forward pass, as index arrays, for examples of `lengths` tokens."""
    limit = apart_from(model)
    if lengths.max(initial=0) <= limit:
        return [np.arange(len(lengths))]
    keys = np.where(lengths <= limit, 0, lengths)
    return [np.flatnonzero(keys == key) for key in np.unique(keys)]


def forget_lengths(model: PreTrainedModel) -> None:
    """Put rotary positions back to those of short examples.

    Dynamic NTK keeps those of the longest example that it has seen, also for shorter ones beyond its limit.
    """
    if apart_from(model) == sys.maxsize:
        return
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if original is not None and hasattr(module, f"{prefix}inv_freq"):
                setattr(module, name, module.original_max_seq_len)
                device = getattr(module, f"{prefix}inv_freq").device
                module.register_buffer(f"{prefix}inv_freq", original.clone().to(device), persistent=False)


def _rope_limits(model: PreTrainedModel) -> Iterator[int]:
    for config in _configs(model):
        for parameters in _rope_parameters(config):
            kind = parameters.get("rope_type", parameters.get("type"))
            if kind in DYNAMIC_ROPE:
                names = ("original_max_position_embeddings", "max_position_embeddings")
                limits = [parameters.get(names[0]), *(getattr(config, name, None) for name in names)]
                yield min([limit for limit in limits if limit], default=0)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None) or {}
        # Some models have one for each kind of layer.
        yield from [found, *(each for each in found.values() if isinstance(each, Mapping))]


def _chunk_limits(model: PreTrainedModel) -> Iterator[int]:
    for config in _configs(model):
        if chunk := getattr(config, "attention_chunk_size", None):
            yield chunk


def _selection_limits(model: PreTrainedModel) -> Iterator[int]:
    """Yield how many keys attention reads of a longer text, those with the highest scores.

    Of equal scores, which are many where they are cut off at 0, the padding decides which ones.
    """
    for config in _configs(model):
        for names in SELECTED_KEYS:
            numbers: list[int] = [getattr(config, name, 0) or 0 for name in names]
            if all(numbers):
                yield math.prod(numbers)


def _configs(model: PreTrainedModel) -> list[Any]:
    text = model.config.get_text_config()
    return [text] if text is model.config else [model.config, text]
