"""Read the rows of a corpus source, one at a time, in an order that appending doesn't change."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.core.errors import StudyError, UnusableRowError
from workflow_scripts.corpora.builtin import BUILTIN_CORPORA
from workflow_scripts.corpora.cells import kind_of
from workflow_scripts.corpora.json_rows import decode_json, decode_json_at, object_of, skip_blanks
from workflow_scripts.study.sources import FORMATS, HubDataset, broken_links, hub_dataset, local_files

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LONGEST_CSV_CELL = 2**26
# As spreadsheets of various languages write them.
CSV_SEPARATORS = ",;\t"
PARQUET_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a source.

    Parameters
    ----------
    file: base name of its file; of a hub dataset, its path there.
    number: line or row number in the file, from 1.
    cells: values by column; None if the row can't be read.
    reason: why it can't be read.
    schema: columns and types of its file, if that is Parquet; otherwise None.
    """

    file: str
    number: int
    cells: Mapping[str, object] | None
    reason: str = ""
    schema: pa.Schema | None = None


def read_rows(
    source: str,
    *,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    data_files: str | None = None,
    commit: str | None = None,
) -> Generator[SourceRow, None, None]:
    """Yield the rows of a source.

    Parameters
    ----------
    source: `builtin:mini`, a local file or glob (files are read in order of their paths), or a hub dataset id.
    config_name: hub only, the dataset's config name.
    split: hub only, the split.
    revision: hub only, a commit, tag or branch.
    data_files: hub only, file or pattern inside the dataset.
    commit: hub only, the commit that `revision` was resolved to; None to resolve it now.

    Raises
    ------
    StudyError: there is no such file or dataset, or a file is damaged or of an unknown kind.
    """
    if source.startswith("builtin:"):
        return _read_builtin(source)
    dataset = hub_dataset(source, revision, data_files)
    if dataset is not None:
        return _read_hub(dataset, commit, config_name, split, data_files)
    files = _local_files(source)
    return (row for file, name in zip(files, _names(files), strict=True) for row in _read_file(file, name))


