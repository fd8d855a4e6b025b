"""The forward pass of small Llama-like LMs on a CPU, with less work between the matrix products.

An LM that is small enough for a CPU spends more time there than on matrix products. So a norm is three passes over
memory instead of five, and its weight is multiplied into the next layer's; rotary positions are one complex product;
and the last layer computes, besides keys and values, only what is read of it: for a loss, the tokens before those of
the response.

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

from workflow_scripts.models.packing import PackedBatch, bucket_of
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
    """Return whether a layer attends to all tokens before, and has no adapters in the weights that are read of it."""
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
    turns = _turns(base.rotary_emb, hidden, batch)
    for layer in _layers(lm):
        hidden = _layer(layer, hidden, turns, batch, places if layer is last else None)
    return lm.lm_head(_normed(base.norm, hidden) * base.norm.weight)


def _layers(lm: PreTrainedModel) -> nn.ModuleList:
    return lm.model.layers


def _layer(
    layer: nn.Module, hidden: torch.Tensor, turns: torch.Tensor, batch: PackedBatch, places: np.ndarray | None
) -> torch.Tensor:
    """Return the outputs of a layer, float32 [places, hidden], or [T, hidden] without `places`."""
    attention, norm = layer.self_attn, layer.input_layernorm
    normed = _normed(norm, hidden)
    keys = _turned(attention.k_proj, norm.weight, normed, turns)
    values = F.linear(normed, attention.v_proj.weight * norm.weight, attention.v_proj.bias)
    values = values.unflatten(1, (-1, attention.head_dim))
    # Beyond half of the tokens, a mask costs more than the queries that it saves.
    if places is None or not 0 < len(places) <= len(hidden) / 2:
        queries = _turned(attention.q_proj, norm.weight, normed, turns)
        mixed = _attend(queries, keys, values, batch, attention.scaling)
        if places is not None:
            mixed, hidden = (tensor.index_select(0, torch.from_numpy(places)) for tensor in (mixed, hidden))
    else:
        read = torch.from_numpy(places)
        hidden, normed, turns = (tensor.index_select(0, read) for tensor in (hidden, normed, turns))
        queries = _turned(attention.q_proj, norm.weight, normed, turns)
        mixed = _attend_from(places, queries, keys, values, batch, attention.scaling)
    hidden = hidden + attention.o_proj(mixed.flatten(1))
    return hidden + _feed_forward(layer, hidden)


class _Norm(torch.autograd.Function):
    """x over its root mean square."""

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


def _turns(rotary: nn.Module, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return what turns each token's queries and keys by its position, complex64 [T, 1, head size / 2]."""
    cosines, sines = rotary(hidden, torch.arange(batch.max_length)[None])
    half = cosines.shape[-1] // 2
    return torch.complex(cosines[0, :, :half], sines[0, :, :half]).index_select(0, batch.positions[0])[:, None]


def _turned(projection: nn.Linear, weight: torch.Tensor, normed: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Return rotated queries or keys, float32 [tokens, heads, head size].

    The two numbers that turn together are neighbours, a complex number: the i-th and the one half a head after it.
    Queries and keys both have this order, so their inner products are the same.
    """
    pairs = turns.shape[-1]

    def paired(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (-1, 2, pairs)).transpose(1, 2).flatten(0, 2)

    bias = None if projection.bias is None else paired(projection.bias)
    projected = F.linear(normed, paired(projection.weight) * weight, bias)
    turned = torch.view_as_complex(projected.view(len(projected), -1, pairs, 2)) * turns
    return torch.view_as_real(turned).flatten(-2)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PackedBatch, scale: float
) -> torch.Tensor:
    """Return what all tokens attend to, float32 [T, heads, head size]; inputs likewise."""
    outputs = []
    for (bucket, q), (_, k), (_, v) in zip(*(batch.by_bucket(rows) for rows in (queries, keys, values)), strict=True):
        out = _attention(bucket.rectangle(q), bucket.rectangle(k), bucket.rectangle(v), scale, None)
        outputs.append(bucket.row(out))
    return torch.cat(outputs)


def _attend_from(
    places: np.ndarray,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: PackedBatch,
    scale: float,
) -> torch.Tensor:
    """Return what the tokens at some places attend to, float32 [places, heads, head size]; queries likewise."""
    ends = np.cumsum(batch.example_lengths)
    owner = np.searchsorted(ends, places, side="right")
    counts = np.bincount(owner, minlength=len(ends))
    positions = torch.from_numpy(places - (ends - batch.example_lengths)[owner])
    outputs, example, first = [], 0, 0
    for (bucket, k), (_, v) in zip(batch.by_bucket(keys), batch.by_bucket(values), strict=True):
        own = counts[example : example + bucket.examples]
        example += bucket.examples
        if own.any():
            asking = bucket_of(own, first, "cpu")
            first = asking.span.stop
            seen = torch.arange(bucket.longest) <= asking.rectangle(positions[asking.span])[..., None]
            q = asking.rectangle(queries[asking.span])
            out = _attention(q, bucket.rectangle(k), bucket.rectangle(v), scale, seen[:, None])
            outputs.append(asking.row(out))
    return torch.cat(outputs)


def _attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, seen: torch.Tensor | None
) -> torch.Tensor:
    """Return attention over float32 [examples, tokens, heads, head size]; causal without `seen`."""
    q, k, v = (rectangle.transpose(1, 2) for rectangle in (queries, keys, values))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def _feed_forward(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    normed = _normed(norm, hidden)
    gate = F.linear(normed, mlp.gate_proj.weight * norm.weight, mlp.gate_proj.bias)
    up = F.linear(normed, mlp.up_proj.weight * norm.weight, mlp.up_proj.bias)
    return mlp.down_proj(F.silu(gate) * up)
