"""How long to warm the LM up for gradient methods: LDS on the folds held back from the encoder, not on any test.

Reads the targets of a finished study. The examples of the folds that evaluate are left out of the warm-up.
Run: python benchmarks/warmup.py [--config config.yaml] [--methods tracin logra_16 dsdm] [--examples 160 320 1000 3000]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import yaml
from harness import report

from workflow_scripts.evaluation.lds import linear_datamodeling_score
from workflow_scripts.language_model.engine import native_tuner
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.methods.embedder import LanguageModelReader, WarmupExamples
from workflow_scripts.methods.loading import load_module
from workflow_scripts.methods.warmup import warmup_sample
from workflow_scripts.study.config import load_study
from workflow_scripts.study.methods import METHODS
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.sections import Finetuning
from workflow_scripts.study.specs import StageSpecs
from workflow_scripts.targets.tables import FoldTargets, read_folds


def evaluate(
    name: str,
    reader: LanguageModelReader,
    warmup: WarmupExamples,
    folds: list[FoldTargets],
    examples: dict[int, TokenizedExample],
) -> float:
    """Return a method's mean LDS over `folds`, with the LM of `reader`."""
    own = METHODS[name].own
    module = load_module(own.module)
    fitted = module.fit(reader, warmup, **own.settings)
    embed = {role: module.open_embedder(reader, fitted, role, **own.settings).embed for role in (False, True)}
    found = []
    for fold in folds:
        tests = embed[True]([examples[int(i)] for i in fold.tests])
        distinct, members = np.unique(fold.members, return_inverse=True)
        scores = tests @ embed[False]([examples[i] for i in distinct]).T
        groups = scores[:, members.reshape(fold.members.shape)].mean(axis=2)
        found.append(linear_datamodeling_score(groups, -fold.labels.T))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="a study whose targets are there")
    parser.add_argument("--methods", nargs="+", default=["tracin", "logra_16", "dsdm"], help="of the warmed-up LM")
    parser.add_argument("--examples", nargs="+", type=int, default=[160, 320, 1000, 3000], help="of one epoch")
    parser.add_argument("--folds", type=int, default=2, help="how many of the held-back folds evaluate")
    options = parser.parse_args()
    study = load_study(yaml.safe_load(options.config.read_text()), str(options.config))
    plan, results = StudyPlan(study), Path("results") / study.run
    folds = read_folds(results / "subsets/train.parquet", results / "targets/train.parquet")[-options.folds :]
    examples = read_examples(results / "tokens" / f"{study.targets.corpus}.parquet")
    held_back = {int(i) for fold in folds for i in [*fold.tests, *fold.members.reshape(-1)]}
    others = {i: example for i, example in examples.items() if i not in held_back}
    finetuning = Finetuning(**{**StageSpecs(plan).spec("warmup_lm", {})["finetuning"], "epochs": 1})

    rows = []
    for number in options.examples:
        tuner = native_tuner(load_language_model(results / "language_model"), finetuning)
        sample = warmup_sample(others, number, study.seed)
        tuner.finetune(sample, study.seed, "warmup")
        reader = LanguageModelReader(tuner.lm, finetuning.step_tokens, finetuning.precision)
        warmup = WarmupExamples(sample, study.warmup.measured_examples, finetuning, study.seed)
        scores = {name: evaluate(name, reader, warmup, folds, examples) for name in options.methods}
        rows.append({"examples": len(sample), **scores})
    report("warmup", rows, study=study.run, folds=len(folds))


if __name__ == "__main__":
    main()
