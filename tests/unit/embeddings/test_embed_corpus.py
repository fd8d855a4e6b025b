"""Embeddings stand in the corpus's order, and rows that were embedded before are not embedded again."""

import re
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import earlier_of
from workflow_scripts.core.parquet import read_metadata, read_table, table_metadata, write_batches, write_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.embeddings import embed_corpus as stage
from workflow_scripts.embeddings import store as embedding_files
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

SPEC = {
    "prompt_words": 256,
    "max_tokens": 64,
    "embedding_precision": "float32",
    "chunk_tokens": 16384,
    "precision": "float32",
}


@pytest.fixture
def embedded(monkeypatch):
    """Number of texts that are tokenized together."""
    counts = []
    tokenize = stage.tokenize_share
    monkeypatch.setattr(
        stage, "tokenize_share", lambda model, texts: (counts.append(len(texts)), tokenize(model, texts))[1]
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


def test_rows_of_the_earlier_version_keep_their_embeddings(tiny, tmp_path, embedded):
    path = tmp_path / "e.parquet"
    before, _ = embed(tiny, tiny.corpus, path)
    path.rename(earlier_of(path))
    embedded.clear()
    after, _ = embed(tiny, tiny.corpus, path)
    assert embedded == []
    assert (after == before).all()


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


def test_deterministic_algorithms_embed_everything_anew(tiny, tmp_path, embedded):
    embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    torch.use_deterministic_algorithms(True)
    try:
        embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    finally:
        torch.use_deterministic_algorithms(False)
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


def stop_after(monkeypatch, blocks):
    """Let the encoder embed so many blocks, then end the stage as a kill would: in the middle."""
    encode, left = AttributionEncoder.encode_on_device, [blocks]

    def embed_or_die(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return encode(self, *arguments)

    monkeypatch.setattr(AttributionEncoder, "encode_on_device", embed_or_die)


def test_a_stopped_run_goes_on_from_its_last_block(tiny, tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 50)
    straight, _ = embed(tiny, tiny.corpus, tmp_path / "straight.parquet")
    embedded.clear()
    path = tmp_path / "e.parquet"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            embed(tiny, tiny.corpus, path)
    assert not path.exists()
    assert embedded == [50, 50, 20]  # the last ones were tokenised and not embedded
    after, table = embed(tiny, tiny.corpus, path)
    assert embedded == [50, 50, 20, 20]
    assert (after == straight).all()
    assert table["example_id"].to_pylist() == list(range(120))
    assert float(read_metadata(path)["seconds"]) > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.parquet", "straight.parquet"]


def test_a_stopped_run_of_a_corpus_that_grew_in_front_keeps_what_is_whose(tiny, tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 10)
    straight, whole = embed(tiny, tiny.corpus, tmp_path / "straight.parquet")
    write_table(tmp_path / "last.parquet", read_table(tiny.corpus).slice(55))
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            embed(tiny, tmp_path / "last.parquet", tmp_path / "e.parquet")
    embedded.clear()
    after, table = embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    assert table["hash"].to_pylist() == whole["hash"].to_pylist()
    np.testing.assert_allclose(after, straight, atol=1e-5)
    assert sum(embedded) == 60


@pytest.mark.parametrize(("settings", "expected"), [({}, [50, 20]), ({"prompt_words": 2}, [50, 50, 20])])
def test_blocks_of_other_settings_or_cut_off_are_not_taken(tiny, tmp_path, monkeypatch, embedded, settings, expected):
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 50)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    _, second = sorted(tmp_path.glob(".e.*.blocks/*.parquet"))
    second.write_bytes(second.read_bytes()[:-10])
    embedded.clear()
    # Those of a part of the corpus are another job's.
    (tmp_path / f".e.1of2.{'0' * 16}.blocks").mkdir()
    embed(tiny, tiny.corpus, tmp_path / "e.parquet", **settings)
    assert embedded == expected
    assert [path.name for path in tmp_path.glob(".e.*.blocks")] == [f".e.1of2.{'0' * 16}.blocks"]


def in_small_groups(corpus, path, rows):
    """Copy a corpus into row groups of so many rows."""
    table = read_table(corpus)
    write_batches(path, table.schema, [table.slice(start, rows) for start in range(0, len(table), rows)])


def test_parts_are_the_whole_and_appended_rows_move_no_other(tiny, tmp_path, embedded):
    whole, _ = embed(tiny, tiny.corpus, tmp_path / "whole.parquet")
    in_small_groups(tiny.corpus, tmp_path / "grown.parquet", 10)
    write_table(tmp_path / "head.parquet", read_table(tiny.corpus).slice(0, 95))
    in_small_groups(tmp_path / "head.parquet", tmp_path / "first.parquet", 10)
    embedded.clear()
    for corpus, new in (("first", 95), ("grown", 25)):
        rows = {}
        for part in range(1, 9):
            path = tmp_path / f"e.{part}of8.parquet"
            found, table = embed(tiny, tmp_path / f"{corpus}.parquet", path, part=(part, 8))
            rows |= dict(zip(table["example_id"].to_pylist(), found, strict=True))
        assert sum(embedded) == new
        embedded.clear()
        np.testing.assert_allclose([rows[row] for row in sorted(rows)], whole[: len(rows)], atol=1e-5)
    assert sorted(rows) == list(range(120))


def test_a_part_without_rows_is_a_file_without_rows(tiny, tmp_path):
    stage.embed_corpus(tiny.corpus, tiny.untrained, tmp_path / "e.parquet", **SPEC, part=(2, 2))
    assert read_table(tmp_path / "e.parquet").num_rows == 0


def one_after_the_other(corpus, model, rows):
    """The same vectors with nothing overlapped: each block tokenised, encoded and taken in turn."""
    table, found = read_table(corpus), []
    for start in range(0, len(table), rows):
        texts = encoder_texts(table.slice(start, rows), 256, "joint")
        found.append(model.encode(model.tokenize(texts), stage.MAX_TOKENS_ON_CPU))
    return np.concatenate(found)


@pytest.mark.parametrize("bytes_waiting", [0, 1 << 26])
def test_overlapped_work_is_what_one_after_the_other_gives(tiny, tmp_path, monkeypatch, bytes_waiting):
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(embedding_files, "MAX_BYTES_WAITING", bytes_waiting)
    with table_metadata(stage="embed_corpus", spec="of this job"):
        found, _ = embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    assert (found == one_after_the_other(tiny.corpus, load_encoder(tiny.untrained, 64), 7)).all()
    assert read_metadata(tmp_path / "e.parquet")["spec"] == "of this job"


@pytest.mark.parametrize("step", ["tokenize", "write"])
def test_an_error_in_a_thread_is_the_stage_s_own(tiny, tmp_path, monkeypatch, step):
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 7)
    calls = []

    def fail_at_the_fifth(*arguments, **keywords):
        calls.append(threading.current_thread())
        if len(calls) > 4:
            raise StudyError("the disk says no")
        return work(*arguments, **keywords)

    if step == "tokenize":
        work = stage.tokenize_share
        monkeypatch.setattr(stage, "tokenize_share", fail_at_the_fifth)
    else:
        work = embedding_files.write_table
        monkeypatch.setattr(embedding_files, "write_table", fail_at_the_fifth)
    with pytest.raises(StudyError, match="the disk says no"):
        embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    assert threading.main_thread() not in calls
    assert not any(thread.is_alive() for thread in calls)
    assert len(list(tmp_path.glob(".e.*.blocks/*.parquet"))) == 4
    assert not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize(("bytes_waiting", "allowed"), [(0, 1), (1 << 26, 2 * embedding_files.BLOCKS_AHEAD + 2)])
