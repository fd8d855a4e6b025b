"""Packed batches: examples are concatenated, without padding and without attention between examples.

Linear layers, norms and embeddings see one row of T real tokens, and so does FlashAttention for variable lengths
(`torch.nn.attention.varlen`), which runs in half precision on GPUs. Elsewhere attention needs rectangles: examples
are sorted by length and grouped into buckets of similar length, and each bucket is one call of PyTorch's fused
attention. `transformers` lets a model's attention be replaced by name, so every architecture that supports this
interface is packed without a change.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from workflow_scripts.models.device import to_device
from workflow_scripts.models.transformers_import import AttentionInterface

varlen_attn: Callable[..., Any] | None = None
# It needs CUDA, and imports torch's compiler.
if torch.version.cuda is not None and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn

# Names for `set_attn_implementation`: the fastest kernel that each call allows, and buckets whatever the call is.
ATTENTION = "packed"
BUCKETS = "packed_buckets"

# cuDNN builds a plan for every new shape, tens of milliseconds each, and buckets have hundreds of shapes.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Bucket:
    """Examples of similar length, as a rectangle.

    Parameters
    ----------
    examples: number of examples.
    longest: tokens of the longest one.
    span: where its tokens are in the packed row.
    rows: int64 [examples * longest], indices into the tokens of `span`, padding included; None if all lengths are
        equal.
    real: int64 [tokens], indices into `rows` of what isn't padding; None if all lengths are equal.
    mask: bool [examples, 1, 1, longest], False for padding; None if all lengths are equal.
    device: where these tensors are.
    """

    examples: int
    longest: int
    span: slice
    rows: torch.Tensor | None
    real: torch.Tensor | None
    mask: torch.Tensor | None
    device: torch.device | str

    @property
    def attention_mask(self) -> torch.Tensor:
        """The mask as models of transformers read it, int64 [examples, longest], 1 for tokens and 0 for padding."""
        if self.mask is None:
            return torch.ones((self.examples, self.longest), dtype=torch.long, device=self.device)
        return self.mask[:, 0, 0].long()

    def rectangle(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of its tokens, [tokens, ...], with padding, [examples, longest, ...]."""
        padded = rows if self.rows is None else rows.index_select(0, self.rows)
        return padded.unflatten(0, (self.examples, self.longest))

    def row(self, rectangle: torch.Tensor) -> torch.Tensor:
        """Return what isn't padding of a rectangle, [tokens, ...]."""
        padded = rectangle.flatten(0, 1)
        return padded if self.real is None else padded.index_select(0, self.real)


@dataclass(frozen=True)
class PackedBatch:
    """Concatenated examples, in packed order: shortest first.

    Parameters
    ----------
    tokens: int64 [1, T], token ids.
    positions: int64 [1, T], place of each token in its example, from 0.
    order: int64 [examples]; `order[i]` is the index of the i-th packed example in the original list.
    lengths: int64 [examples], in packed order.
    cu_seqlens: int32 [examples + 1], offset of each packed example in the row of tokens, and T.
    max_length: tokens of the longest example.
    example_lengths: `lengths` as an array, which is read without waiting for a GPU.
    apart_from: no bucket has an example of more tokens than this beside one of another length.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    order: np.ndarray
    lengths: torch.Tensor
    cu_seqlens: torch.Tensor
    max_length: int
    example_lengths: np.ndarray
    apart_from: int = sys.maxsize

    @property
    def starts(self) -> torch.Tensor:
        """Offset of each packed example in the row of tokens, int64 [examples]."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The examples in rectangles of similar length, in packed order; computed on first use."""
        lengths = self.example_lengths
        starts = np.cumsum(lengths) - lengths
        return tuple(
            bucket_of(lengths[first:last], int(starts[first]), self.tokens.device)
            for first, last in _like_lengths(lengths, self.apart_from)
        )

    def by_bucket(self, rows: torch.Tensor) -> Iterator[tuple[Bucket, torch.Tensor]]:
        """Yield each bucket and its tokens' rows of a tensor [T, ...].

        They are parts of one split, whose gradient is one concatenation; that of a slice is as long as the tensor.
        """
        sizes = [bucket.span.stop - bucket.span.start for bucket in self.buckets]
        return zip(self.buckets, rows.split(sizes), strict=True)


