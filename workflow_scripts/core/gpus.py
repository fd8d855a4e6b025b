"""A job's own GPUs on a machine without Slurm: claimed by file locks, so that two jobs never share one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from workflow_scripts.core.errors import StudyError


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (listed := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def own_gpus(count: int, gpus: Sequence[str], folder: Path | None = None) -> Iterator[list[str]]:
    """Claim `count` of `gpus` for this process while the block runs; wait until so many are free.

    Snakemake's `gpu` resource only counts; which GPU a job takes is decided here. A lock is the kernel's, so
    that of a killed job is free at once.

    Raises
    ------
    StudyError: the machine has fewer GPUs than the job needs.
    """
    if count > len(gpus):
        raise StudyError(
            f"a job asks for {count} GPUs, but this machine shows {len(gpus)}: start snakemake with "
            f"--resources gpu={len(gpus)}, or lower the rule's `gpu`."
        )
    folder = folder or Path(tempfile.gettempdir()) / f"airrep-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, IO[str]] = {}
    try:
        while len(held) < count:
            for gpu in gpus:
                if len(held) < count and gpu not in held and (lock := _try_lock(folder / f"{gpu}.lock")):
                    held[gpu] = lock
            if len(held) < count:
                # Two jobs that wait for each other's GPUs must not hold some meanwhile.
                _release(held)
                time.sleep(0.2)
        yield list(held)
    finally:
        _release(held)


def _try_lock(path: Path) -> IO[str] | None:
    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _release(held: dict[str, IO[str]]) -> None:
    while held:
        held.popitem()[1].close()


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """Show this process only its own GPUs while the block runs; does nothing on a CPU and under Slurm."""
    if count == 0 or "SLURM_JOB_ID" in os.environ or not (gpus := visible_gpus()):
        yield
        return
    with own_gpus(count, gpus) as own:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        yield