def test_few_blocks_are_in_memory_at_once(tiny, tmp_path, monkeypatch, bytes_waiting, allowed):
    monkeypatch.setattr(embedding_files, "MAX_BYTES_WAITING", bytes_waiting)
    monkeypatch.setattr(stage, "ROWS_AT_ONCE", 3)
    waiting, most = [0], [0]
    tokenize, write_table = stage.tokenize_share, embedding_files.write_table

    def begin(model, texts):
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        return tokenize(model, texts)

    def end(*arguments, **keywords):
        write_table(*arguments, **keywords)
        waiting[0] -= 1

    monkeypatch.setattr(stage, "tokenize_share", begin)
    monkeypatch.setattr(embedding_files, "write_table", end)
    embed(tiny, tiny.corpus, tmp_path / "e.parquet")
    assert waiting == [0]
    assert most[0] <= allowed


@pytest.mark.parametrize(
    ("precision", "number", "message"),
    [
        ("float32", np.nan, "the embedding of example_id 7 is not a finite number"),
        ("float16", np.inf, "the embedding of example_id 7 is not a finite number"),
        ("float16", 1e5, "the embedding of example_id 7 has numbers beyond float16. Write scoring.embedding_precision"),
    ],
)
def test_an_embedding_that_is_no_finite_number_is_named(tiny, tmp_path, monkeypatch, precision, number, message):
    embed_share = stage.embed_share

    def embedded(*arguments):
        vectors = embed_share(*arguments).clone()
        vectors[7, 3] = number
        return vectors

    monkeypatch.setattr(stage, "embed_share", embedded)
    with pytest.raises(StudyError, match=re.escape(message)):
        embed(tiny, tiny.corpus, tmp_path / "e.parquet", embedding_precision=precision)
    assert not (tmp_path / "e.parquet").exists()
