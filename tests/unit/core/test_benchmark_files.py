"""Work of jobs, from Snakemake's benchmark files and the records beside them."""

import json
import math

import pytest

from workflow_scripts.core.benchmark_files import JobsWork, read_record, recorded_work, work_of_jobs
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.timing import Seconds, record_of


def benchmark(path, *seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("s\tcpu_time\n" + "".join(f"{value}\t{value}\n" for value in seconds))


def record(path, start_up, work):
    record_of(path).write_text(json.dumps({**start_up.entries("start_up"), **work.entries("work")}))


def test_work_of_jobs_adds_up_and_leaves_start_up_out(tmp_path):
    shards, training = tmp_path / "finetune_shard" / "train", tmp_path / "train_encoder" / "study.tsv"
    benchmark(shards / "a.tsv", 1.5)
    benchmark(shards / "b.1of2.tsv", 2.0, 0.5)
    benchmark(training, 10)
    patterns = ["finetune_shard/train/*.tsv", "train_encoder/study.tsv"]
    assert work_of_jobs(tmp_path, patterns) == JobsWork(Seconds(14, 14), without_record=3)
    assert math.isnan(recorded_work(tmp_path, patterns).clock)
    record(training, Seconds(6, 5), Seconds(4, 7))
    assert read_record(training) == (Seconds(6, 5), Seconds(4, 7))
    assert work_of_jobs(tmp_path, patterns) == JobsWork(Seconds(8, 11), without_record=2)
    record(shards / "a.tsv", Seconds(1, 1), Seconds(0.5, 0.25))
    record(shards / "b.1of2.tsv", Seconds(1, 1), Seconds(1.5, 1.75))
    assert work_of_jobs(tmp_path, patterns) == JobsWork(Seconds(6, 9), without_record=0)
    assert recorded_work(tmp_path, patterns) == Seconds(6, 9)
    assert recorded_work(tmp_path, []) == Seconds()
    assert math.isnan(recorded_work(tmp_path, None).clock)
    assert math.isnan(recorded_work(tmp_path, ["warmup_lm/*.tsv"]).clock)


def test_a_job_whose_seconds_are_unknown_is_refused(tmp_path):
    with pytest.raises(StudyError, match="no such benchmark file"):
        work_of_jobs(tmp_path, ["warmup_lm/*.tsv"])
    benchmark(tmp_path / "fit_method" / "less.tsv", "-")
    with pytest.raises(StudyError, match=r"fit_method/less\.tsv: .* without seconds"):
        work_of_jobs(tmp_path, ["fit_method/less.tsv"])
