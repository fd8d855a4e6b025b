"""Data of the report's explorer: test examples, their top training examples by each method, and every text once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.same_text import first_of_same
from workflow_scripts.report.results import method_name
from workflow_scripts.study.config import Study
from workflow_scripts.study.methods import METHODS, find_method

SIGNS = ("helpful", "harmful")
SCORE_DIGITS = 4
SHORTEST_CUT = 160
LABEL_CHARACTERS = 60
# Control characters are invisible; Unicode has pictures of them. Tab and newline stay.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {13: None, 127: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class _Index:
    """Distinct values in the order of their first occurrence."""

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        return self.places.setdefault(value, len(self.places))

    def values(self) -> list[Any]:
        return list(self.places)


def gather_explorer(
    scores: Sequence[Path],
    corpora: Sequence[Path],
    study: Study,
    *,
    tests: int,
    examples: int,
    characters: int,
    largest_bytes: int,
) -> dict[str, Any]:
    """Return the explorer's data as plain lists and dicts.

    Texts are cut at `characters`. While the data are too large they are cut shorter, down to 160; where that
    doesn't suffice, fewer than `examples` are kept. The data say what was kept in `characters` and `examples`.
    A text that was cut is `[what is left, length of the whole]`. An example is
    `[example_id, source_row, label or -1, prompt, response]`, the last three as places in `labels` and
    `texts`; `files[corpus]` has the file of each example where a source has several. `scores[method][test]` is
    `{sign: [places in the training corpus, scores, firsts]}`, best first; `firsts` are the places in the list of the
    first example with the same label that says the same (`corpora.same_text`).
    """
    tables = {(path.stem, path.parent.name): read_table(path) for path in scores}
    files = {path.stem: path for path in corpora}
    for kept in _shrinking(examples, 1):
        wanted = {path.stem: _Index() for path in corpora}
        evaluations = _evaluations(tables, wanted, study, tests, kept)
        rows = {name: _rows(files[name], index.values()) for name, index in wanted.items()}
        for evaluation in evaluations:
            _add_firsts(evaluation["scores"], rows[evaluation["train"]])
        for cut in _shrinking(characters, SHORTEST_CUT):
            data = {"evaluations": evaluations, "characters": cut, "examples": kept, **_texts(rows, cut)}
            if len(json_for_html(data).encode()) <= largest_bytes:
                return data
    return data


def _shrinking(value: int, least: int) -> Iterator[int]:
    yield value
    while value > least:
        value = max(least, value * 2 // 3)
        yield value


def _evaluations(
    tables: Mapping[tuple[str, str], pa.Table], wanted: Mapping[str, _Index], study: Study, tests: int, examples: int
) -> list[dict[str, Any]]:
    evaluations = []
    for name, evaluation in study.evaluations.items():
        if methods := _explored([method for of, method in tables if of == name]):
            ranked = {method: tables[name, method] for method in methods}
            indices = wanted[evaluation.test], wanted[evaluation.train]
            evaluations.append(
                {
                    "name": name,
                    "train": evaluation.train,
                    "test": evaluation.test,
                    "methods": [{"key": method, "name": method_name(method)} for method in methods],
                    **_evaluation(ranked, *indices, tests, examples),
                }
            )
    return evaluations


def json_for_html(data: Any) -> str:
    """Return `data` as JSON that is safe inside any HTML element: it has no `<`, `>` or `&`.

    The two line separators that JSON allows and older JavaScript doesn't are escaped as well.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def visible(text: str) -> str:
    """Return `text` with control characters replaced by Unicode's pictures of them; tabs and newlines stay."""
    return text.replace("\r\n", "\n").translate(_PICTURES)


def _explored(methods: list[str]) -> list[str]:
    """Return the methods whose rankings differ, because pooling doesn't change the ranks of single examples."""
    known = list(METHODS)
    bases = {method: method.partition("@")[0] for method in methods}
    kept, encoders = [], set()
    for method in sorted(
        methods, key=lambda name: (known.index(bases[name]) if bases[name] in known else len(known), name)
    ):
        encoder = find_method(method).encoder if bases[method] in known else None
        if encoder not in encoders:
            kept.append(method)
        if encoder:
            encoders.add(encoder)
    return kept


