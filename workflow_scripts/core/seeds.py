"""Random generators seeded by names and numbers alone, never by order, shard or machine."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed, a hash of `parts`, e.g. `derive_seed(seed, "finetune", fold, subset)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded by `parts`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))
