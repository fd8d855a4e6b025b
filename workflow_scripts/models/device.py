"""The device that a job computes on, copies to and from it, and the precision that it computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def best_device() -> torch.device:
    """Return the job's GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Return `array` as a tensor on `device`, without waiting for pending work of a GPU."""
    tensor = torch.from_numpy(array)
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Start to copy a tensor to the CPU; return a function that waits for this copy only and returns it as an array."""
    if not tensor.is_cuda:
        return tensor.numpy
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> np.ndarray:
        done.synchronize()
        return copied.numpy()

    return wait


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a forward pass in `precision`, `float32` (no autocast) or `bfloat16`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute products of float32 matrices in float32 within the block, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
