"""Causal LMs: loading, and exact per-example losses of response tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.progress import say
from workflow_scripts.language_model.cpu_forward import cpu_logits, has_cpu_forward
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import autocast, best_device, to_device, without_tf32
from workflow_scripts.models.loading import load_weights
from workflow_scripts.models.packing import ATTENTION, PackedBatch, pack, token_budget
from workflow_scripts.models.packing_check import switch_to_packing
from workflow_scripts.models.sharing import TOLERANCE, apart_from, forget_lengths, shared_passes
from workflow_scripts.models.transformers_import import (
    AutoModelForCausalLM,
    GradientCheckpointingLayer,
    PreTrainedModel,
)

CAUSAL_TOKENS = 12

# A function of an LM, a packed batch and places in its row, int64 [places], to logits, float [places, vocabulary].
PackedLogits = Callable[[PreTrainedModel, PackedBatch, np.ndarray], torch.Tensor]


def load_language_model(
    model: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | str | None = None,
    precision: str = "float32",
) -> PreTrainedModel:
    """Load a causal LM in float32, packed where its architecture allows it.

    The model is in evaluation mode, so that fine-tuning has no dropout.

    Parameters
    ----------
    model: folder or hub id.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    device: where to load it; None for the job's GPU, or the CPU if it has none.
    precision: `float32` or `bfloat16`, that of later forward passes, in which packed attention is tested.

    Raises
    ------
    StudyError: the model can't be loaded, isn't finite, or reads the tokens that it should predict.
    """
    lm = load_weights(AutoModelForCausalLM, model, revision, trust_remote_code)
    lm.to(device or best_device()).eval()
    lm.config.use_cache = False
    _require_causal(lm, model)
    use_packing(lm, precision)
    return lm


@torch.no_grad()
def _require_causal(lm: PreTrainedModel, model: str | Path) -> None:
    """Raise `StudyError` if predictions aren't finite, or one depends on the token that it is for, or a later one."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.permutation(lm.config.get_text_config().vocab_size)[:CAUSAL_TOKENS])[None]
    other = tokens.clone()
    other[0, -1] = tokens[0, 0]
    with without_tf32():
        one, two = (lm(input_ids=each.to(lm.device), use_cache=False).logits[0, :-1] for each in (tokens, other))
    if not (one.isfinite().all() and two.isfinite().all()):
        raise StudyError(
            f"{model}: its logits are not finite numbers: it diverged when it was trained, or its files are damaged. "
            "Use another copy; one that this study trained is made again by a lower learning rate."
        )
    if not (one - two).abs().max() <= TOLERANCE * one.abs().max():
        raise StudyError(
            f"{model}: {type(lm).__name__} reads the tokens that it should predict, so its losses say nothing. Name an "
            "LM that reads from left to right, such as GPT-2, Llama, Qwen or Gemma; or, if it was trained as one, "
            'write `"is_decoder": true` in its config.json.'
        )


def use_packing(lm: PreTrainedModel, precision: str = "float32", attention: str = ATTENTION) -> bool:
    """Switch `lm` to packed attention if the losses of three examples stay the same; return whether it did.

    Parameters
    ----------
    lm: a causal LM.
    precision: `float32` or `bfloat16`, in which the losses are compared.
    attention: name of the attention implementation, see `packing_check.switch_to_packing`.
    """
    rng = np.random.default_rng(0)
    sample = [rng.integers(0, lm.config.get_text_config().vocab_size, n) for n in (5, 9, 30)]
    examples = [TokenizedExample(tokens, 2) for tokens in sample]

    def losses(packed: bool, precision: str) -> torch.Tensor:
        lm.airrep_packed = packed
        with autocast(lm.device, precision):
            return example_losses(lm, examples)

    lm.airrep_packed = switch_to_packing(lm, losses, precision, attention)
    return lm.airrep_packed


def packed_logits(lm: PreTrainedModel, batch: PackedBatch, places: np.ndarray) -> torch.Tensor:
    """Return the logits at some places of a packed batch, float [places, vocabulary], by the LM's own forward pass.

    Parameters
    ----------
    lm: a packed LM.
    batch: the packed examples.
    places: int64 [places], indices into the packed row.
    """
    return lm(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        logits_to_keep=to_device(places, lm.device),
        packing=batch,
        use_cache=False,
    ).logits[0]


def example_losses(
    lm: PreTrainedModel, examples: Sequence[TokenizedExample], logits: PackedLogits = packed_logits
) -> torch.Tensor:
    """Return the mean cross-entropy of each example's response tokens, float32 [examples], in nats.

    The LM head runs on the positions that predict response tokens and on no other. Parameters as in `summed_losses`.
    """
    losses, counts = summed_losses(lm, examples, logits)
    return losses / counts


def fastest_logits(lm: PreTrainedModel) -> PackedLogits:
    """Return the fastest function that does what `packed_logits` does with this LM.

    It doesn't call the LM's modules, so hooks see nothing.
    """
    if not has_cpu_forward(lm):
        return packed_logits
    tokens = np.random.default_rng(0).integers(0, lm.config.vocab_size, 30)
    # Long and short responses, which are computed apart.
    batches = [[TokenizedExample(tokens[:n], max(n - few, 1)) for n in (5, 9, 30)] for few in (3, 28)]
    with torch.no_grad():
        same = [torch.stack([example_losses(lm, each, way) for way in (packed_logits, cpu_logits)]) for each in batches]
    if all((own - fast).abs().max() <= TOLERANCE * own.abs().max() for own, fast in same):
        return cpu_or_packed_logits
    say(f"{type(lm).__name__}: no fast forward pass for it as transformers {version('transformers')} computes it.")
    return packed_logits


