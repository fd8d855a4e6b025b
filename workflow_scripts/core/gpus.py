"""The GPUs of this machine and of a job: counted without torch, claimed by file locks, and checked before work starts.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from workflow_scripts.core.errors import StudyError

DRIVER_FOLDER = Path("/proc/driver/nvidia")
DEVICE_FOLDER = Path("/dev")
# Without its persistence daemon, a driver takes seconds for each GPU to wake up.
SECONDS_TO_LIST = 60
SLURM_NAMES_GPUS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS", "SLURM_GPUS_ON_NODE")
COMPUTE_ON_THE_CPU = "To compute on the CPU instead, set CUDA_VISIBLE_DEVICES to nothing (export CUDA_VISIBLE_DEVICES=)"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of one that MIG has split.

    Attributes
    ----------
    index: number of the GPU on this machine, from 0; instances have that of their GPU.
    name: model, and for an instance its profile.
    uuid: as `nvidia-smi -L` lists it; the index as text where the driver doesn't say.
    """

    index: int
    name: str
    uuid: str


def installed_gpus() -> list[Gpu]:
    """Return the GPUs that the driver lists, whatever CUDA_VISIBLE_DEVICES says; none without an NVIDIA driver."""
    return _listed(_nvidia_smi()) or _known_to_the_kernel()


@functools.cache
def _nvidia_smi() -> str:
    """Return what `nvidia-smi -L` prints; nothing where it is absent, hangs, or fails (as when NVML does)."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["nvidia-smi", "-L"], check=True, capture_output=True, text=True, timeout=SECONDS_TO_LIST
        ).stdout
    return ""


def _listed(text: str) -> list[Gpu]:
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+): (.*) \(UUID: (GPU-[^)]+)\)", line):
            whole = Gpu(int(gpu[1]), gpu[2], gpu[3])
            found.append(whole)
        elif whole and (instance := re.match(r"\s+MIG (\S+).*\(UUID: (MIG-[^)]+)\)", line)):
            # A GPU that is split can't be used whole.
            found = [one for one in found if one is not whole]
            found.append(Gpu(whole.index, f"{whole.name} MIG {instance[1]}", instance[2]))
    return found


def _known_to_the_kernel() -> list[Gpu]:
    found: list[Gpu] = []
    for file in sorted(DRIVER_FOLDER.glob("gpus/*/information")):
        facts = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        uuid = facts.get("GPU UUID", "").strip()
        # The driver writes question marks until a GPU is first used.
        index = len(found)
        found.append(Gpu(index, facts.get("Model", "").strip(), str(index) if "?" in uuid or not uuid else uuid))
    return found


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that a process with this `environment` may use, as names for CUDA_VISIBLE_DEVICES.

    CUDA reads that variable up to the first name that isn't one: -1 and NoDevFiles hide what follows.
    """
    if (listed := environment.get("CUDA_VISIBLE_DEVICES")) is None:
        return [gpu.uuid for gpu in installed_gpus()]
    names = []
    for name in listed.split(","):
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", name.strip()):
            break
        names.append(name.strip())
    return names


def sends_jobs(workflow: Any) -> bool:
    """Return whether the jobs of a workflow go to a cluster.

    Parameters
    ----------
    workflow: the `workflow` object of a Snakefile, which learns of its executor only after it was read. With that of
        a cluster it has a number of jobs; on one machine `--jobs` is the number of cores, and both are refused.
    """
    return workflow.nodes is not None


def refuse_cores_and_jobs(workflow: Any) -> None:
    """Refuse `--cores` with `--jobs` on one machine, where Snakemake would lift the limit of cores as for a cluster.

    Parameters
    ----------
    workflow: the `workflow` object of a Snakefile, once its executor is known.

    Raises
    ------
    StudyError: both were given, and no executor that sends jobs to a cluster.
    """
    if sends_jobs(workflow) and workflow.is_main_process and workflow.local_exec and not workflow.touch:
        raise StudyError(
            f"--cores {workflow.cores} and --jobs {workflow.nodes} were both given, and no executor that sends jobs to "
            "a cluster: neither the cores nor the GPUs of this machine would limit how many jobs run at a time. Write "
            "--cores alone."
        )


