"""Run a Snakemake job as a call of its stage, which is a function of paths and plain values."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TextIO, get_args, get_type_hints

from pydantic import BaseModel

from workflow_scripts.core.errors import StudyError, lacks_memory
from workflow_scripts.core.file_states import FileState, record_inputs
from workflow_scripts.core.files import atomic_path, earlier_of, stamp_of
from workflow_scripts.core.gpus import gpus_asked_for, pinned, require_promised_gpus, use_deterministic_algorithms
from workflow_scripts.core.model_contents import RECORDS_VARIABLE, local_models, resolved_content
from workflow_scripts.core.parquet import CONTENTS, spec_hash, table_metadata
from workflow_scripts.core.redaction import redact_output, redacted
from workflow_scripts.core.timing import Seconds, start_stage, work_so_far, write_record
from workflow_scripts.core.tracking import Tracking

_ROOM = "Free some space, or link `results` to a roomier disk."
_RIGHTS = "Make the results folder writable for you, or link `results` to a folder that is."
_STORAGE_TROUBLES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "The disk or a limit (`ulimit -f`) allows no file of that size: raise the limit.",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
}
# Rules whose jobs divide runs among them, in another way once the config says so.
_SHARING = frozenset({"finetune_shard", "finetune_runs"})
# What bounds a stage's memory; fine-tuning and losses take smaller passes by themselves (`language_model.oom_retry`),
# answers don't.
_MEMORY_KEYS = {
    "pretrain_base_lm": "language_model.pretraining.batch_tokens",
    "train_encoder": "encoder_training.chunk_tokens, and where that is not enough encoder_training.examples_per_step",
    "finetune_runs": "finetuning.evaluation_tokens",
    "embed_corpus": "encoder_training.chunk_tokens",
    "fit_method": "finetuning.step_tokens",
    "embed_by_method": "finetuning.step_tokens",
    "measure_losses": "finetuning.evaluation_tokens",
    "score_harm": "scoring.tile_examples",
    "score_pairs": "scoring.tile_examples",
    "score_part": "scoring.tile_examples",
    "score_pairs_by_lm": "finetuning.step_tokens",
    "score_part_by_lm": "finetuning.step_tokens",
    "score_base_by_lm": "finetuning.step_tokens",
    "choose_pooling_by_lm": "finetuning.step_tokens",
    "predict_targets": "scoring.tile_examples",
    "evaluate_label_influence": "scoring.tile_examples",
    "predict_targets_by_lm": "finetuning.step_tokens",
    "predict_held_back": "scoring.tile_examples",
    "score_blend": "scoring.tile_examples",
    "predict_held_back_by_lm": "finetuning.step_tokens",
}


def run_stage(stage: Callable[..., object]) -> None:
    """Run `stage` as the job whose script defines it: Snakemake puts the job there as the global `snakemake`."""
    redact_output()
    run_job(stage.__globals__["snakemake"], stage)


def run_job(smk: Any, stage: Callable[..., object]) -> None:
    """Call `stage` with the named inputs and outputs of a job and the values of its spec.

    A rule's empty list of files means that the file is absent: a parameter annotated `Path | None` gets None for it,
    and a `list[Path]` stays empty. For a parameter annotated with a section of the config, the section is built from
    its values in the spec. The spec's `version` and `roles` are there for comparison alone.

    If the job's resources have `processes`, the stage runs in that many processes (`core.distributed`). It sees only
    the GPUs that its resources ask for; if its spec has `deterministic`, torch uses deterministic algorithms only.

    If they have `track`, the stage gets as `tracking` which tracker its curves go to, and a folder beside its log.

    What its start-up and its work took is written beside its benchmark file (`core.timing`).

    Every table says the hash of the spec and the content of each local model folder that the spec names; beside other
    results, a hidden file says so (`core.files.stamp_of`). A folder that was replaced while the study ran is refused.

    What the user's own files held that the job has read is recorded beside its first output (`core.file_states`).

    The earlier versions of its outputs (`core.files.earlier_of`) are deleted once the job has succeeded; those of a
    fine-tuning job, whose runs other jobs of the same rule may look for, once a job has read all of them.

    Parameters
    ----------
    smk: the `snakemake` object of a script, whose `params.spec` is that of `study.specs`.
    stage: annotated function of paths and plain values.

    Raises
    ------
    SystemExit: a `StudyError`, a disk that is full or not writable, or a lack of memory; a message was printed.
        Any other exception keeps its traceback, because it is a bug of the workflow.
    """
    spec = dict(smk.params.spec)
    spec.pop("version")
    spec.pop("roles", None)
    deterministic = spec.pop("deterministic", False)
    gpus = gpus_asked_for(smk.resources)
    types = get_type_hints(stage)
    arguments = {**_paths(smk.input, types), **_paths(smk.output, types), **_sections(spec, types)}
    if tracker := smk.resources.get("track"):
        arguments["tracking"] = Tracking(tracker, Path(smk.log[0]).with_suffix(""))
    _use_threads(smk.threads)
    with _log_to(smk.log[0]):
        try:
            given = _users_files(smk)
            made_with = {"stage": smk.rule, "spec": spec_hash(smk.params.spec), **_contents(smk.params.spec)}
            with pinned(gpus), table_metadata(**made_with):
                require_promised_gpus(gpus)
                # A job without either computes by NumPy alone.
                if deterministic and (gpus or "torch" in sys.modules):
                    use_deterministic_algorithms()
                work = _call(stage, smk.resources.get("processes", 1), arguments)
            _stamp(smk.output, made_with)
            if _study_folder() and (outputs := _output_paths(smk.output)):
                record_inputs(outputs[0], given)
            write_record(Path(smk.log[0]), smk.rule, work)
            _delete_earlier(smk)
        except Exception as error:
            known = isinstance(error, StudyError)
            message = str(error) if known else storage_trouble(error) or memory_trouble(error, smk.rule)
            if message is None:
                raise
            print(f"\nerror in {smk.rule}: {message}", file=sys.stderr, flush=True)
            raise SystemExit(1) from None


def storage_trouble(error: BaseException) -> str | None:
    """Return the message for a disk that is full or not writable, and None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    # Libraries written in Rust, copies of folders, and other processes pass on the system's words without its number.
    told = (number for number in _STORAGE_TROUBLES if code == number or os.strerror(number) in str(error))
    reason = next(told, None)
    if reason is None:
        return None
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return (
        f"{os.strerror(reason)}{place}. {_STORAGE_TROUBLES[reason]} Then run the same command again: what is finished "
        "is kept, and nothing half-written is taken for finished."
    )


