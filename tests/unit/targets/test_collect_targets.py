"""Labels against numbers computed by hand, and the errors of a pool without enough losses."""

import json

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, table_metadata, write_table
from workflow_scripts.targets.collect_targets import collect_targets
from workflow_scripts.targets.finetune_shard import SCHEMA
from workflow_scripts.targets.labels import pooled_labels, standardised_labels
from workflow_scripts.targets.run_cache import FinishedRuns

SIZES = {"folds": 2, "subsets_per_fold": 3, "seeds": 1, "max_diverged_share": 0.2}
# losses[fold][subset][example]; the base LM's loss is 5
LOSSES = np.array([[[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]], [[4.0, 1.0], [4.0, 3.0], [1.0, 8.0]]])


def block(path, folds, indexes, diverged=(), seeds=1, **metadata):
    rows = [
        {
            "fold": fold,
            "index": index,
            "seed": seed,
            "example_id": 10 * fold + example,
            "base_loss": 5.0,
            "loss": None if (fold, index, seed) in diverged else LOSSES[fold][index][example] + seed,
            "status": "diverged" if (fold, index, seed) in diverged else "ok",
        }
        for fold in folds
        for index in indexes
        for seed in range(seeds)
        for example in range(2)
    ]
    write_table(path, pa.Table.from_pylist(rows, schema=SCHEMA), **metadata)
    return path


def collected(folder, blocks, **changes):
    collect_targets(blocks, folder / "train.parquet", **{**SIZES, **changes})
    return read_table(folder / "train.parquet").to_pandas()


def test_labels_by_hand(tmp_path):
    # Blocks in any order, cut across folds and subsets.
    blocks = [
        block(tmp_path / "b.parquet", [1], [0, 1, 2]),
        block(tmp_path / "c.parquet", [0], [2]),
        block(tmp_path / "a.parquet", [0], [0, 1]),
    ]
    table = collected(tmp_path, blocks)
    assert table["fold"].tolist() == [0] * 6 + [1] * 6
    assert table["subset"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert table["example_id"].tolist() == [0, 1] * 3 + [10, 11] * 3
    assert table["delta"].tolist() == pytest.approx((5 - LOSSES).reshape(-1).tolist())
    root = 1.5**0.5  # spread of 1, 2, 3 is sqrt(2/3)
    # Fold 0: losses 1, 2, 3 and a constant; fold 1: 4, 4, 1 (spread sqrt 2) and 1, 3, 8 (spread sqrt(26/3)).
    spread = (26 / 3) ** 0.5
    expected = [root, 0, 0, 0, -root, 0]
    expected += [-(0.5**0.5), 3 / spread, -(0.5**0.5), 1 / spread, 2**0.5, -4 / spread]
    assert table["label"].tolist() == pytest.approx(expected, abs=1e-3)


def test_labels_use_the_mean_loss_over_seeds():
    losses = np.array([[[1.0], [3.0]], [[4.0], [4.0]]])  # means 2 and 4
    assert standardised_labels(losses).tolist() == [[1.0], [-1.0]]


def test_a_diverged_run_leaves_the_others_labels_among_themselves(tmp_path):
    blocks = [block(tmp_path / "a.parquet", [0, 1], [0, 1, 2], diverged={(0, 1, 0)})]
    table = collected(tmp_path, blocks)
    gone = table[table["status"] == "diverged"]
    assert gone["subset"].tolist() == [1, 1]
    assert gone[["loss", "delta", "label"]].isna().all(axis=None)
    left = table[(table["fold"] == 0) & (table["status"] == "ok")]
    assert left["label"].tolist() == pytest.approx([1, 0, -1, 0], abs=1e-3)
    assert table[table["fold"] == 1]["label"].notna().all()


def test_one_diverged_seed_leaves_the_other_to_the_label():
    losses = np.array([[[1.0], [np.nan]], [[3.0], [3.0]]])
    assert standardised_labels(losses).tolist() == [[1.0], [-1.0]]


def test_too_many_diverged_runs_stop(tmp_path):
    blocks = [block(tmp_path / "a.parquet", [0, 1], [0, 1, 2], diverged={(0, 1, 0), (1, 1, 0)})]
    with pytest.raises(StudyError, match=r"2 of 6 fine-tuning runs diverged.*Lower finetuning.learning_rate"):
        collected(tmp_path, blocks)
    assert not (tmp_path / "train.parquet").exists()


def test_a_missing_run_stops(tmp_path):
    blocks = [block(tmp_path / "a.parquet", [0], [0, 1, 2]), block(tmp_path / "b.parquet", [1], [0, 1])]
    with pytest.raises(StudyError, match=r"10 targets, which is not a whole number for each of 6 runs"):
        collected(tmp_path, blocks)


def test_a_block_of_other_settings_stops(tmp_path):
    blocks = [block(tmp_path / f"{index}.parquet", [0, 1], [index]) for index in range(3)]
    for path, key in zip(blocks, ["now", "before", "now"], strict=True):
        write_table(path, read_table(path), key=key)
    with pytest.raises(StudyError, match=r"1\.parquet was made with other settings.*Delete it"):
        collected(tmp_path, blocks)


def test_pooled_labels_have_the_spread_of_all_folds_of_an_example():
    # Example 7 is in both folds, 8 in the first and 9 in the second alone; one seed.
    first = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    second = np.array([[[5.0, 6.0]], [[7.0, 6.0]]])
    one, two = pooled_labels([first, second], [np.array([7, 8]), np.array([7, 9])])
    spread = np.sqrt(5)  # of 1, 3, 5, 7
    np.testing.assert_allclose(one, [[3 / spread, 1], [1 / spread, -1]])
    np.testing.assert_allclose(two, [[-1 / spread, 0], [-3 / spread, 0]])


def test_pooled_labels_of_a_run_that_diverged_are_unknown():
    losses = np.array([[[1.0]], [[np.nan]], [[3.0]]])
    (labels,) = pooled_labels([losses], [np.array([7])])
    np.testing.assert_allclose(labels, [[1], [np.nan], [-1]])


def test_blocks_of_two_contents_of_one_lm_are_refused(tmp_path):
    blocks = []
    for fold, content in enumerate(("one", "other")):
        with table_metadata(contents=json.dumps({"lm": content})):
            blocks.append(block(tmp_path / f"{fold}.parquet", [fold], range(3)))
    with pytest.raises(StudyError, match=r"different contents of one LM: .*0\.parquet with .*1\.parquet with"):
        collected(tmp_path, blocks)


def test_a_block_of_before_contents_were_recorded_joins_others(tmp_path):
    blocks = [block(tmp_path / "0.parquet", [0], range(3))]
    with table_metadata(contents=json.dumps({"lm": "one"})):
        blocks.append(block(tmp_path / "1.parquet", [1], range(3)))
    assert len(collected(tmp_path, blocks)) == 12


@pytest.mark.parametrize(("content", "is_kept"), [("one", True), ("other", False)])
def test_a_finished_run_is_kept_for_the_content_that_it_was_made_with(tmp_path, content, is_kept):
    names = ("fold", "index", "seed")
    losses = tmp_path / "block.parquet"
    with table_metadata(contents=json.dumps({"lm": "one"})):
        block(losses, [0], range(3), key="key")
    with table_metadata(contents=json.dumps({"lm": content})):
        assert ((0, 1, 0) in FinishedRuns(losses, "key", names)) == is_kept
