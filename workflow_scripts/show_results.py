"""Print a finished study's LDS table and where its report lies: `python -m workflow_scripts.show_results CONFIG`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from workflow_scripts.lib.config import load_study
from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.tables import read_table


def results_text(results: Path) -> str:
    """Return the LDS table of every evaluation set in the folder `results`, and the report's path."""
    rows = read_table(results / "evaluation" / "lds.parquet").to_pylist()
    tables = [table for name in dict.fromkeys(row["evaluation"] for row in rows) for table in _table(name, rows)]
    return "\n".join([*tables, "", f"Report: {results / 'report.html'}"])


def _table(evaluation: str, rows: list[dict]) -> Iterator[str]:
    rows = [row for row in rows if row["evaluation"] == evaluation]
    first = rows[0]
    yield ""
    yield (
        f"LDS on {evaluation} ({first['n_tests']:,} tests, {first['n_subsets']:,} subsets, "
        f"noise ceiling {first['ceiling']:.3f})"
    )
    yield f"  {'method':<14}{'pooling':<11}{'LDS':>6}   interval"
    for row in sorted(rows, key=lambda row: -row["lds"]):
        yield (
            f"  {row['method']:<14}{row['pooling']:<11}{row['lds']:>6.3f}   {row['ci_low']:.3f} to {row['ci_high']:.3f}"
        )


def main() -> None:
    """Show the results of the study whose config is the first argument."""
    config = Path(sys.argv[1])
    try:
        study = load_study(yaml.safe_load(config.read_text(encoding="utf-8")), origin=str(config))
        print(results_text(Path("results") / study.run))
    except StudyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
