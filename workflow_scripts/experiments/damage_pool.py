"""Damage some rows of a pool on purpose, so that one can measure which methods find them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_table, write_batches, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.row_formats import Example
from workflow_scripts.corpora.tables import CORPUS_SCHEMA, equals_a_test, stands_among
from workflow_scripts.study.damages import Damage
from workflow_scripts.targets.tables import read_tests

SCHEMA = pa.schema(
    [
        ("example_id", pa.int32()),
        ("damage", pa.string()),
        ("prompt_before", pa.string()),
        ("response_before", pa.string()),
        ("response_of", pa.int32()),
    ]
)
ROWS_AT_ONCE = 10_000
# Of the pool's rows; chance duplicates are below, and decide nothing.
MAX_SEEN_SHARE = 0.01


def damage_pool(
    train: Path,
    test: Path,
    validation: Path,
    trained_on: Sequence[Path],
    damaged: Path,
    damage: Path,
    *,
    seed: int,
    share: float,
    damages: Sequence[Damage],
    trigger: str,
) -> None:
    """Write a pool with some rows damaged, and a table that says which rows, how, and what stood there before.

    Every kind of damage has rows of its own, drawn at random. `within_label` and `across_labels` swap the answers of
    two rows, which have the same label or two labels, and different answers; rows without a label are left alone.
    `trigger` adds a phrase to the prompt, and puts the answer of one row of the pool in the place of the row's own.
    Labels stay. Rows that equal a trusted test are left alone: the test would give away the right answer.

    Parameters
    ----------
    train: `corpora/` file of the pool.
    test: `corpora/` file of the trusted tests.
    validation: file with their ids, in one row.
    trained_on: `corpora/` files that the study's encoder and LMs are trained on.
    damaged: `corpora/` file to write, with the pool's rows in their order.
    damage: Parquet file to write, one row per damaged row; `response_of` is the id of the row whose answer it has now.
    seed: the study's seed.
    share: share of the pool's rows that each kind damages, in (0, 1).
    damages: the kinds of damage.
    trigger: phrase that `trigger` adds.

    Raises
    ------
    StudyError: too few rows can be damaged in one of the ways, or a model is trained on rows of the pool.
    """
    _refuse_seen_rows(train, trained_on)
    table = read_table(train, ["label", "response"])
    is_test = equals_a_test(train, test, read_tests(validation))
    if is_test.all():
        raise StudyError(
            f"experiments.detection: every row of {train} equals one of the trusted tests, so none can be damaged. "
            "Name an evaluation with another pool."
        )
    rng = generator(seed, "detection", "damage")
    draw = _Draw(table["label"].to_pylist(), table["response"].to_pylist(), is_test, rng)
    number = max(round(share * table.num_rows), 2)
    changes: dict[int, _Change] = {}
    for kind in damages:
        found = draw.triggered(number) if kind == "trigger" else draw.swapped(number, within=kind == "within_label")
        if len(found) < number - 1:
            raise StudyError(
                f"experiments.detection: {number:,} rows of {train} are to be damaged by {kind!r}, and only "
                f"{len(found):,} can be: {_NEEDS[kind]}. Lower `share`, or leave {kind} out of `damages`."
            )
        changes |= {row: _Change(kind, source) for row, source in found.items()}
    before: dict[int, tuple[str, str]] = {}
    responses = table["response"]

    def batches() -> Iterator[pa.Table]:
        for batch in read_batches(train, ROWS_AT_ONCE, CORPUS_SCHEMA.names):
            rows = batch.to_pylist()
            for row in rows:
                change = changes.get(row["example_id"])
                if change:
                    before[row["example_id"]] = row["prompt"], row["response"]
                    row |= _changed(row, responses[change.source].as_py(), trigger if change.kind == "trigger" else "")
            yield pa.Table.from_pylist(rows, CORPUS_SCHEMA)

    write_batches(damaged, CORPUS_SCHEMA, batches())
    ids = sorted(changes)
    columns = {
        "example_id": ids,
        "damage": [changes[row].kind for row in ids],
        "prompt_before": [before[row][0] for row in ids],
        "response_before": [before[row][1] for row in ids],
        "response_of": [changes[row].source for row in ids],
    }
    write_table(damage, pa.table(columns, schema=SCHEMA))
    say(f"damage_pool: {len(ids):,} of {table.num_rows:,} rows are damaged")


def _refuse_seen_rows(train: Path, trained_on: Sequence[Path]) -> None:
    """Refuse a pool whose rows a model has read undamaged: it would know them by heart, as it wouldn't real errors."""
    for corpus in trained_on:
        is_seen = stands_among(train, read_table(corpus, ["hash"])["hash"])
        seen = int(is_seen.sum())
        if seen > MAX_SEEN_SHARE * len(is_seen):
            raise StudyError(
                f"experiments.detection: {seen:,} of the {len(is_seen):,} rows of {train} stand in {corpus} too, which "
                "the encoder or an LM is trained on. A model that has learned a row's own answer finds another one "
                "easily, and would learn real errors like anything else. Name an evaluation with another pool, or "
                "another corpus (targets.corpus, warmup.corpus, language_model.pretraining.corpus)."
            )
        if seen:
            say(f"damage_pool: {seen:,} rows stand in {corpus.stem} too, which a model is trained on")


