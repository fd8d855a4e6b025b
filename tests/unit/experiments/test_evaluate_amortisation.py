"""Where the cost lines of an encoder and its rivals meet, from the files that jobs leave."""

import json

import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.core.timing import Seconds, record_of
from workflow_scripts.experiments.evaluate_amortisation import evaluate_amortisation


def test_the_table_holds_both_lines_and_where_they_meet(tmp_path):
    jobs = tmp_path / "benchmarks" / "train_encoder"
    jobs.mkdir(parents=True)
    (jobs / "study.tsv").write_text("s\th:m:s\n90\t0:01:30\n")
    write_table(tmp_path / "pool.parquet", pa.table({"example_id": range(100)}))
    scores = []
    for method, seconds in {"airrep": 1, "slow": 100, "fast": 0.5}.items():
        scores.append(tmp_path / "scores" / method / "heldout.parquet")
        cost = {
            "scoring_seconds": f"{seconds / 4}",
            "embedding_seconds": f"{3 * seconds / 4}",
            "start_up_seconds": "50",
        }
        write_table(scores[-1], pa.table({"rank": [1]}), **cost)

    def rows_by_rival():
        evaluate_amortisation(
            scores,
            tmp_path / "pool.parquet",
            tmp_path / "table.parquet",
            evaluation="heldout",
            trained=["airrep"],
            benchmarks=str(tmp_path / "benchmarks"),
            fixed={"airrep": ["train_encoder/*.tsv"], "slow": [], "fast": []},
        )
        return {row["rival"]: row for row in read_table(tmp_path / "table.parquet").to_pylist()}

    rows = rows_by_rival()
    assert rows["slow"]["crossover_examples"] == pytest.approx(90 / (1 - 0.01))
    assert rows["slow"]["seconds_per_example"] == pytest.approx(0.01)
    assert rows["fast"]["crossover_examples"] is None
    assert rows["slow"]["jobs_with_start_up"] == 1
    entries = {**Seconds(20, 20).entries("start_up"), **Seconds(70, 70).entries("work")}
    record_of(jobs / "study.tsv").write_text(json.dumps(entries))
    rows = rows_by_rival()
    assert rows["slow"]["fixed_seconds"] == 70
    assert rows["slow"]["crossover_examples"] == pytest.approx(70 / (1 - 0.01))
    assert rows["slow"]["jobs_with_start_up"] == 0
    write_table(scores[0], pa.table({"rank": [1]}), scoring_seconds="1")
    with pytest.raises(StudyError, match="doesn't say how long its embeddings"):
        rows_by_rival()
