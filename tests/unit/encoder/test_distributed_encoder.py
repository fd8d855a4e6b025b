"""Two processes train the encoder to the weights of one, and embed to the same numbers."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny_study import training_values

from workflow_scripts.core.distributed import run_in_processes
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.embeddings.embed_corpus import embed_corpus
from workflow_scripts.encoder.checkpoint import TrainingState
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.train_encoder import train_encoder
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.resources import JobResources
from workflow_scripts.study.specs import StageSpecs

SPEC = training_values(steps=6, learning_rate=1e-3, chunk_tokens=200)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def inputs(tiny):
    """Subsets of three folds, with labels drawn at random; the last fold is held back."""
    folder = tiny.folder / "distributed"
    random = np.random.default_rng(0)
    members = np.stack([random.permutation(40)[:6] for _ in range(12)])
    drawn = {"fold": np.repeat(np.arange(3), 4), "subset": np.arange(12), "example_ids": members.tolist()}
    subsets = pa.table(drawn)
    tests = np.arange(60, 66)
    targets = pa.table(
        {
            "fold": np.repeat(np.arange(3), 24),
            "subset": np.repeat(np.arange(12), 6),
            "seed": np.zeros(72, np.int32),
            "example_id": np.tile(tests, 12),
            "label": random.normal(size=72).astype(np.float32),
        }
    )
    write_table(folder / "subsets.parquet", subsets)
    write_table(folder / "targets.parquet", targets)
    return {
        "corpus": tiny.corpus,
        "untrained": tiny.untrained,
        "subsets": folder / "subsets.parquet",
        "targets": folder / "targets.parquet",
    }


def outputs(folder):
    return {"encoder": folder / "encoder", "log": folder / "log.parquet"}


def weights(folder):
    return np.concatenate([tensor.reshape(-1) for tensor in load_encoder(folder / "encoder", 64).state_dict().values()])


def log_of(folder):
    table = read_table(folder / "log.parquet")
    return {name: np.array(table[name].to_pylist(), float) for name in ("step", "loss", "validation_lds")}


def assert_like_one_process(folder, expected):
    found = weights(folder)
    assert np.linalg.norm(found - weights(expected)) <= 1e-5 * np.linalg.norm(found)
    for name, column in log_of(expected).items():
        np.testing.assert_allclose(log_of(folder)[name], column, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == ["encoder", "log.parquet"]


@pytest.fixture(scope="module")
def one_process(inputs, tmp_path_factory):
    """The folder of the encoder that one process trained."""
    folder = tmp_path_factory.mktemp("one")
    train_encoder(**inputs, **outputs(folder), **SPEC)
    return folder


def train_both(folders, **arguments):
    """Train the encoder in each of the folders; runs in each process."""
    for folder in folders:
        train_encoder(**arguments, **outputs(folder))


def test_two_processes_train_the_encoder_of_one_and_go_on_from_what_one_left(
    inputs, one_process, tmp_path, tiny, monkeypatch, capsys
):
    save = TrainingState.save

    def save_and_stop(state):
        save(state)
        if state.steps_done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_encoder(**inputs, **outputs(tmp_path / "begun"), **SPEC)
    capsys.readouterr()
    folders = [tmp_path / "new", tmp_path / "begun"]
    run_in_processes(train_both, 2, folders=folders, **inputs, **SPEC)
    assert capsys.readouterr().err.count("resuming at 4 of 6 steps") == 1
    for folder in folders:
        assert_like_one_process(folder, one_process)
    untrained = load_encoder(tiny.untrained, 64).state_dict().values()
    start = np.concatenate([tensor.reshape(-1) for tensor in untrained])
    assert np.linalg.norm(weights(tmp_path / "new") - start) > 0.01 * np.linalg.norm(start)


def stop_in_two(after, **arguments):
    """Train the encoder, but fail in the first process after so many steps; runs in each process."""
    save = TrainingState.save

    def save_and_stop(state):
        save(state)
        if state.steps_done == after:
            os._exit(9)

    TrainingState.save = save_and_stop
    train_encoder(**arguments)


def test_one_process_goes_on_from_what_two_left(inputs, one_process, tmp_path, capsys):
    with pytest.raises(RuntimeError, match=r"process [01] "):
        run_in_processes(stop_in_two, 2, after=2, **inputs, **outputs(tmp_path), **SPEC)
    capsys.readouterr()
    train_encoder(**inputs, **outputs(tmp_path), **SPEC)
    assert "resuming at 2 of 6 steps" in capsys.readouterr().err
    assert_like_one_process(tmp_path, one_process)


def test_two_processes_embed_like_one(tiny, tmp_path, monkeypatch):
    spec = {
        "prompt_words": 256,
        "max_tokens": 64,
        "embedding_precision": "float32",
        "chunk_tokens": 400,
        "precision": "float32",
    }
    head = tmp_path / "head.parquet"
    write_table(head, read_table(tiny.corpus).slice(0, 50))
    paths = {processes: tmp_path / f"{processes}.parquet" for processes in (1, 2)}
    embed_corpus(tiny.corpus, tiny.untrained, paths[1], **spec)
    # Rows of a former run are kept, so the second file is made in two goes.
    embed_corpus(head, tiny.untrained, paths[2], **spec)
    kept = read_table(paths[2])
    # As in a Snakemake job, where the stage is the script.
    monkeypatch.setattr(embed_corpus, "__module__", "__main__")
    run_in_processes(embed_corpus, 2, corpus=tiny.corpus, encoder=tiny.untrained, embeddings=paths[2], **spec)
    one, two = (read_table(paths[processes]) for processes in (1, 2))
    assert two.slice(0, 50).equals(kept)
    assert one.drop_columns("embedding").equals(two.drop_columns("embedding"))
    vectors = [
        table["embedding"].combine_chunks().flatten().to_numpy().reshape(one.num_rows, -1) for table in (one, two)
    ]
    np.testing.assert_allclose(vectors[1], vectors[0], rtol=1e-5, atol=1e-6)


def test_the_number_of_processes_sizes_jobs_and_makes_no_result_anew():
    values = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    one = StudyPlan(load_study(values))
    values.setdefault("encoder_training", {})["processes"] = 4
    four = StudyPlan(load_study(values))
    assert (one.encoder_processes(), four.encoder_processes()) == (1, 4)
    for stage, wildcards in [("train_encoder", {}), ("embed_corpus", {"encoder": "trained", "corpus": "train"})]:
        assert StageSpecs(four).spec(stage, wildcards) == StageSpecs(one).spec(stage, wildcards)
        assert JobResources(four).memory_mb(stage) == 4 * JobResources(one).memory_mb(stage)
