"""Seconds of jobs from Snakemake's benchmark files."""

import pytest

from workflow_scripts.core.benchmark_files import benchmark_seconds
from workflow_scripts.core.errors import StudyError


def benchmark(path, *seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("s\th:m:s\n" + "".join(f"{value}\t0:00:01\n" for value in seconds))


def test_seconds_of_jobs_add_up(tmp_path):
    benchmark(tmp_path / "finetune_shard" / "train" / "a.tsv", 1.5)
    benchmark(tmp_path / "finetune_shard" / "train" / "b.tsv", 2.0, 0.5)
    benchmark(tmp_path / "train_encoder" / "study.tsv", 10)
    patterns = ["finetune_shard/train/*.tsv", "train_encoder/study.tsv"]
    assert benchmark_seconds(tmp_path, patterns) == 14.0
    with pytest.raises(StudyError, match="no such benchmark file"):
        benchmark_seconds(tmp_path, ["warmup_lm/*.tsv"])
    benchmark(tmp_path / "fit_method" / "less.tsv", "-")
    with pytest.raises(StudyError, match=r"fit_method/less\.tsv: .* without seconds"):
        benchmark_seconds(tmp_path, ["fit_method/less.tsv"])
