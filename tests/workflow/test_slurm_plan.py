"""What the large studies ask of a cluster, by a dry run of the literal command; slurm/README.md states the same."""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from forked_snakemake import run_forked

SLURM = Path(__file__).parents[2] / "slurm"
README = (SLURM / "README.md").read_text(encoding="utf-8")
# What runs beside Snakemake, without a job.
NOT_SENT = ("all", "fetch_model", "resolve_dataset")
AT_A_TIME = int(re.search(r"^jobs: (\d+)$", (SLURM / "config.yaml").read_text(), re.MULTILINE).group(1))


@dataclass(frozen=True)
class Job:
    """A job of a dry run; its time limit in minutes, its memory in MB, the number of its group if it is in one."""

    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    gpus: int
    memory: int
    minutes: int
    group: int | None = None

    @classmethod
    def of_text(cls, text: str, group: int | None) -> Job:
        """Read what Snakemake prints of a job."""
        lines = dict(re.findall(r"^ +(\w+): (.*)$", text, re.MULTILINE))
        resources = dict(part.split("=") for part in lines["resources"].split(", "))
        inputs, outputs = (
            tuple(name.removesuffix(" (update)") for name in lines.get(key, "").split(", "))
            for key in ("input", "output")
        )
        numbers = (int(resources.get(name, 0)) for name in ("gpu", "mem_mb", "runtime"))
        return cls(re.match(r"rule (\w+):", text).group(1), inputs, outputs, *numbers, group)


def planned_jobs(folder: Path, preset: str) -> list[Job]:
    """Return the jobs that `snakemake --profile slurm` would send for a preset."""
    words = ["--profile", "slurm", "-n", "--configfile", f"configs/{preset}.yaml"]
    edited = {name: value for name, value in os.environ.items() if not name.startswith("AIRREP_")}
    done = run_forked(words, folder, edited)
    assert done.returncode == 0, done.stdout
    jobs, groups = [], 0
    # The jobs of a group stand indented below its title.
    for title, indent, text in re.findall(
        r"^(?:\[.*\] (Group job) .*|( *)(rule \w+:\n(?: {4,}\w+: .*\n)+))", done.stdout, re.MULTILINE
    ):
        if title:
            groups += 1
        else:
            jobs.append(Job.of_text(text, groups if indent else None))
    assert len(jobs) == int(re.search(r"^total +(\d+)$", done.stdout, re.MULTILINE).group(1))
    return [job for job in jobs if job.rule not in NOT_SENT]


def submissions(jobs: list[Job]) -> list[Job]:
    """Return the jobs as Slurm gets them: those of a group are one, which takes as long as all of them."""
    of_group = {job.group: [other for other in jobs if other.group == job.group] for job in jobs if job.group}
    together = []
    for members in of_group.values():
        outputs = tuple(name for job in members for name in job.outputs)
        inputs = tuple(name for job in members for name in job.inputs if name not in outputs)
        rule, gpus, memory = members[0].rule, max(job.gpus for job in members), max(job.memory for job in members)
        together.append(Job(rule, inputs, outputs, gpus, memory, sum(job.minutes for job in members)))
    return [job for job in jobs if job.group is None] + together


def minutes_at_most(jobs: list[Job], at_a_time: int) -> int:
    """Return after how many minutes the last job ends, if each takes all its time and starts when it can."""
    producer = {name: index for index, job in enumerate(jobs) for name in job.outputs if name}
    waits_for = [{producer[name] for name in job.inputs if name in producer} for job in jobs]
    ended: set[int] = set()
    running: list[tuple[int, int]] = []
    waiting, now = list(range(len(jobs))), 0
    while waiting or running:
        ready = [index for index in waiting if waits_for[index] <= ended][: at_a_time - len(running)]
        for index in ready:
            heapq.heappush(running, (now + jobs[index].minutes, index))
        waiting = [index for index in waiting if index not in ready]
        now, index = heapq.heappop(running)
        ended.add(index)
    return now


@pytest.fixture(scope="module")
def paper(unrun):
    return planned_jobs(unrun.folder, "paper_flan")


def test_the_papers_study_is_at_most_400_jobs(paper):
    assert 200 < len(paper) <= 400


def test_the_readme_states_what_the_papers_study_asks_for(paper):
    counts = Counter((job.rule, job.gpus, job.memory, job.minutes) for job in paper)
    table = "".join(
        f"| {rule} | {count} | {gpus or '-'} | {memory:,} MB | {minutes} min |\n"
        for (rule, gpus, memory, minutes), count in counts.items()
    )
    stated = re.search(r"^\| rule \| jobs .*\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE).group(1)
    assert sorted(stated.splitlines()) == sorted(table.splitlines()), f"the table should be\n{table}"


def test_the_readme_states_how_long_the_papers_study_takes_at_most(paper):
    sent = submissions(paper)
    hours = minutes_at_most(sent, AT_A_TIME) / 60
    fine_tuning = minutes_at_most([job for job in paper if job.rule == "finetune_shard"], AT_A_TIME) / 60
    stated = f"{len(paper)} jobs, sent as {len(sent)}, finish within {hours:.0f} hours"
    stated += f", {fine_tuning:g} of them for the fine-tuning"
    assert stated in README, f"it should say: {stated}"


def test_the_readme_states_what_a_lm_over_several_gpus_asks_for(unrun):
    study = yaml.safe_load((unrun.folder / "configs" / "large_lm.yaml").read_text(encoding="utf-8"))
    shards = [job for job in planned_jobs(unrun.folder, "large_lm") if job.rule == "finetune_shard"]
    assert {job.gpus for job in shards} == {study["finetuning"]["processes"]} == {4}
    (memory,) = {job.memory for job in shards}
    # All four processes read all weights in float32.
    assert memory > 4 * 4 * 7.6e9 / 2**20
    stated = f"each of its {len(shards)} fine-tuning jobs requests 4 GPUs on one node and {memory:,} MB of memory"
    assert stated in README, f"it should say: {stated}"


def test_short_jobs_are_sent_together(unrun):
    jobs = planned_jobs(unrun.folder, "methods_mini")
    sent = submissions(jobs)
    assert f"{len(jobs)} jobs, sent as {len(sent)} (`configs/methods_mini.yaml`)" in README
    assert 3 * len(sent) <= len(jobs)
    assert not {job.rule for job in jobs if job.group} & {"finetune_shard", "train_encoder", "score_pairs_by_lm"}


def test_jobs_wait_for_what_they_read_and_for_a_free_place():
    def job(name, minutes, *inputs):
        return Job("rule", inputs, (name,), 0, 0, minutes)

    jobs = [job("a", 10), job("b", 10), job("c", 10), job("d", 5, "a", "c"), job("e", 1, "given")]
    assert minutes_at_most(jobs, 10) == 15
    assert minutes_at_most(jobs, 1) == 36
    assert minutes_at_most(jobs, 2) == 25
