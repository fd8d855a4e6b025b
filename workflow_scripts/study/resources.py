"""The resources of a study's jobs: memory, GPUs, time.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import json
import math
from functools import cached_property

from workflow_scripts.study.costs import Concurrency, Pilot, estimate, parameters_in_name, sharing_processes
from workflow_scripts.study.job_groups import SCORING_STAGES
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.sources import FILE_NAME
from workflow_scripts.study.specs import COMPUTED_ON_GPUS, StageSpecs
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

# A job's time limit over its expected time, and the shortest limit worth asking for.
RUNTIME_MARGIN = 2.0
SHORTEST_RUNTIME_MINUTES = 15
# Of scoring in a group, where the limits of all its jobs add up.
SHORTEST_SCORING_MINUTES = 5
# They get no GPU by default, because it rarely pays off; on one machine `--set-resources score_part:gpu=1` gives one.
GPU_ON_REQUEST = ("score_pairs", "score_part", "choose_pooling", "predict_targets")


class JobResources:
    """The resources that the jobs of a study ask for.

    Parameters
    ----------
    plan: what the study runs.
    """

    def __init__(self, plan: StudyPlan):
        self.plan, self.study = plan, plan.study

    def memory_mb(self, stage: str) -> int:
        """Return the memory in MiB that a job of `stage` asks for, estimated from the size in the LM's name."""
        names = [self.plan.language_model(lm).model for lm in self.plan.language_models]
        parameters = max(parameters_in_name(name) or 5e6 for name in names)
        # Weights, their copy for the reset, gradients and AdamW's two moments, 4 bytes each; and each process of
        # DeepSpeed loads all weights before it keeps its part of them.
        lm = (20 + 4 * (self.plan.finetuning_processes() - 1)) * parameters / 2**20
        encoder = self.plan.encoder_processes()
        return {
            "run_pilot": 4000 + int(lm),
            "finetune_shard": 4000 + int(lm),
            "warmup_lm": 4000 + int(lm),
            "fit_method": 8000 + int(lm),
            "embed_by_method": 8000 + int(lm),
            "finetune_runs": 4000 + int(lm),
            "measure_losses": 4000 + int(lm),
            "train_encoder": 16000 * encoder,
            "embed_corpus": 4000 * encoder,
            "collect_targets": 8000,
            # Embeddings of a whole corpus, e.g. 100,000 of 16,384 numbers.
            "choose_pooling": 8000,
            "predict_targets": 8000,
        }.get(stage, 4000)

    def gpus(self, stage: str) -> int:
        """Return how many GPUs a job of `stage` asks for: one for each process, 0 for stages that need none."""
        return self.plan.processes(stage) if stage in COMPUTED_ON_GPUS and stage not in GPU_ON_REQUEST else 0

    def runtime_minutes(self, stage: str, *, grouped: bool = False) -> int:
        """Return the minutes that a job of `stage` asks for: twice what the pilot expects of the longest one.

        Without a pilot, or where the pilot only assumed, a limit that suits the paper's study, or a short job that is
        sent in a group (`job_groups`).
        """
        is_short = grouped and stage in SCORING_STAGES
        shortest = SHORTEST_SCORING_MINUTES if is_short else SHORTEST_RUNTIME_MINUTES
        if stage in self._expected_seconds:
            minutes = math.ceil(RUNTIME_MARGIN * self._expected_seconds[stage] / 60)
            return max(minutes, shortest)
        if grouped:
            return shortest
        return {
            "finetune_shard": 120,
            "finetune_runs": 120,
            "train_encoder": 720,
            "embed_corpus": 120,
            "warmup_lm": 720,
            "fit_method": 720,
            "embed_by_method": 720,
            "run_pilot": 30,
        }.get(stage, 60)

    @cached_property
    def pilot(self) -> Pilot | None:
        """The pilot of this study; None if there was none with the same settings and version."""
        try:
            written = json.loads((self.plan.results / "pilot.json").read_text(encoding="utf-8"))
            # As read back from a file: JSON has no tuples.
            settings = json.loads(json.dumps(StageSpecs(self.plan).pilot_settings()))
            if (written["version"], written["settings"]) != (STAGE_VERSIONS["run_pilot"], settings):
                return None
            return Pilot.from_json(written["found"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @cached_property
    def _expected_seconds(self) -> dict[str, float]:
        if self.pilot is None:
            return {}
        # How many jobs run side by side doesn't change how long one takes.
        costs = estimate(self.plan, self.pilot, Concurrency(cores=1))
        # Nor are several processes sure to be as many times as fast.
        return {
            one.stage: one.longest_seconds * sharing_processes(one.stage, self.plan, self.pilot)
            for one in costs
            if one.measured
        }

    def corpora_at_hand(self) -> list[str]:
        """Return the names of the corpora that a pilot reads: local ones, and hub ones that were already prepared."""
        return [name for name in self.study.corpora if self._is_at_hand(name)]

    def _is_at_hand(self, corpus: str) -> bool:
        if (self.plan.results / "corpora" / f"{corpus}.parquet").exists():
            return True
        source = self.study.corpora[corpus].source
        # A file that is missing counts too: reading it says so.
        is_local = source.startswith("builtin:") or FILE_NAME.search(source) or self.plan.source_files(corpus)
        return bool(is_local) and all(self._is_at_hand(other) for other in self.study.corpora[corpus].without)
