"""Gradients of one example by autograd, which faster ways are compared with."""

import torch

from workflow_scripts.language_model.losses import summed_losses


def exact_gradients(lm, example, name, mean=False):
    """The gradient [out, in] of one layer's weight for one example."""
    layer = lm.get_submodule(name)
    losses, counts = summed_losses(lm, [example])
    (gradient,) = torch.autograd.grad((losses / counts if mean else losses).sum(), layer.weight)
    return gradient if isinstance(layer, torch.nn.Linear) else gradient.T
