"""The bridge from a Snakemake job to a stage: a function of paths and plain values."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.gpus import pinned
from workflow_scripts.lib.tables import spec_hash, table_metadata


def run_stage(smk: Any, stage: Callable[..., object]) -> None:
    """Call `stage` with the named inputs and outputs of the job and the values of its spec.

    A job whose resources name `processes` calls it in so many processes, see `lib.processes`.
    A `StudyError` ends the job with its message alone; any other exception keeps its traceback,
    because it is a fault of ours.
    """
    spec = dict(smk.params.spec)
    spec.pop("version")
    arguments = {**_paths(smk.input), **_paths(smk.output), **spec}
    _use_threads(smk.threads)
    with _log_to(smk.log[0]):
        try:
            with pinned(smk.resources.get("gpu", 0)), table_metadata(stage=smk.rule, spec=spec_hash(smk.params.spec)):
                _call(stage, smk.resources.get("processes", 1), arguments)
        except StudyError as error:
            print(f"\nerror in {smk.rule}: {error}", file=sys.stderr, flush=True)
            raise SystemExit(1) from None


def _call(stage: Callable[..., object], processes: int, arguments: dict[str, Any]) -> None:
    if processes == 1:
        stage(**arguments)
        return
    # Needs torch, which most stages do without.
    from workflow_scripts.lib.processes import run_in_processes

    run_in_processes(stage, processes, **arguments)


def _paths(names: Any) -> dict[str, Path | list[Path]]:
    return {
        name: Path(value) if isinstance(value, str) else [Path(item) for item in value] for name, value in names.items()
    }


def _use_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class _Tee:
    def __init__(self, *streams: TextIO):
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _log_to(path: str) -> Iterator[None]:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as log, contextlib.redirect_stderr(_Tee(sys.stderr, log)):
        try:
            yield
        except SystemExit:
            raise
        except BaseException:
            import traceback

            traceback.print_exc(file=log)
            raise
