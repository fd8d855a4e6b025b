"""Write a corpus without the rows that a reviewed list names."""

from collections.abc import Iterator
from pathlib import Path

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.readers import read_rows
from workflow_scripts.curation.row_files import WritableRow, write_rows
from workflow_scripts.curation.source_rows import original_rows
from workflow_scripts.study.sections import Corpus


def drop_rows(
    corpus: Path,
    reviewed: Path,
    dataset: Path | None,
    kept: Path,
    *,
    origin: Corpus,
    prefix: str,
    form: str,
) -> None:
    """Write the rows of a corpus but those of a reviewed list, in the source's order and with their own columns alone.

    Parameters
    ----------
    corpus: `corpora/` file.
    reviewed: what the reader left of the list for review: rows with the columns `example_id` and `hash`.
    dataset: hub only, JSON file with the commit that the corpus was read at; None for other sources.
    kept: file to write.
    origin: the corpus's section of the config: where it was read from, and how.
    prefix: begins the names of the list's columns.
    form: `jsonl` or `parquet`.

    Raises
    ------
    StudyError: the list can't be read or names rows of another corpus, or the source has changed since the corpus was
        read.
    """
    dropped = _reviewed_ids(reviewed, corpus, prefix)

    def rows() -> Iterator[WritableRow]:
        for row in original_rows(corpus, dataset, origin):
            if row.example_id not in dropped:
                yield WritableRow(row.name, row.cells, row.schema)

    written = write_rows(kept, rows(), form)
    say(
        f"drop_rows: {len(dropped):,} rows dropped, {written:,} kept in {kept}; rows of the source that the corpus "
        "doesn't have (refused, outside its part, beyond its limit) are in neither"
    )


def _reviewed_ids(reviewed: Path, corpus: Path, prefix: str) -> set[int]:
    hashes = read_table(corpus, ["hash"])["hash"]
    dropped: set[int] = set()
    for row in read_rows(str(reviewed)):
        if row.cells is None:
            raise StudyError(f"{reviewed}, row {row.number}: {row.reason}; fix the line, or copy `review` again")
        try:
            example_id, content = int(str(row.cells[f"{prefix}example_id"])), str(row.cells[f"{prefix}hash"])
        except (KeyError, ValueError):
            raise StudyError(
                f"{reviewed}, row {row.number}: it has no {prefix}example_id and {prefix}hash; copy rows of the "
                "review file unchanged"
            ) from None
        if not 0 <= example_id < len(hashes) or hashes[example_id].as_py() != content:
            raise StudyError(
                f"{reviewed}, row {row.number}: example {example_id} of {corpus} is no longer the row that was "
                "listed. Copy this study's review file again and review it."
            )
        dropped.add(example_id)
    return dropped


if __name__ == "__main__":
    run_stage(drop_rows)
