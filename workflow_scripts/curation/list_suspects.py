"""List the most suspicious rows of a corpus with their texts, and reasons that a person can check (docs/curate.md)."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.core.progress import one_line, say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.tables import WHERE, row_name, take_examples
from workflow_scripts.curation.markdown import markdown_text
from workflow_scripts.curation.near_prompts import NearPrompts, find_near_prompts
from workflow_scripts.study.curation_section import Curation

# From this share of the corpus on that an LM finds likelier, its loss is a reason.
UNLIKELY = 0.9
SHOWN_ROWS = 100
SHOWN_CHARACTERS = 120
LM_NAMES = {"base_lm": "the base LM", "warm_lm": "the warmed-up LM"}
SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("example_id", pa.int32()),
        ("score", pa.float32()),
        ("label", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("test_id", pa.int32()),
        ("test_file", pa.string()),
        ("test_row", pa.int64()),
        ("near_prompts", pa.int32()),
        ("near_prompts_with_other_answer", pa.int32()),
        ("nearest_with_other_answer", pa.int32()),
        ("loss", pa.float32()),
        ("loss_above_share", pa.float32()),
        ("reasons", pa.list_(pa.string())),
    ]
)


def list_suspects(
    selection: Path,
    corpus: Path,
    losses: Path | None,
    suspects: Path,
    page: Path,
    *,
    name: str,
    choice: Curation,
) -> None:
    """Write the rows of a list for review, the most harmful first, with their texts and all that speaks against them.

    A row's reasons are the score and the test that it harms most; the rows of the corpus that ask nearly the same and
    answer otherwise; and the loss of its answer, where that is above those of nine tenths of the rows.

    Parameters
    ----------
    selection: file that `select_examples` wrote by the rule `most_harmful`.
    corpus: `corpora/` file that was selected from.
    losses: `losses/<LM>/` file of the corpus; None for a study without an LM.
    suspects: Parquet file to write.
    page: Markdown file to write, with the first 100.
    name: name of the selection.
    choice: its section of the config.
    """
    listed = read_table(selection)
    ids = listed["example_id"].to_numpy()
    texts = take_examples(corpus, ids, ["prompt", "response"])
    near = find_near_prompts(corpus, ids)
    loss, above = _losses(losses, ids)
    lm = LM_NAMES[losses.parent.name] if losses else ""
    other = _other_answers(corpus, near)
    reasons = [
        list(filter(None, (harm, other[row], _unlikely(lm, loss[row], above[row]))))
        for row, harm in enumerate(listed["reason"].to_pylist())
    ]
    columns = {
        **{column: listed[column] for column in ("rank", "example_id", "score", "label", *WHERE)},
        **{column: texts[column] for column in texts.column_names},
        **{column: listed[column] for column in ("test_id", "test_file", "test_row")},
        "near_prompts": near.rows,
        "near_prompts_with_other_answer": near.other_answers,
        "nearest_with_other_answer": pa.array(near.nearest, mask=near.nearest < 0),
        "loss": pa.array(loss, from_pandas=True),
        "loss_above_share": pa.array(above, from_pandas=True),
        "reasons": pa.array(reasons, pa.list_(pa.string())),
    }
    table = pa.table({column.name: columns[column.name] for column in SCHEMA}).cast(SCHEMA)
    write_table(suspects, table)
    with atomic_path(page) as temporary:
        temporary.write_text(_page(table, corpus, name, choice), encoding="utf-8")
    say(f"list_suspects: {table.num_rows:,} rows in {suspects}, the first of them in {page}")


def _losses(losses: Path | None, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each row, and the share of the corpus with a lower one, float64 [rows]; NaN if not known."""
    if losses is None:
        return np.full(len(ids), np.nan), np.full(len(ids), np.nan)
    table = read_table(losses)
    known, values = table["example_id"].to_numpy(), table["loss"].to_numpy()
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    loss = np.where(known[places] == ids, values[places].astype(np.float64), np.nan)
    above = np.searchsorted(np.sort(values), loss) / len(values)
    return loss, np.where(np.isnan(loss), np.nan, above)


def _other_answers(corpus: Path, near: NearPrompts) -> list[str]:
    """Return for each row what rows that ask nearly the same answer; nothing where none answers otherwise."""
    found = np.flatnonzero(near.nearest >= 0)
    rows = take_examples(corpus, near.nearest[found], [*WHERE, "response"]).to_pylist()
    several = len(read_table(corpus, ["source_file"])["source_file"].unique()) > 1
    told = [""] * len(near.nearest)
    for place, row in zip(found, rows, strict=True):
        where = row_name(row["source_file"], row["source_row"], several)
        told[place] = (
            f"{near.other_answers[place]:,} of {near.rows[place]:,} rows that ask nearly the same answer otherwise, "
            f"e.g. {where}: {one_line(row['response'], SHOWN_CHARACTERS)}"
        )
    return told


def _unlikely(lm: str, loss: float, above: float) -> str:
    # A comparison with NaN, of a row without a loss, is false.
    if not above >= UNLIKELY:
        return ""
    return f"{lm} finds its answer unlikely: a loss of {loss:.2f} nats per token, above {above:.0%} of the rows"


def _page(table: pa.Table, corpus: Path, name: str, choice: Curation) -> str:
    rows = table.slice(0, SHOWN_ROWS).to_pylist()
    several = len(table["source_file"].unique()) > 1
    over = "all tests" if choice.tests == "all" else "the tests of its label"
    lines = [
        f"# {name}: {table.num_rows:,} suspicious rows of {corpus.stem}",
        "",
        f"The rows with the lowest mean score over {over} of `{choice.evaluation}` by `{choice.method}`, the lowest "
        "first. A place in this list proves nothing: read the row before you drop it.",
        "",
    ]
    if len(rows) < table.num_rows:
        lines += [f"The first {len(rows):,}; all are in `suspects.parquet`.", ""]
    for row in rows:
        where = row_name(row["source_file"], row["source_row"], several)
        lines += [f"## {row['rank']}. {markdown_text(where)}", ""]
        lines += [f"- prompt: {markdown_text(row['prompt'])}", f"- answer: {markdown_text(row['response'])}"]
        lines += [f"- {markdown_text(reason)}" for reason in row["reasons"]] + [""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    run_stage(list_suspects)
