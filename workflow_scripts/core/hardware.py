"""Processor, memory and GPUs of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from workflow_scripts.core.gpus import installed_gpus


def hardware() -> dict[str, Any]:
    """Return this machine's `processor` (name), `cores` (logical), `memory_gib` and `gpus` (names)."""
    model = ""
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [gpu.name for gpu in installed_gpus()],
    }
