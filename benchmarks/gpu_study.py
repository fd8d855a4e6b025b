"""A study on real models in about ten minutes of one GPU: which method foretells what fine-tuning does?

The workflow's stages are called as plain functions, one after the other, without Snakemake. What is finished is kept in
the results folder, and so are the runs of a stage that was stopped: the same command goes on. See docs/gpu.md.

Run: python benchmarks/gpu_study.py --language-model FOLDER --encoder FOLDER --corpus FILE --results FOLDER
     [--seconds 540] [--prepare] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gpu.study import EVALUATION, SEED, TINY, Sizes, Study, prepared_stages, stages
from transformers.utils import logging

from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.evaluation.evaluate_lds import evaluate_lds


class OutOfTime(BaseException):
    """The time asked for has ended; no stage may take it for an error of its own."""


def evaluate(study: Study) -> list[dict[str, Any]]:
    """Evaluate every method that has been scored so far; return the rows of the table, best first."""
    groups = sorted(study.at("groups").glob(f"*/{EVALUATION}.parquet"))
    path = study.table("evaluation", "lds")
    methods = {group.parent.name for group in groups}
    evaluate_lds(
        groups,
        [study.table(f"scores/{group.parent.name}", EVALUATION) for group in groups],
        [study.table("targets", EVALUATION)],
        path,
        study.table("evaluation", "differences"),
        bootstrap=study.sizes.bootstrap,
        confidence=0.95,
        seed=SEED,
        # The study keeps the seconds of each stage itself, so these are unknown here.
        benchmarks=str(study.results),
        warmup={method: ["not measured"] for method in methods},
        fitting=dict.fromkeys(methods, None),
    )
    return read_table(path).to_pylist()


def run(study: Study, seconds: float, prepare: bool = False) -> bool:
    """Run what is missing; return False if the time ended first. Seconds of each stage are kept beside its results.

    `prepare` runs only what no GPU makes faster.
    """
    _check_settings(study, prepare)
    times = study.at("seconds.json")
    taken = json.loads(times.read_text()) if times.exists() else {}
    before = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    name, started = "", time.time()
    try:
        for name, made, call in prepared_stages(study) if prepare else stages(study):
            if made.exists():
                continue
            made.parent.mkdir(parents=True, exist_ok=True)
            started = time.time()
            call()
            taken[name] = taken.get(name, 0.0) + time.time() - started
            times.write_text(json.dumps(taken, indent=1))
    except OutOfTime:
        taken[name] = taken.get(name, 0.0) + time.time() - started
        times.write_text(json.dumps(taken, indent=1))
        print(f"the time ended during `{name}`: the same command goes on from here", flush=True)
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return True


def _stop(*_: object) -> None:
    raise OutOfTime


def _check_settings(study: Study, prepare: bool) -> None:
    """Refuse a results folder of other models, another corpus or other settings."""
    settings = {
        "language_model": folder_hash(study.language_model),
        "encoder": folder_hash(study.encoder),
        "corpus": study.corpus.name,
        "sizes": vars(study.sizes),
        "finetuning": study.finetuning.spec(),
    }
    if prepare:
        # Another machine goes on, perhaps in another precision.
        del settings["finetuning"]
    path = study.at("settings.json")
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in known.keys() & settings.keys():
        if known[name] != settings[name]:
            raise SystemExit(
                f"{path} says {name}: {known[name]}, and this command {settings[name]}: name another --results folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | settings, indent=1))


def show(study: Study, rows: list[dict[str, Any]]) -> None:
    """Print the LDS table, and what each stage took."""
    first = rows[0]
    agreement = read_metadata(study.table("targets", EVALUATION))
    print(
        f"\n{first['n_subsets']} subsets, {first['n_tests']} tests, {agreement['runs']} runs of which "
        f"{agreement['diverged']} diverged. Ceiling {first['ceiling']:.3f}, agreement of seeds "
        f"{first['seed_agreement']:.3f}."
    )
    print(f"{'method':<18} {'pooling':<10} {'LDS':>6}  95 % interval")
    for row in rows:
        interval = f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
        print(f"{row['method']:<18} {row['pooling']:<10} {row['lds']:>6.3f}  {interval}")
    taken = json.loads(study.at("seconds.json").read_text())
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in taken.items() if value >= 1), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the study as far as its time allows; 0 if it is finished, 3 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language-model", type=Path, required=True, help="folder of the base LM")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a BERT-type sentence encoder")
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with inputs and targets")
    parser.add_argument("--results", type=Path, required=True, help="folder; what stands in it is not made again")
    parser.add_argument("--seconds", type=float, default=540.0, help="end in good order after so many")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of fine-tuning")
    parser.add_argument("--prepare", action="store_true", help="only what no GPU makes faster, before the GPU is had")
    parser.add_argument("--tiny", action="store_true", help="a size for trying every stage on a CPU")
    given = parser.parse_args(arguments)
    logging.disable_progress_bar()
    study = Study(
        given.language_model,
        given.encoder,
        given.corpus,
        given.results,
        TINY if given.tiny else Sizes(),
        given.learning_rate,
        "bfloat16" if torch.cuda.is_available() else "float32",
    )
    finished = run(study, given.seconds, given.prepare)
    if study.table("targets", EVALUATION).exists():
        show(study, evaluate(study))
    return 0 if finished else 3


if __name__ == "__main__":
    sys.exit(main())
