"""Parquet files that are either whole or absent, each carrying the spec that made it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from workflow_scripts.lib.errors import StudyError

SCHEMA_VERSION = "1"
_metadata_in_force: ContextVar[Mapping[str, str]] = ContextVar("table_metadata", default=MappingProxyType({}))


def spec_hash(spec: Mapping[str, Any]) -> str:
    """Return 16 hex digits that depend on the values of `spec` alone, not on the order of its keys."""
    text = json.dumps(spec, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(*paths: Path) -> str:
    """Return 16 hex digits of the bytes of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def table_metadata(**entries: str) -> Iterator[None]:
    """Stamp every table written inside the block with `entries` (stage, spec hash)."""
    token = _metadata_in_force.set({**_metadata_in_force.get(), **entries})
    try:
        yield
    finally:
        _metadata_in_force.reset(token)


def metadata_in_force() -> Mapping[str, str]:
    """Return the entries that tables written now are stamped with."""
    return _metadata_in_force.get()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it takes the name `path` only if the block ends well.

    The name is unique to the host and process, so that a twin of a job never writes into the same file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stamped(schema: pa.Schema, metadata: Mapping[str, str]) -> pa.Schema:
    entries = {"schema_version": SCHEMA_VERSION, **_metadata_in_force.get(), **metadata}
    return schema.with_metadata({f"airrep.{key}": value for key, value in entries.items()})


def write_table(path: Path, table: pa.Table, **metadata: str) -> None:
    """Write `table` to `path` (zstd), whole or not at all."""
    write_batches(path, table.schema, [table], **metadata)


def write_batches(
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    measured: Callable[[], Mapping[str, str]] | None = None,
    **metadata: str,
) -> int:
    """Stream `tables` of one schema into `path`, whole or not at all; return the number of rows.

    `measured` gives metadata that is known only after the last table.
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
    """Yield a function that appends a table of `schema` to `path`, which appears when the block ends well.

    For one pass over the data that fills several files; otherwise `write_batches` is simpler.
    """
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    others = [field.name for field in schema if not pa.types.is_floating(field.type)]
    stamped = _stamped(schema, metadata)
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary,
            stamped,
            compression="zstd",
            use_dictionary=others,
            use_byte_stream_split=floats,
        ) as writer,
    ):
        yield lambda table: writer.write_table(table.cast(stamped))
        if measured:
            writer.add_key_value_metadata({f"airrep.{key}": value for key, value in measured().items()})


def write_csv(path: Path, table: pa.Table) -> None:
    """Write `table` to `path` as CSV, whole or not at all."""
    with atomic_path(path) as temporary:
        csv.write_csv(table, temporary)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file; a damaged one raises `StudyError` with its name and what to do."""
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise StudyError(
            f"{path} can't be read as Parquet ({error}). Delete the file and run again: the workflow makes it anew."
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the `airrep.*` entries of a Parquet file's metadata, without the prefix."""
    try:
        entries = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path} can't be read as Parquet ({error}). Delete it and run again.") from error
    return {
        key.decode().removeprefix("airrep."): value.decode()
        for key, value in entries.items()
        if key.startswith(b"airrep.")
    }
