"""Checks of packed attention and of the fine-tuner."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel

from gpu.data import (
    GTE_SMALL,
    SMALL_BERT,
    encoder_examples,
    lm_examples,
    random_encoder,
    small_language_model,
    small_language_models,
    total_tokens,
)
from gpu.record import Case
from gpu.reference import distance, flat_gradient, padded_embeddings, padded_losses
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import example_losses, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import autocast, without_tf32
from workflow_scripts.models.packing import ATTENTION, BUCKETS, attention_kernel

# Of a share: float32 differs by the order of sums alone. In bfloat16 the padded way is itself away from float32; the
# packed ways may be twice as far, and this much further where it happens to be near.
FLOAT32_BOUND, BFLOAT16_SLACK = 2e-4, 2e-3


def attention(case: Case, device: torch.device) -> None:
    """Losses and gradients of packed and of padded batches, for every kind of attention."""
    large = device.type == "cuda"
    for name, lm in small_language_models(large).items():
        lm.to(device)
        examples = lm_examples(32 if large else 6, lm.config.vocab_size, 150 if large else 16, 1)
        _compare(case, name, lm, partial(_plain_losses, lm, examples), partial(_packed_losses, lm, examples), device)
    encoder = random_encoder(GTE_SMALL if large else SMALL_BERT, 512, 30_522 if large else 200).to(device)
    texts = encoder_examples(32 if large else 6, 200, 150 if large else 16, 1)
    direction = torch.randn(len(texts), encoder.dimension, generator=torch.Generator().manual_seed(0)).to(device)

    def plain() -> torch.Tensor:
        encoder.transformer.set_attn_implementation("sdpa")
        return (padded_embeddings(encoder, texts) * direction).sum(1)

    def packed(attention: str) -> torch.Tensor:
        encoder.transformer.set_attn_implementation(attention)
        return (encoder(texts) * direction).sum(1)

    _compare(case, "bert", encoder, plain, packed, device)


def _packed_losses(lm: PreTrainedModel, examples: list[TokenizedExample], attention: str) -> torch.Tensor:
    lm.set_attn_implementation(attention)
    lm.airrep_packed = True
    return example_losses(lm, examples)


def _plain_losses(lm: PreTrainedModel, examples: list[TokenizedExample]) -> torch.Tensor:
    lm.set_attn_implementation("sdpa")
    return padded_losses(lm, examples)


def _compare(
    case: Case,
    name: str,
    module: torch.nn.Module,
    plain: Callable[[], torch.Tensor],
    packed: Callable[[str], torch.Tensor],
    device: torch.device,
) -> None:
    """Check packed batches with every kernel against padded ones in float32."""

    def numbers(way: Callable[[], torch.Tensor], precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(device, precision):
            output = way().float()
        output.sum().backward()
        return output.detach(), flat_gradient(module)

    with without_tf32():
        exact = numbers(plain, "float32")
        own = [distance(*pair) for pair in zip(numbers(plain, "bfloat16"), exact, strict=True)]
        bounds = [2 * of_plain + BFLOAT16_SLACK for of_plain in own]
        for precision, kernel, attention, allowed in (
            ("float32", "buckets", BUCKETS, [FLOAT32_BOUND] * 2),
            ("bfloat16", "buckets", BUCKETS, bounds),
            ("bfloat16", "varlen", ATTENTION, bounds),
        ):
            what = f"{name}, {precision}, {kernel}"
            if kernel == "varlen" and (reason := _without_varlen(device)):
                case.skip(reason, what)
                continue
            found = numbers(partial(packed, attention), precision)
            for part, one, expected, bound in zip(("losses", "gradient"), found, exact, allowed, strict=True):
                case.check(f"{what}: {part}", distance(one, expected), bound)


def _without_varlen(device: torch.device) -> str:
    """Return why there is no kernel for variable lengths here; an empty text where there is."""
    value = torch.empty(1, 4, 8, 64, device=device, dtype=torch.bfloat16)
    return "" if attention_kernel(value, 0.0) == "varlen" else f"torch {torch.__version__} has no such kernel here"


SETTINGS = {"learning_rate": 3e-4, "weight_decay": 0.01, "batch_examples": 8, "epochs": 2}
ALL_TOKENS = 65_536


def make_tuner(device: torch.device, precision: str, **changes: object) -> Finetuner:
    """Return a fine-tuner of a small LM, packed."""
    lm = copy.deepcopy(small_language_model(device.type == "cuda" or "large" in changes)).to(device)
    changes.pop("large", None)
    lm.config.use_cache = False
    if not use_packing(lm):
        raise RuntimeError("the LM isn't packed")
    passes = {"step_tokens": ALL_TOKENS, "evaluation_tokens": ALL_TOKENS, "precision": precision}
    return Finetuner(lm, **{**SETTINGS, **passes, **changes})


def _sets(large: bool) -> list[list[TokenizedExample]]:
    """Return two sets to train on and one to measure."""
    count, mean, vocabulary = (64, 150, 1024) if large else (16, 16, 128)
    return [lm_examples(count, vocabulary, mean, seed) for seed in (1, 2, 3)]


def finetuner_reset(case: Case, device: torch.device) -> None:
    """A run depends on its examples and its seed alone: A, B, A gives A's losses back."""
    first, second, test = _sets(device.type == "cuda")
    for precision in ("float32", "bfloat16"):
        tuner = make_tuner(device, precision)
        a, b, again = (_run(tuner, examples, test) for examples in (first, second, first))
        effect = float(np.abs(a - b).mean())
        case.check(f"A, B, A in {precision}: share of B's effect", float(np.abs(again - a).max()) / effect, 0.05)
        case.figure(f"A, B, A in {precision}: largest spread", float(np.abs(again - a).max()), "nats")


