"""LESS (Xia et al. 2024): the cosine of AdamW's steps of low-rank adapters and the gradients of the tests.

Adapters of the base LM (LoRA, by peft) are trained on the warm-up's examples. A training example's vector is the
step that AdamW would make for it, given its moments at the end; a test's vector is its gradient. Both are projected
matrix by matrix and compared by their cosine. Unlike in the paper, only the last checkpoint is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.seeds import derive_seed
from workflow_scripts.language_model.engine import native_tuner
from workflow_scripts.methods.embedder import Embedder, LanguageModelReader, WarmupExamples, unit_length
from workflow_scripts.methods.projected_gradients import Correction, ProjectedGradients, Tensors, random_projections
from workflow_scripts.models.transformers_import import PreTrainedModel

ADAPTER = "less"


def fit(
    reader: LanguageModelReader,
    warmup: WarmupExamples,
    *,
    lora_rank: int,
    lora_alpha: int,
    epochs: int,
    dimension: int,
) -> Tensors:
    """Train the adapters; return them, AdamW's moments of them, and random projections, as tensors by name.

    Parameters
    ----------
    reader: the base LM; it gets the adapters.
    warmup: the examples that the adapters are trained on.
    lora_rank: rank of an adapter.
    lora_alpha: LoRA's scaling: an adapter's output is multiplied by `lora_alpha / lora_rank`.
    epochs: number of passes over the examples.
    dimension: largest size of an embedding.

    Raises
    ------
    StudyError: the training of the adapters diverged.
    """
    adapters = add_adapters(reader.lm, lora_rank, lora_alpha, warmup.seed)
    tuner = native_tuner(reader.lm, warmup.finetuning.model_copy(update={"epochs": epochs}))
    if not tuner.finetune(warmup.examples, warmup.seed, ADAPTER):
        raise StudyError("the training of LESS's adapters diverged. Lower warmup.learning_rate.")
    tensors = random_projections(adapters, max(math.isqrt(dimension // len(adapters)), 1), warmup.seed)
    for name, layer in adapters.items():
        state = tuner.optimizer.state[layer.weight]
        tensors[f"{name}.weight"] = layer.weight.detach().cpu()
        tensors[f"{name}.mean"] = state["exp_avg"].cpu()
        tensors[f"{name}.square"] = state["exp_avg_sq"].cpu()
        tensors["steps"] = state["step"].cpu()
    return tensors


def open_embedder(
    reader: LanguageModelReader,
    fitted: Tensors,
    for_tests: bool,
    *,
    lora_rank: int,
    lora_alpha: int,
    epochs: int,
    dimension: int,
) -> Embedder:
    """Return an embedder of vectors of unit length: steps of AdamW for training examples, gradients for tests.

    Parameters
    ----------
    reader: the base LM; it gets the adapters.
    fitted: result of `fit`.
    for_tests: whether tests are embedded.
    lora_rank: as in `fit`.
    lora_alpha: as in `fit`.
    epochs: not used; as in `fit`.
    dimension: not used; as in `fit`.
    """
    adapters = add_adapters(reader.lm, lora_rank, lora_alpha, 0)
    with torch.no_grad():
        for name, layer in adapters.items():
            layer.weight.copy_(fitted[f"{name}.weight"])
    gradients = ProjectedGradients(
        reader.lm,
        adapters,
        {name: tensor for name, tensor in fitted.items() if name.endswith((".inputs", ".outputs"))},
        batch_tokens=reader.batch_tokens,
        precision=reader.precision,
        mean=True,
        correct=None if for_tests else adamw_step(fitted, reader.lm.device),
    )
    return Embedder(gradients.dimension, lambda examples: unit_length(gradients.embed(examples)))


def add_adapters(lm: PreTrainedModel, rank: int, alpha: int, seed: int) -> dict[str, nn.Module]:
    """Give every linear layer of an LM but its head a low-rank adapter; return the adapters' layers by name.

    Only they can be trained afterwards. The first layer of a pair starts at random, the second at zero.

    Parameters
    ----------
    lm: changed in place.
    rank: rank of an adapter.
    alpha: LoRA's scaling: an adapter's output is multiplied by `alpha / rank`.
    seed: seed of the first layers.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, ADAPTER))
        inject_adapter_in_model(config, lm, ADAPTER)
    ends = (f".lora_A.{ADAPTER}", f".lora_B.{ADAPTER}")
    return {name: module for name, module in lm.named_modules() if name.endswith(ends)}


def adamw_step(fitted: Mapping[str, torch.Tensor], device: torch.device) -> Correction:
    """Return a function from gradients of a layer to AdamW's steps, without the factor of the learning rate.

    The moments are those of `fitted`, with each example's gradient as the next one (LESS, section 3.1).

    Parameters
    ----------
    fitted: result of `fit`.
    device: where the gradients are.
    """
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    steps = float(fitted["steps"]) + 1
    moments = {name: tensor.to(device) for name, tensor in fitted.items() if name.endswith((".mean", ".square"))}

    def correct(name: str, gradients: torch.Tensor) -> torch.Tensor:
        mean = beta1 * moments[f"{name}.mean"] + (1 - beta1) * gradients
        square = beta2 * moments[f"{name}.square"] + (1 - beta2) * gradients.square()
        return mean / (1 - beta1**steps) / ((square / (1 - beta2**steps)).sqrt() + epsilon)

    return correct
