"""Switch a model to packed attention, if its output stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workflow_scripts.core.errors import lacks_memory
from workflow_scripts.core.progress import say
from workflow_scripts.models.device import without_tf32
from workflow_scripts.models.packing import ATTENTION, BUCKETS
from workflow_scripts.models.sharing import allows_packing, find_dependence
from workflow_scripts.models.transformers_import import AttentionInterface, AttentionMaskInterface, PreTrainedModel

# How far packed attention may be from plain attention in float32: each number of the output (of an LM: nats), and the
# gradient of the input embeddings relative to its norm. In bfloat16 the distance of plain attention in bfloat16 is
# added.
TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2}
# Output, and the gradient of the input embeddings.
Numbers = tuple[torch.Tensor, torch.Tensor | None]


def switch_to_packing(
    model: PreTrainedModel,
    read: Callable[[bool, str], torch.Tensor],
    precision: str = "float32",
    attention: str = ATTENTION,
) -> bool:
    """Switch a model to packed attention if its output stays the same; return whether it did.

    First it is found which examples may share a batch at all (`models.sharing`). Packing is tried in float32 and in
    the `precision` that will run. In bfloat16 other kernels compute, so gradients are compared too, and buckets are
    tried where `attention` fails. Whatever fails is told with its reason.

    Parameters
    ----------
    model: changed in place.
    read: takes whether `model` is packed, and a precision; returns its output for some examples, a float32 tensor.
    precision: `float32` or `bfloat16`, that of later forward passes.
    attention: `ATTENTION` or `BUCKETS`.
    """
    # It may be packed already, to try another attention.
    plain = getattr(model, "airrep_plain_attention", model.config._attn_implementation)
    model.airrep_plain_attention = plain
    model.set_attn_implementation(plain)
    with without_tf32():
        find_dependence(model, lambda: read(False, "float32"))
    if not allows_packing(model):
        _say_padded(model)
        return False
    precisions = list(dict.fromkeys(("float32", precision)))
    gradients = len(precisions) > 1
    with without_tf32():
        exact = _numbers(model, read, False, "float32", gradients)
        own = {"float32": [0.0, 0.0]}
        for each in precisions[1:]:
            own[each] = _distances(_numbers(model, read, False, each, gradients), exact)
        for name in dict.fromkeys((attention, BUCKETS)) if gradients else (attention,):
            try:
                model.set_attn_implementation(name)
                if model.config._attn_implementation != name:
                    raise ValueError("transformers doesn't replace its attention")
                _require_known_windows(name, lambda: read(True, "float32"))
                for each in precisions:
                    _check(_distances(_numbers(model, read, True, each, gradients), exact), own[each], each)
                return True
            except (TypeError, ValueError, RuntimeError, KeyError) as error:
                if lacks_memory(error):
                    raise
                say(f"{type(model).__name__}: attention `{name}` can't be used: {error or type(error).__name__}.")
        model.set_attn_implementation(plain)
    _say_padded(model)
    return False


def _require_known_windows(attention: str, read: Callable[[], object]) -> None:
    """Raise `ValueError` unless attention is told the windows that its masks would have.

    Packed attention gets no mask. Models that have their sliding window in the mask alone (PhiMoE) would lose it, and
    short examples don't show that.
    """
    in_masks, told = set(), set()
    attend = AttentionInterface()[attention]

    def mask(
        *_: object, mask_function: Callable[..., Any], config: Any, local_size: int | None = None, **__: object
    ) -> None:
        # Where tokens see those after them, the mask's window doesn't count the token itself, but for Gemma's;
        # attention's does.
        sees_next = bool(mask_function(*(torch.tensor(index) for index in (0, 0, 0, 1))))
        beside_itself = sees_next and not getattr(config, "use_bidirectional_attention", False)
        in_masks.add(local_size + beside_itself if local_size else None)

    def attend_and_note(*inputs: Any, sliding_window: int | None = None, **options: Any) -> Any:
        told.add(sliding_window)
        return attend(*inputs, sliding_window=sliding_window, **options)

    AttentionMaskInterface.register(attention, mask)
    AttentionInterface.register(attention, attend_and_note)
    try:
        with torch.no_grad():
            read()
    finally:
        AttentionInterface.register(attention, attend)
        del AttentionMaskInterface._global_mapping[attention]
    of_masks, of_attention = (sorted(filter(None, found)) for found in (in_masks, told))
    if in_masks and told and of_masks != of_attention:
        raise ValueError(f"its masks have the windows {of_masks}, and packed attention is told {of_attention}")


def _say_padded(model: PreTrainedModel) -> None:
    say(f"{type(model).__name__}: batches are padded, which takes more time and memory than packing them.")


def _numbers(
    model: PreTrainedModel, read: Callable[[bool, str], torch.Tensor], packed: bool, precision: str, gradients: bool
) -> Numbers:
    """Return the output, and its gradient with respect to the input embeddings unless these are frozen.

    The output is summed with different weights: the plain sum of a layer norm's output is the same for any input, so
    that its gradient would be rounding errors only.
    """
    weight = model.get_input_embeddings().weight
    with torch.set_grad_enabled(gradients and weight.requires_grad):
        output = read(packed, precision)
        weights = torch.arange(1, output.numel() + 1, device=output.device).sin().view_as(output)
        gradient = torch.autograd.grad((output * weights).sum(), weight)[0] if output.requires_grad else None
    return output.detach(), gradient


def _distances(found: Numbers, expected: Numbers) -> list[float]:
    """Return the largest difference of the outputs, and the distance of the gradients relative to their norm."""
    distances = [(found[0] - expected[0]).abs().max().item()]
    gradient, reference = found[1], expected[1]
    if gradient is None and reference is None:
        return distances
    if gradient is None or reference is None:
        raise ValueError("only one of the two outputs depends on the input embeddings")
    return [*distances, ((gradient - reference).norm() / reference.norm().clamp(min=1e-30)).item()]


def _check(distances: list[float], own: list[float], precision: str) -> None:
    for what, distance, of_plain in zip(("output", "gradient"), distances, own, strict=False):
        allowed = TOLERANCES[precision] + of_plain
        if not distance <= allowed:
            raise ValueError(
                f"in {precision} its {what} is {distance:.2g} away from plain attention's, more than {allowed:.2g}"
            )
