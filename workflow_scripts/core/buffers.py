"""Large temporary arrays that are used again instead of being allocated for every tile.

Fresh memory of this size costs more than the arithmetic on it: the system maps and clears every page.
"""

from __future__ import annotations

import math
import threading

import numpy as np

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an array of any content; this thread's next call with the same name hands out the same memory."""
    buffers: dict[str, np.ndarray] = _buffers.__dict__
    size = math.prod(shape)
    if name not in buffers or buffers[name].size < size or buffers[name].dtype != dtype:
        buffers[name] = np.empty(size, dtype)
    return buffers[name][:size].reshape(shape)
