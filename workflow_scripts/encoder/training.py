"""One training step of the encoder, and its validation (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workflow_scripts.core.distributed import gather_rows, in_group, is_rank_zero, shard_indices, sum_gradients
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.statistics import spearman_by_column
from workflow_scripts.encoder.model import CHUNK_TOKENS, AttributionEncoder, EncoderTokens, token_counts
from workflow_scripts.encoder.objective import Objective
from workflow_scripts.models.device import to_device
from workflow_scripts.models.packing import token_budget
from workflow_scripts.targets.tables import FoldTargets


@dataclass(frozen=True)
class Draw:
    """The part of a fold that one step uses.

    Parameters
    ----------
    tests: int [examples], ids of the drawn validation examples.
    members: int [subsets, size], ids of the examples in each drawn subset.
    labels: float32 [subsets, examples], r(x, S); NaN for a run that diverged.
    """

    tests: np.ndarray
    members: np.ndarray
    labels: np.ndarray


def draw_step(fold: FoldTargets, subsets: int, examples: int, *seed: int | str) -> Draw:
    """Draw the part of a fold that one step uses.

    Parameters
    ----------
    fold: what to draw from.
    subsets: number of subsets; all if the fold has fewer.
    examples: number of validation examples; all if the fold has fewer.
    seed: parts of the seed, see `core.seeds`.
    """
    rng = generator(*seed)
    columns = rng.permutation(len(fold.tests))[:examples]
    rows = rng.permutation(len(fold.members))[:subsets]
    return Draw(fold.tests[columns], fold.members[rows], fold.labels[np.ix_(rows, columns)])


def backpropagate_step(
    encoder: AttributionEncoder,
    objective: Objective,
    tokens: Mapping[int, EncoderTokens],
    draw: Draw,
    chunk_tokens: int | None,
    precision: str,
) -> float:
    """Add the gradient of one step's loss to the parameters; return the loss.

    Each distinct example is encoded once. If all tokens fit in one chunk, the step is one autograd graph. Otherwise
    gradients are cached: encode everything without a graph, compute the loss and its gradient with respect to the
    embeddings, then encode again chunk by chunk and backpropagate these gradients. The result is the gradient of the
    whole loss. The loss is known before the second pass, so a GPU may still be at work when this returns.

    Several processes each encode their share and compute the loss of all embeddings; parameters must have no gradient
    before, and have that of the whole loss after.

    Parameters
    ----------
    encoder: the encoder.
    objective: the loss.
    tokens: tokens of every example in `draw`, by example id.
    draw: the step's tests, subsets and labels.
    chunk_tokens: most tokens in one forward pass; None for the device's number in `encoder.model.CHUNK_TOKENS`.
    precision: `float32` or `bfloat16`, that of the forward passes.
    """
    ids, examples = _distinct(tokens, draw)
    lengths = token_counts(examples)
    device = encoder.device
    tests = to_device(np.searchsorted(ids, draw.tests), device)
    members = to_device(np.searchsorted(ids, draw.members), device)
    labels = to_device(draw.labels.T.astype(np.float32), device)
    share = shard_indices(lengths)
    max_batch_tokens = chunk_tokens or CHUNK_TOKENS[device.type]
    chunks = [share[places] for places in token_budget(lengths[share], max_batch_tokens)]
    if len(chunks) == 1 and not in_group():
        embeddings = encoder.embed(encoder.pack(examples), precision)
        loss = objective(embeddings.index_select(0, tests), embeddings, members, labels)
        loss.backward()
        return loss.item()
    batches, vectors = [], []
    with torch.no_grad():
        for chunk in chunks:
            batches.append(encoder.pack([examples[i] for i in chunk]))
            vectors.append(encoder.embed(batches[-1], precision))
    embeddings = gather_rows(torch.cat(vectors), np.concatenate(chunks), len(examples)).requires_grad_()
    loss = objective(embeddings.index_select(0, tests), embeddings, members, labels)
    loss.backward()
    # Asked for now, a GPU has the second pass, the optimiser's step and the next draw to overlap.
    value = loss.item()
    for chunk, batch in zip(chunks, batches, strict=True):
        encoder.embed(batch, precision).backward(embeddings.grad.index_select(0, to_device(chunk, device)))
    if not is_rank_zero():
        # The objective has its whole gradient in every process, and must not get their sum.
        objective.zero_grad(set_to_none=True)
    sum_gradients([p for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad])
    return value


def _distinct(tokens: Mapping[int, EncoderTokens], draw: Draw) -> tuple[np.ndarray, list[EncoderTokens]]:
    ids = np.unique(np.concatenate([draw.tests, draw.members.reshape(-1)]))
    return ids, [tokens[int(i)] for i in ids]


def encode_together(
    encoder: AttributionEncoder, examples: Sequence[EncoderTokens], chunk_tokens: int | None, precision: str
) -> torch.Tensor:
    """Return the embeddings of tokenised texts, float32 [examples, dimension] on the encoder's device.

    Each process encodes its share, and gets all of them. Parameters as in `AttributionEncoder.encode_on_device`.
    """
    share = shard_indices(token_counts(examples))
    own = encoder.encode_on_device([examples[i] for i in share], chunk_tokens, precision)
    return gather_rows(own, share, len(examples))


def validation_lds(
    encoder: AttributionEncoder,
    objective: Objective,
    tokens: Mapping[int, EncoderTokens],
    folds: Sequence[FoldTargets],
    chunk_tokens: int | None,
    precision: str,
) -> float:
    """Return the LDS on held-out folds: the mean over their validation examples of Spearman's correlation.

    Parameters
    ----------
    encoder: the encoder.
    objective: its group scores are correlated with the labels.
    tokens: tokens of every example in `folds`, by example id.
    folds: the held-out folds.
    chunk_tokens: most tokens in one forward pass; None for the device's number in `encoder.model.CHUNK_TOKENS`.
    precision: `float32` or `bfloat16`, that of the forward passes.
    """
    correlations = []
    for fold in folds:
        ids, examples = _distinct(tokens, Draw(fold.tests, fold.members, fold.labels))
        embeddings = encode_together(encoder, examples, chunk_tokens, precision)
        members = to_device(np.searchsorted(ids, fold.members), encoder.device)
        tests = embeddings.index_select(0, to_device(np.searchsorted(ids, fold.tests), encoder.device))
        with torch.inference_mode():
            group = torch.cat([objective.groups(part, embeddings, members) for part in tests.split(64)])
        known = np.isfinite(fold.labels).all(axis=1)
        correlations.append(spearman_by_column(group.cpu().numpy().T[known], fold.labels[known]))
    return float(np.nanmean(np.concatenate(correlations)))
