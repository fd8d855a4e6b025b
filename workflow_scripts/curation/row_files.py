"""Write rows with any columns as JSON Lines or Parquet, whole or not at all, in memory that doesn't grow with them."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.parquet import table_writer
from workflow_scripts.corpora.cells import kind_of
from workflow_scripts.corpora.json_rows import RepeatedKey

BATCH_ROWS = 10_000
BATCH_CHARACTERS = 2**23


class WritableRow(NamedTuple):
    """A row to write.

    Attributes
    ----------
    name: where it came from, for messages.
    cells: values by column.
    schema: types of its columns, where they are known; None to take them from the values.
    """

    name: str
    cells: Mapping[str, object]
    schema: pa.Schema | None


def write_rows(path: Path, rows: Iterable[WritableRow], form: str) -> int:
    """Write rows in their order; return how many.

    Parameters
    ----------
    path: file to write.
    rows: read one by one.
    form: `jsonl`, or `parquet`, where a column's type is the one that holds all of its values (integers and fractions
        together are fractions).

    Raises
    ------
    StudyError: a value or a column can't be written in this format.
    """
    return {"jsonl": _write_json_lines, "parquet": _write_parquet}[form](path, rows)


def _write_json_lines(path: Path, rows: Iterable[WritableRow]) -> int:
    written = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for row in rows:
            _require_names(row)
            file.write(_json_line(row))
            written += 1
    return written


def _require_names(row: WritableRow) -> None:
    for name, value in row.cells.items():
        if isinstance(value, RepeatedKey):
            column = f"the column {name!r}" if name else "a column without a name"
            raise StudyError(f"{row.name}: {column} stands there twice. Rename or remove one of the two in the source.")


def _json_line(row: WritableRow) -> bytes:
    def dumped(cells: object, **options: Any) -> str:
        return json.dumps(cells, default=_as_json, allow_nan=False, **options)

    try:
        try:
            text = dumped(row.cells, ensure_ascii=False)
        except ValueError:
            text = dumped(_without_nan(row.cells), ensure_ascii=False)
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:
            # Half a surrogate pair, which JSON can only write as an escape.
            return dumped(json.loads(text)).encode() + b"\n"
    except TypeError as error:
        raise StudyError(
            f"{row.name}: a value is {error}, which JSON has no form for. Write `format: parquet` for this selection, "
            "or mend the row."
        ) from None


def _as_json(value: object) -> object:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(kind_of(value))


def _without_nan(value: object) -> object:
    """Return `value` with null for numbers that aren't finite, which JSON doesn't have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_parquet(path: Path, rows: Iterable[WritableRow]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        # The type of a column is known only after its last value.
        files, schema = [], pa.schema([])
        for number, batch in enumerate(_batches(rows)):
            table = _table_of(batch)
            schema = _unified(schema, table.schema, batch)
            files.append(Path(folder, f"{number}.arrow"))
            with pa.OSFile(str(files[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        written = 0
        try:
            with table_writer(path, schema) as write:
                for file in files:
                    table = _with_schema(_read(file), schema)
                    write(table)
                    written += table.num_rows
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise _not_parquet(f"{path.name}: the columns", error) from None
    return written


def _batches(rows: Iterable[WritableRow]) -> Iterator[list[WritableRow]]:
    batch: list[WritableRow] = []
    characters = 0
    for row in rows:
        _require_names(row)
        if batch and (len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS or row.schema is not batch[0].schema):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += sum(len(value) for value in row.cells.values() if isinstance(value, str | bytes))
    if batch:
        yield batch


def _table_of(batch: list[WritableRow]) -> pa.Table:
    # `from_pylist` takes the columns of the first row for those of all.
    columns = list(dict.fromkeys(name for row in batch for name in row.cells))
    known = batch[0].schema
    fields = []
    for name in columns:
        place = -1 if known is None else known.get_field_index(name)
        values = [row.cells.get(name) for row in batch]
        try:
            fields.append(pa.array(values, known.field(place).type if known and place >= 0 else None))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise _not_parquet(f"{batch[0].name} and those after it: column {name!r}", error) from None
    return pa.table(dict(zip(columns, fields, strict=True)))


def _unified(schema: pa.Schema, other: pa.Schema, batch: list[WritableRow]) -> pa.Schema:
    try:
        return pa.unify_schemas([schema, other], promote_options="permissive")
    except pa.ArrowException as error:
        raise _not_parquet(f"{batch[0].name} and those after it: a column", error) from None


def _not_parquet(what: str, error: Exception) -> StudyError:
    reason = str(error).splitlines()[0]
    return StudyError(f"{what} can't be written as Parquet ({reason}). Write `format: jsonl` for this selection.")


def _read(file: Path) -> pa.Table:
    with pa.OSFile(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    return pa.table(
        [
            _cast(table[field.name], field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ],
        schema,
    )


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    # Casts don't add fields to the objects of a column.
    return column if column.type == kind else pa.array(column.to_pylist(), kind)
