"""Embeddings stand in the corpus's order, and rows that were embedded before are not embedded again."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts import embed_corpus as stage
from workflow_scripts.lib.encoder import AttributionEncoder, load_encoder
from workflow_scripts.lib.specs import STAGE_VERSIONS
from workflow_scripts.lib.tables import read_table, write_table
from workflow_scripts.lib.text import encoder_texts

SPEC = {
    "prompt_words": 256,
    "max_tokens": 64,
    "embedding_precision": "float32",
    "chunk_tokens": 16384,
    "precision": "float32",
}


@pytest.fixture
def embedded(monkeypatch):
    """Number of texts in each call of the encoder's tokenizer."""
    counts = []
    tokenize = AttributionEncoder.tokenize
    monkeypatch.setattr(
        AttributionEncoder, "tokenize", lambda self, texts: (counts.append(len(texts)), tokenize(self, texts))[1]
    )
    return counts


def vectors(path):
    table = read_table(path)
    return np.stack(table["embedding"].to_numpy()), table


def embed(tiny, corpus, path, **changes):
    stage.embed_corpus(corpus, tiny.untrained, path, **{**SPEC, **changes})
    return vectors(path)


def test_rows_stand_in_the_order_of_the_corpus(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 50)  # three blocks of 120 rows
    found, table = embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    corpus = read_table(tiny.corpus)
    assert table["example_id"].to_pylist() == corpus["example_id"].to_pylist()
    assert table["hash"].to_pylist() == corpus["hash"].to_pylist()
    model = load_encoder(tiny.untrained, 64)
    one_by_one = [model.encode(model.tokenize([text]), 16384)[0] for text in encoder_texts(corpus, 256, "joint")]
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)


def test_token_budget_changes_no_embedding(tiny, tmp_path):
    wide, _ = embed(tiny, tiny.corpus, tmp_path / "a.parquet")
    narrow, _ = embed(tiny, tiny.corpus, tmp_path / "b.parquet", chunk_tokens=1)
    np.testing.assert_allclose(narrow, wide, atol=1e-5)


def test_only_appended_rows_are_embedded(tiny, tmp_path, embedded, capsys):
    whole = read_table(tiny.corpus)
    write_table(tmp_path / "part.parquet", whole.slice(0, 100))
    path = tmp_path / "e.parquet"
    before, _ = embed(tiny, tmp_path / "part.parquet", path)
    after, table = embed(tiny, tiny.corpus, path)
    assert embedded == [100, 20]
    assert "20 new embeddings, 100 kept" in capsys.readouterr().err
    assert (after[:100] == before).all()
    straight, _ = embed(tiny, tiny.corpus, tmp_path / "straight.parquet")
    np.testing.assert_allclose(after, straight, atol=1e-5)
    assert table["example_id"].to_pylist() == list(range(120))


def test_rows_that_moved_or_went_keep_what_is_theirs(tiny, tmp_path, embedded):
    whole = read_table(tiny.corpus)
    path = tmp_path / "e.parquet"
    before, _ = embed(tiny, tiny.corpus, path)
    order = np.r_[119:60:-1]
    moved = whole.take(pa.array(order)).set_column(0, "example_id", pa.array(range(len(order)), pa.int64()))
    write_table(tmp_path / "moved.parquet", moved)
    after, _ = embed(tiny, tmp_path / "moved.parquet", path)
    assert embedded == [120]
    assert (after == before[order]).all()


@pytest.mark.parametrize("changes", [{"prompt_words": 2}, {"embedding_precision": "float16"}])
def test_other_settings_embed_everything_anew(tiny, tmp_path, embedded, changes):
    embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    embed(tiny, tiny.corpus, tmp_path / "e.parquet", **changes)
    assert embedded == [120, 120]


def test_embeddings_of_an_older_version_of_the_stage_are_not_taken(tiny, tmp_path, embedded, monkeypatch):
    embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    monkeypatch.setitem(STAGE_VERSIONS, "embed_corpus", STAGE_VERSIONS["embed_corpus"] + 1)
    embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    assert embedded == [120, 120]


def test_a_damaged_file_is_made_anew(tiny, tmp_path, embedded):
    path = tmp_path / "e.parquet"
    before, _ = embed(tiny, tiny.corpus, path)
    path.write_bytes(path.read_bytes()[:-30])
    after, _ = embed(tiny, tiny.corpus, path)
    assert embedded == [120, 120]
    assert (after == before).all()


def test_half_precision_is_rounded_and_no_more(tiny, tmp_path):
    full, _ = embed(tiny, tiny.corpus, tmp_path / "a.parquet")
    half, table = embed(tiny, tiny.corpus, tmp_path / "b.parquet", embedding_precision="float16")
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 16)
    assert (half == full.astype(np.float16)).all()
