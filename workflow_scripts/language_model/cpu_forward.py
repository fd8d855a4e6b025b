"""The forward pass of small Llama-like LMs on a CPU, with less work between the matrix products.

An LM that is small enough for a CPU spends more time there than on matrix products. So RMSNorm makes fewer passes over
memory, and its weight is multiplied into the next layer's; rotary position embeddings are one complex product; and the
last layer computes, besides keys and values, only what is read of it: for a loss, the positions that predict response
tokens.

The weights that a norm is multiplied into are computed anew in each pass, and kept until its gradients are. A pass with
more tokens than the LM's width gains more than that costs.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workflow_scripts.models.packing import PackedBatch, bucket_of, bucketed_attention
from workflow_scripts.models.sharing import apart_from
from workflow_scripts.models.transformers_import import PreTrainedModel

# They differ in the biases of queries, keys and values.
ARCHITECTURES = ("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2")


def has_cpu_forward(lm: PreTrainedModel) -> bool:
    """Return whether `cpu_logits` can stand for the forward pass of a packed LM."""
    return (
        type(lm).__module__ in ARCHITECTURES
        and type(lm).__name__.endswith("ForCausalLM")
        and lm.device.type == "cpu"
        and lm.dtype == torch.float32
        and not lm.training
        and lm.airrep_packed
        and apart_from(lm) == sys.maxsize
        and lm.config.hidden_act == "silu"
        and len(_layers(lm)) > 0
        and all(map(_is_plain, _layers(lm)))
    )


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer has no sliding window, and no adapters in the weights that are read of it."""
    attention, mlp = layer.self_attn, layer.mlp
    read = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
    return getattr(attention, "sliding_window", None) is None and all(type(each) is nn.Linear for each in read)


def cpu_logits(lm: PreTrainedModel, batch: PackedBatch, places: np.ndarray) -> torch.Tensor:
    """Return the logits at some places of a packed batch, float32 [places, vocabulary].

    Parameters
    ----------
    lm: an LM for which `has_cpu_forward` holds.
    batch: the packed examples.
    places: int64 [places], indices into the packed row, ascending.
    """
    base, last = lm.model, _layers(lm)[-1]
    hidden = base.embed_tokens(batch.tokens[0])
    rotations = _rotations(base.rotary_emb, hidden, batch)
    for layer in _layers(lm):
        hidden = _layer(layer, hidden, rotations, batch, places if layer is last else None)
    return lm.lm_head(_normed(base.norm, hidden) * base.norm.weight)


def _layers(lm: PreTrainedModel) -> nn.ModuleList:
    return lm.model.layers


def _layer(
    layer: nn.Module, hidden: torch.Tensor, rotations: torch.Tensor, batch: PackedBatch, places: np.ndarray | None
) -> torch.Tensor:
    """Return the outputs of a layer, float32 [places, hidden], or [T, hidden] without `places`."""
    attention, norm = layer.self_attn, layer.input_layernorm
    normed = _normed(norm, hidden)
    keys = _rotated(attention.k_proj, norm.weight, normed, rotations)
    values = F.linear(normed, attention.v_proj.weight * norm.weight, attention.v_proj.bias)
    values = values.unflatten(1, (-1, attention.head_dim))
    # Beyond half of the tokens, a mask costs more than the queries that it saves.
    if places is None or not 0 < len(places) <= len(hidden) / 2:
        queries = _rotated(attention.q_proj, norm.weight, normed, rotations)
        mixed = _causal_attention(attention, queries, keys, values, batch)
        if places is not None:
            mixed, hidden = (tensor.index_select(0, torch.from_numpy(places)) for tensor in (mixed, hidden))
    else:
        read = torch.from_numpy(places)
        hidden, normed, rotations = (tensor.index_select(0, read) for tensor in (hidden, normed, rotations))
        queries = _rotated(attention.q_proj, norm.weight, normed, rotations)
        mixed = _attention_at(places, attention, queries, keys, values, batch)
    hidden = hidden + attention.o_proj(mixed.flatten(1))
    return hidden + _feed_forward(layer, hidden)


class _Norm(torch.autograd.Function):
    """RMSNorm without its weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        # Squares beyond float32: the run has diverged, which a norm of 0 would hide.
        inverse.masked_fill_(inverse == 0, torch.nan)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        normed, inverse = ctx.saved_tensors
        along = (gradient * normed).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normed, along, value=-1).mul_(inverse), None


def _normed(norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Return the output of a norm before its weight."""
    return _Norm.apply(hidden, norm.variance_epsilon)


def _rotations(rotary: nn.Module, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return the rotation of each token's queries and keys by its position, complex64 [T, 1, head size / 2]."""
    cosines, sines = rotary(hidden, torch.arange(batch.max_length)[None])
    half = cosines.shape[-1] // 2
    return torch.complex(cosines[0, :, :half], sines[0, :, :half]).index_select(0, batch.positions[0])[:, None]


def _rotated(
    projection: nn.Linear, weight: torch.Tensor, normed: torch.Tensor, rotations: torch.Tensor
) -> torch.Tensor:
    """Return rotated queries or keys, float32 [tokens, heads, head size].

    The two numbers that are rotated together, the i-th and the one half a head after it, are adjacent here.
    Queries and keys both have this order, so their inner products are the same.
    """
    pairs = rotations.shape[-1]

    def paired(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (-1, 2, pairs)).transpose(1, 2).flatten(0, 2)

    bias = None if projection.bias is None else paired(projection.bias)
    projected = F.linear(normed, paired(projection.weight) * weight, bias)
    rotated = torch.view_as_complex(projected.view(len(projected), -1, pairs, 2)) * rotations
    return torch.view_as_real(rotated).flatten(-2)


def _causal_attention(
    attention: nn.Module, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PackedBatch
) -> torch.Tensor:
    """Return the attention outputs of all tokens, float32 [T, heads, head size]; inputs likewise."""
    states = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    return bucketed_attention(attention, *states, None, packing=batch, scaling=attention.scaling)[0][0]


def _attention_at(
    places: np.ndarray,
    attention: nn.Module,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: PackedBatch,
) -> torch.Tensor:
    """Return the attention outputs at some places, float32 [places, heads, head size]; queries likewise."""
    ends = np.cumsum(batch.example_lengths)
    owner = np.searchsorted(ends, places, side="right")
    counts = np.bincount(owner, minlength=len(ends))
    positions = torch.from_numpy(places - (ends - batch.example_lengths)[owner])
    grouped = queries.shape[1] != keys.shape[1]
    outputs, example, first = [], 0, 0
    for (bucket, k), (_, v) in zip(batch.by_bucket(keys), batch.by_bucket(values), strict=True):
        own = counts[example : example + bucket.examples]
        example += bucket.examples
        if not own.any():
            continue
        queried = bucket_of(own, first, "cpu")
        first = queried.span.stop
        mask = torch.arange(bucket.longest) <= queried.rectangle(positions[queried.span])[..., None]
        rectangles = queried.rectangle(queries[queried.span]), bucket.rectangle(k), bucket.rectangle(v)
        q, k, v = (rectangle.transpose(1, 2) for rectangle in rectangles)
        out = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=attention.scaling, enable_gqa=grouped)
        outputs.append(queried.row(out.transpose(1, 2)))
    return torch.cat(outputs)


def _feed_forward(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    normed = _normed(norm, hidden)
    gate = F.linear(normed, mlp.gate_proj.weight * norm.weight, mlp.gate_proj.bias)
    up = F.linear(normed, mlp.up_proj.weight * norm.weight, mlp.up_proj.bias)
    return mlp.down_proj(F.silu(gate) * up)
