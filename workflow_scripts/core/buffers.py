"""Large temporary arrays that are reused instead of being allocated for every tile.

Fresh memory of this size costs more than the arithmetic on it: the system maps and clears every page.
"""

from __future__ import annotations

import math
import threading

import numpy as np

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an uninitialized array; this thread's next call with the same name returns the same memory.

    Parameters
    ----------
    name: which buffer; two arrays that are in use at once need two names.
    shape: shape of the array.
    dtype: NumPy type of its elements; another one than before allocates a new buffer.
    """
    buffers: dict[str, np.ndarray] = _buffers.__dict__
    size = math.prod(shape)
    if name not in buffers or buffers[name].size < size or buffers[name].dtype != dtype:
        buffers[name] = np.empty(size, dtype)
    return buffers[name][:size].reshape(shape)
