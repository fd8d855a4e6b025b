"""The smoke study end to end: every artifact, with the columns of docs/artifacts.md, and nothing to do twice."""

import json
import math
import re

import pyarrow.parquet as pq
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from workflow_scripts.core.benchmark_files import read_record
from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_metadata
from workflow_scripts.core.timing import Seconds, total

METHODS = ("airrep", "airrep_mean", "untrained", "tfidf", "bm25", "length", "random")
CONTRACT = {
    "corpora/*.parquet": "example_id int64, prompt string, response string, messages list<struct<role: string, "
    "content: string>>, label string, source_row int64, source_file string, hash string",
    "corpora/*.rejected.parquet": "source_row int64, source_file string, reason string",
    "tokens/*.parquet": "example_id int32, input_ids list<int32>, prompt_tokens int32, cut_tokens int32",
    "tokens/*.rejected.parquet": "example_id int32, source_file string, source_row int64, reason string",
    "subsets/*.parquet": "fold int32, subset int32, example_ids list<int32>",
    "subsets/*.validation.parquet": "fold int32, example_ids list<int32>",
    "targets/*/*.parquet": "fold int32, index int32, seed int32, example_id int32, base_loss float, loss float, "
    "status string",
    "targets/*.parquet": "fold int32, subset int32, seed int32, example_id int32, loss float, delta halffloat, "
    "label halffloat, status string",
    "encoder.log.parquet": "step int32, loss float, validation_lds float, seconds float",
    "embeddings/*/*.parquet": "example_id int32, hash string, embedding fixed_size_list<halffloat>[32]",
    "scores/*/*.parquet": "test_id int32, sign string, rank int32, example_id int32, score float, test_file string, "
    "test_row int64, example_file string, example_row int64",
    "groups/*/*.parquet": "test_id int32, subset int32, pooling string, score float",
    "evaluation/lds.parquet": "method string, evaluation string, pooling string, chosen string, lds double, "
    "ci_low double, ci_high double, ceiling double, seed_agreement double, n_tests int32, n_subsets int32, "
    "seconds double, "
    "cpu_seconds double, embedding_seconds double, embedding_cpu_seconds double, scoring_seconds double, "
    "scoring_cpu_seconds double, fitting_seconds double, fitting_cpu_seconds double, warmup_seconds double, "
    "warmup_cpu_seconds double, start_up_seconds double, start_up_cpu_seconds double, bytes_per_example double",
    "evaluation/differences.parquet": "method_a string, pooling_a string, method_b string, pooling_b string, "
    "evaluation string, difference double, ci_low double, ci_high double",
    "evaluation/label_influence.parquet": "evaluation string, method string, train_label string, test_label string, "
    "train_rows int64, tests int64, corpus_share double, mean_score double, mean_score_low double, "
    "mean_score_high double, advantage double, advantage_low double, advantage_high double, top_share double, "
    "top_share_low double, top_share_high double, measured double, measured_low double, measured_high double, "
    "train_labels_left_out int64, test_labels_left_out int64",
    "evaluation/label_agreement.parquet": "evaluation string, method string, prediction string, agreement double, "
    "ci_low double, ci_high double, ceiling double, n_cells int64, n_subsets int64",
    "evaluation/leaks.parquet": "evaluation string, test_id int32, example_id int32, similarity float, "
    "test_file string, test_row int64, example_file string, example_row int64",
}
ROWS = {
    "corpora/train.parquet": 400,
    "targets/train.parquet": 4 * 6 * 10,
    "targets/heldout.parquet": 8 * 2 * 20,
    "subsets/train.parquet": 4 * 6,
    "subsets/heldout.parquet": 8,
    "encoder.log.parquet": 21,
    "embeddings/trained/pool.parquet": 300,
    "scores/airrep/heldout.parquet": 20 * 2 * 5,
    "groups/airrep/heldout.parquet": 20 * 8,
}


def tables(results, pattern):
    """Files of a pattern; `a.rejected.parquet` is not one of `*.parquet`."""
    return [path for path in sorted(results.glob(pattern)) if path.name.count(".") == pattern.count(".")]


def columns(path):
    schema = pq.read_schema(path)
    types = (re.sub(r"(list|fixed_size_list)<\w+: ", r"\1<", str(field.type)) for field in schema)
    return ", ".join(f"{name} {kind}" for name, kind in zip(schema.names, types, strict=True)).replace(" not null", "")


@pytest.mark.parametrize("pattern", CONTRACT)
def test_artifacts_have_the_columns_of_the_contract(finished, pattern):
    paths = tables(finished.results, pattern)
    assert paths
    for path in paths:
        assert columns(path) == CONTRACT[pattern], path.name
        metadata = pq.read_schema(path).metadata
        assert {b"airrep.schema_version", b"airrep.stage", b"airrep.spec"} <= metadata.keys()


