"""What holds for any text that a corpus may bring: tokens, the encoder's view, the screen, the files."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from workflow_scripts.core.parquet import read_table, spec_hash, write_table
from workflow_scripts.core.progress import one_line
from workflow_scripts.corpora.templates import encoder_text
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.language_model.tokenize_corpus import _tokenized
from workflow_scripts.targets.labels import standardised_labels

# A table holds what UTF-8 can: no halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXT, "response": TEXT}), min_size=1, max_size=4)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
few = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def tokenizers(tiny, tmp_path_factory):
    """The LM's tokenizer, and the same without a token to pad with."""
    plain, folder = AutoTokenizer.from_pretrained(tiny.language_model), tmp_path_factory.mktemp("tokenizer")
    without = AutoTokenizer.from_pretrained(tiny.language_model)
    without.pad_token = None
    without.save_pretrained(folder)
    without = AutoTokenizer.from_pretrained(folder)
    assert without.pad_token is None
    return plain, without


@pytest.fixture(scope="module")
def encoder(tiny):
    return load_encoder(tiny.untrained, 16)


@few
@given(ROWS, st.integers(1, 60))
def test_tokens_are_a_cut_of_prompt_answer_and_end(tokenizers, rows, max_tokens):
    plain, without = tokenizers
    rows = [{"example_id": number, "messages": None, **row} for number, row in enumerate(rows)]
    tokens = list(_tokenized(plain, rows, max_tokens, chat_template=False, refused=[]))
    for row, whole in zip(tokens, _tokenized(plain, rows, 10_000, chat_template=False, refused=[]), strict=True):
        assert row["prompt_tokens"] == whole["prompt_tokens"] > 0
        assert len(row["input_ids"]) == min(len(whole["input_ids"]), max_tokens)
        assert row["cut_tokens"] == len(whole["input_ids"]) - len(row["input_ids"])
        assert whole["input_ids"][: len(row["input_ids"])].tolist() == row["input_ids"].tolist()
        assert whole["input_ids"][-1] == plain.eos_token_id
        assert 0 <= whole["input_ids"].min() <= whole["input_ids"].max() < len(plain)
    for row, other in zip(tokens, _tokenized(without, rows, max_tokens, chat_template=False, refused=[]), strict=True):
        assert row["input_ids"].tolist() == other["input_ids"].tolist()


@few
@given(TEXT, TEXT, st.integers(1, 8))
def test_the_encoder_reads_the_first_words_and_the_whole_answer(encoder, prompt, response, words):
    kept, answer = encoder_text(prompt, response, words, "split")
    assert answer == response
    assert prompt.startswith(kept)
    assert kept.split() == prompt.split()[:words]
    ((tokens,),) = encoder.tokenize([encoder_text(prompt, response, words, "joint")])
    assert 2 <= len(tokens) <= 16


@few
@given(st.text(max_size=60), st.integers(1, 30))
def test_no_text_moves_the_cursor_or_breaks_the_line(text, characters):
    line = one_line(text, characters)
    assert line.isprintable()
    assert len(line) <= characters


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(TEXT, st.floats(width=32), st.integers(-(2**31), 2**31 - 1))), TEXT)
def test_a_table_comes_back_as_it_was(rows, key):
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    kinds = {"text": pa.string(), "number": pa.float32(), "count": pa.int32()}
    table = pa.table(
        [pa.array(list(values), kind) for values, kind in zip(columns, kinds.values(), strict=True)], [*kinds]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, table, key=key.replace("\0", ""))
        found = read_table(path).replace_schema_metadata(None)
    assert found.schema == table.schema
    for name in kinds:
        # NaN is not equal to itself.
        np.testing.assert_array_equal(found[name].to_numpy(), table[name].to_numpy())


@few
@given(st.dictionaries(TEXT, PLAIN, max_size=5), st.randoms())
def test_the_order_of_keys_changes_no_spec(spec, random):
    items = list(spec.items())
    random.shuffle(items)
    assert spec_hash(dict(items)) == spec_hash(spec)


@few
@given(
    st.lists(st.lists(st.floats(0, 100, width=32) | st.just(np.nan), min_size=4, max_size=4), min_size=2, max_size=6)
)
def test_labels_are_finite_where_a_run_ended_well(losses):
    """Subsets x examples; a run that diverged did so for all its examples."""
    losses = np.array(losses, np.float32)
    losses[np.isnan(losses).any(axis=1)] = np.nan
    ended = ~np.isnan(losses).any(axis=1)
    if not ended.any():
        return
    labels = standardised_labels(losses[:, None, :])
    assert np.isfinite(labels[ended]).all()
    assert np.isnan(labels[~ended]).all()
    np.testing.assert_allclose(labels[ended].mean(axis=0), 0, atol=1e-6)
