"""Checks of the encoder, of scores, of gradient methods, and of a process group."""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from gpu.data import GTE_SMALL, SMALL_BERT, encoder_examples, lm_examples, random_encoder, small_language_model
from gpu.lm_checks import SETTINGS
from gpu.record import Case
from gpu.reference import distance, flat_gradient
from workflow_scripts.core.distributed import (
    barrier,
    broadcast_from_rank_zero,
    gather_rows,
    shard_indices,
    sum_gradients,
)
from workflow_scripts.embeddings.binary import quantize
from workflow_scripts.embeddings.tiles import inner_products
from workflow_scripts.encoder.checkpoint import TrainingState
from workflow_scripts.encoder.model import AttributionEncoder, EncoderTokens, token_counts
from workflow_scripts.encoder.objective import Objective
from workflow_scripts.encoder.training import Draw, backpropagate_step
from workflow_scripts.language_model.losses import use_packing
from workflow_scripts.methods.embedder import LanguageModelReader, WarmupExamples
from workflow_scripts.methods.loading import load_module
from workflow_scripts.models.device import without_tf32
from workflow_scripts.scoring.corpus_scores import CorpusScores
from workflow_scripts.scoring.gpu_scores import score_on_device
from workflow_scripts.scoring.group_scores import Membership
from workflow_scripts.study.methods import METHODS
from workflow_scripts.study.sections import Finetuning


def _encoder(large: bool) -> tuple[AttributionEncoder, list[EncoderTokens]]:
    """Return an encoder on the CPU and texts for it."""
    encoder = random_encoder(GTE_SMALL if large else SMALL_BERT, 512, 30_522 if large else 200)
    return encoder, encoder_examples(160 if large else 24, 200, 150 if large else 16, 4)


def encoder_embeddings(case: Case, device: torch.device) -> None:
    """Embeddings on this device and on the CPU in float32, and in bfloat16."""
    encoder, texts = _encoder(device.type == "cuda")
    texts = texts[:64]
    with without_tf32():
        there = encoder.encode(texts, 4096)
        here = encoder.to(device).encode(texts, 4096)
        half = encoder.encode(texts, 4096, "bfloat16")
    case.check("float32 against the CPU", distance(torch.from_numpy(here), torch.from_numpy(there)), 1e-4)
    cosines = F.cosine_similarity(torch.from_numpy(half), torch.from_numpy(here))
    case.check("bfloat16 against float32: smallest cosine", float(cosines.min()), 0.999, at_least=True)


