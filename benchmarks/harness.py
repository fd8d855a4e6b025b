"""What all benchmarks share: the hardware's name, timing, peak memory, results as a table and as JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

RESULTS = Path(__file__).parent / "results"
# What transformers says while it loads is about weights that no encoder has.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# As the workflow's jobs wait and take memory (rules/common.smk).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def hardware() -> dict[str, Any]:
    """Return the processor's name, its cores, and the versions that decide speed."""
    import numpy
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


class Timing(NamedTuple):
    """The best of several runs; `cpu_seconds` (over all threads) hardly depends on what else the machine does."""

    seconds: float
    cpu_seconds: float


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Return each way's best times; the ways take turns, so that a busy moment hits all of them."""
    best = dict.fromkeys(ways, Timing(float("inf"), float("inf")))
    for _ in range(rounds):
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            way()
            took = Timing(time.perf_counter() - start, time.process_time() - cpu_start)
            best[name] = Timing(*map(min, best[name], took))
    return best


def in_fresh_process(case: Callable[..., dict[str, Any]], *arguments: Any, **environment: str) -> dict[str, Any]:
    """Return what `case` returns, run in a process of its own with `environment`, and that process's `peak_mib`."""
    context = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, environment), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_peak, case, arguments).result()


def _with_peak(case: Callable[..., dict[str, Any]], arguments: Sequence[Any]) -> dict[str, Any]:
    result = case(*arguments)
    return {**result, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def precision() -> str:
    """Return what a forward pass is computed in on this machine."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def matrix_rate() -> float:
    """Return the operations per second of a large matrix product in this precision on this machine."""
    import torch

    gpu = torch.cuda.is_available()
    size, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    left, right = (torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=dtype) for _ in range(2))
    rates = []
    for _ in range(10):
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def report(name: str, rows: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Print `rows` as a table and write them with `facts` and the hardware to `results/<name>.json`."""
    facts = {"hardware": hardware(), **facts}
    columns = list(dict.fromkeys(key for row in rows for key in row))
    texts = [columns] + [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[number]) for line in texts) for number in range(len(columns))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print("\n".join(f"{key}: {_text(value)}" for key, value in facts.items()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts, "rows": list(rows)}, indent=1) + "\n")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