def bucket_of(lengths: np.ndarray, start: int, device: torch.device | str) -> Bucket:
    """Return a bucket of examples that follow each other in a packed row.

    Parameters
    ----------
    lengths: int64 [examples], their tokens, not all of them 0.
    start: where the first one begins.
    device: where the bucket's tensors are needed.
    """
    longest, tokens = int(lengths.max()), int(lengths.sum())
    offsets = np.arange(longest)
    inside = offsets < lengths[:, None]
    equal = bool(inside.all())
    # Padding repeats the example's first token: any finite value will do, the result is never read.
    rows = (np.cumsum(lengths) - lengths)[:, None] + np.where(inside, offsets, 0)
    return Bucket(
        examples=len(lengths),
        longest=longest,
        span=slice(start, start + tokens),
        # An example without tokens at the end has no first one.
        rows=None if equal else to_device(rows.reshape(-1).clip(max=tokens - 1), device),
        real=None if equal else to_device(np.flatnonzero(inside), device),
        mask=None if equal else to_device(inside, device)[:, None, None, :],
        device=device,
    )


def pack(
    examples: Sequence[np.ndarray], device: torch.device | str = "cpu", apart_from: int = sys.maxsize
) -> PackedBatch:
    """Pack token arrays (1-D integers, none empty) into one row, shortest first.

    `apart_from` is where `PackedBatch.buckets` stop to hold examples of like length, and hold those of one length.
    """
    lengths = np.fromiter((len(example) for example in examples), np.int64, len(examples))
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    tokens = np.concatenate([examples[i] for i in order]).astype(np.int64)
    ends = np.cumsum(lengths)
    positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    return PackedBatch(
        tokens=to_device(tokens, device)[None],
        positions=to_device(positions, device)[None],
        order=order,
        lengths=to_device(lengths, device),
        cu_seqlens=to_device(np.concatenate([[0], ends]).astype(np.int32), device),
        max_length=int(lengths[-1]),
        example_lengths=lengths,
        apart_from=apart_from,
    )


