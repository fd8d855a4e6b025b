"""One bit per number: what is stored, and what inner products with it estimate."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.embeddings.binary import dequantize, quantize, stored_bytes, stored_dimension
from workflow_scripts.embeddings.store import EmbeddingBlock, write_embeddings
from workflow_scripts.embeddings.tiles import as_float, dimension_of, embedding_tiles, inner_products, read_embeddings
from workflow_scripts.scoring.corpus_scores import CorpusScores
from workflow_scripts.scoring.gpu_scores import score_on_device
from workflow_scripts.scoring.group_scores import Membership
from workflow_scripts.scoring.sources import open_embeddings
from workflow_scripts.study.methods import EmbeddingSpec

ROWS, DIMENSION = 80, 64


def gaussian(rows, dimension, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)


def write(path, vectors, precision, **changes):
    """Writes embeddings; returns how many rows were embedded anew."""
    new = []

    def embed(rows):
        new.extend(rows)
        return vectors[rows]

    ids = pa.array(np.arange(len(vectors)), pa.int32())
    block = EmbeddingBlock(ids, [f"{row:016x}" for row in range(len(vectors))], lambda rows: rows, embed)
    values = {"stage": "embed", "rows": len(vectors), "dimension": vectors.shape[1], "key": "key", **changes}
    write_embeddings(path, [block], precision=precision, **values)
    return len(new)


def test_a_row_keeps_its_signs_and_the_inner_product_with_itself():
    vectors = gaussian(ROWS, DIMENSION)
    stored = quantize(vectors)
    assert (stored.shape, stored.dtype) == ((ROWS, stored_bytes(DIMENSION)), np.uint8)
    assert stored_dimension(stored.shape[1]) == DIMENSION
    found = dequantize(stored)
    np.testing.assert_array_equal(found > 0, vectors > 0)
    assert (np.abs(found) == np.abs(found[:, :1])).all()
    np.testing.assert_allclose((found * vectors).sum(1), np.square(vectors).sum(1), rtol=1e-5)


def test_the_layout_is_that_of_the_docs():
    vectors = gaussian(ROWS, DIMENSION)
    stored = quantize(vectors)
    signs = np.unpackbits(stored[:, :-4], axis=1).astype(np.float32) * 2 - 1
    scales = np.ascontiguousarray(stored[:, -4:]).view("<f4")
    np.testing.assert_array_equal(dequantize(stored), signs * scales)


def test_inner_products_are_unbiased():
    """Their mean over random rotations is the inner product, whatever the vectors."""
    one, other = np.zeros((1, DIMENSION), np.float32), gaussian(1, DIMENSION, 3)
    one[0, :3] = 5, -1, 2
    found = []
    for seed in range(3000):
        rotation = np.linalg.qr(gaussian(DIMENSION, DIMENSION, seed))[0]
        found.append(dequantize(quantize(one @ rotation)) @ (other @ rotation)[0])
    assert np.mean(found) == pytest.approx((one @ other.T).item(), abs=float(4 * np.std(found) / 3000**0.5))


def test_zero_stays_zero_and_what_is_not_finite_is_not_hidden():
    vectors = gaussian(3, DIMENSION)
    vectors[0], vectors[1, 5] = 0, np.inf
    found = dequantize(quantize(vectors))
    assert (found[0] == 0).all()
    assert not np.isfinite(found[1]).any()
    with pytest.raises(StudyError, match="not a finite number"):
        inner_products(vectors[2:])(quantize(vectors), slice(None))


@pytest.mark.parametrize("dimension", [8, 40, 100])
def test_another_number_of_numbers_is_refused(dimension, tmp_path):
    with pytest.raises(ValueError, match="a multiple of 32"):
        write(tmp_path / "train.parquet", gaussian(3, dimension), "binary")
    with pytest.raises(ValueError, match="set by_role"):
        EmbeddingSpec("ekfac", binary=True)


def test_a_file_is_read_as_any_other_and_known_rows_are_kept(tmp_path):
    path, vectors = tmp_path / "train.parquet", gaussian(ROWS, DIMENSION)
    assert write(path, vectors, "binary") == ROWS
    expected = dequantize(quantize(vectors))
    assert dimension_of(path) == DIMENSION
    np.testing.assert_array_equal(read_embeddings([path], np.array([7, 2])), expected[[7, 2]])
    tiles = [as_float(tile) for _, tile in embedding_tiles(path, 6)]
    np.testing.assert_array_equal(np.concatenate(tiles), expected)
    assert read_table(path)["embedding"].type == pa.list_(pa.uint8(), stored_bytes(DIMENSION))
    assert write(path, np.concatenate([vectors, gaussian(2, DIMENSION, 9)]), "binary") == 2
    np.testing.assert_array_equal(read_embeddings([path], np.arange(ROWS)), expected)


def test_tests_in_full_score_quantized_rows(tmp_path):
    train, test, tests = tmp_path / "train.parquet", tmp_path / "test.parquet", gaussian(4, DIMENSION, 5)
    vectors = gaussian(ROWS, DIMENSION)
    write(train, vectors, "binary")
    write(test, tests, "float32")
    source = open_embeddings(train, test, np.arange(4), 6)
    assert source.bytes_per_example == DIMENSION / 8 + 4
    expected = dequantize(quantize(vectors)) @ tests.T
    found = np.concatenate([source.score(tile, slice(None)).copy() for _, tile in source.tiles])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    membership = Membership([np.array([1, 2, 3]), np.array([4, 19])])
    on_cpu, on_device = (CorpusScores(4, 3, membership, ["mean"]) for _ in range(2))
    on_cpu.add_tiles(embedding_tiles(train, 6), source.score)
    device = torch.device("cpu")
    on_device.merge(score_on_device(embedding_tiles(train, 6), tests, 3, membership, device, on_device.weighting))
    np.testing.assert_array_equal(on_cpu.top("helpful")[0], on_device.top("helpful")[0])
    np.testing.assert_allclose(on_cpu.groups("mean"), on_device.groups("mean"), rtol=1e-5, atol=1e-5)


def test_embeddings_of_other_sizes_are_refused(tmp_path):
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    write(train, gaussian(ROWS, DIMENSION), "binary")
    write(test, gaussian(4, 2 * DIMENSION), "float32")
    with pytest.raises(StudyError, match=f"embeddings of {DIMENSION} numbers and .* of {2 * DIMENSION}"):
        open_embeddings(train, test, np.arange(4), 6)
