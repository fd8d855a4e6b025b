"""Print a plan, beside the time that finished stages took."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.report.formatting import count, duration, size
from workflow_scripts.report.results import gather_costs
from workflow_scripts.study.config import load_study

COLUMNS = "  {:<24}{:>6}  {:>16}{:>13}{:>9}{:>14}  {:>20}"


def show_plan(plan: Path, *, benchmarks: str, study: dict[str, Any]) -> None:
    """Print a plan and the times that stages took.

    Parameters
    ----------
    plan: JSON file that `write_plan` wrote.
    benchmarks: folder of Snakemake's benchmark files; may be absent.
    study: values of the config.
    """
    costs = gather_costs(Path(benchmarks), plan, load_study(study))
    actual = {cost.stage: cost.seconds for cost in costs.stages}
    say(plan_text(json.loads(plan.read_text(encoding="utf-8")), actual))
    say(f"\nAs data: {plan}")


def plan_text(plan: Mapping[str, Any], actual: Mapping[str, float]) -> str:
    """Return the plan as text.

    Parameters
    ----------
    plan: content of the file that `write_plan` wrote.
    actual: for stages that have run, the seconds of all their jobs.
    """
    lines = [
        "",
        f"Plan of {plan['run']}, {_at_once(plan['concurrency'])}, on {plan['hardware']}",
        COLUMNS.format("stage", "jobs", "hours", "wall time", "disk", "time of jobs", "it took"),
        *(_stage_line(stage, actual.get(stage["stage"])) for stage in plan["stages"]),
        *(f"  {stage:<24} not planned: {', '.join(names)}" for stage, names in plan["not_planned"].items()),
        _total_line("all planned" if plan["not_planned"] else "all", plan["total"]),
    ]
    if plan["assumptions"]:
        lines += ["", "* Assumed, not measured:", *(f"  {sentence}" for sentence in plan["assumptions"])]
    if plan["break_even"]:
        lines += ["", _break_even(plan["break_even"])]
    if plan["cheaper"]:
        lines += ["", "Cheaper:", *map(_cheaper_line, plan["cheaper"])]
    if plan["good_job_sizes"]:
        lines += ["", "Jobs of about half an hour, or as many as run at a time:"]
        lines += [_job_size_line(*item) for item in plan["good_job_sizes"].items()]
    return "\n".join(lines)


def _at_once(concurrency: Mapping[str, Any]) -> str:
    if concurrency["jobs"]:
        return f"{concurrency['jobs']:,} jobs at a time"
    return f"{concurrency['cores']} cores" + (f" and {concurrency['gpus']} GPU(s)" if concurrency["gpus"] else "")


def _stage_line(stage: Mapping[str, Any], took: float | None) -> str:
    ratio = "" if took is None else f"{duration(took)} ({took / stage['seconds']:.1f}x)"
    hours = _hours({f"{stage['processor'].lower()}_hours": stage["hours"]}) + ("" if stage["measured"] else " *")
    return COLUMNS.format(
        stage["stage"],
        count(stage["jobs"]),
        hours,
        duration(stage["wall_seconds"]),
        size(stage["disk_bytes"]),
        duration(stage["seconds"]),
        ratio,
    ).rstrip()


def _total_line(name: str, total: Mapping[str, float]) -> str:
    shown = (_hours(total), duration(total["wall_seconds"]), size(total["disk_bytes"]))
    return COLUMNS.format(name, count(int(total["jobs"])), *shown, "", "").rstrip()


def _hours(of: Mapping[str, float]) -> str:
    """Return GPU hours and core hours, if not zero, with two significant digits."""
    hours = [(of.get("gpu_hours", 0.0), "GPU-h"), (of.get("core_hours", 0.0), "core-h")]
    return " + ".join(
        f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}" for value, unit in hours if value
    )


def _break_even(found: Mapping[str, Any]) -> str:
    unit = f"{found['processor']}-seconds"
    costs = (
        f"labels and training take {found['setup_seconds']:,.0f} {unit}, an embedding "
        f"{found['embedding_seconds']:.2g}, the gradient of one example {found['gradient_seconds']:.2g}"
    )
    if found["examples"] is None:
        return f"A gradient method is cheaper at every size: {costs}."
    return (
        f"From {found['examples']:,} scored examples on, the trained encoder is cheaper than a gradient for each: "
        f"{costs} (warm-up and projection of a gradient method are not counted)."
    )


def _cheaper_line(one: Mapping[str, Any]) -> str:
    return f"  {one['setting']}: {_hours(one)}, {duration(one['wall_seconds'])}; {one['expected']}: {one['because']}."


def _job_size_line(pool: str, sizes: Mapping[str, int]) -> str:
    where = "targets" if pool == "train" else f"evaluations.{pool}"
    return f"  {where}: " + ", ".join(f"{name}: {number}" for name, number in sizes.items())


if __name__ == "__main__":
    run_stage(show_plan)