def _evaluation(
    ranked: Mapping[str, pa.Table], test_index: _Index, train_index: _Index, tests: int, examples: int
) -> dict[str, Any]:
    chosen = _spread(ranked, tests)
    scores = {}
    for method, table in ranked.items():
        kept = table.filter(
            pc.and_(
                pc.is_in(table["test_id"], pa.array(chosen, table["test_id"].type)),
                pc.less_equal(table["rank"], examples),
            )
        )
        lists = _lists(kept, train_index)
        scores[method] = [lists.get(test, {}) for test in chosen]
    return {"tests": [test_index.place(test) for test in chosen], "scores": scores}


def _spread(ranked: Mapping[str, pa.Table], tests: int) -> list[int]:
    """Return at most `tests` test ids, evenly spaced, so that every part of the corpus is covered."""
    known = np.unique(np.concatenate([table["test_id"].to_numpy() for table in ranked.values()]))
    places = np.linspace(0, len(known) - 1, min(tests, len(known))).round().astype(int)
    return known[places].tolist()


def _lists(table: pa.Table, train_index: _Index) -> dict[int, dict[str, list[list[Any]]]]:
    lists: dict[int, dict[str, list[list[Any]]]] = {}
    table = table.sort_by([("test_id", "ascending"), ("rank", "ascending")])
    columns = (table[name].to_pylist() for name in ("test_id", "sign", "example_id", "score"))
    for test, sign, example, score in zip(*columns, strict=True):
        places, values = lists.setdefault(test, {}).setdefault(sign, [[], []])
        places.append(train_index.place(example))
        values.append(float(f"{score:.{SCORE_DIGITS}g}"))
    return lists


def _add_firsts(scores: Mapping[str, list[dict[str, list[list[Any]]]]], rows: Sequence[Mapping[str, Any]]) -> None:
    for lists in (one for tests in scores.values() for test in tests for one in test.values()):
        places = lists[0]
        firsts = list(range(len(places)))
        for label in {rows[place]["label"] for place in places}:
            of_label = [number for number, place in enumerate(places) if rows[place]["label"] == label]
            texts = ((rows[places[number]]["prompt"], rows[places[number]]["response"] or "") for number in of_label)
            for number, first in zip(of_label, first_of_same(texts), strict=True):
                firsts[number] = of_label[first]
        lists.append(firsts)


def _rows(corpus: Path, example_ids: list[int]) -> list[dict[str, Any]]:
    table = read_table(corpus, ["example_id", "source_file", "source_row", "label", "prompt", "response"])
    table = table.filter(pc.is_in(table["example_id"], pa.array(example_ids, table["example_id"].type)))
    by_id = {row["example_id"]: row for row in table.to_pylist()}
    return [by_id[example] for example in example_ids]


def _texts(rows: Mapping[str, list[dict[str, Any]]], characters: int) -> dict[str, Any]:
    texts, labels = _Index(), _Index()
    corpora = {
        name: [
            [
                row["example_id"],
                row["source_row"],
                -1 if row["label"] is None else labels.place(row["label"]),
                texts.place(_cut(row["prompt"], characters)),
                texts.place(_cut(row["response"], characters)),
            ]
            for row in examples
        ]
        for name, examples in rows.items()
    }
    files = {name: [row["source_file"] for row in examples] for name, examples in rows.items()}
    files = {name: its_files for name, its_files in files.items() if len(set(its_files)) > 1}
    shown = [_shortened(label) for label in labels.values()]
    return {"texts": texts.values(), "labels": shown, "corpora": corpora, "files": files}


def _shortened(label: str) -> str:
    return visible(label if len(label) <= LABEL_CHARACTERS else label[:LABEL_CHARACTERS] + "…")


def _cut(text: str | None, characters: int) -> str | tuple[str, int]:
    text = text or ""
    if len(text) <= characters:
        return visible(text)
    return visible(text[:characters]), len(text)
