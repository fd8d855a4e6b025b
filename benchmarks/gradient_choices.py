"""What is open in EK-FAC's sketches and in the head's gradient: LDS on folds held back, and the error of sketches.

Reads the targets of a finished study, as benchmarks/warmup.py does; no test of an evaluation is read.
Run: python benchmarks/gradient_choices.py [--config config.yaml] [--folds 4] [--warmup 80] [--measured 80]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from harness import report

from workflow_scripts.evaluation.lds import linear_datamodeling_score
from workflow_scripts.language_model.engine import native_tuner
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.methods import ekfac, forward
from workflow_scripts.methods.embedder import LanguageModelReader, WarmupExamples, unit_length
from workflow_scripts.methods.projected_gradients import inverse_root
from workflow_scripts.methods.warmup import warmup_sample
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.sections import Finetuning
from workflow_scripts.study.specs import StageSpecs
from workflow_scripts.targets.tables import FoldTargets, read_folds

DIMENSIONS = (16384, 8192, 4096, 2048)
RANKS = ((16, 16), (64, 16), (32, 32), (16, 128), (32, 128), (64, 128), (128, 128), (256, 128))
Embed = Callable[[Sequence[object]], np.ndarray]


def fold_scores(embed: Embed, folds: list[FoldTargets], examples: dict[int, object]) -> dict[str, float]:
    """Return the mean LDS over folds with mean pooling, by inner product and by cosine, and milliseconds an example."""
    found, seconds, number = [], 0.0, 0
    for fold in folds:
        distinct, members = np.unique(fold.members, return_inverse=True)
        start = time.process_time()
        tests, train = (embed([examples[int(i)] for i in ids]) for ids in (fold.tests, distinct))
        seconds, number = seconds + time.process_time() - start, number + len(tests) + len(train)
        scores = [tests @ train.T, unit_length(tests) @ unit_length(train).T]
        groups = [one[:, members.reshape(fold.members.shape)].mean(axis=2) for one in scores]
        found.append([linear_datamodeling_score(one, -fold.labels.T) for one in groups])
    inner, cosine = np.mean(found, axis=0)
    return {"inner product": inner, "cosine": cosine, "cpu ms": 1e3 * seconds / number}


def forward_rows(readers: dict[str, LanguageModelReader], warmup: WarmupExamples, evaluate: Callable) -> list[dict]:
    """Return rows of the head's gradient: by the numbers kept, by the preconditioner, by the LM."""
    rows = []
    for lm, preconditioner, (rank, hidden) in [
        *(("warm", "corrected", ranks) for ranks in RANKS),
        *(("warm", kind, ranks) for kind in ("none", "kfac") for ranks in ((16, 128), (64, 128))),
        ("base", "corrected", (64, 128)),
    ]:
        reader = readers[lm]
        tensors = forward.fit(reader, warmup, rank=rank, hidden_rank=hidden)
        if preconditioner == "none":
            tensors[forward.SCALE] = torch.ones_like(tensors[forward.SCALE])
        elif preconditioner == "kfac":
            read = list(forward.response_tokens(reader, warmup.examples[: warmup.measured], tensors))
            sides = [torch.cat([getattr(one, side) for one in read]).square().mean(0) for side in ("errors", "states")]
            tensors[forward.SCALE] = inverse_root(torch.outer(*sides))
        raw = _without_unit_length(reader, tensors)
        name = f"forward {tensors[forward.SCALE].shape[0]} x {tensors[forward.SCALE].shape[1]}"
        rows.append({"method": name, "lm": lm, "preconditioner": preconditioner, **evaluate(raw)})
    return rows


def _without_unit_length(reader: LanguageModelReader, tensors: dict[str, torch.Tensor]) -> Embed:
    def embed(examples: Sequence) -> np.ndarray:
        vectors = np.empty((len(examples), tensors[forward.SCALE].numel()), np.float32)
        for tokens in forward.response_tokens(reader, examples, tensors):
            vectors[tokens.examples] = (tokens.gradients() * tensors[forward.SCALE]).flatten(1).numpy()
        return vectors

    return embed


def sketch_rows(vectors: np.ndarray, seed: int) -> list[dict]:
    """Return the error of sketches' inner products, over the lengths of both vectors, and the time, by kind of sketch.

    Parameters
    ----------
    vectors: float32 [examples, numbers], whitened gradients.
    seed: seed of the sketches.
    """
    exact, lengths = vectors @ vectors.T, np.linalg.norm(vectors, axis=1)
    apart = ~np.eye(len(vectors), dtype=bool)
    rows = []
    for dimension in DIMENSIONS:
        for name, way in _sketches(torch.from_numpy(vectors), dimension, seed).items():
            way()
            start = time.process_time()
            found = way().numpy()
            seconds = time.process_time() - start
            error = ((found @ found.T - exact) / np.outer(lengths, lengths))[apart]
            values = {"error": float(np.sqrt(np.mean(error**2))), "cpu ms": 1e3 * seconds / len(vectors)}
            rows.append({"sketch": name, "dimension": dimension, **values})
    return rows


