"""One function in several processes of this machine, which form a torch.distributed group.

Every process makes the same calls; `shard_indices` splits the work and `gather_rows` puts the results together. In a
process without a group, the first returns every row and the others change nothing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel

import workflow_scripts
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.gpus import use_deterministic_algorithms, visible_gpus
from workflow_scripts.core.parquet import metadata_in_force, table_metadata
from workflow_scripts.core.progress import say
from workflow_scripts.core.timing import Seconds, start_stage, work_so_far

SECONDS_TO_END = 10.0
Value = TypeVar("Value")
_PATH, _SECTION = "a path", "a section"


def run_in_processes(function: Callable[..., object], processes: int, **arguments: object) -> Seconds:
    """Call `function(**arguments)` in `processes` processes that form one group; return when all are done.

    With one process, that is this one. Several are new ones, each with a GPU of its own (NCCL) or on the CPU (gloo),
    and with their share of this one's threads. The standard error of the first of them is passed on. If one of them
    fails, or this one does, all of them end.

    Parameters
    ----------
    function: a function at the top level of a module, which the processes import by name; of a stage that is run as
        a script, the module is found in the package.
    processes: how many; at most as many as there are GPUs, where there are any.
    arguments: JSON values, paths and sections of the config.

    Returns
    -------
    How long the work took (`core.timing`): on the clock that of the slowest process, and the processor time of all.

    Raises
    ------
    StudyError: there are fewer GPUs than processes, or a process raised it.
    RuntimeError: a process failed otherwise; with its traceback, or the end of its log.
    """
    if processes == 1:
        start_stage()
        function(**arguments)
        return work_so_far()
    gpus = len(visible_gpus())
    if 0 < gpus < processes:
        raise StudyError(
            f"{function.__name__} is to run in {processes} processes, but the job has {gpus} GPU(s): give the rule "
            f"{processes} GPUs (where Slurm is asked by `gres`: `gpus` in slurm/config.yaml), or set `processes` to "
            f"{gpus}."
        )
    return run_in_new_processes(function, processes, **arguments)


def run_in_new_processes(function: Callable[..., object], processes: int, **arguments: object) -> Seconds:
    """Call `function(**arguments)` as `run_in_processes` does, but in a new process even if `processes` is 1.

    The GPU memory of such a process is free once it has ended. Parameters, result and errors as in
    `run_in_processes`, but the number of GPUs is not checked.
    """
    metadata, deterministic = dict(metadata_in_force()), torch.are_deterministic_algorithms_enabled()
    job = [processes, _importable_module(function), function.__name__, arguments, metadata, deterministic]
    job_text = json.dumps(job, default=_as_json)
    with tempfile.TemporaryDirectory(prefix="airrep-processes-") as name:
        folder = Path(name)
        group = [_start(folder, rank, processes, job_text) for rank in range(processes)]
        relay = threading.Thread(target=_pass_on, args=(group[0].stderr,))
        relay.start()
        try:
            codes = _exit_codes_once_decided(group)
        finally:
            _end(group)
            relay.join()
        if any(codes):
            raise _failure(folder, codes)
        works = [Seconds(*json.loads(_work_file(folder, rank).read_text())) for rank in range(processes)]
    return Seconds(max(work.clock for work in works), sum(work.processor for work in works))


def _importable_module(function: Callable[..., object]) -> str:
    """Return the name that other processes import `function`'s module by; a script's comes from its file."""
    if function.__module__ != "__main__":
        return function.__module__
    package = Path(workflow_scripts.__file__).resolve().parent
    # Snakemake runs a copy of a script and leaves the original's path in `__file__`.
    file = Path(function.__globals__["__file__"]).resolve()
    return ".".join([package.name, *file.relative_to(package).with_suffix("").parts])


def _exit_codes_once_decided(group: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait until all processes have ended well or one has not."""
    while True:
        codes = [process.poll() for process in group]
        if any(codes):
            # A process that failed first may have been polled before it ended.
            return [process.poll() for process in group]
        if None not in codes:
            return codes
        time.sleep(0.05)


def _start(folder: Path, rank: int, processes: int, job_text: str) -> subprocess.Popen[bytes]:
    threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
        # Left to itself, gloo listens where the host's name leads, which not every node can resolve.
        "GLOO_SOCKET_IFNAME": _loopback(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "workflow_scripts.core.distributed", str(folder)]
    with open(folder / f"{rank}.log", "wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.PIPE if rank == 0 else log,
        )
    assert process.stdin is not None  # stdin=PIPE
    # Kept open from here on: its end tells the process that this one is gone.
    process.stdin.write(job_text.encode() + b"\n")
    process.stdin.flush()
    return process


def _loopback() -> str:
    """Return the name of this machine's loopback interface: `lo` on Linux, `lo0` on macOS."""
    return next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))


def _pass_on(stream: IO[bytes]) -> None:
    for line in stream:
        say(line.decode(errors="replace").rstrip("\n"))


