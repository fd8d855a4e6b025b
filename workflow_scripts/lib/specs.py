"""From a study to its jobs: which there are, what each computes with, and what it asks of the machine.

Read while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from workflow_scripts.lib.config import Evaluation, Study
from workflow_scripts.lib.sources import local_files
from workflow_scripts.methods import METHODS

# Raised by hand whenever a stage's code starts to mean something else, so that its results are made anew.
# tests/unit/test_specs.py pins each stage's source to its version.
STAGE_VERSIONS = {
    "resolve_config": 1,
    "prepare_corpus": 1,
    "pretrain_base_lm": 1,
    "tokenize_corpus": 1,
    "sample_subsets": 1,
    "finetune_shard": 1,
    "collect_targets": 1,
    "init_encoder": 1,
    "take_encoder": 1,
    "train_encoder": 1,
    "embed_corpus": 1,
    "score_pairs": 1,
    "score_part": 1,
    "merge_scores": 1,
    "check_leaks": 1,
    "evaluate_lds": 1,
    "package_encoder": 1,
    "push_encoder": 1,
    "write_report": 1,
}
TRAIN_POOL = "train"


class StudyPlan:
    """The jobs of a study, their specs and their sizes."""

    def __init__(self, study: Study):
        self.study = study
        # Evaluation sets with a LDS, and the pools that LMs are fine-tuned on.
        self.judged = [name for name, evaluation in study.evaluations.items() if evaluation.subsets]
        self.pools = [TRAIN_POOL, *self.judged] if study.targets else self.judged
        self.has_builtin_lm = study.fine_tunes and study.language_model.model == "builtin:tiny"

    def spec(self, stage: str, wildcards: Mapping[str, str]) -> dict[str, Any]:
        """Return the values that `stage` is called with, and its version, sorted by name.

        They are all that decides its result besides its inputs, so a changed value reruns this stage alone
        and what stands below it.
        """
        values = getattr(self, f"_{stage}")(**wildcards)
        return dict(sorted({"version": STAGE_VERSIONS[stage], **values}.items()))

    def corpora_of(self, pool: str) -> tuple[str, str]:
        """Return the names of the corpora that a pool's subsets and its judged examples are drawn from."""
        if pool == TRAIN_POOL:
            return self.study.targets.corpus, self.study.targets.corpus
        evaluation = self.study.evaluations[pool]
        return evaluation.train, evaluation.test

    def tokenized_corpora(self) -> list[str]:
        """Return the corpora that the LM reads."""
        return sorted({corpus for pool in self.pools for corpus in self.corpora_of(pool)})

    def source_files(self, corpus: str) -> list[str]:
        """Return the local files of a corpus: their age decides whether it is read again."""
        source = self.study.corpora[corpus].source
        return [] if source.startswith("builtin:") else [str(path) for path in local_files(source)]

    def encoder_files(self) -> list[str]:
        """Return the files of an encoder that lies in a local folder: their age decides whether it is taken again."""
        found = glob.glob(os.path.join(glob.escape(self.study.encoder.model), "**"), recursive=True)
        return sorted(path for path in found if os.path.isfile(path))

    def runs(self, pool: str) -> tuple[int, int, int]:
        """Return (folds, subsets per fold, seeds) of a pool: its fine-tuning runs."""
        if pool == TRAIN_POOL:
            targets = self.study.targets
            return targets.folds, targets.subsets_per_fold, targets.seeds
        evaluation = self.study.evaluations[pool]
        return 1, evaluation.subsets, evaluation.seeds

    def judged_examples(self, pool: str) -> int | None:
        """Return how many examples each subset of a pool is judged on; None for the whole test corpus."""
        if pool == TRAIN_POOL:
            return self.study.targets.evaluated_examples
        return self.study.evaluations[pool].tests

    def blocks(self, pool: str) -> list[str]:
        """Return the names of a pool's fine-tuning jobs: blocks of folds x subsets.

        A block's borders don't depend on the number of folds or subsets, so more of them add blocks.
        """
        folds, subsets, _ = self.runs(pool)
        folds_per_job, subsets_per_job = self._job_size(pool)
        return [
            f"f{fold_block:04d}_s{subset_block:04d}"
            for fold_block in range(math.ceil(folds / folds_per_job))
            for subset_block in range(math.ceil(subsets / subsets_per_job))
        ]

    def methods_with(self, evaluation: str) -> list[str]:
        """Return the methods that score an evaluation set."""
        return list(self.study.scoring.methods)

    def encoder_of(self, method: str) -> str | None:
        """Return which encoder's embeddings a method reads, if any."""
        return METHODS[method].encoder

    def parts_of(self, corpus: str) -> list[str]:
        """Return the parts that a corpus is embedded and scored in, as they stand in file names; [""] for one."""
        trained_on = {evaluation.train for evaluation in self.study.evaluations.values()}
        parts = self.study.scoring.parts if corpus in trained_on else 1
        return [f".{part}of{parts}" for part in range(1, parts + 1)] if parts > 1 else [""]

    def methods_scored(self, *, in_parts: bool) -> list[str]:
        """Return the methods whose scores are put together from parts of the training corpus, or the others."""
        split = self.study.scoring.parts > 1
        return [name for name in self.study.scoring.methods if (split and bool(METHODS[name].encoder)) == in_parts]

    def memory_mb(self, stage: str) -> int:
        """Return the memory in MiB that a job of `stage` asks for, from the size in the LM's name."""
        named = re.search(r"(\d+(?:\.\d+)?)[bB]\b", self.study.language_model.model)
        parameters = float(named.group(1)) * 1e9 if named else 5e6
        # Weights, their copy for the reset, gradients and AdamW's two moments, 4 bytes each; and each process of
        # DeepSpeed loads all weights before it keeps its part of them.
        lm = (20 + 4 * (self.finetuning_processes() - 1)) * parameters / 2**20
        encoder = self.encoder_processes()
        return {
            "finetune_shard": 4000 + int(lm),
            "train_encoder": 16000 * encoder,
            "embed_corpus": 4000 * encoder,
            "collect_targets": 8000,
        }.get(stage, 4000)

    def encoder_processes(self) -> int:
        """Return how many processes train the encoder or embed: as many GPUs does a job ask for."""
        return self.study.encoder_training.processes

    def finetuning_processes(self) -> int:
        """Return how many processes fine-tune one LM: as many GPUs does a job ask for."""
        return self.study.finetuning.processes

    def runtime_minutes(self, stage: str) -> int:
        """Return the minutes that a job of `stage` asks for."""
        return {"finetune_shard": 120, "train_encoder": 720, "embed_corpus": 120}.get(stage, 60)

    def _job_size(self, pool: str) -> tuple[int, int]:
        if pool == TRAIN_POOL:
            return self.study.targets.folds_per_job, self.study.targets.subsets_per_job
        return 1, self.study.evaluations[pool].subsets_per_job

    def _sampling(self, pool: str) -> dict[str, Any]:
        sizes: Any = self.study.targets if pool == TRAIN_POOL else self.study.evaluations[pool]
        one_evaluation = isinstance(sizes, Evaluation)
        return {
            "seed": self.study.seed,
            "pool": pool,
            "pool_examples": None if one_evaluation else sizes.pool_examples,
            "validation_examples": sizes.tests if one_evaluation else sizes.validation_examples,
            "evaluated_examples": sizes.tests if one_evaluation else sizes.evaluated_examples,
            "subset_examples": sizes.subset_examples,
        }

    def _lm_source(self) -> dict[str, Any]:
        lm = self.study.language_model
        return {"model": lm.model, "revision": lm.revision, "trust_remote_code": lm.trust_remote_code}

    def _resolve_config(self) -> dict[str, Any]:
        return {"study": self.study.model_dump(mode="json")}

    def _prepare_corpus(self, corpus: str) -> dict[str, Any]:
        return self.study.corpora[corpus].model_dump(mode="json", exclude={"without"})

    def _pretrain_base_lm(self) -> dict[str, Any]:
        values = self.study.language_model.pretraining.model_dump(exclude={"corpus"})
        return {**values, "max_tokens": self.study.language_model.max_tokens, "seed": self.study.seed}

    def _tokenize_corpus(self, corpus: str) -> dict[str, Any]:
        lm = self.study.language_model
        return {**self._lm_source(), "max_tokens": lm.max_tokens, "chat_template": lm.chat_template}

    def _sample_subsets(self, pool: str) -> dict[str, Any]:
        folds, subsets, _ = self.runs(pool)
        return {"sampling": self._sampling(pool), "folds": folds, "subsets_per_fold": subsets}

    def _finetune_shard(self, pool: str, block: str) -> dict[str, Any]:
        folds, subsets, seeds = self.runs(pool)
        folds_per_job, subsets_per_job = self._job_size(pool)
        fold_block, subset_block = (int(part[1:]) for part in block.split("_"))
        first_fold, first_subset = fold_block * folds_per_job, subset_block * subsets_per_job
        return {
            **self._lm_source(),
            "sampling": self._sampling(pool),
            "folds": [first_fold, min(first_fold + folds_per_job, folds)],
            "indexes": [first_subset, min(first_subset + subsets_per_job, subsets)],
            "seeds": seeds,
            "finetuning": self._finetuning(),
        }

    def _finetuning(self) -> dict[str, Any]:
        settings = self.study.finetuning
        of_deepspeed = {"engine", "zero_stage", "offload", "processes"}
        values = settings.model_dump(exclude={"max_diverged_share", *of_deepspeed})
        if settings.engine == "native":
            return values
        return {**values, "zero": {"stage": settings.zero_stage, "offload": settings.offload}}

    def _collect_targets(self, pool: str) -> dict[str, Any]:
        folds, subsets, seeds = self.runs(pool)
        return {
            "folds": folds,
            "subsets_per_fold": subsets,
            "seeds": seeds,
            "max_diverged_share": self.study.finetuning.max_diverged_share,
        }

    def _init_encoder(self) -> dict[str, Any]:
        return {**self.study.encoder.model_dump(), "seed": self.study.seed}

    def _take_encoder(self) -> dict[str, Any]:
        return self.study.encoder.model_dump(include={"model", "revision", "trust_remote_code", "max_tokens"})

    def _train_encoder(self) -> dict[str, Any]:
        return {
            **self.study.encoder_training.model_dump(exclude={"processes"}),
            **self._encoder_text(),
            "seed": self.study.seed,
        }

    def _encoder_text(self) -> dict[str, Any]:
        return {"prompt_words": self.study.encoder.prompt_words, "max_tokens": self.study.encoder.max_tokens}

    def _embed_corpus(self, encoder: str, corpus: str, part: str) -> dict[str, Any]:
        return {
            **({"part": [int(number) for number in part.removeprefix(".").split("of")]} if part else {}),
            **self._encoder_text(),
            "embedding_precision": self.study.scoring.embedding_precision,
            "chunk_tokens": self.study.encoder_training.chunk_tokens,
            "precision": self.study.encoder_training.precision,
        }

    def _score_pairs(self, method: str, evaluation: str) -> dict[str, Any]:
        return {
            "method": method,
            "evaluation": evaluation,
            "seed": self.study.seed,
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _score_part(self, method: str, evaluation: str, part: str) -> dict[str, Any]:
        return {
            "method": method,
            "part": f"{evaluation} {part.removeprefix('.')}",
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _merge_scores(self, method: str, evaluation: str) -> dict[str, Any]:
        return {"method": method, "evaluation": evaluation, "top": self.study.scoring.top}

    def _check_leaks(self) -> dict[str, Any]:
        return {"near_duplicate": self.study.judging.near_duplicate}

    def _evaluate_lds(self) -> dict[str, Any]:
        return {
            "bootstrap": self.study.judging.bootstrap,
            "confidence": self.study.judging.confidence,
            "seed": self.study.seed,
        }

    def _package_encoder(self) -> dict[str, Any]:
        return {"layout": self.study.release.layout}

    def _push_encoder(self) -> dict[str, Any]:
        return {"hub": self.study.release.hub}

    def _write_report(self) -> dict[str, Any]:
        return {**self.study.report.model_dump(), "benchmarks": f"results/{self.study.run}/benchmarks"}