def _names(files: Sequence[Path]) -> list[str]:
    """Return what rows call their files: base names, or paths below the common folder where a base name repeats."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(common).as_posix() for file in files]


def _read_builtin(source: str) -> Generator[SourceRow, None, None]:
    if source not in BUILTIN_CORPORA:
        raise StudyError(f"source: there is no {source!r}; the builtin corpora are {', '.join(BUILTIN_CORPORA)}")
    return (SourceRow(source, number, row) for number, row in enumerate(BUILTIN_CORPORA[source](), 1))


def _local_files(source: str) -> list[Path]:
    """Return the files of a local source."""
    if source in FORMATS:
        raise StudyError(
            f"source: {source} is a format; data_files must then be a file's address, hf://datasets/owner/name@revision/"
            "file. For a file of yours, write its path as source"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        raise StudyError(f"source: {source} is a folder; write the files in it, e.g. {source}/*.jsonl")
    if broken := broken_links(source):
        raise StudyError(
            f"source: {broken[0]} is a link to {os.readlink(broken[0])}, where nothing is; mend it, or take it away"
        )
    files = local_files(source)
    if not files and glob.has_magic(source):
        raise StudyError(f"source: no file matches {source} (looked in {Path.cwd()})")
    if not files:
        raise StudyError(f"source: there is no file {source} (looked in {Path.cwd()})")
    for file in files:
        if _format_of(file) not in _READERS:
            raise StudyError(
                f"source: {file} is of an unknown kind; its name must end in one of "
                f"{', '.join(_READERS)}, or one of these with {' or '.join(COMPRESSIONS)} after it"
            )
    return files


def _format_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _read_file(path: Path, name: str) -> Generator[SourceRow, None, None]:
    """Yield the rows of a file; `name` is what they call it."""
    name = name.encode(errors="replace").decode()
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        with pa.input_stream(path, compression=compression) as stream, io.BufferedReader(stream) as file:
            for number, row in enumerate(_READERS[_format_of(path)](file), 1):
                if row is not None:
                    yield SourceRow(name, number, *row)
    except (OSError, pa.ArrowException) as error:
        raise StudyError(f"source: {path} can't be read: {error}") from error
    except UnusableRowError as error:
        raise StudyError(f"source: {path}: {error}; mend the file, or write it as JSON Lines") from None


# None stands for a blank line: no row, but it has a number.
_Rows = Iterator[tuple[dict[str, object] | None, str] | tuple[dict[str, object] | None, str, pa.Schema] | None]


def _checked(value: object) -> tuple[dict[str, object] | None, str]:
    return (value, "") if isinstance(value, dict) else (None, f"not an object: the row is {kind_of(value)}")


def _read_json_lines(file: io.BufferedReader) -> _Rows:
    # A binary file ends lines at byte 0x0A alone; text files would also cut at U+2028 and the like.
    for number, line in enumerate(file):
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            if not text.strip():
                yield None
            else:
                yield _checked(decode_json(text.removesuffix("\n")))
        except UnicodeDecodeError as error:
            yield None, f"not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        except UnusableRowError as error:
            yield None, str(error)


def _read_json(file: io.BufferedReader) -> _Rows:
    """Read one array of objects, which is held in memory; `.json` files of JSON Lines are common too."""
    head = file.peek(64).removeprefix(b"\xef\xbb\xbf")
    if not head.lstrip().startswith(b"["):
        yield from _read_json_lines(file)
        return
    # Bytes that aren't UTF-8 become half surrogate pairs: only the row that has them is rejected.
    text = file.read().decode("utf-8-sig", errors="surrogateescape")
    position = skip_blanks(text, text.index("[") + 1)
    while not text.startswith("]", position):
        value, position = decode_json_at(text, position)
        yield _checked(value)
        position = skip_blanks(text, position)
        if text.startswith(",", position):
            position = skip_blanks(text, position + 1)
        elif not text.startswith("]", position):
            raise UnusableRowError(f"not JSON: ',' or ']' is missing at character {position + 1}")
    if text[position + 1 :].strip():
        raise UnusableRowError(f"not JSON: more text after the end of the list at character {position + 2}")


def _read_csv(file: io.BufferedReader) -> _Rows:
    csv.field_size_limit(LONGEST_CSV_CELL)
    # As in _read_json, only the row that has bytes that aren't UTF-8 is rejected.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    names = text.readline()
    if "\0" in names:
        raise UnusableRowError("not UTF-8: it has NUL characters, as UTF-16 does; save it as UTF-8")
    try:
        # That by which the line has most names.
        separator = max(CSV_SEPARATORS, key=lambda one: len(next(csv.reader([names], delimiter=one), [])))
        rows = csv.reader(itertools.chain([names], text), strict=True, delimiter=separator)
        header = next(rows, [])
    except csv.Error as error:
        raise UnusableRowError(f"not CSV: {error} in the line of column names") from None
    while True:
        previous_line = rows.line_num
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise UnusableRowError(
                    f"not CSV: a quote that opens after line {previous_line} is never closed"
                ) from None
            yield None, f"not CSV: {error}"
            continue
        # Tables end in lines of commas alone where a spreadsheet has empty rows.
        if not any(cell.strip() for cell in row):
            yield None
        elif len(row) != len(header):
            yield None, f"not as wide as the header: {len(row)} cells under {len(header)} names"
        else:
            yield object_of(list(zip(header, row, strict=True))), ""


def _read_parquet(file: io.BufferedReader) -> _Rows:
    # Parquet is read from its end, which a compressed stream can't do.
    table = pq.ParquetFile(file if file.seekable() else pa.BufferReader(file.read()))
    # Read once: each time, it is another object.
    schema = table.schema_arrow
    if repeated := _repeated_names(schema, ""):
        raise UnusableRowError(f"it has several columns of the name {', '.join(map(repr, repeated))}")
    for batch in table.iter_batches(PARQUET_BATCH_ROWS):
        try:
            yield from ((row, "", schema) for row in batch.to_pylist())
        except (ValueError, OverflowError, pa.ArrowException):
            rows = (_parquet_row(batch.slice(index, 1)) for index in range(batch.num_rows))
            yield from ((*row, schema) for row in rows)


def _repeated_names(fields: Iterable[pa.Field], prefix: str) -> list[str]:
    """Return the names that several columns have, or several fields of a column's objects."""
    repeated, seen = [], set()
    for field in fields:
        name, kind = f"{prefix}{field.name}", field.type
        if name in seen:
            repeated.append(name)
        seen.add(name)
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind, name = kind.value_type, f"{name}[]"
        if pa.types.is_struct(kind):
            repeated += _repeated_names(kind.fields, f"{name}.")
    return repeated


def _parquet_row(row: pa.RecordBatch) -> tuple[dict[str, object] | None, str]:
    try:
        return row.to_pylist()[0], ""
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return None, f"a cell can't be read: {error}"


_READERS: dict[str, Callable[[io.BufferedReader], _Rows]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_hub(
    source: HubDataset, commit: str | None, config_name: str | None, split: str, data_files: str | None
) -> Generator[SourceRow, None, None]:
    from workflow_scripts.corpora.hub_files import commit_of, downloaded, files_of_split

    commit = commit or commit_of(source.name, source.revision)
    files = files_of_split(
        source.name,
        commit,
        config_name=config_name,
        split=split,
        data_files=data_files,
        endings=list(_READERS),
        compressions=list(COMPRESSIONS),
    )
    for file in files:
        # One by one, because a limit may be reached before the last.
        yield from _read_file(downloaded(source.name, commit, file), file)
