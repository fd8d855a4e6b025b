"""Write one page that says what was selected from a corpus, and why."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.core.progress import one_line
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.tables import row_name, take_examples
from workflow_scripts.curation.markdown import markdown_text
from workflow_scripts.study.curation_section import Curation

GROUPS_SHOWN = 30
EXAMPLES_SHOWN = 5
REASONS_SHOWN = 10
SHOWN_CHARACTERS = 160
NO_LABEL = "(no label)"
TESTS = {"all": "all tests", "same_label": "the tests of its label"}
RULES = {
    "min_rank": "by the best rank that a row reaches for any test",
    "mean_score": "by the mean score over {tests}, the highest first",
    "helpful_only": "by the mean score over {tests}, the highest first, and only scores above 0",
    "most_harmful": "by the mean score over {tests}, the lowest first: a list for review",
}


def summarize_curation(
    selection: Path, corpus: Path, rejected: Path, summary: Path, *, name: str, choice: Curation
) -> None:
    """Write a page of Markdown: counts by label and source beside the corpus, scores, near duplicates, examples.

    Parameters
    ----------
    selection: file that `select_examples` wrote.
    corpus: `corpora/` file that was selected from.
    rejected: the corpus's rejected rows.
    summary: Markdown file to write.
    name: name of the selection.
    choice: its section of the config.
    """
    chosen, entries = read_table(selection), read_metadata(selection)
    whole = read_table(corpus, ["label", "source_file"])
    several = len(whole["source_file"].unique()) > 1
    rows, selected = int(entries["rows"]), chosen.num_rows
    rule = RULES[choice.rule].format(tests=TESTS[choice.tests])
    lines = [
        f"# {name}: {selected:,} of {rows:,} rows",
        "",
        f"Selected from `{corpus.stem}` {rule}; method `{choice.method}`, {int(entries['tests']):,} "
        f"tests of `{choice.evaluation}`.",
        "",
        *_facts(chosen, entries, choice),
        *_rejected_rows(rejected),
        "",
        *_counts("Labels", "label", chosen, whole),
        *(_counts("Source files", "source_file", chosen, whole) if several else []),
        *_scores(chosen, json.loads(entries["quantiles"])),
        *_examples(chosen, corpus, several),
    ]
    with atomic_path(summary) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _facts(chosen: pa.Table, entries: dict[str, str], choice: Curation) -> list[str]:
    folded = int(np.sum(chosen["near_duplicates"].to_numpy()))
    facts = []
    if choice.reads_top_lists:
        facts.append(
            f"- {int(entries['ranked']):,} rows are in the top list of any test; the others have no rank "
            "(`scoring.top`)."
        )
    if equal := int(entries["equal_tests"]):
        facts.append(f"- {equal:,} rows equal one of the tests and are left out.")
    if choice.is_for_review:
        below = int(np.count_nonzero(chosen["score"].to_numpy() < 0))
        facts.append(f"- {below:,} of them have a mean score below 0; the others only help less than the rest.")
    if choice.near_duplicates == "once":
        facts.append(f"- {folded:,} near duplicates were folded into the rows that stand for them.")
    if choice.quotas:
        quotas = ", ".join(f"{markdown_text(label)}: {quota}" for label, quota in choice.quotas.items())
        facts.append(f"- Quotas by {choice.quota_by}: {quotas}; {int(entries['over_quota']):,} rows were passed over.")
    return facts


def _rejected_rows(rejected: Path) -> list[str]:
    reasons = read_table(rejected, ["reason"])["reason"].to_pylist()
    if not reasons:
        return ["- No row of the source was rejected."]
    kinds = Counter(reason.split(": ")[0] for reason in reasons).most_common(REASONS_SHOWN)
    told = "; ".join(f"{count:,} x {markdown_text(kind)}" for kind, count in kinds)
    return [f"- {len(reasons):,} rows of the source were rejected when it was read: {told}."]


def _counts(title: str, column: str, chosen: pa.Table, whole: pa.Table) -> list[str]:
    every, own = (_by_value(table[column]) for table in (whole, chosen))
    if set(every) == {NO_LABEL}:
        return []
    shown = sorted(every, key=lambda value: (-own[value], -every[value], value))
    lines = [f"## {title}", "", f"| {column} | selected | share | corpus | share |", "|---|---|---|---|---|"]
    for value in shown[:GROUPS_SHOWN]:
        shares = own[value] / chosen.num_rows, every[value] / whole.num_rows
        lines.append(
            f"| {markdown_text(value)} | {own[value]:,} | {shares[0]:.1%} | {every[value]:,} | {shares[1]:.1%} |"
        )
    if rest := shown[GROUPS_SHOWN:]:
        selected, of = (sum(counts[value] for value in rest) for counts in (own, every))
        lines.append(f"| {len(rest):,} others | {selected:,} | | {of:,} | |")
    return [*lines, ""]


def _by_value(column: pa.ChunkedArray) -> Counter[str]:
    counted: Counter[str] = Counter()
    for one in column.value_counts().to_pylist():
        counted[one["values"] or NO_LABEL] += one["counts"]
    return counted


def _scores(chosen: pa.Table, of_corpus: list[float]) -> list[str]:
    shares = np.linspace(0, 1, 11)
    own = np.quantile(chosen["score"].to_numpy(), shares)
    lines = ["## Scores", "", "| quantile | " + " | ".join(f"{share:.0%}" for share in shares) + " |"]
    lines += ["|---" * (len(shares) + 1) + "|"]
    for title, values in {"selected": own, "corpus": of_corpus}.items():
        if len(values):
            lines.append(f"| {title} | " + " | ".join(f"{value:.4g}" for value in values) + " |")
    return [*lines, ""]


def _examples(chosen: pa.Table, corpus: Path, several: bool) -> list[str]:
    first = chosen.slice(0, EXAMPLES_SHOWN)
    last = chosen.slice(max(chosen.num_rows - EXAMPLES_SHOWN, EXAMPLES_SHOWN))
    lines = []
    for title, part in {"The first": first, "The last": last}.items():
        if not part.num_rows:
            continue
        texts = take_examples(corpus, part["example_id"].to_numpy(), ["prompt", "response"]).to_pylist()
        lines += [f"## {title}", ""]
        for row, text in zip(part.to_pylist(), texts, strict=True):
            where = row_name(row["source_file"], row["source_row"], several)
            copies = f" (and {row['near_duplicates']:,} near duplicates)" if row["near_duplicates"] else ""
            shown = markdown_text(one_line(f"{text['prompt']} -> {text['response']}", SHOWN_CHARACTERS))
            lines += [f"{row['rank']}. {markdown_text(where)}{copies}: {shown}  ", f"   {markdown_text(row['reason'])}"]
        lines.append("")
    return lines


if __name__ == "__main__":
    run_stage(summarize_curation)
