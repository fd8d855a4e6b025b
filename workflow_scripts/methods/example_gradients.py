"""Gradients of single examples, from one forward and one backward pass of a packed batch.

The gradient of a linear layer's weight is, for each example, the sum over its tokens of the outer product of (gradient
of the layer's output) and (the layer's input). Both are known after one backward pass of a batch, so per-example
gradients, or any projection of them, are small matrix products, and no example needs a backward pass of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.losses import summed_losses
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import autocast, to_device
from workflow_scripts.models.packing import Bucket, pack
from workflow_scripts.models.sharing import apart_from, shared_passes
from workflow_scripts.models.transformers_import import Conv1D, PreTrainedModel

MLP = re.compile(r"(^|\.)(mlp|ffn|feed_forward|fc1|fc2|fc_in|fc_out)(\.|$)")

EXPERTS = re.compile(r"(^|[._])(moe|experts?)([._]|$)")

# The blocks of a transformer stand in a list, so their number is part of the names of their layers.
IN_BLOCK = re.compile(r"\.\d+\.")

# Takes (name of the layer, which examples, inputs [examples, tokens, in], gradients [examples, tokens, out]).
GradientHook = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor], None]


def mlp_layers(lm: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers of all MLPs of an LM, by name.

    Raises
    ------
    StudyError: none is found, or the MLPs have other weights, as the experts of a mixture are.
    """
    layers = {
        name: module
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and MLP.search(name)
    }
    if not layers:
        raise StudyError(
            f"{type(lm).__name__} has no linear layer whose name says that it belongs to an MLP, so gradient methods "
            "can't read it. Leave them out of scoring.methods, or use another LM."
        )
    read = {id(layer.weight) for layer in layers.values()}
    others = [
        name
        for name, parameter in lm.named_parameters()
        if (MLP.search(name) or EXPERTS.search(name)) and id(parameter) not in read and _is_matrix(parameter)
    ]
    if others:
        raise StudyError(
            f"{type(lm).__name__} has weights in its MLPs that belong to no linear layer, as in a mixture of experts, "
            f"e.g. {others[0]}: gradient methods can't read it. Leave them out of scoring.methods, or use another LM."
        )
    return layers


def block_layers(lm: PreTrainedModel) -> dict[str, nn.Module]:
    """Return all linear layers of an LM's blocks, of attention and MLPs, by name: no embeddings and no head.

    Raises
    ------
    StudyError: as in `mlp_layers`.
    """
    # Refuses mixtures of experts.
    mlp_layers(lm)
    return {
        name: module
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and IN_BLOCK.search(name)
    }


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter is neither a bias nor a norm's scale, of whatever shape these are."""
    return sum(size > 1 for size in parameter.shape) > 1


class ExampleGradients:
    """Runs batches through an LM and calls a hook with the inputs and output gradients of its layers.

    The LM's weights are frozen: only gradients of activations are computed, which saves a third of the work.

    Parameters
    ----------
    lm: the LM; it has hooks until `close` is called.
    layers: linear layers of it, by name.
    precision: `float32` or `bfloat16`, that of the forward passes.
    """

    def __init__(self, lm: PreTrainedModel, layers: Mapping[str, nn.Module], precision: str = "float32"):
        self.lm, self.layers, self.precision = lm, dict(layers), precision
        lm.requires_grad_(False)
        # Something has to need a gradient, or there is no graph.
        self._hooks = [lm.get_input_embeddings().register_forward_hook(lambda *step: step[2].requires_grad_())]
        self._hooks += [
            layer.register_forward_hook(lambda module, inputs, output, name=name: self._read(name, inputs[0], output))
            for name, layer in self.layers.items()
        ]

    def close(self) -> None:
        """Remove the hooks from the LM."""
        for hook in self._hooks:
            hook.remove()

    def run(self, examples: Sequence[TokenizedExample], take: GradientHook, mean: bool = False) -> None:
        """Call `take` for every layer and every bucket of examples of similar length.

        Parameters
        ----------
        examples: a batch that fits one forward pass.
        take: called with indices into `examples`; inputs and gradients are 0 at padding.
        mean: whether gradients are those of the mean loss of an example's response tokens, instead of the sum.

        Raises
        ------
        StudyError: a layer doesn't see every token, as in a mixture of experts.
        """
        self._take = take
        lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
        for chosen in shared_passes(self.lm, lengths):
            self._run([examples[i] for i in chosen], chosen, mean)

    def _run(self, examples: Sequence[TokenizedExample], numbers: np.ndarray, mean: bool) -> None:
        """Run examples that share a forward pass; `numbers` are theirs among all examples, int64 [examples]."""
        self._batch = pack([example.tokens for example in examples], self.lm.device, apart_from(self.lm))
        ends = np.cumsum([bucket.examples for bucket in self._batch.buckets])
        # Sent to the GPU once, for all layers.
        order = numbers[self._batch.order]
        places = [to_device(places, self.lm.device) for places in np.split(order, ends[:-1])]
        self._buckets = list(zip(places, self._batch.buckets, strict=True))
        self._calls = dict.fromkeys(self.layers, 0)
        with torch.enable_grad():
            with autocast(self.lm.device, self.precision):
                losses, counts = summed_losses(self.lm, examples)
            (losses / counts if mean else losses).sum().backward()

    def _read(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> None:
        # Where the LM reads padded batches, each bucket is a forward pass of its own.
        buckets = self._buckets
        if not self.lm.airrep_packed:
            buckets = buckets[self._calls[name] : self._calls[name] + 1]
        self._calls[name] += 1
        inputs = inputs.detach()
        output.register_hook(lambda gradient: self._hand_out(name, buckets, inputs, gradient))

    @torch.no_grad()
    def _hand_out(
        self,
        name: str,
        buckets: Sequence[tuple[torch.Tensor, Bucket]],
        inputs: torch.Tensor,
        gradients: torch.Tensor,
    ) -> None:
        first = buckets[0][1]
        if inputs.shape[:-1].numel() != (
            self._batch.tokens.numel() if self.lm.airrep_packed else first.examples * first.longest
        ):
            raise StudyError(
                f"the layer {name} doesn't see every token, as in a mixture of experts: gradient methods can't read "
                "this LM. Leave them out of scoring.methods."
            )
        for examples, bucket in buckets:
            self._take(name, examples, *(self._rectangle(bucket, tensor) for tensor in (inputs, gradients)))

    def _rectangle(self, bucket: Bucket, tensor: torch.Tensor) -> torch.Tensor:
        """Return a layer's rows as float32 [examples, longest, width], zero at padding."""
        rows = tensor.flatten(0, -2)
        if self.lm.airrep_packed:
            rectangle = bucket.rectangle(rows[bucket.span]).float()
        else:
            rectangle = rows.float().unflatten(0, (bucket.examples, bucket.longest))
        return rectangle if bucket.mask is None else rectangle * bucket.mask[:, 0, 0, :, None]


def outer_sums(gradients: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return each example's sum over tokens of outer products, float32 [examples, out, in].

    Parameters
    ----------
    gradients: float32 [examples, tokens, out].
    inputs: float32 [examples, tokens, in].
    """
    return gradients.transpose(1, 2) @ inputs
