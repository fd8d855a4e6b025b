"""The bridge from a job to a stage: names, specs, log, errors."""

import errno
import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pyarrow as pa
import pytest
import torch
from snakemake.iocontainers import Namedlist

import workflow_scripts
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import earlier_of, keep_earlier
from workflow_scripts.core.model_contents import RECORDS_VARIABLE
from workflow_scripts.core.parquet import read_metadata, read_table, spec_hash, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_job, run_stage
from workflow_scripts.core.tracking import Tracking
from workflow_scripts.study.sections import EncoderTraining
from workflow_scripts.study.stage_versions import STAGE_VERSIONS


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


def named(**paths):
    return Namedlist(fromdict={name: str(path) for name, path in paths.items()})


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
    run_job(job(tmp_path, spec, one="a/b.parquet", many=["c", "d"]), stage)
    assert seen == {"one": Path("a/b.parquet"), "many": [Path("c"), Path("d")], "rate": 0.5}
    metadata = read_metadata(tmp_path / "table.parquet")
    assert metadata["stage"] == "some_stage"
    assert metadata["spec"] == spec_hash(spec)
    assert "half way" in capsys.readouterr().err
    assert "half way" in (tmp_path / "logs" / "stage.log").read_text()


def test_the_earlier_version_of_an_output_is_kept_until_the_job_has_succeeded(tmp_path):
    table = tmp_path / "table.parquet"
    write_table(table, pa.table({"x": [1]}))
    keep_earlier(table)
    table.unlink()

    def fails(table):
        raise StudyError("no")

    with pytest.raises(SystemExit):
        run_job(job(tmp_path, {"version": 1}), fails)
    assert read_table(earlier_of(table))["x"].to_pylist() == [1]
    run_job(job(tmp_path, {"version": 1}), lambda table: write_table(table, pa.table({"x": [2]})))
    assert read_table(table)["x"].to_pylist() == [2]
    assert not earlier_of(table).exists()


def test_earlier_versions_of_fine_tuning_stay_until_they_were_read(tmp_path, monkeypatch):
    """Other jobs of the rule look for runs in them."""
    monkeypatch.setenv(RECORDS_VARIABLE, str(tmp_path / "models"))
    table = tmp_path / "table.parquet"
    write_table(table, pa.table({"x": [1]}))
    keep_earlier(table)
    job_of_runs, reader = job(tmp_path, {"version": 1}), job(tmp_path, {"version": 1})
    job_of_runs.rule = "finetune_shard"
    run_job(job_of_runs, lambda table: write_table(table, pa.table({"x": [2]})))
    assert earlier_of(table).exists()
    reader.input, reader.output = named(table=table), named(out=tmp_path / "out.parquet")
    run_job(reader, lambda table, out: write_table(out, pa.table({"x": [2]})))
    assert not earlier_of(table).exists()


def test_what_the_users_files_held_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv(RECORDS_VARIABLE, str(tmp_path / "results/models"))
    (tmp_path / "mine.jsonl").write_text("mine")
    table = tmp_path / "results/corpora/pool.parquet"
    one = job(tmp_path, {"version": 1})
    one.input, one.output = named(source=tmp_path / "mine.jsonl"), named(table=table)
    run_job(one, lambda source, table: write_table(table, pa.table({"x": [2]})))
    assert json.loads((table.parent / ".pool.parquet.inputs").read_text()).keys() == {str(tmp_path / "mine.jsonl")}