def cpu_or_packed_logits(lm: PreTrainedModel, batch: PackedBatch, places: np.ndarray) -> torch.Tensor:
    """Return `cpu_logits` for a pass with more tokens than the LM is wide, and `packed_logits` for others."""
    return (cpu_logits if batch.tokens.numel() > lm.config.hidden_size else packed_logits)(lm, batch, places)


def summed_losses(
    lm: PreTrainedModel, examples: Sequence[TokenizedExample], logits: PackedLogits = packed_logits
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each example's summed cross-entropy of response tokens and their number, float32 [examples].

    One forward pass, but for LMs whose numbers would depend on what shares it (`models.sharing`).

    Parameters
    ----------
    lm: a causal LM.
    examples: in any order.
    logits: `packed_logits`, or what `fastest_logits` returned; not used where the LM reads padded batches.
    """
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    passes = shared_passes(lm, lengths)
    if len(passes) == 1:
        return _summed_losses(lm, examples, logits)
    parts = [_summed_losses(lm, [examples[i] for i in chosen], logits) for chosen in passes]
    order = to_device(np.argsort(np.concatenate(passes)), lm.device)
    losses, counts = (torch.cat(each).index_select(0, order) for each in zip(*parts, strict=True))
    return losses, counts


def _summed_losses(
    lm: PreTrainedModel, examples: Sequence[TokenizedExample], packed: PackedLogits
) -> tuple[torch.Tensor, torch.Tensor]:
    forget_lengths(lm)
    batch = pack([example.tokens for example in examples], lm.device, apart_from(lm))
    places, owner, counts = response_positions(batch.order, examples)
    logits = (packed if lm.airrep_packed else _padded_logits)(lm, batch, places - 1)
    targets = batch.tokens[0, to_device(places, lm.device)]
    losses = torch.zeros(len(examples), device=lm.device)
    each = getattr(lm, "airrep_token_losses", token_losses)(logits, targets)
    losses = losses.index_add(0, to_device(owner, lm.device), each)
    return losses, to_device(counts, lm.device)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each token, float32 [tokens], in nats.

    Parameters
    ----------
    logits: float [tokens, vocabulary].
    targets: int64 [tokens].
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def compile_layers(lm: PreTrainedModel) -> None:
    """Compile each layer and the loss with `torch.compile`, for batches of any length."""
    for module in lm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)
    lm.airrep_token_losses = torch.compile(token_losses, dynamic=True)


def response_positions(order: np.ndarray, examples: Sequence[TokenizedExample]) -> tuple[np.ndarray, ...]:
    """Return the positions of the response tokens in a packed row; computed on the CPU, so nothing waits for a GPU.

    Parameters
    ----------
    order: int64 [examples], the order in which the examples are packed.
    examples: in their own order.

    Returns
    -------
    places: int64 [response tokens], indices into the packed row.
    owner: int64 [response tokens], the index in `examples` of each token's example.
    counts: float32 [examples], the number of response tokens of each example.
    """
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    prompts = np.fromiter((example.prompt_tokens for example in examples), np.int64, len(examples))
    counts = lengths - prompts
    owner = np.repeat(order, counts[order])
    # The k-th response token in the row has k of them before it, and the prompts of all examples so far.
    places = np.arange(len(owner)) + np.repeat(np.cumsum(prompts[order]), counts[order])
    return places, owner, counts.astype(np.float32)


def _padded_logits(lm: PreTrainedModel, batch: PackedBatch, places: np.ndarray) -> torch.Tensor:
    """For architectures whose attention can't be replaced: a padded forward pass per bucket."""
    logits = []
    for bucket, tokens in batch.by_bucket(batch.tokens[0]):
        first, end = bucket.span.start, bucket.span.stop
        chosen = to_device(places[(first <= places) & (places < end)] - first, lm.device)
        rows = chosen if bucket.real is None else bucket.real[chosen]
        logits.append(_logits_of_rows(lm, bucket.rectangle(tokens), bucket.attention_mask, rows))
    return torch.cat(logits)


def _logits_of_rows(lm: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits of some positions of a padded batch, [rows, vocabulary].

    The head gets only those positions, as one row; what a model does to its logits afterwards still happens.

    Parameters
    ----------
    lm: a causal LM.
    tokens: int64 [examples, longest].
    mask: int64 [examples, longest], 0 for padding.
    rows: int64 [rows], indices into `tokens` flattened.
    """
    read = []

    def hand_rows(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        read.append(module)
        return inputs[0].flatten(0, -2)[rows][None], *inputs[1:]

    head = lm.get_output_embeddings()
    hook = head.register_forward_pre_hook(hand_rows) if head is not None else None
    try:
        logits = lm(input_ids=tokens, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    finally:
        if hook is not None:
            hook.remove()
    # A model may multiply by the head's weights without calling it.
    return logits if read else logits[rows]


@torch.inference_mode()
def evaluate(
    lm: PreTrainedModel,
    examples: Sequence[TokenizedExample],
    max_batch_tokens: int,
    precision: str = "float32",
    logits: PackedLogits = packed_logits,
) -> np.ndarray:
    """Return the loss of each example, float32 [examples]: the mean cross-entropy of its response tokens, in nats.

    Parameters
    ----------
    lm: a causal LM.
    examples: in any order; they are batched by length.
    max_batch_tokens: most tokens in one forward pass.
    precision: `float32` or `bfloat16`, that of the forward passes.
    logits: as in `summed_losses`.
    """
    losses = torch.empty(len(examples), device=lm.device)
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    for chosen in token_budget(lengths, max_batch_tokens):
        with autocast(lm.device, precision):
            some = [examples[i] for i in chosen]
            losses[to_device(chosen, lm.device)] = example_losses(lm, some, logits).float()
    return losses.cpu().numpy()
