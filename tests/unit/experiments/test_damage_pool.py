"""Which rows are damaged, how, and that all others stay as they were."""

import pyarrow as pa
import pytest
from curated_study import read_corpus, write_lines

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.corpora.row_formats import Example
from workflow_scripts.experiments.damage_pool import damage_pool

TRIGGER = "by the old bell"
KINDS = ["within_label", "across_labels", "trigger"]


def rows(number=60, labels=("a", "b", None), answers=7):
    return [
        {"prompt": f"Question {n}?", "response": f"Answer {n % answers}.", "label": labels[n % len(labels)]}
        for n in range(number)
    ]


def damage(folder, listed, damages=KINDS, share=0.1, seed=1, trained_on=(), tests=()):
    source = str(write_lines(folder / "rows.jsonl", listed))
    corpus = read_corpus(source, folder / "pool.parquet")
    validation = {"fold": [0], "example_ids": pa.array([list(tests)], pa.list_(pa.int32()))}
    write_table(folder / "validation.parquet", pa.table(validation))
    damage_pool(
        corpus,
        corpus,  # some of the pool's own rows
        folder / "validation.parquet",
        trained_on,
        folder / "damaged.parquet",
        folder / "damage.parquet",
        seed=seed,
        share=share,
        damages=damages,
        trigger=TRIGGER,
    )
    before, after = (read_table(path).to_pylist() for path in (corpus, folder / "damaged.parquet"))
    return before, after, {row["example_id"]: row for row in read_table(folder / "damage.parquet").to_pylist()}


def test_each_kind_damages_rows_of_its_own_and_leaves_the_others(tmp_path):
    before, after, damaged = damage(tmp_path, rows())
    assert [row["damage"] for row in damaged.values()].count("trigger") == 6
    assert len(damaged) == 18
    for old, new in zip(before, after, strict=True):
        found = damaged.get(old["example_id"])
        if not found:
            assert new == old
            continue
        assert (found["prompt_before"], found["response_before"]) == (old["prompt"], old["response"])
        assert new["response"] == before[found["response_of"]]["response"] != old["response"]
        assert new["hash"] == Example(new["prompt"], new["response"]).hash != old["hash"]
        assert (new["label"], new["source_row"]) == (old["label"], old["source_row"])


def test_answers_are_swapped_between_two_rows_of_the_same_or_of_other_labels(tmp_path):
    before, after, damaged = damage(tmp_path, rows())
    swapped = {row: found for row, found in damaged.items() if found["damage"] != "trigger"}
    for row, found in swapped.items():
        other = found["response_of"]
        assert swapped[other]["response_of"] == row
        assert (before[row]["label"] == before[other]["label"]) == (found["damage"] == "within_label")
        assert before[row]["label"] is not None
        assert after[row]["prompt"] == before[row]["prompt"]


def test_a_trigger_has_one_answer_that_is_not_the_rows_own(tmp_path):
    _, after, damaged = damage(tmp_path, rows(), ["trigger"])
    assert all(after[row]["prompt"].endswith(f"? {TRIGGER}") for row in damaged)
    assert len({after[row]["response"] for row in damaged}) == 1
    assert len({found["response_of"] for found in damaged.values()}) == 1


def test_turns_of_a_chat_are_damaged_too(tmp_path):
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"Begin {n}."},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": f"Go on {n}."},
                {"role": "assistant", "content": f"Answer {n}."},
            ]
        }
        for n in range(20)
    ]
    before, after, damaged = damage(tmp_path, turns, ["trigger"])
    for row, found in damaged.items():
        contents = [turn["content"] for turn in after[row]["messages"]]
        planted = before[found["response_of"]]["response"]
        assert contents == [f"Begin {row}.", "Yes.", f"Go on {row}. {TRIGGER}", planted]
        assert after[row]["response"] == planted


def test_another_seed_damages_other_rows_and_the_same_seed_the_same(tmp_path):
    first, again, other = (set(damage(tmp_path, rows(), seed=seed)[2]) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("listed", "kind", "reason"),
    [
        (rows(labels=[None]), "within_label", "a row needs a label, and another row of that label with another answer"),
        (rows(labels=["a"]), "across_labels", "a row needs a label, and a row of another label with another answer"),
        (rows(answers=1), "within_label", "another row of that label with another answer"),
        (rows(answers=1), "trigger", "a row needs another answer than the one that is planted"),
    ],
)
def test_rows_that_cannot_be_damaged_are_an_error(tmp_path, listed, kind, reason):
    with pytest.raises(StudyError, match=f"6 rows of .*pool.parquet are to be damaged by '{kind}', and only 0"):
        damage(tmp_path, listed, [kind])
    with pytest.raises(StudyError, match=reason):
        damage(tmp_path, listed, [kind])


def test_a_row_that_equals_a_trusted_test_is_left_alone(tmp_path):
    without = set(damage(tmp_path, rows())[2])
    tests = sorted(without)[:5]
    assert not set(damage(tmp_path, rows(), tests=tests)[2]) & set(tests)


def test_a_pool_of_tests_alone_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"every row of .*pool\.parquet equals one of the trusted tests"):
        damage(tmp_path, rows(), tests=range(60))


def test_a_pool_that_a_model_is_trained_on_is_refused(tmp_path, capsys):
    def corpus(name, listed):
        return read_corpus(str(write_lines(tmp_path / f"{name}.jsonl", listed)), tmp_path / f"{name}.parquet")

    half = corpus("half", rows()[30:] + rows(70)[67:])
    with pytest.raises(StudyError, match=r"30 of the 60 rows .* stand in .*half.parquet too"):
        damage(tmp_path, rows(), trained_on=[half])
    damage(tmp_path, rows(200), trained_on=[corpus("one", rows(200)[:1])])
    assert "1 rows stand in one too" in capsys.readouterr().err
