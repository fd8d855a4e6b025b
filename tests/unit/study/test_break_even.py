"""Where two cost lines meet, by hand."""

import math

import pyarrow as pa
import pytest

from workflow_scripts.core.benchmark_files import benchmark_seconds
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.evaluate_amortisation import evaluate_amortisation
from workflow_scripts.study.break_even import Cost, crossover


@pytest.mark.parametrize(
    ("ours", "theirs", "examples"),
    [
        (Cost(1000, 0.01), Cost(100, 0.1), 10_000),
        (Cost(100, 0.1), Cost(1000, 0.1), 0),
        (Cost(50, 0.1), Cost(100, 0.2), 0),
        (Cost(1000, 0.1), Cost(0, 0.1), math.inf),
        (Cost(1000, 0.2), Cost(0, 0.1), math.inf),
    ],
)
def test_crossover_of_hand(ours, theirs, examples):
    assert crossover(ours, theirs) == pytest.approx(examples)


def test_the_papers_break_even():
    """Label making and training 200 GPU hours, 2,500 examples/s against 30: the order that the paper quotes."""
    found = crossover(Cost(5 * 3600, 1 / 2500), Cost(0, 1 / 30))
    assert 400_000 < found < 600_000


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


def test_the_table_holds_both_lines_and_where_they_meet(tmp_path):
    benchmark(tmp_path / "benchmarks" / "train_encoder" / "study.tsv", 90)
    write_table(tmp_path / "pool.parquet", pa.table({"example_id": range(100)}))
    scores = []
    for method, seconds in {"airrep": 1, "slow": 100, "fast": 0.5}.items():
        scores.append(tmp_path / "scores" / method / "heldout.parquet")
        cost = {"seconds": f"{seconds}", "embedding_seconds": "0"}
        write_table(scores[-1], pa.table({"rank": [1]}), **cost)
    evaluate_amortisation(
        scores,
        tmp_path / "pool.parquet",
        tmp_path / "table.parquet",
        evaluation="heldout",
        trained=["airrep"],
        benchmarks=str(tmp_path / "benchmarks"),
        fixed={"airrep": ["train_encoder/*.tsv"], "slow": [], "fast": []},
    )
    rows = {row["rival"]: row for row in read_table(tmp_path / "table.parquet").to_pylist()}
    assert rows["slow"]["crossover_examples"] == pytest.approx(90 / (1 - 0.01))
    assert rows["slow"]["seconds_per_example"] == pytest.approx(0.01)
    assert rows["fast"]["crossover_examples"] is None