def _end(group: list[subprocess.Popen[bytes]]) -> None:
    for process in group:
        if process.poll() is None:
            process.terminate()
    for process in group:
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None  # stdin=PIPE
        process.stdin.close()


def _failure(folder: Path, codes: list[int | None]) -> Exception:
    """Return the error that caused the others."""
    files = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    errors = {int(path.stem): json.loads(path.read_text()) for path in files}
    for is_ours, message in errors.values():
        if is_ours:
            return StudyError(message)
    for rank, code in enumerate(codes):
        # One that was killed reports nothing; the others then report that they lost it.
        if code and rank not in errors:
            words = (folder / f"{rank}.log").read_text(errors="replace")[-4000:]
            return RuntimeError(f"process {rank} ended with code {code}\n{words}")
    rank, (_, message) = next(iter(errors.items()))
    return RuntimeError(f"process {rank} failed:\n{message}")


def _work(folder: Path) -> None:
    """Do one process's part of the job that comes over standard input."""
    rank = int(os.environ["RANK"])
    job = json.loads(sys.stdin.buffer.readline(), object_hook=_from_json)
    processes, module, name, arguments, metadata, deterministic = job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if deterministic:
            use_deterministic_algorithms()
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(rank)
        if processes > 1:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=processes,
                # One that fails takes the others along, so waiting needs no end.
                timeout=timedelta(days=7),
            )
        stage = getattr(import_module(module), name)
        start_stage()
        with table_metadata(**metadata):
            stage(**arguments)
        work = work_so_far()
        _work_file(folder, rank).write_text(json.dumps([work.clock, work.processor]))
        if processes > 1:
            barrier()
            dist.destroy_process_group()
    except BaseException as error:
        is_ours = isinstance(error, StudyError)
        message = str(error) if is_ours else traceback.format_exc()
        temporary = folder / f"{rank}.unfinished"
        temporary.write_text(json.dumps([is_ours, message]))
        temporary.rename(folder / f"{rank}.error")
        # Without the others, an orderly end could wait for them.
        os._exit(1)


def _work_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.work"


def _as_json(value: object) -> dict[str, Any]:
    if isinstance(value, Path):
        return {_PATH: str(value)}
    if isinstance(value, BaseModel):
        return {_SECTION: [type(value).__module__, type(value).__name__, value.model_dump()]}
    if is_dataclass(value):
        return {_SECTION: [type(value).__module__, type(value).__name__, vars(value)]}
    raise TypeError(f"{value!r} is neither a plain value nor a path, a section of the config or a dataclass")


def _from_json(value: dict[str, Any]) -> Any:
    if value.keys() == {_PATH}:
        return Path(value[_PATH])
    if value.keys() == {_SECTION}:
        module, name, values = value[_SECTION]
        return getattr(import_module(module), name)(**values)
    return value


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def in_group() -> bool:
    """Return whether this process is one of several that `run_in_processes` started."""
    return bool(dist.is_initialized())


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes files."""
    return not in_group() or dist.get_rank() == 0


def barrier() -> None:
    """Wait until every process of the group has reached this call."""
    if in_group():
        dist.barrier()


def shard_indices(sizes: np.ndarray) -> np.ndarray:
    """Return the indices of the rows that this process works on, int64 [rows of this process].

    Rows are dealt out in order of size, so the processes' total sizes differ by at most the largest row.

    Parameters
    ----------
    sizes: int [rows], the size of each row, e.g. its number of tokens.
    """
    if not in_group():
        return np.arange(len(sizes))
    return np.argsort(sizes, kind="stable")[dist.get_rank() :: dist.get_world_size()]


def gather_rows(own: torch.Tensor, share: np.ndarray, rows: int) -> torch.Tensor:
    """Return the rows of all processes, in every process: [rows, width], with the dtype and device of `own`.

    Parameters
    ----------
    own: [len(share), width], the rows that this process has computed.
    share: int64 [rows of this process], their indices; those of all processes together are `range(rows)`.
    rows: number of rows of all processes.
    """
    gathered = own.new_zeros(rows, own.shape[1])
    places = torch.from_numpy(share)
    # From other memory than pinned, a GPU would have to be waited for.
    gathered[places.pin_memory().to(own.device, non_blocking=True) if own.is_cuda else places] = own
    if in_group():
        dist.all_reduce(gathered)
    return gathered


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace each parameter's gradient by its sum over the processes; a missing gradient counts as zero."""
    if not in_group():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def sum_over_processes(value: float) -> float:
    """Return the sum of every process's `value`, in every process."""
    if not in_group():
        return value
    added = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(added)
    return float(added)


def broadcast_from_rank_zero(value: Value) -> Value:
    """Return the `value` of the process of rank 0 in every process, so that all of them take the same decision."""
    if not in_group():
        return value
    told = [value]
    dist.broadcast_object_list(told, 0)
    return told[0]


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
