"""Read a corpus of any recognised format, and separate the rows that can be used from those that can't."""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from workflow_scripts.core.errors import StudyError, UnusableRowError
from workflow_scripts.core.parquet import read_batches, table_writer
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.cells import shown
from workflow_scripts.corpora.chat import Turn
from workflow_scripts.corpora.readers import SourceRow, read_rows
from workflow_scripts.corpora.row_formats import Columns, Example, plain_name, prompt_key, read_example
from workflow_scripts.corpora.tables import CORPUS_SCHEMA, REJECTED_SCHEMA

BATCH_ROWS = 10_000
BATCH_CHARACTERS = 2**24
SECONDS_BETWEEN_LINES = 10.0
REASONS_SHOWN = 20
COLUMNS_SHOWN = 30


class TooManyRejectedError(StudyError):
    """More rows can't be used than `max_rejected_share` allows: `found` says which, the message what to do too."""

    def __init__(self, found: str, kept: Path):
        self.found = found
        super().__init__(
            f"{found}\nAll of them are in {kept}. Mend the rows, name their columns under `columns`, or raise "
            "max_rejected_share."
        )


def prepare_corpus(
    corpus: Path,
    rejected: Path,
    without: Sequence[Path] = (),
    dataset: Path | None = None,
    *,
    source: str,
    config_name: str | None,
    split: str,
    revision: str | None,
    data_files: str | None,
    columns: dict[str, str | list[str]],
    response_turn: Turn,
    part: tuple[float, float],
    limit: int | None,
    max_rejected_share: float,
) -> None:
    """Write the examples of a source and its bad rows (columns: docs/artifacts.md).

    Ids count the accepted rows in source order, so that rows appended to the source change none. Duplicate rows are
    kept: corpora have them, and they share a hash. Bad rows have no prompt and so no part; every part of a source
    reports them.

    Parameters
    ----------
    corpus: Parquet file to write, one row per example.
    rejected: Parquet file to write, one row per bad row.
    without: `corpora/` files; rows whose prompt, normalised, is in one of them are left out.
    dataset: hub only, JSON file with the commit that `revision` was resolved to; None to resolve it now.
    source: `builtin:mini`, a local file or glob, or a hub dataset id.
    config_name: hub only, the dataset's config name.
    split: hub only, the split.
    revision: hub only, a commit, tag or branch.
    data_files: hub only, file or pattern inside the dataset.
    columns: names of the columns `prompt`, `response`, `messages` and `label`, where they differ.
    response_turn: which assistant turn of a chat is the response, `last` or `first`.
    part: [from, to) in [0, 1]; rows whose prompt's hash is outside are left out.
    limit: reading stops after so many accepted rows; None for no limit.
    max_rejected_share: largest share of the rows read that may be bad, in [0, 1].

    Raises
    ------
    StudyError: the source can't be read, a mapped column doesn't exist, no row is accepted, or more than
        `max_rejected_share` of the rows read are bad. The bad rows are then kept beside `rejected`, in
        `<name>.failed.parquet`.
    """
    # Snakemake deletes the declared outputs of a failed job, just when the bad rows are needed most.
    kept = rejected.with_suffix(".failed.parquet")
    kept.unlink(missing_ok=True)
    resolved = json.loads(dataset.read_text(encoding="utf-8")) if dataset else {}
    rows = read_rows(
        source,
        config_name=config_name,
        split=split,
        revision=revision,
        data_files=data_files,
        commit=resolved.get("commit"),
    )
    tally = _Tally(unseen_columns={plain_name(name) for names in columns.values() for name in _listed(names)})
    prompts_left_out = {
        prompt_key(prompt)
        for path in without
        for batch in read_batches(path, BATCH_ROWS, ["prompt"])
        for prompt in batch["prompt"].to_pylist()
    }
    with table_writer(corpus, CORPUS_SCHEMA, None, **resolved) as write_examples:
        with (
            table_writer(kept, REJECTED_SCHEMA) as write_rejected,
            _Batch(CORPUS_SCHEMA, write_examples) as examples,
            _Batch(REJECTED_SCHEMA, write_rejected) as bad_rows,
            contextlib.closing(rows),
        ):
            for row in rows:
                try:
                    example = _example_of(row, columns, response_turn)
                except UnusableRowError as error:
                    bad_rows.add(tally.reject(row, str(error)))
                else:
                    tally.unread_columns.update(dict.fromkeys(example.unread))
                    tally.label_columns[example.label and example.label_column] += 1
                    if prompts_left_out and prompt_key(example.prompt) in prompts_left_out:
                        tally.left_out += 1
                    elif part[0] <= example.place < part[1]:
                        examples.add(_record(tally.accepted, row, example))
                        tally.accepted += 1
                tally.count(row)
                if tally.accepted == limit:
                    break
        say(f"prepare_corpus: {source}: {tally.summary()}")
        if tally.label_columns:
            say(f"prepare_corpus: {source}: {tally.labels()}")
        if tally.unread_columns:
            say(f"prepare_corpus: {source}: columns that aren't read: {tally.unread()}")
        tally.check(source, columns, part, limit, max_rejected_share, kept)
    os.replace(kept, rejected)


def _example_of(row: SourceRow, columns: Columns, response_turn: Turn) -> Example:
    if row.cells is None:
        raise UnusableRowError(row.reason)
    return read_example(row.cells, columns, response_turn)


