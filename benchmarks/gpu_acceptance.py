"""Does everything compute rightly on this machine's GPU, and how fast? `make gpu-test` runs this.

Prints a line for each check (PASS or FAIL, the measured figure and its bound) and each figure (with its goal on one
H100), and writes them to a JSON file after every case. Without a GPU the same checks run on the CPU at a tiny size.
Ends with code 1 if a check failed. See docs/gpu.md.

Run: python benchmarks/gpu_acceptance.py [--out FILE] [--only NAME[,NAME]] [--skip NAME[,NAME]] [--seconds 480]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Read by cuBLAS when it starts; deterministic algorithms want it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gpu import encoder_checks, environment, lm_checks, speed
from gpu.record import Case, Record
from transformers.utils import logging

CaseFunction = Callable[[Case, torch.device], None]


def cases() -> list[tuple[str, str, CaseFunction, float]]:
    """Return (part, case, function, seconds that it takes at most on one H100), in the order of running."""
    return [
        ("environment", "environment", environment.environment, 10),
        ("attention", "attention", lm_checks.attention, 15),
        ("finetuner", "reset", lm_checks.finetuner_reset, 10),
        ("finetuner", "memory", lm_checks.finetuner_memory, 10),
        ("finetuner", "devices", lm_checks.finetuner_devices, 20),
        ("finetuner", "graphs", lm_checks.finetuner_graphs, 15),
        ("finetuner", "deterministic", lm_checks.finetuner_deterministic, 10),
        ("encoder", "embeddings", encoder_checks.encoder_embeddings, 15),
        ("encoder", "gradient", encoder_checks.encoder_gradient, 10),
        ("encoder", "resume", encoder_checks.encoder_resume, 10),
        ("scores", "scores", encoder_checks.scores, 10),
        *(
            ("gradients", method, partial(encoder_checks.gradient_method, method=method), 15)
            for method in encoder_checks.GRADIENT_METHODS
        ),
        ("nccl", "group", encoder_checks.process_group, 10),
        *(("subset", way, partial(speed.subset, way=way), 25) for way in speed.SUBSET_WAYS),
        *(("step", way, partial(speed.encoder_step, way=way), 20) for way in speed.STEP_WAYS),
        ("step", "parts", speed.encoder_step_parts, 25),
        ("embedding", "embedding", speed.embedding, 30),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the cases asked for; return the exit code."""
    parts = list(dict.fromkeys(part for part, *_ in cases()))
    names = partial(_names, [*parts, *(f"{part} {name}" for part, name, *_ in cases())])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all that is printed, and tracebacks")
    parser.add_argument(
        "--only",
        type=names,
        default=parts,
        help=f"parts to run, of {','.join(parts)}, or single cases, e.g. 'step all'",
    )
    parser.add_argument("--skip", type=names, default=[], help="parts to leave out")
    parser.add_argument("--seconds", type=float, default=480.0, help="what doesn't fit into them is skipped")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: a GPU if there is one")
    parser.add_argument("--resume", action="store_true", help="go on with the run that stands in --out")
    given = parser.parse_args(arguments)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    logging.disable_progress_bar()
    record = Record(given.out, given.seconds, given.resume)
    for part, name, function, seconds in cases():
        if not {part, f"{part} {name}"} & set(given.only) or {part, f"{part} {name}"} & set(given.skip):
            continue
        record.run(name if name == part else f"{part} {name}", partial(function, device=device), seconds)
        _free(device)
        if device.type == "cuda" and given.out and _is_lost():
            _start_again()
    counts = record.counts()
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIPPED']} skipped, on {device.type}")
    return int(counts["FAIL"] > 0)


def _names(parts: list[str], text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in parts]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(parts)}")
    return names


def _free(device: torch.device) -> None:
    """Give back what a case left, so that the next one finds the GPU as a fresh process would."""
    torch._dynamo.reset()
    if device.type == "cuda":
        import gc

        gc.collect()
        torch.cuda.empty_cache()


def _is_lost() -> bool:
    """Whether the GPU no longer answers this process, as after an illegal access."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _start_again() -> None:
    """Go on in a fresh process, which alone can use the GPU again."""
    print("the GPU no longer answers this process: a fresh one goes on", flush=True)
    given = [word for word in sys.argv[1:] if word != "--resume"]
    os.execv(sys.executable, [sys.executable, __file__, *given, "--resume"])


if __name__ == "__main__":
    sys.exit(main())