def test_every_table_is_in_the_contract(finished):
    expected = {path for pattern in CONTRACT for path in tables(finished.results, pattern)}
    assert set(finished.results.rglob("*.parquet")) == expected


@pytest.mark.parametrize("name", ROWS)
def test_artifacts_have_all_their_rows(finished, name):
    assert pq.read_metadata(finished.results / name).num_rows == ROWS[name]


def test_every_method_is_judged(finished):
    rows = pq.read_table(finished.results / "evaluation" / "lds.parquet").to_pylist()
    assert {row["method"] for row in rows} == set(METHODS)
    for row in rows:
        assert -1 <= row["ci_low"] <= row["lds"] <= row["ci_high"] <= 1
        assert (row["n_tests"], row["n_subsets"]) == (20, 8)
        assert math.isfinite(row["ceiling"])


def test_every_job_tells_its_start_up_from_its_work(finished):
    benchmarks = list(finished.results.glob("benchmarks/**/*.tsv"))
    assert benchmarks
    for path in benchmarks:
        assert read_record(path), path


def test_costs_of_the_lds_table_are_those_that_the_jobs_measured(finished):
    for row in pq.read_table(finished.results / "evaluation" / "lds.parquet").to_pylist():
        scores = read_metadata(finished.results / "scores" / row["method"] / "heldout.parquet")
        embeddings = {"airrep": ["trained"], "airrep_mean": ["trained"], "untrained": ["untrained"]}.get(
            row["method"], []
        )
        files = [
            finished.results / "embeddings" / encoder / f"{corpus}.parquet"
            for encoder in embeddings
            for corpus in ("pool", "tests")
        ]
        embedding = total(Seconds.read(read_metadata(path)) for path in files)
        scoring = Seconds.read(scores, "scoring")
        for kind, of in (("seconds", "clock"), ("cpu_seconds", "processor")):
            assert row[f"embedding_{kind}"] == pytest.approx(getattr(embedding, of), abs=1e-3)
            assert row[f"scoring_{kind}"] == getattr(scoring, of)
            assert row[kind] == pytest.approx(row[f"embedding_{kind}"] + row[f"scoring_{kind}"])
        assert (row["fitting_seconds"] > 0) == bool(embeddings)
        assert row["warmup_seconds"] == 0


def test_what_is_judged_on_was_not_trained_on(finished):
    prompts = {
        name: set(pq.read_table(finished.results / "corpora" / f"{name}.parquet")["prompt"].to_pylist())
        for name in ("train", "pool", "tests", "pretraining")
    }
    names = sorted(prompts)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert not prompts[one] & prompts[other], (one, other)


def test_encoders_are_sentence_transformers_folders(finished):
    for folder in ("encoder", "encoder_untrained", "release"):
        vectors = SentenceTransformer(str(finished.results / folder), device="cpu").encode(["Question: a\nAnswer: b"])
        assert vectors.shape == (1, 32)


def test_the_release_is_the_encoder_with_a_card_of_what_was_measured(finished):
    assert folder_hash(finished.results / "release") == folder_hash(finished.results / "encoder")
    card = (finished.results / "release" / "README.md").read_text(encoding="utf-8")
    for row in pq.read_table(finished.results / "evaluation" / "lds.parquet").to_pylist():
        assert f"| heldout | {row['method']} | {row['pooling']} | {row['lds']:.3f} |" in card
    for hash_ in json.loads((finished.results / "provenance.json").read_text())["data"].values():
        assert f"`{hash_}`" in card


def test_the_report_and_the_records_are_there(finished):
    assert "<html" in (finished.results / "report.html").read_text(encoding="utf-8")[:500]
    resolved = yaml.safe_load((finished.results / "config.resolved.yaml").read_text())
    assert resolved["finetuning"]["weight_decay"] == 0.0  # a value that the study leaves to its default
    provenance = json.loads((finished.results / "provenance.json").read_text())
    assert set(provenance["data"]) == {"train", "pool", "tests", "pretraining"}
    assert "torch" in provenance["versions"]


def test_every_job_leaves_a_log_and_nothing_temporary_stays(finished):
    assert (finished.results / "logs" / "finetune_shard" / "train" / "f0001_s0000.log").stat().st_size
    assert not [
        path
        for path in finished.results.rglob(".*")
        if path.name != ".snakemake_timestamp" and not path.name.endswith(".made_with")
    ]


def test_a_second_run_has_nothing_to_do(finished):
    again = finished.smoke()
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout
    assert not finished.planned()


def test_the_hub_token_is_in_no_file(finished):
    assert not finished.files_with_the_token()
