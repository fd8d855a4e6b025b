"""Columns of the tables that experiments write: a value and its interval for each method, evaluation and metric."""

from __future__ import annotations

import pyarrow as pa

KEYS = [("method", pa.string()), ("evaluation", pa.string()), ("metric", pa.string())]
VALUES = [("value", pa.float64()), ("ci_low", pa.float64()), ("ci_high", pa.float64())]
