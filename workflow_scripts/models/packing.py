"""Token-packed batches: examples laid end to end, no padding, no attention from one example to another.

Linear layers, norms and embeddings see one row of T real tokens. Only attention needs rectangles: examples
are sorted by length, cut into buckets of like length, and each bucket is one call of PyTorch's fused
attention. `transformers` lets a model's attention be replaced by name, so every architecture that supports
this interface is packed without a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

ATTENTION = "packed"


@dataclass(frozen=True)
class Bucket:
    """Examples of like length: `rows` [examples * longest] gathers their tokens from the packed row.

    `real` lists the gathered rows that are tokens and not padding, and `mask` [examples, 1, 1, longest] marks
    them; both are None where all lengths are equal.
    """

    examples: int
    longest: int
    rows: torch.Tensor
    real: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PackedBatch:
    """Examples end to end: `tokens` and `positions` int64 [1, T]; `order[i]` is the place of the i-th packed
    example in the list that was given; `lengths` int64 [examples], in packed order."""

    tokens: torch.Tensor
    positions: torch.Tensor
    order: np.ndarray
    lengths: torch.Tensor
    buckets: tuple[Bucket, ...]

    @property
    def starts(self) -> torch.Tensor:
        """Offset of each packed example in the row of tokens, int64 [examples]."""
        return torch.cumsum(self.lengths, 0) - self.lengths


def pack(examples: Sequence[np.ndarray], device: torch.device | str = "cpu") -> PackedBatch:
    """Pack token arrays (1-D integers, none empty) into one row, shortest first."""
    lengths = np.fromiter((len(example) for example in examples), np.int64, len(examples))
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    tokens = np.concatenate([examples[i] for i in order]).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(len(tokens)) - np.repeat(starts, lengths)
    buckets = []
    for first, last in _like_lengths(lengths):
        longest = int(lengths[last - 1])
        offsets = np.arange(longest)
        inside = offsets < lengths[first:last, None]
        # Padding repeats the example's first token: any finite value does, nobody reads the result.
        rows = starts[first:last, None] + np.where(inside, offsets, 0)
        equal = bool(inside.all())
        buckets.append(
            Bucket(
                examples=last - first,
                longest=longest,
                rows=to_device(rows.reshape(-1), device),
                real=None if equal else to_device(np.flatnonzero(inside), device),
                mask=None if equal else to_device(inside, device)[:, None, None, :],
            )
        )
    return PackedBatch(
        tokens=to_device(tokens, device)[None],
        positions=to_device(positions, device)[None],
        order=order,
        lengths=to_device(lengths, device),
        buckets=tuple(buckets),
    )


def to_device(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Return a tensor of `array` on `device`, without waiting for the work that a GPU still has to do."""
    tensor = torch.from_numpy(array)
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _like_lengths(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut sorted lengths into runs whose longest is at most a third (and 8 tokens) over the shortest."""
    first = 0
    while first < len(lengths):
        last = int(np.searchsorted(lengths, lengths[first] * 4 // 3 + 8, side="right"))
        yield first, last
        first = last


def token_budget(lengths: np.ndarray, most_tokens: int) -> Iterator[np.ndarray]:
    """Yield index arrays of examples, sorted by length, each of at most `most_tokens` tokens in all.

    An example longer than the budget is a batch of its own.
    """
    order = np.argsort(lengths, kind="stable")
    first = 0
    total = np.concatenate([[0], np.cumsum(lengths[order])])
    while first < len(order):
        last = int(np.searchsorted(total, total[first] + most_tokens, side="right")) - 1
        last = max(last, first + 1)
        yield order[first:last]
        first = last


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: PackedBatch,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention over [1, heads, T, head size], within examples only; returns [1, T, heads, head size].

    Raises
    ------
    NotImplementedError: the model bends its attention weights (Gemma 2, GPT-OSS); it is read padded then.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("packed attention has neither soft caps nor attention sinks")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # [T, heads, head size]: the rows that buckets gather
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    outputs = []
    for bucket in packing.buckets:
        shape = (bucket.examples, bucket.longest)
        q, k, v = (
            tensor.index_select(0, bucket.rows).unflatten(0, shape).transpose(1, 2) for tensor in (query, key, value)
        )
        windowed = sliding_window is not None and bucket.longest > sliding_window
        mask = None if causal else bucket.mask
        if windowed:
            mask = _window_mask(bucket.longest, sliding_window, causal, q.device)
            if bucket.mask is not None:
                mask = mask & bucket.mask
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            # Padding stands at the end, so a causal mask alone keeps it out of sight of real tokens.
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out = out.transpose(1, 2).flatten(0, 1)
        outputs.append(out if bucket.real is None else out.index_select(0, bucket.real))
    return torch.cat(outputs)[None], None


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


AttentionInterface.register(ATTENTION, _packed_attention)
