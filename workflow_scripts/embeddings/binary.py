"""Binary quantization of embeddings: one bit per number, its sign, and one scale per row.

The scale of a row x is |x|^2 / |x|_1, as in RaBitQ (Gao and Long 2024): after a random rotation, inner products of the
quantized row with other vectors are unbiased estimates of those of x. Products of two quantized rows aren't: that of a
row with itself is about pi/2 times |x|^2.
"""

from __future__ import annotations

import numpy as np

SCALE_BYTES = 4
BITS = 8
# So that the scale of every row of a table begins where a float32 may.
MULTIPLE = 32
# Rows that are quantized at a time.
ROWS_AT_ONCE = 64


def stored_bytes(dimension: int) -> int:
    """Return the bytes of a quantized row of `dimension` numbers.

    Raises
    ------
    ValueError: the dimension is no multiple of 32.
    """
    if dimension % MULTIPLE:
        raise ValueError(f"binary embeddings have a multiple of {MULTIPLE} numbers, not {dimension}")
    return dimension // BITS + SCALE_BYTES


def stored_dimension(size: int) -> int:
    """Return the numbers of a row that takes `size` bytes, the inverse of `stored_bytes`."""
    return (size - SCALE_BYTES) * BITS


def quantize(vectors: np.ndarray) -> np.ndarray:
    """Return quantized rows, uint8 [rows, dimension / 8 + 4]: packed signs, most significant bit first, then the scale.

    The scale is float32, little-endian. That of a row with a number that isn't finite isn't finite either.

    Parameters
    ----------
    vectors: float32 [rows, dimension], whose dimension is a multiple of 32.
    """
    stored = np.empty((len(vectors), stored_bytes(vectors.shape[1])), np.uint8)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        rows = vectors[first : first + ROWS_AT_ONCE]
        lengths = np.abs(rows).sum(axis=1)
        # Numbers that aren't finite are found where rows are scored.
        with np.errstate(invalid="ignore"):
            scales = np.divide(np.square(rows).sum(axis=1), lengths, out=np.zeros_like(lengths), where=lengths != 0)
        written = stored[first : first + ROWS_AT_ONCE]
        written[:, :-SCALE_BYTES] = np.packbits(rows > 0, axis=1)
        written[:, -SCALE_BYTES:] = scales.astype("<f4")[:, None].view(np.uint8)
    return stored


def sign_table() -> np.ndarray:
    """Return the signs that each byte of a quantized row stands for, float32 [256, 8] of -1 and 1."""
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


def dequantize(rows: np.ndarray) -> np.ndarray:
    """Return quantized rows as float32 [rows, dimension]: each sign times the scale.

    Parameters
    ----------
    rows: result of `quantize`.
    """
    packed, scales = rows[:, :-SCALE_BYTES], np.ascontiguousarray(rows[:, -SCALE_BYTES:]).view("<f4")
    vectors = np.take(sign_table(), packed, axis=0).reshape(len(rows), packed.shape[1] * BITS)
    vectors *= scales
    return vectors
