"""The bridge from a job to a stage: names, specs, log, errors."""

import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, spec_hash, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage


def job(folder, spec, **inputs):
    return SimpleNamespace(
        input=inputs,
        output={"table": str(folder / "table.parquet")},
        params=SimpleNamespace(spec=spec),
        threads=1,
        resources={},
        log=[str(folder / "logs" / "stage.log")],
        rule="some_stage",
    )


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


def test_names_become_arguments_and_files_carry_the_spec(tmp_path, capsys):
    seen = {}

    def stage(one, many, table, *, rate):
        seen.update(one=one, many=many, rate=rate)
        say("half way")
        write_table(table, pa.table({"x": [1]}))

    spec = {"rate": 0.5, "version": 3}
    run_stage(job(tmp_path, spec, one="a/b.parquet", many=["c", "d"]), stage)
    assert seen == {"one": Path("a/b.parquet"), "many": [Path("c"), Path("d")], "rate": 0.5}
    metadata = read_metadata(tmp_path / "table.parquet")
    assert metadata["stage"] == "some_stage"
    assert metadata["spec"] == spec_hash(spec)
    assert "half way" in capsys.readouterr().err
    assert "half way" in (tmp_path / "logs" / "stage.log").read_text()


def test_a_study_error_is_its_message_alone(tmp_path, capsys):
    def stage(table):
        raise StudyError("the corpus is empty. Write another one.")

    with pytest.raises(SystemExit) as ended:
        run_stage(job(tmp_path, {"version": 1}), stage)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "error in some_stage: the corpus is empty. Write another one." in said
    assert "Traceback" not in said
    assert "Traceback" not in (tmp_path / "logs" / "stage.log").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "(MemoryError)"),
        (RuntimeError("process 1 failed:\nTraceback\n  OutOfMemoryError: CUDA out of memory."), "CUDA out of memory.)"),
    ],
    ids=["this process", "another process"],
)
@pytest.mark.parametrize(
    ("stage", "advice"),
    [("train_encoder", "Lower encoder_training.chunk_tokens"), ("check_leaks", "Give the job more memory.")],
)
def test_a_lack_of_memory_is_one_message(tmp_path, capsys, error, said, stage, advice):
    def work(table):
        raise error

    lacking = job(tmp_path, {"version": 1})
    lacking.rule = stage
    with pytest.raises(SystemExit):
        run_stage(lacking, work)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert said in told
    assert advice in told


def test_a_fault_of_ours_keeps_its_traceback(tmp_path):
    def stage(table):
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run_stage(job(tmp_path, {"version": 1}), stage)
    assert "ZeroDivisionError: ours" in (tmp_path / "logs" / "stage.log").read_text()
