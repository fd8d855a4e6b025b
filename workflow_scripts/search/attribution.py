"""The search behind `workflow_scripts.attribute`: which examples, or groups of them, help or harm an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.tables import WHERE, take_examples
from workflow_scripts.scoring.top_k import Sign
from workflow_scripts.search.embedded import PROMPT_WORDS, embedded_corpus
from workflow_scripts.search.query import Query, query_columns
from workflow_scripts.search.stored import group_scores, top_scores

# More are embedded sooner by torch, although it takes seconds to load.
LIGHT_QUERIES = 32


def attribute(
    encoder: str,
    corpus: Path,
    queries: Sequence[Query],
    *,
    embeddings: Path | None,
    top: int,
    sign: Sign,
    min_score: float | None = None,
    prompt_words: int = PROMPT_WORDS,
) -> pa.Table:
    """Return the `top` training examples of each query, best first.

    A score is the inner product of the example's embedding and the query's (paper, section 3.2); with a `contrast`, the
    score for the response minus that for the other one.

    Parameters
    ----------
    encoder: folder or hub id of a trained encoder.
    corpus: a `corpora/` file of the workflow.
    queries: at least one.
    embeddings: Parquet file of this corpus's embeddings by this encoder; computed and written there if it doesn't
        exist, computed and not kept if None.
    top: how many examples to return for each query; all of them if the corpus has fewer.
    sign: `helpful` for the largest scores, `harmful` for the smallest.
    min_score: only examples whose score is at least this, or for `harmful` at most; None for all.
    prompt_words: number of words of a prompt that are read, `encoder.prompt_words` of the encoder's study.

    Returns
    -------
    One row per query and rank, best first: `query` (int64, its row in the source, from 1), `query_file`,
    `query_prompt`, `query_response`, `query_contrast`, `rank` (int32, from 1), `score` (float32), and of the example
    `source_file`, `source_row` (int64, from 1), `example_id` (int64), `label`, `prompt` and `response`.

    Raises
    ------
    StudyError: the model or a file can't be read, or `embeddings` come from another encoder or another corpus, or were
        made with another number of words.
    """
    light = len(queries) <= LIGHT_QUERIES
    with embedded_corpus(encoder, corpus, embeddings, without_torch=light, prompt_words=prompt_words) as embedded:
        example_ids, scores = top_scores(embedded.embeddings, embedded.vectors(queries), top, sign)
    found = list(zip(example_ids, scores, strict=True))
    return answer_table(queries, found, partial(take_examples, corpus), sign=sign, min_score=min_score)


def answer_table(
    queries: Sequence[Query],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    take: Callable[[np.ndarray, list[str]], pa.Table],
    *,
    sign: Sign,
    min_score: float | None,
) -> pa.Table:
    """Return what was found for queries as a table, with the examples' texts.

    Parameters
    ----------
    queries: at least one.
    found: for each query the ids and the scores of its examples, best first.
    take: returns columns of the examples with these ids, one row an id, in their order.
    sign: which end of the scores was searched.
    min_score: only examples whose score is at least this, or for `harmful` at most; None for all.

    Returns
    -------
    The table that `attribute` describes.
    """
    sizes = [len(ids) for ids, _ in found]
    example_ids, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    asked = np.repeat(np.arange(len(queries)), sizes)
    ranks = np.concatenate([np.arange(1, size + 1) for size in sizes])
    if min_score is not None:
        enough = values >= min_score if sign == "helpful" else values <= min_score
        example_ids, values, asked, ranks = example_ids[enough], values[enough], asked[enough], ranks[enough]
    columns = {
        **query_columns(queries, asked),
        "rank": pa.array(ranks, pa.int32()),
        "score": pa.array(values, pa.float32()),
    }
    rows = take(example_ids, [*WHERE, "example_id", "label", "prompt", "response"])
    return pa.table({**columns, **{name: rows[name] for name in rows.column_names}})


def attribute_by(
    encoder: str,
    corpus: Path,
    queries: Sequence[Query],
    *,
    embeddings: Path | None,
    by: str,
    sign: Sign,
    prompt_words: int = PROMPT_WORDS,
) -> pa.Table:
    """Return for each query how each label or source file scores, over all of its examples.

    Parameters
    ----------
    by: column of the corpus that groups its examples, `label` or `source_file`; those without a label are one group.
    sign: `helpful` for the highest mean first, and each group's highest score; `harmful` for the lowest.
    Others as in `attribute`.

    Returns
    -------
    One row per query and group, the best mean first: the columns of the query as in `attribute`, `rank` (int32), the
    group (`label`, null for those without, or `source_file`), `examples` (int64), `mean_score` (float64), and of the
    group's best example `score` (float32), `source_row`, `example_id`, `prompt` and `response`; by label its
    `source_file` too.

    Raises
    ------
    StudyError: as in `attribute`.
    """
    column = read_table(corpus, [by])[by].combine_chunks().dictionary_encode("encode")
    names = column.dictionary.to_pylist()
    light = len(queries) <= LIGHT_QUERIES
    with embedded_corpus(encoder, corpus, embeddings, without_torch=light, prompt_words=prompt_words) as embedded:
        vectors = embedded.vectors(queries)
        found = group_scores(embedded.embeddings, vectors, column.indices.to_numpy(), len(names), sign)
    order = np.argsort(-found.means if sign == "helpful" else found.means, axis=0, kind="stable").T.ravel()
    asked = np.repeat(np.arange(len(queries)), len(names))
    best = take_examples(corpus, found.best_ids[order, asked], [*WHERE, "example_id", "prompt", "response"])
    columns = {
        **query_columns(queries, asked),
        "rank": pa.array(np.tile(np.arange(1, len(names) + 1), len(queries)), pa.int32()),
        by: pa.array([names[group] for group in order], pa.string()),
        "examples": pa.array(found.examples[order]),
        "mean_score": pa.array(found.means[order, asked]),
        "score": pa.array(found.best_scores[order, asked]),
    }
    return pa.table({**columns, **{name: best[name] for name in best.column_names if name not in columns}})