def _record(example_id: int, row: SourceRow, example: Example) -> dict[str, object]:
    return {
        "example_id": example_id,
        "prompt": example.prompt,
        "response": example.response,
        "messages": example.messages,
        "label": example.label,
        "source_row": row.number,
        "source_file": row.file,
        "hash": example.hash,
    }


class _Batch(contextlib.AbstractContextManager["_Batch"]):
    """A buffer of rows that are written to a table, of limited size."""

    def __init__(self, schema: pa.Schema, write: Callable[[pa.Table], None]):
        self.schema, self.write = schema, write
        self.rows: list[dict[str, object]] = []
        self.characters = 0

    def add(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        self.characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self.rows) >= BATCH_ROWS or self.characters >= BATCH_CHARACTERS:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        self.write(pa.Table.from_pylist(self.rows, self.schema))
        self.rows, self.characters = [], 0


@dataclass
class _Tally:
    """Counts of the rows read so far; those neither accepted nor rejected nor left out are outside the part."""

    unseen_columns: set[str]
    seen_columns: dict[str, None] = field(default_factory=dict)
    unread_columns: dict[str, None] = field(default_factory=dict)
    label_columns: Counter[str | None] = field(default_factory=Counter)
    read: int = 0
    accepted: int = 0
    rejected: int = 0
    left_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first_rows: dict[str, str] = field(default_factory=dict)
    last_said: float = field(default_factory=time.monotonic)

    def count(self, row: SourceRow) -> None:
        self.read += 1
        if row.cells is not None and (self.unseen_columns or self.read == 1):
            self.unseen_columns.difference_update(map(plain_name, row.cells))
            if len(self.seen_columns) < COLUMNS_SHOWN:
                self.seen_columns.update(dict.fromkeys(row.cells))
        if time.monotonic() - self.last_said >= SECONDS_BETWEEN_LINES:
            self.last_said = time.monotonic()
            say(f"prepare_corpus: {self.summary()} so far")

    def reject(self, row: SourceRow, reason: str) -> dict[str, object]:
        """Count a bad row and return its record."""
        self.rejected += 1
        kind = reason.split(": ")[0]
        self.reasons[kind] += 1
        self.first_rows.setdefault(kind, f"{row.file}, row {row.number}: {reason}")
        return {"source_row": row.number, "source_file": row.file, "reason": reason}

    def unread(self) -> str:
        """Return the columns that took no part in any example that has them, for the log."""
        names = list(self.unread_columns)
        more = f" and {len(names) - COLUMNS_SHOWN:,} more" if len(names) > COLUMNS_SHOWN else ""
        return ", ".join(map(shown, names[:COLUMNS_SHOWN])) + more

    def labels(self) -> str:
        """Return which columns the labels are of, for the log."""
        found = [f"{count:,} of {shown(column)}" for column, count in self.label_columns.items() if column]
        without = f"{self.label_columns[None]:,} rows have no label" if self.label_columns[None] else ""
        return "labels: " + ", ".join(filter(None, [*found, without]))

    def summary(self) -> str:
        outside = self.read - self.accepted - self.rejected - self.left_out
        tail = f", {outside:,} outside the part" if outside else ""
        tail += f", {self.left_out:,} with a prompt of the corpora under `without`" if self.left_out else ""
        return f"{self.read:,} rows read, {self.accepted:,} accepted, {self.rejected:,} rejected{tail}"

    def check(
        self,
        source: str,
        columns: Columns,
        part: tuple[float, float],
        limit: int | None,
        max_rejected_share: float,
        kept: Path,
    ) -> None:
        """Raise `StudyError` unless the rows make a corpus."""
        if not self.read:
            raise StudyError(f"{source} has no rows")
        if self.unseen_columns:
            # Where reading stopped at the limit, later rows may have it.
            within = f" in the {self.read:,} rows that `limit` had read" if self.accepted == limit else ""
            raise StudyError(
                f"columns: {_shown_map(columns, self.unseen_columns)}: {source} has no such column{within}; "
                f"it has {', '.join(map(repr, self.seen_columns)) or 'none'}"
            )
        if self.rejected > max_rejected_share * self.read:
            raise TooManyRejectedError(
                f"{source}: {self.rejected:,} of {self.read:,} rows can't be used, more than "
                f"max_rejected_share: {max_rejected_share}. {self._reasons_shown()}",
                kept,
            )
        if self.rejected == self.read:
            raise TooManyRejectedError(f"{source}: {self.summary()}; no row is left. {self._reasons_shown()}", kept)
        if not self.accepted:
            raise StudyError(f"{source}: {self.summary()}; no row is left in part: {list(part)}; widen it")

    def _reasons_shown(self) -> str:
        lines = [
            f"  {count:,} x {kind}, e.g. {self.first_rows[kind]}"
            for kind, count in self.reasons.most_common(REASONS_SHOWN)
        ]
        return "Most frequent reasons:\n" + "\n".join(lines)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _shown_map(columns: Columns, unseen: set[str]) -> str:
    named = [(meaning, name) for meaning, names in columns.items() for name in _listed(names)]
    return ", ".join(f"{meaning}: {name}" for meaning, name in named if plain_name(name) in unseen)


if __name__ == "__main__":
    run_stage(prepare_corpus)
