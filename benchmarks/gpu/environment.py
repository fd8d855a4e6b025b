"""What the machine is, and what it can do at most."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable

import torch
import transformers

from gpu.record import Case
from workflow_scripts.models import packing

# Dense bfloat16 as NVIDIA states it, in FLOP/s, by what the card's name begins with.
STATED_RATES = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}


def environment(case: Case, device: torch.device) -> None:
    """Say what runs here, and measure the ceilings of the card."""
    case.fact("versions", f"torch {torch.__version__}, transformers {transformers.__version__}")
    case.fact("python", f"{platform.python_version()}, {platform.machine()}")
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        case.fact("card", f"{about.name}, driver {driver()}, CUDA {torch.version.cuda}")
        case.fact("multiprocessors, compute capability", f"{about.multi_processor_count}, {about.major}.{about.minor}")
        case.figure("memory", about.total_memory / 2**30, "GiB")
        case.figure("copy, bytes read and written", copy_rate(device) / 1e9, "GB/s")
    case.figure("product of bfloat16 matrices", matrix_rate(device) / 1e12, "TFLOP/s")
    case.fact("cuDNN attention", "on" if torch.backends.cuda.cudnn_sdp_enabled() else "off")
    value = torch.empty(1, 4, 8, 64, device=device, dtype=torch.bfloat16)
    case.fact("packed attention in bfloat16", packing.attention_kernel(value, 0.0))


def driver() -> str:
    """Return the version of NVIDIA's driver, or why it isn't known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def synchronized(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, the GPU's work included."""
    synchronized(device)
    start = time.perf_counter()
    work()
    synchronized(device)
    return time.perf_counter() - start


def matrix_rate(device: torch.device) -> float:
    """Return the operations per second of a large product of random bfloat16 matrices, after three that warm up."""
    size = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    return 10 * 2 * size**3 / timed(lambda: [left @ right for _ in range(10)], device)


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes."""
    source = torch.randn(2**30, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 10 * 2 * source.nbytes / timed(lambda: [target.copy_(source) for _ in range(10)], device)


def peak_rate(device: torch.device) -> tuple[float, str]:
    """Return the card's dense bfloat16 rate in FLOP/s, and whether it is `stated` or, of other cards, `measured`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for beginning, rate in STATED_RATES.items():
        if name.startswith(beginning):
            return rate, "stated"
    return matrix_rate(device), "measured"