def test_an_earlier_version_that_cannot_be_kept_stops_nothing(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.parquet"
    write_table(table, pa.table({"x": [1]}))

    def fails(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", fails)
    monkeypatch.setattr("shutil.copyfile", fails)
    keep_earlier(table)
    assert "table.parquet can't be kept (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_an_empty_list_is_none_where_a_file_may_be_absent(tmp_path):
    seen = {}

    def stage(maybe: Path | None, absent: Path | None, several: list[Path], untyped, table: Path) -> None:
        seen.update(maybe=maybe, absent=absent, several=several, untyped=untyped)

    run_job(job(tmp_path, {"version": 1}, maybe="a", absent=[], several=[], untyped=[]), stage)
    assert seen == {"maybe": Path("a"), "absent": None, "several": [], "untyped": []}


def test_a_parameter_of_a_section_gets_one_that_is_checked(tmp_path):
    seen = {}

    def stage(table: Path, *, training: EncoderTraining, plain: dict) -> None:
        seen.update(training=training, plain=plain)

    training = EncoderTraining(steps=3, compile=True)
    spec = {"version": 1, "training": training.spec(), "plain": {"steps": 3}}
    run_job(job(tmp_path, spec), stage)
    assert seen == {"training": training, "plain": {"steps": 3}}
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        run_job(job(tmp_path, {**spec, "training": {"steps": 0}}), stage)


def test_a_job_s_curves_go_beside_its_log(tmp_path):
    seen = []

    def stage(table: Path, *, tracking: Tracking | None = None) -> None:
        seen.append(tracking)

    tracked = job(tmp_path, {"version": 1})
    run_job(tracked, stage)
    tracked.resources = {"track": "wandb"}
    run_job(tracked, stage)
    assert seen == [None, Tracking("wandb", tmp_path / "logs" / "stage")]


@pytest.mark.parametrize("stage", STAGE_VERSIONS)
def test_no_stage_takes_a_file_or_a_list(stage):
    """`Path | None` is a file that may be absent, `list[Path]` are several; run_job tells them apart by the types."""
    (file,) = Path(workflow_scripts.__file__).parent.rglob(f"{stage}.py")
    module = ".".join(
        ["workflow_scripts", *file.relative_to(Path(workflow_scripts.__file__).parent).with_suffix("").parts]
    )
    kinds = [get_args(kind) for kind in get_type_hints(getattr(import_module(module), stage)).values()]
    assert not [kind for kind in kinds if Path in kind and list[Path] in kind]


def test_a_script_runs_its_stage_as_the_job_that_snakemake_put_into_it(tmp_path):
    script = "def stage(table, *, rate):\n    table.write_text(str(rate))\n\n\nrun_stage(stage)\n"
    smk = job(tmp_path, {"version": 1, "rate": 0.5})
    exec(script, {"run_stage": run_stage, "snakemake": smk})
    assert (tmp_path / "table.parquet").read_text() == "0.5"


def test_a_study_error_is_its_message_alone(tmp_path, capsys):
    def stage(table):
        raise StudyError("the corpus is empty. Write another one.")

    with pytest.raises(SystemExit) as ended:
        run_job(job(tmp_path, {"version": 1}), stage)
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
        run_job(lacking, work)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert said in told
    assert advice in told


def test_a_fault_of_ours_keeps_its_traceback(tmp_path):
    def stage(table):
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run_job(job(tmp_path, {"version": 1}), stage)
    assert "ZeroDivisionError: ours" in (tmp_path / "logs" / "stage.log").read_text()


def job_that_sees(tmp_path, **resources):
    """Run a job of these resources and return which GPUs it saw."""
    seen = {}

    def stage(table):
        seen["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")

    made = job(tmp_path, {"version": 1})
    made.resources = resources
    run_job(made, stage)
    return seen["gpus"]


def test_a_job_sees_the_gpus_that_it_asks_for_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("AIRREP_GPU_OPTIONAL", "yes")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert job_that_sees(tmp_path) == ""
    assert job_that_sees(tmp_path, gpu=1) == "0"
    assert job_that_sees(tmp_path, gpu=0, gres="gpu:2") == "0,1"


def test_a_job_does_not_fall_back_to_the_cpu_in_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert job_that_sees(tmp_path) == ""
    with pytest.raises(SystemExit):
        job_that_sees(tmp_path, gpu=1)
    assert "CUDA_VISIBLE_DEVICES=NoDevFiles hides all of them" in capsys.readouterr().err


def test_deterministic_is_not_a_value_of_the_stage_but_how_torch_computes(tmp_path, monkeypatch):
    seen = {}

    def stage(table, *, rate):
        seen.update(torch=torch.are_deterministic_algorithms_enabled(), cublas=os.environ["CUBLAS_WORKSPACE_CONFIG"])

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    try:
        run_job(job(tmp_path, {"version": 1, "rate": 0.5}), stage)
        assert seen == {"torch": False, "cublas": ""}
        run_job(job(tmp_path, {"version": 1, "rate": 0.5, "deterministic": True}), stage)
        assert seen == {"torch": True, "cublas": ":4096:8"}
    finally:
        torch.use_deterministic_algorithms(False)