def _like_lengths(lengths: np.ndarray, apart_from: int) -> Iterator[tuple[int, int]]:
    """Cut sorted lengths into runs whose longest is at most a third (and 8 tokens) over the shortest.

    Lengths beyond `apart_from` are only with their like.
    """
    first = 0
    while first < len(lengths):
        longest = max(int(lengths[first]), min(int(lengths[first]) * 4 // 3 + 8, apart_from))
        last = int(np.searchsorted(lengths, longest, side="right"))
        yield first, last
        first = last


def token_budget(lengths: np.ndarray, max_batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield batches of examples of similar length, int64 [batch] indices.

    Parameters
    ----------
    lengths: int [examples], tokens of each example.
    max_batch_tokens: most tokens in a batch; a longer example is a batch of its own.
    """
    order = np.argsort(lengths, kind="stable")
    first = 0
    total = np.concatenate([[0], np.cumsum(lengths[order])])
    while first < len(order):
        last = int(np.searchsorted(total, total[first] + max_batch_tokens, side="right")) - 1
        last = max(last, first + 1)
        yield order[first:last]
        first = last


def example_means(states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return the mean over the tokens of each example, float32 [examples, width], or float64 for float64 states.

    Examples are in their original order. Tokens are added in their order on every device.

    Parameters
    ----------
    states: float [T, width], in packed order.
    batch: the packed examples.
    """
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    # On a GPU, `index_add` adds in any order; on a CPU, `segment_reduce` is slow.
    means = (_means_by_segment if states.is_cuda else _means_by_index)(states, batch)
    return means.index_select(0, to_device(np.argsort(batch.order), states.device))


def _means_by_segment(states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    # `unsafe` skips a check of the lengths that waits for the GPU.
    return torch.segment_reduce(states, "mean", lengths=batch.lengths, unsafe=True)


def _means_by_index(states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    examples = len(batch.lengths)
    owner = torch.repeat_interleave(torch.arange(examples), batch.lengths, output_size=len(states))
    return states.new_zeros(examples, states.shape[1]).index_add(0, owner, states) / batch.lengths[:, None]


def attention_kernel(value: torch.Tensor, dropout: float) -> Literal["varlen", "buckets"]:
    """Return the kernel for packed attention.

    It depends on the device, the dtype and the head size; with PyTorch's deterministic algorithms it is never `varlen`.

    Parameters
    ----------
    value: float [1, heads, T, head size].
    dropout: dropout probability of the attention weights.
    """
    head_size = value.shape[-1]
    fits = value.dtype in (torch.bfloat16, torch.float16) and head_size % 8 == 0 and head_size <= 256 and not dropout
    if fits and _runs_varlen(value.device) and not torch.are_deterministic_algorithms_enabled():
        return "varlen"
    return "buckets"


@torch.compiler.assume_constant_result
def _runs_varlen(device: torch.device) -> bool:
    return varlen_attn is not None and device.type == "cuda" and torch.version.hip is None and _is_ampere(device.index)


@cache
def _is_ampere(index: int | None) -> bool:
    """Return whether a GPU is of NVIDIA's Ampere generation or newer, which FlashAttention requires."""
    return torch.cuda.get_device_capability(index) >= (8, 0)


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over [1, heads, T, head size], within examples only; returns [1, T, heads, head size].

    Raises
    ------
    NotImplementedError: the model has soft caps (Gemma 2), attention sinks (GPT-OSS) or a mask of its own (Doge); it
        then runs padded.
    """
    if attention_mask is not None:
        raise NotImplementedError("the model brings a mask of its own, which packed attention can't apply")
    attend = _varlen_attention if attention_kernel(value, dropout) == "varlen" else bucketed_attention
    return attend(module, query, key, value, attention_mask, dropout=dropout, **arguments)


def _varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: PackedBatch,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    assert varlen_attn is not None
    _refuse_bent_weights(softcap, s_aux)
    # Rotary positions leave queries and keys in float32 under autocast.
    query, key, value = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    longest = packing.max_length
    # A window counts the token itself, FlashAttention's does not.
    back = -1 if sliding_window is None or longest <= sliding_window else sliding_window - 1
    out = varlen_attn(
        query,
        key,
        value,
        packing.cu_seqlens,
        packing.cu_seqlens,
        longest,
        longest,
        scale=scaling,
        window_size=(back, 0 if _is_causal(module, is_causal) else back),
        **_grouped_heads(query.shape[1] != key.shape[1]),
    )
    return out[None], None


def _grouped_heads(grouped: bool) -> dict[str, bool]:
    """Return the arguments for fewer heads of keys than of queries; `varlen_attn` has none for it before torch 2.11."""
    return {"enable_gqa": True} if grouped and _TAKES_ENABLE_GQA else {}


_TAKES_ENABLE_GQA = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters


@torch.compiler.disable
def bucketed_attention(
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
    """Attention as `_packed_attention`, one call of PyTorch's fused attention per bucket."""
    _refuse_bent_weights(softcap, s_aux)
    causal = _is_causal(module, is_causal)
    # [T, heads, head size]: the rows that buckets gather
    parts = (packing.by_bucket(tensor[0].transpose(0, 1)) for tensor in (query, key, value))
    outputs = []
    for each in zip(*parts, strict=True):
        bucket = each[0][0]
        q, k, v = (bucket.rectangle(rows).transpose(1, 2) for _, rows in each)
        mask = None if causal else bucket.mask
        if sliding_window is not None and bucket.longest > sliding_window:
            mask = _window_mask(bucket.longest, sliding_window, causal, q.device)
            if bucket.mask is not None:
                mask = mask & bucket.mask
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            # Padding is at the end, so a causal mask alone hides it from real tokens.
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(bucket.row(out.transpose(1, 2)))
    return torch.cat(outputs)[None], None


def _refuse_bent_weights(softcap: float | None, s_aux: torch.Tensor | None) -> None:
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("packed attention has neither soft caps nor attention sinks")


def _is_causal(module: torch.nn.Module, is_causal: bool | None) -> bool:
    return getattr(module, "is_causal", True) if is_causal is None else is_causal


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


AttentionInterface.register(ATTENTION, _packed_attention)
AttentionInterface.register(BUCKETS, bucketed_attention)