def limit_gpu_jobs(workflow: Any) -> int:
    """Let Snakemake start no more GPU jobs than this machine has GPUs, and return that number.

    `--resources gpu=N` overrides it. Nothing is limited, and 0 returned, where there is no GPU, because all jobs then
    compute on the CPU, and on a cluster, where the scheduler assigns GPUs.

    Parameters
    ----------
    workflow: the `workflow` object of a Snakefile.
    """
    if sends_jobs(workflow) or not workflow.is_main_process or not (here := len(visible_gpus())):
        return 0
    if "gpu" in workflow.global_resources:
        allowed: int = workflow.global_resources["gpu"].value
        return min(here, allowed)
    workflow.register_resource("gpu", here)
    return here


def gpus_asked_for(resources: Mapping[str, Any]) -> int:
    """Return how many GPUs a job's resources ask for: as `gpu`, or as Slurm's `gres`, e.g. `gpu:h100:2`."""
    asked = int(resources.get("gpu", 0) or 0)
    for part in str(resources.get("gres", "")).split(","):
        kind, *words = part.strip().split(":")
        if kind == "gpu":
            asked += int(words[-1]) if words and words[-1].isdecimal() else 1
    return asked


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """Claim `count` GPUs and make only them visible to this process while the block runs; none if `count` is 0.

    Enter it before anything starts CUDA, which reads CUDA_VISIBLE_DEVICES once. It is needed within a Slurm job too:
    all jobs of a Snakemake that runs inside one allocation see all its GPUs.

    Raises
    ------
    StudyError: GPUs are visible, but fewer than `count`.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible_gpus() if count else []
    with contextlib.ExitStack() as stack:
        if count == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(stack.enter_context(own_gpus(count, gpus)))
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextlib.contextmanager
def own_gpus(count: int, gpus: Sequence[str], folder: Path | None = None) -> Iterator[list[str]]:
    """Claim `count` of `gpus` for this process while the block runs; wait until so many are free, and yield them.

    Snakemake's `gpu` resource only counts; which GPU a job takes is decided here. The kernel holds the locks, so
    those of a killed job are released at once.

    Parameters
    ----------
    count: how many to claim.
    gpus: names for CUDA_VISIBLE_DEVICES, as `visible_gpus` returns them.
    folder: where the lock files lie; by default one of this user's in the folder for temporary files.

    Raises
    ------
    StudyError: `count` exceeds the number of `gpus`, or the folder belongs to somebody else.
    """
    if count > len(gpus):
        raise StudyError(
            f"a job asks for {count} GPUs, but this machine shows {len(gpus)}: start snakemake with "
            f"--resources gpu={len(gpus)}, or lower the rule's `gpu`."
        )
    folder = folder or Path(tempfile.gettempdir()) / f"airrep-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # In a folder of everybody's, another user may have made it first.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StudyError(
            f"{folder}, where jobs lock their GPUs, belongs to another user. Have it removed, or set TMPDIR to "
            "a folder of yours."
        )
    held: dict[str, IO[str]] = {}
    locks = {gpu: folder / f"{lock_name(gpu)}.lock" for gpu in gpus}
    try:
        while len(held) < count:
            for gpu in gpus:
                if len(held) < count and gpu not in held and (lock := _try_lock(locks[gpu])):
                    held[gpu] = lock
            if len(held) < count:
                # Two jobs that wait for each other's GPUs must not hold some meanwhile.
                _release(held)
                time.sleep(0.2)
        yield list(held)
    finally:
        _release(held)


def lock_name(gpu: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a file name for the GPU that CUDA_VISIBLE_DEVICES calls `gpu`: its UUID, where the driver gives one.

    Within a Slurm job the name contains the job's id: Slurm gives no GPU to two jobs, and where it hides the other
    GPUs, each job of a node counts its own from 0.
    """
    if allocation := environment.get("SLURM_JOB_ID"):
        gpu = f"job-{allocation}-{gpu}"
    elif gpu.isdecimal():
        gpu = {str(one.index): one.uuid for one in installed_gpus() if one.uuid.startswith("GPU-")}.get(gpu, gpu)
    # The older names of MIG's instances have slashes.
    return quote(gpu, safe="")


def _try_lock(path: Path) -> IO[str] | None:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _release(held: dict[str, IO[str]]) -> None:
    while held:
        held.popitem()[1].close()


