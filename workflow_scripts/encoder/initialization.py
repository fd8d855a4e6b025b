"""How an encoder starts: random projections, or the principal axes of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workflow_scripts.encoder.model import SPLIT_FOLDERS, AttributionEncoder, EncoderTokens, token_counts
from workflow_scripts.models.packing import token_budget
from workflow_scripts.study.choices import View


def random_projections(hidden: int, dimension: int, view: View, seed: int) -> list[nn.Linear]:
    """Return the linear layers of a view's parts, started at random from `seed`; bias zero.

    They map [hidden] to an equal share of `dimension` each.
    """
    parts = 1 if view == "joint" else len(SPLIT_FOLDERS)
    random = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(hidden, dimension // parts) for _ in range(parts)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=dimension**-0.5, generator=random)
            layer.bias.zero_()
    return layers


@torch.no_grad()
def start_at_principal_axes(
    encoder: AttributionEncoder,
    examples: Sequence[EncoderTokens],
    max_batch_tokens: int,
    prompt_scale: float | None = None,
) -> None:
    """Start the projections from texts themselves: centred, along the principal axes, large ones scaled down.

    Means over the tokens of real text differ most along a few directions (frequent words, length), which say
    little and drown all others in an inner product. Each axis is scaled by (its variance + a hundredth of the
    mean variance) ** -1/4, half of the way to equal variances.

    Parameters
    ----------
    examples: tokenised texts, more than the hidden size has numbers.
    prompt_scale: under the view `split`, the root mean square length of the prompts' vectors in that of the responses'
        (None: as it comes).
    """
    means = torch.cat(
        [
            encoder.means([examples[i] for i in chosen])
            for chosen in token_budget(token_counts(examples), max_batch_tokens)
        ]
    ).double()
    for part, layer in enumerate(encoder.projections):
        values = means[:, part]
        center = values.mean(0)
        variances, axes = torch.linalg.eigh((values - center).T @ (values - center) / len(values))
        floor = variances.mean() / 100
        # Largest variance first.
        variances, axes = variances.flip(0)[: layer.out_features], axes.flip(1)[:, : layer.out_features]
        weight = (axes * (variances.clamp(min=0) + floor) ** -0.25).T
        layer.weight[: len(weight)] = weight.to(layer.weight)
        layer.bias[: len(weight)] = -(weight @ center).to(layer.bias)
    if prompt_scale and encoder.view == "split":
        prompts, responses = (
            layer(means[:, part].float()).square().sum(1).mean().sqrt()
            for part, layer in enumerate(encoder.projections)
        )
        for parameter in encoder.projections[0].parameters():
            parameter.mul_(prompt_scale * responses / prompts)


@torch.no_grad()
def start_words_at_principal_axes(encoder: AttributionEncoder, examples: Sequence[EncoderTokens], seed: int) -> None:
    """Start the word embeddings from texts themselves, and those of positions and segments at zero.

    Each part of an example counts its words, scaled to length 1. Along the principal axes of these vectors, as many as
    the hidden size has numbers, texts differ most; a word's embedding is its place on them (latent semantic analysis).
    Random embeddings mix all words alike instead, and random positions add to the mean over a text what says little
    but its length.
    """
    # Every job that loads an encoder imports this module, and scikit-learn alone takes longer than most of them need.
    from scipy import sparse
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    embeddings = encoder.transformer.embeddings
    words, hidden = embeddings.word_embeddings.weight.shape
    parts = [part for example in examples for part in example]
    rows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, np.concatenate(parts))), (len(parts), words))
    _, _, axes = randomized_svd(normalize(counts), hidden, random_state=seed % 2**32)
    for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        table.weight.zero_()
    # A few short texts have fewer axes.
    embeddings.word_embeddings.weight[:, : len(axes)] = F.layer_norm(torch.from_numpy(axes.T.copy()), (len(axes),))