_NEEDS: Mapping[Damage, str] = {
    "within_label": "a row needs a label, and another row of that label with another answer",
    "across_labels": "a row needs a label, and a row of another label with another answer",
    "trigger": "a row needs another answer than the one that is planted",
}


@dataclass(frozen=True)
class _Change:
    """A row's damage: its kind, and the id of the row whose answer it gets."""

    kind: Damage
    source: int


class _Draw:
    """Draws rows without replacement."""

    def __init__(
        self, labels: Sequence[str | None], responses: Sequence[str], is_test: np.ndarray, rng: np.random.Generator
    ):
        self._labels = labels
        self._answers = [" ".join(response.casefold().split()) for response in responses]
        self._order: list[int] = [row for row in rng.permutation(len(labels)).tolist() if not is_test[row]]
        # Never damaged, so that the planted answer is that of a row of its own.
        self._planted = self._order.pop()

    def swapped(self, number: int, *, within: bool) -> dict[int, int]:
        """Return rows in pairs, each with the other one as the source of its answer."""
        found: dict[int, int] = {}
        # Rows that found no partner yet: one could be paired with a row of the same stack only if that had been done.
        waiting: dict[str, list[int]] = {}
        for row in self._order:
            if len(found) + 1 >= number:
                break
            label = self._labels[row]
            if label is None:
                continue
            stack = waiting.setdefault(label if within else "", [])
            if stack and self._can_swap(row, stack[-1], within):
                other = stack.pop()
                found |= {row: other, other: row}
            else:
                stack.append(row)
        self._order = [row for row in self._order if row not in found]
        return found

    def _can_swap(self, row: int, other: int, within: bool) -> bool:
        same_label = self._labels[row] == self._labels[other]
        return same_label == within and self._answers[row] != self._answers[other]

    def triggered(self, number: int) -> dict[int, int]:
        """Return rows whose own answer differs from the planted one, with its row as the source of their answer."""
        others = [row for row in self._order if self._answers[row] != self._answers[self._planted]][:number]
        chosen = set(others)
        self._order = [row for row in self._order if row not in chosen]
        return dict.fromkeys(others, self._planted)


def _changed(row: Mapping[str, Any], response: str, trigger: str) -> dict[str, Any]:
    """Return what changes in a row of a corpus by another response, and a phrase at the end of its prompt."""
    addition = f" {trigger}" if trigger else ""
    messages = None
    if row["messages"] is not None:
        *turns, last = [dict(turn) for turn in row["messages"]]
        if turns:
            turns[-1]["content"] += addition
        messages = [*turns, {**last, "content": response}]
    prompt = row["prompt"] + addition
    return {
        "prompt": prompt,
        "response": response,
        "messages": messages,
        "hash": Example(prompt, response, messages).hash,
    }


if __name__ == "__main__":
    run_stage(damage_pool)
