"""Write the rows of a selection with every column of their source: a training file, or a list for review."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.curation.row_files import WritableRow, write_rows
from workflow_scripts.curation.source_rows import original_rows, refuse_clashes
from workflow_scripts.study.sections import Corpus

ADDED = [("rank", pa.int32()), ("score", pa.float32()), ("test_file", pa.string()), ("test_row", pa.int64())]
# What a reviewer reads, and what tells later which row was meant.
ADDED_FOR_REVIEW = [("reason", pa.string()), ("example_id", pa.int32()), ("hash", pa.string())]


def write_curated(
    selection: Path,
    corpus: Path,
    dataset: Path | None,
    curated: Path,
    *,
    origin: Corpus,
    prefix: str,
    form: str,
    for_review: bool,
) -> None:
    """Write the selected rows with their own columns unchanged and those of the selection.

    A training file has the source's order, which memory doesn't grow with; a list for review begins with the best rank.

    The added columns are `rank`, `score`, `test_file` and `test_row` (of `select_examples`), each with
    the prefix; for a review also `reason`, `example_id` and `hash`.

    Parameters
    ----------
    selection: file that `select_examples` wrote.
    corpus: `corpora/` file that was selected from.
    dataset: hub only, JSON file with the commit that the corpus was read at; None for other sources.
    curated: file to write.
    origin: the corpus's section of the config: where it was read from, and how.
    prefix: begins the names of the added columns.
    form: `jsonl` or `parquet`.
    for_review: whether the rows are listed for review.

    Raises
    ------
    StudyError: the source has changed since the corpus was read, has a column of an added name, or a value that can't
        be written in this format.
    """
    added = [*ADDED, *(ADDED_FOR_REVIEW if for_review else [])]
    chosen = read_table(selection, list(dict.fromkeys(["example_id", *(name for name, _ in added)])))
    chosen = chosen.sort_by("example_id")
    names = {f"{prefix}{name}": name for name, _ in added}
    schemas = _Schemas(pa.schema([(f"{prefix}{name}", kind) for name, kind in added]))

    def rows() -> Iterator[WritableRow]:
        wanted = (row for batch in chosen.to_batches(10_000) for row in batch.to_pylist())
        one = next(wanted)
        for row in original_rows(corpus, dataset, origin, last_id=chosen["example_id"][-1].as_py()):
            if row.example_id != one["example_id"]:
                continue
            refuse_clashes(row, names)
            cells = {**row.cells, **{column: one[name] for column, name in names.items()}}
            yield WritableRow(row.name, cells, schemas.of(row.schema))
            one = next(wanted, one)

    by_rank = sorted(rows(), key=lambda row: int(str(row.cells[f"{prefix}rank"]))) if for_review else rows()
    written = write_rows(curated, by_rank, form)
    say(f"write_curated: {written:,} rows in {curated}")


class _Schemas:
    """Types of rows with the columns that are added; the same object for the rows of one file."""

    def __init__(self, added: pa.Schema):
        self._added = added
        self._known: tuple[pa.Schema | None, pa.Schema] | None = None

    def of(self, schema: pa.Schema | None) -> pa.Schema:
        if self._known is None or self._known[0] is not schema:
            fields = [*(schema or []), *self._added]
            self._known = (schema, pa.schema(fields))
        return self._known[1]


if __name__ == "__main__":
    run_stage(write_curated)
