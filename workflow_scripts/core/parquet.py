"""Parquet files that are either whole or absent, each with the hash of the spec that made it in its metadata."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path

SCHEMA_VERSION = "1"
SEAL = "seal"
# Entry of the metadata: JSON with the content hash of each local model folder that was loaded (core.model_contents).
CONTENTS = "contents"
READ_BUFFER_BYTES = 1 << 20
# What Arrow raises on damaged bytes; the last where names or text are no longer UTF-8.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
_metadata_in_force: ContextVar[Mapping[str, str]] = ContextVar("table_metadata", default=MappingProxyType({}))


def spec_hash(spec: Mapping[str, Any]) -> str:
    """Return 16 hex digits: a hash of the values of `spec`, whatever the order of its keys."""
    text = json.dumps(spec, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def table_metadata(**entries: str) -> Iterator[None]:
    """Stamp every table written inside the block with `entries` (stage, spec hash)."""
    token = _metadata_in_force.set({**_metadata_in_force.get(), **entries})
    try:
        yield
    finally:
        _metadata_in_force.reset(token)


def has_other_models(metadata: Mapping[str, str]) -> bool:
    """Return whether a file's metadata says another content of a local model than the tables that are written now."""
    then, now = (json.loads(entries.get(CONTENTS, "{}")) for entries in (metadata, _metadata_in_force.get()))
    return any(then[model] != now[model] for model in then.keys() & now.keys())


def metadata_in_force() -> Mapping[str, str]:
    """Return the entries that the `table_metadata` blocks around the caller add to every table."""
    return _metadata_in_force.get()


def _seal(schema: pa.Schema, rows: int, entries: Mapping[str, str]) -> str:
    """Return 16 hex digits: a hash of a file's footer; its pages have checksums of their own."""
    # Parquet renames the field of a list's elements.
    columns = [[field.name, re.sub(r"list<\w+: ", "list<", str(field.type)), field.nullable] for field in schema]
    others = {name: value for name, value in entries.items() if name != SEAL}
    return spec_hash({"columns": columns, "rows": rows, "entries": others})


def _entries(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Return the `airrep.*` entries of a Parquet file's metadata, without the prefix."""
    return {
        key.decode().removeprefix("airrep."): value.decode()
        for key, value in (metadata or {}).items()
        if key.startswith(b"airrep.")
    }


def _stamped(schema: pa.Schema, metadata: Mapping[str, str]) -> pa.Schema:
    entries = {"schema_version": SCHEMA_VERSION, **_metadata_in_force.get(), **metadata}
    return schema.with_metadata({f"airrep.{key}": value for key, value in entries.items()})


def write_table(path: Path, table: pa.Table, **metadata: str) -> None:
    """Write `table` to the Parquet file `path` (zstd), whole or not at all.

    Parameters
    ----------
    path: the file; an existing one is replaced, missing folders are created.
    table: its rows.
    metadata: entries of the file's metadata, besides those of `table_metadata`; `read_metadata` returns them.
    """
    write_batches(path, table.schema, [table], None, **metadata)


def write_batches(
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    measured: Callable[[], Mapping[str, str]] | None = None,
    **metadata: str,
) -> int:
    """Stream tables into the Parquet file `path`, whole or not at all; return the number of rows.

    Parameters
    ----------
    path: the file.
    schema: columns of the file, which every table is cast to.
    tables: read one by one.
    measured: called after the last table, for metadata that is known only then.
    metadata: further entries of the file's metadata, see `write_table`.
    """
    rows = 0
    with table_writer(path, schema, measured, **metadata) as write:
        for table in tables:
            write(table)
            rows += table.num_rows
    return rows


@contextlib.contextmanager
def table_writer(
    path: Path,
    schema: pa.Schema,
    measured: Callable[[], Mapping[str, str]] | None = None,
    **metadata: str,
) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends a table to `path`, which appears only if the block raises nothing.

    For one pass over the data that fills several files; otherwise `write_batches` is simpler. Parameters as there.
    """
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    others = [field.name for field in schema if not pa.types.is_floating(field.type)]
    stamped = _stamped(schema, metadata)
    rows = 0

    def write(table: pa.Table) -> None:
        nonlocal rows
        writer.write_table(table.cast(stamped))
        rows += table.num_rows

    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary,
            stamped,
            compression="zstd",
            use_dictionary=others,
            use_byte_stream_split=floats,
            write_page_checksum=True,
        ) as writer,
    ):
        yield write
        later = dict(measured()) if measured else {}
        later[SEAL] = _seal(stamped, rows, {**_entries(stamped.metadata), **later})
        writer.add_key_value_metadata({f"airrep.{key}": value for key, value in later.items()})


def write_csv(path: Path, table: pa.Table) -> None:
    """Write `table` to `path` as CSV, whole or not at all."""
    with atomic_path(path) as temporary:
        csv.write_csv(table, temporary)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file.

    Parameters
    ----------
    path: the file.
    columns: which to read; all if None.

    Raises
    ------
    StudyError: the file is missing or damaged, or lacks one of `columns`; names the file and says what to do.
    """
    try:
        with open_table(path) as file:
            _check_columns(path, file, columns)
            return file.read(columns)
    except DAMAGE as error:
        raise damaged(path, error) from error


def read_batches(
    path: Path, rows: int, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file, or some of its row groups, in batches; memory depends on their size alone.

    Parameters
    ----------
    path: the file.
    rows: most rows in a batch.
    columns: which to read; all if None.
    groups: numbers of the row groups to read, in this order; all if None.

    Raises
    ------
    StudyError: as in `read_table`, but only once the first batch is asked for, or the damaged one.
    """
    try:
        with open_table(path) as file:
            _check_columns(path, file, columns)
            yield from file.iter_batches(rows, row_groups=groups, columns=columns)
    except DAMAGE as error:
        raise damaged(path, error) from error


def rows_of_groups(path: Path) -> list[int]:
    """Return the number of rows in each row group of a Parquet file. Errors as in `read_table`."""
    try:
        with open_table(path) as file:
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except DAMAGE as error:
        raise damaged(path, error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the `airrep.*` entries of a Parquet file's metadata, without the prefix. Errors as in `read_table`."""
    try:
        with open_table(path) as file:
            return _entries(file.metadata.metadata)
    except DAMAGE as error:
        raise damaged(path, error) from error


def read_schema(path: Path) -> tuple[pa.Schema, int]:
    """Return the schema of a Parquet file and its number of rows. Errors as in `read_table`."""
    try:
        with open_table(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> StudyError:
    """Return the error to raise for a damaged file: it says to delete the file and run again."""
    return StudyError(
        f"{path} can't be read as Parquet ({error}). Delete the file and run again: the workflow recomputes it."
    )


def open_table(path: Path) -> pq.ParquetFile:
    """Open a Parquet file whose pages are checked as they are read.

    For row groups in any order; otherwise `read_table` and `read_batches` are simpler.

    Raises
    ------
    One of `DAMAGE`: the file is missing or damaged, or its footer was changed after it was written.
    """
    # A small buffer instead of whole row groups.
    file = pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
    try:
        footer, entries = file.metadata, _entries(file.metadata.metadata)
        groups = sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        # A file from elsewhere has no seal.
        sealed = entries.get(SEAL) in (None, _seal(file.schema_arrow, footer.num_rows, entries))
        if not sealed or groups != footer.num_rows:
            raise OSError("its footer was changed after it was written")
    except BaseException:
        file.close()
        raise
    return file


def _check_columns(path: Path, file: pq.ParquetFile, columns: Sequence[str] | None) -> None:
    if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
        raise StudyError(f"{path} has no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}")