def temporary_trouble(error: BaseException) -> str | None:
    """Return `storage_trouble` for a command that writes temporary files, with the folder that these are in."""
    trouble = storage_trouble(error)
    return trouble and f"{trouble} Temporary files are written to {tempfile.gettempdir()}; TMPDIR names another folder."


def memory_trouble(error: BaseException, stage: str) -> str | None:
    """Return the message for an error of `stage` by which memory ran out, and None for any other error."""
    if not lacks_memory(error):
        return None
    key = _MEMORY_KEYS.get(stage)
    # The error of another process contains its whole traceback.
    reason = next((line for line in str(error).splitlines() if lacks_memory(RuntimeError(line))), type(error).__name__)
    return (
        f"the memory does not suffice ({reason.strip()}). {f'Lower {key}, or give' if key else 'Give'} the job more "
        "memory. Then run the same command again: what is finished is kept."
    )


def _contents(spec: Mapping[str, Any]) -> dict[str, str]:
    contents = {model: resolved_content(model) for model in local_models(spec)}
    return {CONTENTS: json.dumps(contents)} if contents else {}


def _output_paths(outputs: Any) -> list[Path]:
    return [Path(path) for _, files in outputs.items() for path in ([files] if isinstance(files, str) else files)]


def _stamp(outputs: Any, made_with: Mapping[str, str]) -> None:
    """Say what the outputs of a job were made with, if no table among them says it."""
    paths = _output_paths(outputs)
    if not paths or any(path.suffix == ".parquet" for path in paths):
        return
    with atomic_path(stamp_of(paths[0])) as temporary:
        temporary.write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")


def _delete_earlier(smk: Any) -> None:
    own = [] if smk.rule in _SHARING else _output_paths(smk.output)
    results = _study_folder()
    read = [path for path in map(Path, smk.input) if results in path.parents]
    for path in [*own, *read]:
        earlier_of(path).unlink(missing_ok=True)


def _study_folder() -> Path | None:
    """Return the folder of the study's results; None outside Snakemake."""
    records = os.environ.get(RECORDS_VARIABLE)
    return Path(records).parent if records else None


def _users_files(smk: Any) -> dict[Path, FileState]:
    """Return the files of the user's that a job will read, as they are now."""
    results = _study_folder()
    given = [path for path in map(Path, smk.input) if results and results not in path.parents]
    return {path: FileState.unread(path) for path in given if path.is_file()}


def _call(stage: Callable[..., object], processes: int, arguments: dict[str, Any]) -> Seconds:
    """Call `stage` and return how long its work took."""
    if processes == 1:
        start_stage()
        stage(**arguments)
        return work_so_far()
    # Needs torch, which most stages do without.
    from workflow_scripts.core.distributed import run_in_processes

    return run_in_processes(stage, processes, **arguments)


def _sections(values: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: kind for name, kind in types.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    return {name: sections[name](**value) if name in sections else value for name, value in values.items()}


def _paths(names: Any, types: Mapping[str, Any]) -> dict[str, Path | list[Path] | None]:
    return {name: _as_paths(files, may_be_none=NoneType in get_args(types.get(name))) for name, files in names.items()}


def _as_paths(files: str | Iterable[str], *, may_be_none: bool) -> Path | list[Path] | None:
    if isinstance(files, str):
        return Path(files)
    paths = [Path(file) for file in files]
    return None if may_be_none and not paths else paths


def _use_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class _Tee:
    """The screen, and a log that the work must not fail for: it may lie on the disk that has just filled up.

    Neither is told a token.
    """

    def __init__(self, screen: TextIO, log: TextIO):
        self.screen, self.log = screen, log

    def write(self, text: str) -> int:
        text = redacted(text)
        with contextlib.suppress(OSError):
            self.log.write(text)
        return self.screen.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.log.flush()
        self.screen.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _log_to(path: str) -> Iterator[None]:
    log = _open_log(Path(path))
    try:
        with contextlib.redirect_stderr(_Tee(sys.stderr, log)):
            yield
    except SystemExit:
        raise
    except BaseException:
        import traceback

        with contextlib.suppress(OSError):
            log.write(redacted(traceback.format_exc()))
        raise
    finally:
        with contextlib.suppress(OSError):
            log.close()


def _open_log(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8")
    except OSError:
        return open(os.devnull, "a", encoding="utf-8")
