"""Write the report: one self-contained HTML file that works offline."""

import base64
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.parquet import read_table, write_csv
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.report import charts as report_charts
from workflow_scripts.report import formatting as report_words
from workflow_scripts.report.corpus_profile import gather_profiles
from workflow_scripts.report.experiments import gather_experiments
from workflow_scripts.report.explorer import gather_explorer, json_for_html, visible
from workflow_scripts.report.label_influence import gather_label_influence
from workflow_scripts.report.results import (
    gather_average,
    gather_costs,
    gather_results,
    gather_runs,
    gather_training,
)
from workflow_scripts.study.config import Study, load_study
from workflow_scripts.study.plan import StudyPlan

EXPLORER_BYTES = 14_500_000
NOT_MEASURED = pa.table({"not measured in this study": pa.array([], pa.string())})
COSTS_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("jobs", pa.int32()),
        ("seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),
        ("peak_bytes", pa.float64()),
        ("planned_seconds", pa.float64()),
        ("start_up_seconds", pa.float64()),
    ]
)


def write_report(
    config: Path,
    provenance: Path,
    lds: Path | None,
    differences: Path | None,
    influence: Path,
    agreements: Path,
    training: Path | None,
    targets: list[Path],
    scores: list[Path],
    corpora: list[Path],
    rejected: list[Path],
    tokens: list[Path],
    rejected_tokens: list[Path],
    experiments: list[Path],
    report: Path,
    lds_table: Path,
    training_table: Path,
    costs_table: Path,
    average: Path | None = None,
    *,
    benchmarks: str,
    plan: str,
    tests: int,
    examples: int,
    characters: int,
) -> None:
    """Write one self-contained HTML file from the artifacts of a run, and its tables for Snakemake's own report.

    Parameters
    ----------
    config: `config.resolved.yaml`.
    provenance: `provenance.json`.
    lds: LDS table that `evaluate_lds` wrote; None if there is no LDS.
    differences: table of paired differences that `evaluate_lds` wrote; None if there is no LDS.
    influence: matrix of labels that `evaluate_label_influence` wrote.
    agreements: its table of agreements with what was measured.
    training: log that `train_encoder` wrote; None if the encoder was trained elsewhere.
    targets: `targets/<pool>.parquet`, whose metadata count the fine-tuning runs.
    scores: `scores/<method>/<evaluation>.parquet`; method and evaluation are read from the path.
    corpora: `corpora/` files, matched by their names as are the following; every corpus that an evaluation names must
        be there.
    rejected: files of the corpora's rejected rows.
    tokens: `tokens/` files.
    rejected_tokens: files of the examples without a response token.
    experiments: tables of the study's experiments, `evaluation/<name>.parquet`.
    report: HTML file to write.
    lds_table: CSV file to write, the content of `lds`.
    training_table: CSV file to write, the validations in `training`.
    costs_table: CSV file to write, what each stage took, beside what the plan expected.
    average: mean LDS over several evaluation sets, which `evaluate_lds` wrote; None where there is one set.
    benchmarks: folder of Snakemake's benchmark files, one folder per rule; may be absent.
    plan: `plan.json`; may be absent.
    tests: most test examples per evaluation in the explorer.
    examples: most helpful and most harmful examples shown for each.
    characters: longest text shown; a longer one is cut with a mark. Where the page would grow beyond about
        15 MB, texts are cut shorter or fewer examples are shown, and the page says so.

    Raises
    ------
    StudyError: a corpus is missing, the provenance isn't JSON, or a table can't be read.
    """
    study = load_study(yaml.safe_load(config.read_text(encoding="utf-8")), origin=str(config))
    _check_corpora(study, corpora)
    results = gather_results(lds, differences, study) if lds and differences else []
    if lds and not results:
        raise StudyError(f"{lds} has no row, so there is nothing to report. Delete it and run again.")
    headlines = [report_words.headline(result) for result in results] or [report_words.unjudged_headline(study)]
    explorer = gather_explorer(
        scores,
        corpora,
        study,
        tests=tests,
        examples=examples,
        characters=characters,
        largest_bytes=EXPLORER_BYTES,
    )
    costs = gather_costs(Path(benchmarks), Path(plan), study)
    main = StudyPlan(study).main_method()
    page = _render(
        study=study,
        config_text=config.read_text(encoding="utf-8"),
        provenance=_read_json(provenance),
        results=results,
        average=gather_average(average, results) if average else [],
        undefined=[
            name
            for name, evaluation in study.evaluations.items()
            if evaluation.subsets and name not in {result.name for result in results}
        ],
        runs=gather_runs(targets),
        headlines=headlines,
        curves=report_charts.training_curves(*gather_training(training)) if training else [],
        costs=costs,
        profiles=gather_profiles(corpora, rejected, tokens, rejected_tokens, study),
        main=main,
        labels=gather_label_influence(influence, agreements, main),
        experiments=gather_experiments(experiments, main),
        explorer_shown=bool(explorer["evaluations"]),
        explorer=Markup(json_for_html(explorer)),
        asked={"characters": characters, "examples": examples},
        shown={name: explorer[name] for name in ("characters", "examples")},
    )
    write_csv(lds_table, read_table(lds) if lds else NOT_MEASURED)
    write_csv(training_table, _validations(training) if training else NOT_MEASURED)
    write_csv(costs_table, pa.Table.from_pylist([asdict(cost) for cost in costs.stages], COSTS_SCHEMA))
    with atomic_path(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"{report}: {report_words.size(len(page.encode()))}\n{headlines[0]}")


def _validations(training: Path) -> pa.Table:
    steps = read_table(training)
    return steps.filter(pc.is_valid(steps["validation_lds"]))


def _check_corpora(study: Study, corpora: list[Path]) -> None:
    present = {path.stem for path in corpora}
    for name, evaluation in study.evaluations.items():
        for corpus in (evaluation.train, evaluation.test):
            if corpus not in present:
                raise StudyError(
                    f"evaluation {name!r} needs the corpus {corpus!r}, but its file was not given; "
                    f"add corpora/{corpus}.parquet to the rule's `corpora`"
                )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error}). Delete it and run again.") from error


def _render(**values: Any) -> str:
    loader = PackageLoader("workflow_scripts.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = ("decimal", "interval", "count", "share", "times", "duration", "size")
    environment.filters.update({name: getattr(report_words, name) for name in words}, visible=visible)
    environment.globals.update(
        lds_axis=report_charts.lds_axis, cost_figures=report_charts.cost_figures, cost_bars=report_charts.cost_bars
    )
    sources = (loader.get_source(environment, name)[0].strip() for name in ("report.css", "blocks.js", "report.js"))
    style, *scripts = sources
    script = "\n".join(scripts)
    return environment.get_template("report.html").render(
        style=Markup(style), script=Markup(script), script_hash=_content_hash(script), **values
    )


def _content_hash(script: str) -> str:
    """Return the hash by which the page's content security policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


if __name__ == "__main__":
    run_stage(write_report)
