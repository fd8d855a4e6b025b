"""What scores cost is the work on them: no library is loaded while it is timed."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from stepped_clock import SteppedClock

import workflow_scripts.methods
from workflow_scripts.core.parquet import read_metadata, write_table
from workflow_scripts.core.timing import Seconds
from workflow_scripts.embeddings.store import EmbeddingBlock, write_embeddings
from workflow_scripts.scoring.score_pairs import score_pairs

ROWS, DIMENSION = 40, 4
SLOW_METHOD = """
import numpy as np
import stepped
from workflow_scripts.methods.text_scorer import TextScorer

stepped.clock.step(1000, 500)  # this import is slow

def open_scorer(train, test, seed):
    stepped.clock.step(2, 3)
    return TextScorer(lambda rows, columns: np.ones((40, 40), np.float32)[rows, columns], 1.0)
"""
# Names what is imported between the beginning of the work and the end of the stage.
WATCHED = """
import json, sys
from pathlib import Path
from importlib import import_module
from workflow_scripts.core import timing

imported = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if timing._timer is not before:
            imported.append(name)

before = timing._timer
module, name, arguments = json.loads(sys.argv[1])
sys.meta_path.insert(0, Watch())
stage = getattr(import_module(module), name)
paths = lambda value: [Path(one) for one in value] if isinstance(value, list) else Path(value)
stage(**{key: paths(value) for key, value in arguments["paths"].items()}, **arguments["values"])
print(json.dumps([timing._timer is not before, imported]))
"""
HEAVY = {"bm25s", "numpy", "pandas", "safetensors", "scipy", "sklearn", "tokenizers", "torch", "transformers"}


@pytest.fixture
def files(tmp_path):
    texts = [f"some words {row}" for row in range(ROWS)]
    for corpus in ("train", "test"):
        columns = {"example_id": range(ROWS), "prompt": texts, "response": texts, "source_row": range(ROWS)}
        hashes = {"source_file": ["a.jsonl"] * ROWS, "hash": [f"{row:016x}" for row in range(ROWS)]}
        write_table(tmp_path / f"{corpus}.parquet", pa.table({**columns, **hashes}))
        vectors = np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float16)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
        table = pa.table({"example_id": pa.array(range(ROWS), pa.int32()), "embedding": embedding})
        times = {**Seconds(3, 4).texts(), **Seconds(9, 8).texts("start_up")}
        write_table(tmp_path / f"{corpus}.embeddings.parquet", table, **times)
    ids = pa.list_(pa.int32())
    for name, lists in {"subsets": [[1, 2], [3, 4], [5, 6]], "validation": [[0, 5, 7]]}.items():
        numbers = pa.array(range(len(lists)), pa.int32())
        write_table(tmp_path / f"{name}.parquet", pa.table({"subset": numbers, "example_ids": pa.array(lists, ids)}))
    names = ("train", "test", "subsets", "validation", "scores", "groups")
    return {name: tmp_path / f"{name}.parquet" for name in names}


VALUES = {"poolings": ["mean"], "evaluation": "mini", "seed": 0, "top": 2, "tile_examples": 16}


def test_a_method_that_is_slow_to_import_is_not_slow_to_score(files, tmp_path, monkeypatch):
    clock = SteppedClock(monkeypatch)
    (tmp_path / "slow_method.py").write_text(SLOW_METHOD)
    monkeypatch.setitem(sys.modules, "stepped", SimpleNamespace(clock=clock))
    monkeypatch.setattr(workflow_scripts.methods, "__path__", [*workflow_scripts.methods.__path__, str(tmp_path)])
    score_pairs(**files, train_embeddings=None, test_embeddings=[], method="slow_method", **VALUES)
    metadata = read_metadata(files["scores"])
    assert Seconds.read(metadata, "scoring") == Seconds(2, 3)
    assert Seconds.read(metadata, "start_up") == Seconds(1000, 500)
    assert Seconds.read(metadata, "embedding") == Seconds(0, 0)


def test_the_parts_of_a_cost_are_kept_apart(files, tmp_path, monkeypatch):
    clock = SteppedClock(monkeypatch)
    clock.step(100, 50)
    embeddings = [tmp_path / f"{corpus}.embeddings.parquet" for corpus in ("train", "test")]
    score_pairs(**files, train_embeddings=embeddings[0], test_embeddings=embeddings[1:], method="airrep", **VALUES)
    metadata = read_metadata(files["scores"])
    assert Seconds.read(metadata, "scoring") == Seconds(0, 0)
    assert Seconds.read(metadata, "embedding") == Seconds(2 * 3, 2 * 4)
    assert Seconds.read(metadata, "start_up") == Seconds(100 + 2 * 9, 50 + 2 * 8)


def test_embeddings_cost_their_work_at_the_measured_rate(tmp_path, monkeypatch):
    clock = SteppedClock(monkeypatch)
    clock.step(100, 50)  # Python, libraries, the model

    def embed(texts):
        clock.step(0.5 * len(texts), len(texts))
        return np.zeros((len(texts), DIMENSION), np.float32)

    def write(rows):
        hashes = [f"{row:016x}" for row in range(rows)]
        block = EmbeddingBlock(pa.array(range(rows), pa.int32()), hashes, lambda new: new, embed)
        settings = {"stage": "embed", "rows": rows, "dimension": DIMENSION, "precision": "float16", "key": "k"}
        write_embeddings(tmp_path / "e.parquet", [block], **settings)
        metadata = read_metadata(tmp_path / "e.parquet")
        return Seconds.read(metadata), Seconds.read(metadata, "start_up")

    assert write(8) == (Seconds(4, 8), Seconds(100, 50))
    # Nothing is new, so nothing is measured anew.
    assert write(8) == (Seconds(4, 8), Seconds(104, 58))
    # Two rows are new; a full embedding is ten.
    assert write(10) == (Seconds(5, 10), Seconds(104, 58))


def imported_while_working(module, name, paths, values):
    job = [module, name, {"paths": paths, "values": values}]
    command = [sys.executable, "-c", WATCHED, json.dumps(job, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    timed, imported = json.loads(done.stdout.splitlines()[-1])
    assert timed
    return imported


@pytest.mark.parametrize("method", ["airrep", "tfidf", "length"])
def test_no_library_is_loaded_while_scores_are_timed(files, tmp_path, method):
    embeddings = [tmp_path / f"{corpus}.embeddings.parquet" for corpus in ("train", "test")]
    paths, values = files, {"method": method, **VALUES}
    if method == "airrep":
        paths = {**files, "train_embeddings": embeddings[0], "test_embeddings": embeddings[1:]}
    else:
        values |= {"train_embeddings": None, "test_embeddings": []}
    imported = imported_while_working("workflow_scripts.scoring.score_pairs", "score_pairs", paths, values)
    assert not [name for name in imported if name.partition(".")[0] in HEAVY]


def test_no_library_is_loaded_while_embeddings_are_timed(tiny, tmp_path):
    paths = {"corpus": tiny.corpus, "encoder": tiny.untrained, "embeddings": tmp_path / "e.parquet"}
    values = {"prompt_words": 8, "max_tokens": 32, "embedding_precision": "float16", "chunk_tokens": None}
    values["precision"] = "float32"
    imported = imported_while_working("workflow_scripts.embeddings.embed_corpus", "embed_corpus", paths, values)
    assert not [name for name in imported if name.partition(".")[0] in HEAVY]
