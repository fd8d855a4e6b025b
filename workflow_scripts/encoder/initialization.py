"""Initial weights of an encoder: random projections, or the principal axes of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workflow_scripts.core.model_contents import SPLIT_FOLDERS
from workflow_scripts.core.progress import say
from workflow_scripts.encoder.model import AttributionEncoder, EncoderTokens, token_counts
from workflow_scripts.models.packing import token_budget
from workflow_scripts.study.choices import View

# Of the mean square length: smaller variances are rounding.
NO_VARIANCE = 1e-10


def random_projections(hidden: int, dimension: int, view: View, seed: int) -> list[nn.Linear]:
    """Return randomly initialized linear layers, one for each part of an example (paper, section 3.2); biases are 0.

    Parameters
    ----------
    hidden: size of their inputs.
    dimension: size of an embedding; each layer's outputs are an equal share of it.
    view: `joint` for one part, `split` for two.
    seed: seed of the weights.
    """
    parts = 1 if view == "joint" else len(SPLIT_FOLDERS)
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(hidden, dimension // parts) for _ in range(parts)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=dimension**-0.5, generator=rng)
            layer.bias.zero_()
    return layers


@torch.no_grad()
def start_at_principal_axes(
    encoder: AttributionEncoder,
    examples: Sequence[EncoderTokens],
    max_batch_tokens: int,
    prompt_scale: float | None = None,
) -> None:
    """Initialize the projections from texts: centred, along the principal axes, large ones scaled down.

    Means over the tokens of real text differ most along a few directions (frequent words, length), which say
    little and drown all others in an inner product. Each axis is scaled by (its variance + a hundredth of the
    mean variance) ** -1/4, half of the way to equal variances. Where all texts of a part are the same, its projection
    is zero.

    Parameters
    ----------
    encoder: its projections are changed in place.
    examples: tokenised texts, more of them than the hidden size.
    max_batch_tokens: most tokens in one forward pass.
    prompt_scale: under the view `split`, the root mean square length of the prompts' vectors over that of the
        responses'; None to leave it as it is.
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
        if variances[-1] <= NO_VARIANCE * values.square().sum(1).mean():
            kind = "texts" if encoder.view == "joint" else f"{SPLIT_FOLDERS[part]}s"
            say(f"init_encoder: all {kind} are the same as far as they are read, so they count for nothing")
            for parameter in layer.parameters():
                parameter.zero_()
            continue
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
        factor = prompt_scale * responses / prompts if prompts > 0 else 0.0
        for parameter in encoder.projections[0].parameters():
            parameter.mul_(factor)


@torch.no_grad()
def start_words_at_principal_axes(encoder: AttributionEncoder, examples: Sequence[EncoderTokens], seed: int) -> None:
    """Initialize the word embeddings from texts, and those of positions and segments with zeros.

    A word's embedding is its coordinates on the principal axes of the texts' word counts, each text scaled to length 1
    (latent semantic analysis); there are as many axes as the hidden size. Random embeddings mix all words alike
    instead, and random positions add to the mean over a text little but its length.

    Parameters
    ----------
    encoder: its embedding tables are changed in place.
    examples: tokenised texts.
    seed: seed of the randomized singular value decomposition.
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