def _sketches(vectors: torch.Tensor, dimension: int, seed: int) -> dict[str, Callable[[], torch.Tensor]]:
    size, rng = vectors.shape[1], torch.Generator().manual_seed(seed)
    ours, signs = ekfac.sketch_buckets(size, dimension, seed, "")
    other, other_signs = ekfac.sketch_buckets(size, dimension, seed + 1, "")
    hashed = torch.randint(0, dimension, (size,), generator=rng)
    kept = torch.randperm(size // 2, generator=rng)[: dimension // 2]

    def added(buckets: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return vectors.new_zeros(len(vectors), dimension).index_add_(1, buckets, vectors * by)

    def by_fourier() -> torch.Tensor:
        turned = torch.fft.rfft(vectors * signs, norm="ortho").index_select(1, kept)
        return torch.view_as_real(turned).flatten(1) * (2 * size / dimension) ** 0.5

    def dense() -> torch.Tensor:
        # In pieces: the whole matrix has size x dimension numbers.
        piece_rng, total = torch.Generator().manual_seed(seed), vectors.new_zeros(len(vectors), dimension)
        for piece in vectors.split(1024, dim=1):
            total += piece @ torch.randn(piece.shape[1], dimension, generator=piece_rng)
        return total / dimension**0.5

    ways = {
        "evenly filled buckets": lambda: added(ours, signs),
        "hashed buckets": lambda: added(hashed, signs),
        "two evenly filled buckets a number": lambda: (added(ours, signs) + added(other, other_signs)) / 2**0.5,
        "random signs, Fourier transform, sample": by_fourier,
    }
    return {**ways, "dense Gaussian matrix": dense} if dimension <= 4096 else ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="a study whose targets are there")
    parser.add_argument("--folds", type=int, default=4, help="how many of the held-back folds evaluate")
    parser.add_argument("--warmup", type=int, default=80, help="examples of the LM's warm-up")
    parser.add_argument("--measured", type=int, default=80, help="examples that second moments are measured on")
    options = parser.parse_args()
    study = load_study(yaml.safe_load(options.config.read_text()), str(options.config))
    results = Path("results") / study.run
    folds = read_folds(results / "subsets/train.parquet", results / "targets/train.parquet")[-options.folds :]
    examples = read_examples(results / "tokens" / f"{study.targets.corpus}.parquet")
    held_back = {int(i) for fold in folds for i in [*fold.tests, *fold.members.reshape(-1)]}
    others = {i: example for i, example in examples.items() if i not in held_back}
    values = StageSpecs(StudyPlan(study)).spec("warmup_lm", {})["finetuning"]
    finetuning = Finetuning(**{**values, "epochs": 1})
    sample = warmup_sample(others, max(options.warmup, options.measured), study.seed)
    tuner = native_tuner(load_language_model(results / "language_model"), finetuning)
    tuner.finetune(sample[: options.warmup], study.seed, "warmup")
    lms = {"base": load_language_model(results / "language_model"), "warm": tuner.lm}
    readers = {name: LanguageModelReader(lm, finetuning.step_tokens, finetuning.precision) for name, lm in lms.items()}
    warmup = WarmupExamples(sample, options.measured, finetuning, study.seed)

    def evaluate(embed: Embed) -> dict[str, float]:
        return fold_scores(embed, folds, examples)

    fitted = {name: ekfac.fit(reader, warmup) for name, reader in readers.items()}
    rows = [
        {"method": f"ekfac_{size}" if size else "ekfac", "lm": lm, "preconditioner": "corrected", **evaluate(embed)}
        for lm, size in [("warm", None), *(("warm", size) for size in DIMENSIONS), ("base", None)]
        for embed in [ekfac.open_embedder(readers[lm], fitted[lm], False, dimension=size).embed]
    ]
    rows += forward_rows(readers, warmup, evaluate)
    report("gradient_choices", rows, study=study.run, folds=len(folds), examples=len(sample))
    chosen = [examples[i] for i in sorted(held_back)[:100]]
    whole = ekfac.open_embedder(readers["warm"], fitted["warm"], False).embed(chosen)
    report("sketches", sketch_rows(whole, study.seed), study=study.run, numbers=whole.shape[1])


if __name__ == "__main__":
    main()
