"""Answer many requests in one pass over the embeddings."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from workflow_scripts.corpora.same_text import first_of_same
from workflow_scripts.scoring.top_k import Sign
from workflow_scripts.search.attribution import answer_table
from workflow_scripts.search.embedded import EmbeddedCorpus
from workflow_scripts.search.mapped import MappedCorpus, Wanted
from workflow_scripts.search.query import Query
from workflow_scripts.serve.limits import SHOWN_CHARACTERS
from workflow_scripts.serve.schemas import NO_LABEL, Options

# With `fold`, at most so many times the groups asked for, and so many rows, are looked at.
FOLDED_FROM, FOLDED_MOST = 20, 500
SAME_CHARACTERS = 200
VECTORS_KEPT = 1_000
LABELS_TOLD = 1_000
# Words in more than this share of the rows looked at say nothing about what a row has in common with a query.
COMMON_SHARE, COMMON_AMONG, COMMON_TOLD = 0.1, 2_000, 300
QUERY_COLUMNS = ("query", "query_file", "query_prompt", "query_response", "query_contrast")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Request:
    """Queries, what is wanted for them, and rows of their file that can't be used."""

    queries: Sequence[Query]
    options: Options
    left_out: Sequence[dict[str, Any]] = field(default_factory=list)

    @property
    def signs(self) -> tuple[Sign, ...]:
        return ("helpful", "harmful") if self.options.sign == "both" else (self.options.sign,)


class Answerer:
    """Answers requests about one corpus; not for several threads at once.

    Parameters
    ----------
    embedded: embeds queries.
    mapped: the corpus.
    """

    def __init__(self, embedded: EmbeddedCorpus, mapped: MappedCorpus):
        self.mapped = mapped
        self._embedded = embedded
        self._threads = ThreadpoolController()
        self._vectors: OrderedDict[tuple[str, str, str | None], np.ndarray] = OrderedDict()

    def unknown_labels(self, options: Options) -> list[str]:
        """Return the labels asked for that no row has."""
        return [label for label in options.label if _label(label) not in self.mapped.labels]

    def answer(self, requests: Sequence[Request]) -> list[bytes]:
        """Return the answer of each request, as JSON or CSV; all queries are scored together."""
        queries = [query for request in requests for query in request.queries]
        wanted = [self._wanted(request) for request in requests for _ in request.queries]
        found = self.mapped.search(self._query_vectors(queries), wanted)
        answers, start = [], 0
        for request in requests:
            stop = start + len(request.queries)
            answers.append(self._rendered(request, found[start:stop]))
            start = stop
        return answers

    def common_words(self) -> list[str]:
        """Return the words that stand in many rows, the most frequent first."""
        rows = len(self.mapped.vectors)
        looked_at = np.unique(np.linspace(0, rows - 1, min(rows, COMMON_AMONG)).astype(int))
        counts: Counter[str] = Counter()
        for row in self.mapped.take(looked_at, ["prompt", "response"]).to_pylist():
            counts.update(set(WORD.findall(f"{row['prompt']}\n{row['response']}"[:SHOWN_CHARACTERS].lower())))
        told = counts.most_common(COMMON_TOLD)
        return [word for word, number in told if number > max(COMMON_SHARE * len(looked_at), 2)]

    def _wanted(self, request: Request) -> Wanted:
        options = request.options
        labels = frozenset(map(_label, options.label)) if options.label else None
        folded_from = max(options.top, min(options.top * FOLDED_FROM, FOLDED_MOST))
        return Wanted(folded_from if options.fold else options.top, request.signs, labels)

    def _query_vectors(self, queries: Sequence[Query]) -> np.ndarray:
        keys = [(query.prompt, query.response, query.contrast) for query in queries]
        new = {key: query for key, query in zip(keys, queries, strict=True) if key not in self._vectors}
        if new:
            # The products of one text are so small that threads spend their time waiting for each other.
            with self._threads.limit(limits=1, user_api="blas"):
                vectors = self._embedded.vectors(list(new.values()))
            self._vectors.update(zip(new, vectors, strict=True))
        vectors = np.stack([self._vectors[key] for key in keys])
        for key in keys:
            self._vectors.move_to_end(key)
        while len(self._vectors) > VECTORS_KEPT:
            self._vectors.popitem(last=False)
        return vectors

    def _rendered(self, request: Request, found: Sequence[dict[Sign, tuple[np.ndarray, np.ndarray]]]) -> bytes:
        answers = [
            dict(zip(QUERY_COLUMNS, (query.row, query.file, query.prompt, query.response, query.contrast), strict=True))
            for query in request.queries
        ]
        examples = [
            [row for sign in request.signs for row in self._examples(query, sign, *of_query[sign], request.options)]
            for query, of_query in zip(request.queries, found, strict=True)
        ]
        for row in (row for rows in examples for row in rows):
            for name in ("prompt", "response"):
                row[f"{name}_characters"] = len(row[name])
                row[name] = row[name][:SHOWN_CHARACTERS]
        if request.options.format == "csv":
            return _as_csv(answers, examples)
        told = [{**answer, "examples": rows} for answer, rows in zip(answers, examples, strict=True)]
        return json.dumps({"answers": told, "left_out": request.left_out}, ensure_ascii=False, allow_nan=False).encode()

    def _examples(
        self, query: Query, sign: Sign, ids: np.ndarray, scores: np.ndarray, options: Options
    ) -> list[dict[str, Any]]:
        """Return the examples of a query to show; with `fold`, of as many rows as it takes to have enough groups."""
        looked_at = options.top
        while True:
            found = ids[:looked_at], scores[:looked_at]
            table = answer_table([query], [found], self.mapped.take, sign=sign, min_score=options.min_score)
            rows = [{"sign": sign, **row, "same": []} for row in table.drop_columns(list(QUERY_COLUMNS)).to_pylist()]
            if not options.fold:
                return rows
            firsts = _folded(rows)
            if len(firsts) >= options.top or len(rows) < looked_at:
                return firsts[: options.top]
            looked_at *= 2


def _label(asked: str) -> str | None:
    return None if asked == NO_LABEL else asked


def _folded(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first row of those that say the same, with the others in its `same`."""
    firsts = first_of_same((row["prompt"], row["response"]) for row in rows)
    told = ("rank", "score", "example_id", "source_file", "source_row", "label")
    for row, first in zip(rows, firsts, strict=True):
        if rows[first] is not row:
            rows[first]["same"].append({name: row[name] for name in told} | {"prompt": row["prompt"][:SAME_CHARACTERS]})
    return [row for place, row in enumerate(rows) if firsts[place] == place]


def _as_csv(answers: Sequence[dict[str, Any]], examples: Sequence[Sequence[dict[str, Any]]]) -> bytes:
    columns = [*QUERY_COLUMNS, "sign", "rank", "score", "source_file", "source_row", "example_id", "label"]
    columns += ["prompt", "response", "prompt_characters", "response_characters", "same_rows"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    for answer, rows in zip(answers, examples, strict=True):
        writer.writerows(
            {**answer, **row, "same_rows": " ".join(str(same["source_row"]) for same in row["same"])} for row in rows
        )
    return text.getvalue().encode()