def _draw(texts: list[EncoderTokens]) -> Draw:
    """Return a step whose subsets overlap."""
    random = np.random.default_rng(0)
    tests = len(texts) // 4
    members = np.stack([tests + random.permutation(len(texts) - tests)[: len(texts) // 4] for _ in range(6)])
    return Draw(np.arange(tests), members, random.standard_normal((6, tests)))


def _objective(device: torch.device) -> Objective:
    return Objective("attention", 0.1, 5.0, learned_scale=True).to(device)


def encoder_gradient(case: Case, device: torch.device) -> None:
    """The gradient that is cached and taken chunk by chunk is that of one graph."""
    encoder, texts = _encoder(device.type == "cuda")
    encoder.to(device)
    tokens, step = dict(enumerate(texts)), _draw(texts)
    total = int(token_counts(texts).sum())

    def step_of(chunk_tokens: int, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        objective = _objective(device)
        loss = backpropagate_step(encoder, objective, tokens, step, chunk_tokens, precision)
        return torch.tensor(loss), torch.cat([flat_gradient(encoder), flat_gradient(objective)])

    with without_tf32():
        whole = step_of(2 * total, "float32")
        loss, gradient = step_of(total // 4, "float32")
        case.check("cached against one graph, float32: loss", distance(loss, whole[0]), 2e-4)
        case.check("cached against one graph, float32: gradient", distance(gradient, whole[1]), 2e-4)
        # In bfloat16 one graph is itself some distance from float32.
        for weights in (False, True):
            encoder.bfloat16_weights = weights
            name = f"bfloat16 {'weights' if weights else 'by autocast'}"
            own = step_of(2 * total, "bfloat16")
            found = step_of(total // 4, "bfloat16")
            for what, one, cached, exact in zip(("loss", "gradient"), own, found, whole, strict=True):
                of_own = distance(one, exact)
                case.figure(f"one graph, {name}: {what} from float32's", of_own, "")
                case.check(f"cached, {name}: {what} from float32's", distance(cached, exact), 1.5 * of_own + 5e-3)
        encoder.bfloat16_weights = False


def encoder_resume(case: Case, device: torch.device) -> None:
    """A training that was saved goes on as one that was not stopped."""
    encoder, texts = _encoder(device.type == "cuda")
    encoder.to(device)
    tokens, step = dict(enumerate(texts)), _draw(texts)

    def training(folder: str, encoder: AttributionEncoder) -> tuple[TrainingState, Objective]:
        objective = _objective(device)
        parameters = [*encoder.parameters(), *objective.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
        return TrainingState(Path(folder), {"encoder": encoder, "objective": objective}, optimizer), objective

    def advance(state: TrainingState, objective: Objective, encoder: AttributionEncoder, number: int) -> None:
        state.optimizer.zero_grad(set_to_none=True)
        loss = backpropagate_step(encoder, objective, tokens, step, 2048, "float32")
        state.optimizer.step()
        state.record(number, loss, None, 0.0)

    def weights(encoder: AttributionEncoder) -> torch.Tensor:
        return torch.cat([parameter.detach().reshape(-1).cpu() for parameter in encoder.parameters()])

    other = copy.deepcopy(encoder)
    with without_tf32(), tempfile.TemporaryDirectory() as folder:
        state, objective = training(folder, encoder)
        for number in (1, 2):
            advance(state, objective, encoder, number)
        state.save()
        taken_up, other_objective = training(folder, other)
        taken_up.restore()
        case.check("difference of the weights", float((weights(encoder) - weights(other)).abs().max()), 0.0)
        moments = [
            float((one[name] - two[name]).abs().max())
            for one, two in zip(_moments(state), _moments(taken_up), strict=True)
            for name in one
        ]
        case.check("difference of AdamW's moments", max(moments), 0.0)
        before = weights(encoder)
        advance(state, objective, encoder, 3)
        advance(taken_up, other_objective, other, 3)
        change, other_change = weights(encoder) - before, weights(other) - before
        case.check("difference of the next step", distance(other_change, change), 1e-2)


def _moments(state: TrainingState) -> list[dict[str, torch.Tensor]]:
    parameters = state.optimizer.param_groups[0]["params"]
    return [state.optimizer.state[parameter] for parameter in parameters if parameter in state.optimizer.state]


def scores(case: Case, device: torch.device) -> None:
    """Top examples and group scores as this device and as the CPU compute them."""
    examples, tests, dimension, top = (20_000, 600, 384, 50) if device.type == "cuda" else (500, 20, 32, 10)
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((examples, dimension), np.float32)
    queries = random.standard_normal((tests, dimension), np.float32) / 8
    membership = Membership([random.permutation(examples)[:100].astype(np.int32) for _ in range(30)])
    ids = np.arange(examples, dtype=np.int32)
    stored = {"float16": embeddings.astype(np.float16), "float32": embeddings, "binary": quantize(embeddings)}
    for precision, vectors in stored.items():
        tiles = [(ids[part], vectors[part]) for part in np.array_split(ids, 7)]
        for pooling in ("attention", "signed", "mean"):
            here, there = (CorpusScores(tests, top, membership, [pooling]) for _ in range(2))
            there.add_tiles(tiles, inner_products(queries))
            with without_tf32():
                here.merge(score_on_device(tiles, queries, top, membership, device, here.weighting))
            found = torch.from_numpy(here.groups(pooling)), torch.from_numpy(there.groups(pooling))
            case.check(f"groups by {pooling} of {precision}, against the CPU", distance(*found), 1e-5)
        (own_ids, own_scores), (ids_there, scores_there) = here.top("helpful"), there.top("helpful")
        found = torch.from_numpy(own_scores), torch.from_numpy(scores_there)
        case.check(f"top scores of {precision}, against the CPU", distance(*found), 1e-5)
        # Scores that are equal to rounding may change places.
        same = float((own_ids == ids_there).mean())
        case.check(f"share of the same top examples of {precision}", same, 0.995, at_least=True)
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (score_on_device(tiles, queries, top, membership, device, here.weighting) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    case.check(
        "two deterministic passes, group sums", float(np.abs(one.sums.weighted - other.sums.weighted).max()), 0.0
    )


# Cosines of unit vectors may be this far apart; an inverse of AdamW's or Fisher's estimates makes more of rounding.
GRADIENT_METHODS = {"tracin": 1e-3, "logra_16": 5e-3, "logra_16_fisher": 5e-3, "logra_16_random": 5e-3, "less": 5e-2}


def gradient_method(case: Case, device: torch.device, method: str) -> None:
    """Cosines of examples under a method that reads gradients, on this device and on the CPU.

    Vectors themselves may differ: an eigenvector has no sign.
    """
    large = device.type == "cuda"
    examples = lm_examples(96 if large else 16, 1024 if large else 128, 60 if large else 16, 5)
    own = METHODS[method].own
    settings = {**own.settings}
    if method == "less":
        settings |= {"lora_rank": 8, "lora_alpha": 16, "dimension": 2048, "epochs": 1}
    cosines = [_cosines(torch.device(place), large, own.module, settings, examples) for place in (device, "cpu")]
    case.check("largest difference of a cosine", float(np.abs(cosines[0] - cosines[1]).max()), GRADIENT_METHODS[method])


def _cosines(device: torch.device, large: bool, module: str, settings: dict[str, object], examples: list) -> np.ndarray:
    lm = copy.deepcopy(small_language_model(large)).to(device)
    lm.config.use_cache = False
    with without_tf32():
        if not use_packing(lm):
            raise RuntimeError("the LM isn't packed")
        finetuning = Finetuning(**SETTINGS, step_tokens=8192, evaluation_tokens=8192)
        reader = LanguageModelReader(lm, 8192, "float32")
        warmup = WarmupExamples(examples, len(examples), finetuning, 0)
        chosen = load_module(module)
        fitted = chosen.fit(reader, warmup, **settings)
        if module == "less":
            lm = copy.deepcopy(small_language_model(large)).to(device)
            lm.config.use_cache = False
            use_packing(lm)
            reader = LanguageModelReader(lm, 8192, "float32")
        vectors = chosen.open_embedder(reader, fitted, True, **settings).embed(examples)
    return vectors @ vectors.T


def process_group(case: Case, device: torch.device) -> None:
    """A group of one, over NCCL where there is a GPU: what the stages ask of it changes nothing."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        rows = torch.arange(12.0, device=device).reshape(4, 3)
        share = shard_indices(np.array([3, 1, 4, 2]))
        gathered = gather_rows(rows[torch.from_numpy(share).to(device)], share, len(rows))
        case.check("gathered rows: largest difference", float((gathered - rows).abs().max()), 0.0)
        layer = torch.nn.Linear(3, 2).to(device)
        layer(rows).sum().backward()
        before = [parameter.grad.clone() for parameter in layer.parameters()]
        sum_gradients(list(layer.parameters()))
        differences = [float((p.grad - one).abs().max()) for p, one in zip(layer.parameters(), before, strict=True)]
        case.check("summed gradients: largest difference", max(differences), 0.0)
        barrier()
        case.check(
            "broadcast_from_rank_zero value: equal",
            float(broadcast_from_rank_zero(["a", 1]) == ["a", 1]),
            1,
            at_least=True,
        )
        encoder, texts = _encoder(False)
        encoder.to(device)
        step = partial(backpropagate_step, encoder, _objective(device), dict(enumerate(texts)), _draw(texts))
        losses = [step(chunk_tokens, "float32") for chunk_tokens in (10**6, 64)]
        case.check("a training step in the group: difference of its loss", abs(losses[1] / losses[0] - 1), 1e-4)
    finally:
        dist.destroy_process_group()
