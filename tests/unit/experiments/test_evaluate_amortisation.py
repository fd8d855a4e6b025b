"""Where the cost lines of an encoder and its rivals meet, from the files that jobs leave."""

import pyarrow as pa
import pytest

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.evaluate_amortisation import evaluate_amortisation


def test_the_table_holds_both_lines_and_where_they_meet(tmp_path):
    jobs = tmp_path / "benchmarks" / "train_encoder"
    jobs.mkdir(parents=True)
    (jobs / "study.tsv").write_text("s\th:m:s\n90\t0:01:30\n")
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