def finetuner_graphs(case: Case, device: torch.device) -> None:
    """Replayed CUDA graphs train what passes without them train, in bfloat16."""
    first, second, test = _sets(device.type == "cuda")
    losses, tuners = [], [make_tuner(device, "bfloat16", cuda_graphs=graphs) for graphs in (False, True)]
    if tuners[1].graphs is None:
        case.skip("no CUDA graphs on this device")
        return
    for tuner in tuners:
        losses.append([_run(tuner, examples, test) for examples in (first, second)])
    (a, b), (graphed_a, graphed_b) = losses
    if tuners[1].graphs is None:
        raise RuntimeError("the passes could not be recorded, see what was said")
    effect = float(np.abs(a - b).mean())
    difference = max(float(np.abs(graphed_a - a).max()), float(np.abs(graphed_b - b).max()))
    case.check("graphs against none: share of another subset's effect", difference / effect, 0.1)
    case.figure("graphs against none: largest difference", difference, "nats")
    case.figure("graphs recorded", len(tuners[1].graphs.graphs), "")


def _run(tuner: Finetuner, examples: list[TokenizedExample], test: list[TokenizedExample]) -> np.ndarray:
    if not tuner.finetune(examples, 0, "acceptance"):
        raise RuntimeError("the run diverged")
    return tuner.losses(test)


def finetuner_memory(case: Case, device: torch.device) -> None:
    """Where memory does not suffice, passes get smaller and numbers stay."""
    first, _, test = _sets(device.type == "cuda")
    with without_tf32():
        expected = _run(make_tuner(device, "float32"), first, test)
        tuner = make_tuner(device, "float32")
        with _lacking_memory(tuner.lm, max(len(example.tokens) for example in first + test)):
            found = _run(tuner, first, test)
        case.check(
            "refused passes: smaller ones, largest difference (nats)", float(np.abs(found - expected).max()), 2e-3
        )
        case.check("refused passes: tokens of a pass then", tuner.step_tokens, total_tokens(first) - 1)
        if device.type == "cuda":
            _limited_gpu(case, device, first, test)


@contextmanager
def _lacking_memory(lm: PreTrainedModel, max_batch_tokens: int) -> Iterator[None]:
    """Refuse every forward pass of more tokens, as a GPU without room does."""
    # The one module that every way to compute an LM calls.
    embeddings = lm.get_input_embeddings()
    forward = embeddings.forward

    def limited(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.numel() > max_batch_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory (as the check wants it)")
        return forward(tokens)

    with patch.object(embeddings, "forward", limited):
        yield


def _limited_gpu(case: Case, device: torch.device, first: list[TokenizedExample], test: list[TokenizedExample]) -> None:
    """Let a process have only part of the memory that its pass wants; the allocator's own error must be understood."""
    tuner = make_tuner(device, "float32", batch_examples=len(first))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    expected = _run(tuner, first, test)
    peak = torch.cuda.max_memory_allocated()
    room = torch.cuda.get_device_properties(device).total_memory
    tuner = make_tuner(device, "float32", batch_examples=len(first))
    held = torch.cuda.memory_allocated() - before
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((before + held + 0.6 * (peak - before)) / room)
    try:
        found = _run(tuner, first, test)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    case.check("a limited GPU: largest difference (nats)", float(np.abs(found - expected).max()), 2e-3)
    case.fact("a limited GPU: tokens of a pass then", f"{tuner.step_tokens:,} of {total_tokens(first):,}")


def finetuner_devices(case: Case, device: torch.device) -> None:
    """The same run on this device and on the CPU, in float32."""
    first, _, test = _sets(device.type == "cuda")
    first, test = first[:32], test[:32]
    with without_tf32():
        here = _run(make_tuner(device, "float32"), first, test)
        there = _run(
            make_tuner(torch.device("cpu"), "float32", large=True)
            if device.type == "cuda"
            else make_tuner(device, "float32"),
            first,
            test,
        )
    case.check("float32 against the CPU: largest difference (nats)", float(np.abs(here - there).max()), 5e-3)


def finetuner_deterministic(case: Case, device: torch.device) -> None:
    """Under deterministic algorithms two runs are equal bit by bit; what that costs."""
    first, _, test = _sets(device.type == "cuda")
    precision = "bfloat16" if device.type == "cuda" else "float32"
    tuner = make_tuner(device, precision)
    _run(tuner, first, test)
    usual = _seconds(lambda: _run(tuner, first, test))
    torch.use_deterministic_algorithms(True)
    try:
        tuner = make_tuner(device, precision)
        once = _run(tuner, first, test)
        found: list[np.ndarray] = []
        slow = _seconds(lambda: found.append(_run(tuner, first, test)))
        # Another fine-tuner too: nothing of the first one's may have been left over.
        found.append(_run(make_tuner(device, precision), first, test))
    finally:
        torch.use_deterministic_algorithms(False)
    case.check("largest difference of three runs", max(float(np.abs(one - once).max()) for one in found), 0.0)
    case.figure("time of a run, over the usual", slow / usual, "times")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