def require_promised_gpus(asked: int, environment: Mapping[str, str] = os.environ) -> None:
    """Stop a job that was promised GPUs but can't use them: it would silently take hours on the CPU.

    Where nothing promises a GPU, as on a laptop, or AIRREP_GPU_OPTIONAL is set, the same job computes on the CPU.

    Parameters
    ----------
    asked: number of GPUs that the job asked for.
    environment: environment variables of the job.

    Raises
    ------
    StudyError: GPUs were promised and torch can use fewer than `asked`; says why, and what to do.
    """
    if not asked or environment.get("AIRREP_GPU_OPTIONAL") or not is_promised(environment):
        return
    facts = {**torch_facts(), "visible_devices": environment.get("CUDA_VISIBLE_DEVICES"), "host": platform.node()}
    if problem := gpu_problem(facts, asked):
        raise StudyError(f"{problem} {COMPUTE_ON_THE_CPU}; in a Slurm job, set AIRREP_GPU_OPTIONAL=yes.")


def is_promised(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a job that asks for a GPU can count on one.

    Slurm has allocated some, CUDA_VISIBLE_DEVICES has words in it, or this machine has an NVIDIA device. An empty
    CUDA_VISIBLE_DEVICES says that no GPU is wanted.
    """
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return bool(visible.strip())
    return (
        any(environment.get(name, "0") not in ("", "0") for name in SLURM_NAMES_GPUS)
        or any(DEVICE_FOLDER.glob("nvidia[0-9]*"))
        or bool(installed_gpus())
    )


def torch_facts() -> dict[str, Any]:
    """Return the versions of `driver`, `torch` and `cuda`, and how many GPUs are `usable`; starts no CUDA context."""
    import torch

    return {
        "driver": driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "usable": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, or None where there is no driver."""
    file = DRIVER_FOLDER / "version"
    if not file.exists():
        return None
    found = re.search(r"\s(\d+\.[\d.]+)\s", file.read_text())
    return found.group(1) if found else "unknown"


def gpu_problem(facts: Mapping[str, Any], asked: int) -> str | None:
    """Return why a job can't use as many GPUs as it asked for and what to change, or None if it can.

    Parameters
    ----------
    facts: those of `torch_facts`, the `host`, and CUDA_VISIBLE_DEVICES as `visible_devices`.
    asked: number of GPUs that the job asked for.
    """
    if facts["usable"] >= asked:
        return None
    visible = facts["visible_devices"]
    names = visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) if visible is not None else None
    if visible == "" or (visible is None and facts["driver"] is None):
        return (
            f"the job asked for {asked} GPU(s), but the scheduler named none in CUDA_VISIBLE_DEVICES. If the cluster "
            "wants --gres, write `gres: gpu` in slurm/config.yaml (or set AIRREP_GRES=gpu)."
        )
    if names == []:
        return (
            f"the job asked for {asked} GPU(s), but CUDA_VISIBLE_DEVICES={visible} hides all of them. Where Slurm "
            "wrote that, the job was given no GPU: ask for some (salloc --gpus=1). Otherwise unset it."
        )
    if facts["driver"] is None:
        return (
            f"the scheduler gave GPU {visible}, but {facts['host']} has no NVIDIA driver. Name a "
            "partition with GPUs as gpu_partition in slurm/config.yaml (or set AIRREP_GPU_PARTITION); a container "
            "needs `apptainer --nv` or `docker --gpus all`."
        )
    if facts["cuda"] is None:
        return (
            f"torch {facts['torch']} is a CPU build. Put the CUDA build of the same version in its place: "
            "pip uninstall torch, then pip install -r envs/requirements-torch.lock on a machine "
            "without a CPU-only index."
        )
    if names and sum(name.startswith("MIG-") for name in names) > facts["usable"] > 0:
        return (
            f"the job asked for {asked} GPU(s), but a process can use no more than one instance of a GPU that MIG has "
            "split. Set `processes` to 1, or ask for whole GPUs."
        )
    return (
        f"the job asked for {asked} GPU(s), but torch sees {facts['usable']}: driver {facts['driver']} may be "
        f"too old for CUDA {facts['cuda']}. Load a newer driver, or install a torch build for an older CUDA."
    )


def use_deterministic_algorithms() -> None:
    """Make torch use deterministic algorithms only; call it before CUDA starts.

    Processes that this one starts inherit the setting of cuBLAS only, and must call it again.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def determinism() -> dict[str, bool]:
    """Return what tells results of deterministic algorithms from others, for the keys by which results are reused.

    Empty without them, so that keys of before stay as they are.
    """
    import torch

    return {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
