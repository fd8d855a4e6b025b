"""A small made-up run of the workflow for the tests of the report: every artifact that the report reads."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from workflow_scripts.core.parquet import spec_hash, write_table
from workflow_scripts.evaluation.evaluate_label_influence import AGREEMENT_SCHEMA
from workflow_scripts.evaluation.evaluate_label_influence import SCHEMA as INFLUENCE_SCHEMA
from workflow_scripts.study.artifacts import benchmark_stages
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs

HOSTILE = [
    "</script><script>window.__hacked = 1</script>",
    '<img src=x onerror="window.__hacked = 2"> & \'quoted\' "twice"',
    "{{ 7 * 7 }} {% raw %} ${window.__hacked = 3} `tick` \\ \\u003c <!-- <script> -->",
    "مرحبا بالعالم \u202eoverride\u202c שלום עולם",
    "bell \x07 escape \x1b[31m null \x00 separators \u2028 \u2029 \x85 end",
    "x" * 100_000,
    "word " * 20_000,
    "javascript:window.__hacked = 4 ]]> --> <style>body{display:none}</style><svg onload=window.__hacked=5>",
    "👩‍👩‍👧 é́́́ 日本語のテキスト",
]
TOPICS = {
    "translation": "Translate the sentence into French: the boat leaves the harbour at",
    "arithmetic": "A baker sells loaves in boxes. How many boxes are needed for",
    "summary": "Summarise the paragraph in one sentence. The river rose during the night and by",
    "sentiment": "Is this review positive or negative? The film lost me after minute",
    "geography": "Which country does this city belong to? The city lies at kilometre",
}
METHOD_LDS = {
    "airrep": 0.63,
    "airrep_mean": 0.55,
    "untrained": 0.30,
    "tfidf": 0.41,
    "bm25": 0.38,
    "length": 0.03,
    "random": -0.01,
}
POOLINGS = {"airrep": ("attention",), "untrained": ("attention", "mean")}


def make_run(
    folder: Path,
    *,
    tests: int = 30,
    train: int = 200,
    examples: int = 10,
    methods: tuple[str, ...] = tuple(METHOD_LDS),
    explored: tuple[str, ...] = ("airrep", "airrep_mean", "tfidf", "untrained"),
    evaluations: tuple[str, ...] = ("heldout",),
    texts: list[str] | None = None,
    lds: dict[str, float] | None = None,
) -> dict:
    """Write all artifacts into `folder` and return the arguments of `write_report`."""
    lds = lds or {method: METHOD_LDS[method] for method in methods}
    generator = np.random.default_rng(0)
    corpora = [
        _corpus(folder / "corpora" / "train.parquet", train, texts),
        _corpus(folder / "corpora" / "test.parquet", tests, texts),
    ]
    return {
        "config": _config(folder / "config.resolved.yaml", evaluations),
        "provenance": _provenance(folder / "provenance.json"),
        "lds": _lds(folder / "evaluation" / "lds.parquet", evaluations, lds),
        "differences": _differences(folder / "evaluation" / "differences.parquet", evaluations, lds),
        **_label_influence(folder / "evaluation", evaluations, methods),
        "training": _training(folder / "encoder" / "training.parquet", generator),
        "scores": [
            _scores(folder / "scores" / method / f"{name}.parquet", tests, train, examples, generator)
            for method in explored
            for name in evaluations
        ],
        "corpora": corpora,
        "rejected": [_rejected(folder / "corpora" / "train.rejected.parquet")],
        "tokens": [_tokens(folder / "tokens" / "train.parquet", train, generator)],
        "rejected_tokens": [_rejected_tokens(folder / "tokens" / "train.rejected.parquet")],
        "experiments": [],
        "report": folder / "report.html",
        **{f"{name}_table": folder / "tables" / f"{name}.csv" for name in ("lds", "training", "costs")},
        "targets": [_targets(folder / "targets" / f"{pool}.parquet", pool) for pool in ("train", *evaluations)],
        "benchmarks": str(_benchmarks(folder / "benchmarks", folder / "config.resolved.yaml")),
        "plan": str(_plan(folder / "plan.json", folder / "config.resolved.yaml")),
        "tests": tests,
        "examples": examples,
        "characters": 600,
    }


def _config(path: Path, evaluations: tuple[str, ...]) -> Path:
    evaluation = {"train": "train", "test": "test", "tests": 30, "subsets": 100, "subset_examples": 20}
    study = {
        "run": "example",
        "corpora": {"train": {"source": "train.jsonl"}, "test": {"source": "test.jsonl"}},
        "language_model": {"model": "a-model"},
        "targets": {
            "corpus": "train",
            "folds": 8,
            "pool_examples": 100,
            "validation_examples": 20,
            "evaluated_examples": 20,
            "subsets_per_fold": 16,
            "subset_examples": 20,
        },
        "evaluations": dict.fromkeys(evaluations, evaluation),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def _provenance(path: Path) -> Path:
    values = {
        "created": "2025-01-01T12:00:00+00:00",
        "command": "snakemake --cores 2",
        "git_commit": "0123456789abcdef",
        "versions": {"python": "3.11", "torch": "2.13"},
        "hardware": {"processor": "a <processor>", "cores": 2},
        "data": {"train": "aaaa", "test": "bbbb"},
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def _lds(path: Path, evaluations: tuple[str, ...], lds: dict[str, float]) -> Path:
    rows = [
        {
            "method": method,
            "evaluation": name,
            "pooling": pooling,
            "chosen": None,
            "lds": value - 0.04 * rank,
            "ci_low": value - 0.04 * rank - 0.03,
            "ci_high": value - 0.04 * rank + 0.03,
            "ceiling": 0.91,
            "seed_agreement": 0.7,
            "n_tests": 30,
            "n_subsets": 100,
            **_costs(method, 0.02 * 3**place),
            "bytes_per_example": 0.0 if method == "random" else 768.0 / 2 ** (place % 3),
        }
        for name in evaluations
        for place, (method, value) in enumerate(lds.items())
        for rank, pooling in enumerate(POOLINGS.get(method, ("mean",)))
    ]
    write_table(path, pa.Table.from_pylist(rows))
    return path


def _costs(method: str, seconds: float) -> dict[str, float | None]:
    """What a method costs: one that is given without an encoder's training embeds nothing."""
    embedding = 0.75 * seconds if method.startswith(("airrep", "untrained")) else 0.0
    fitting = 900.0 if method.startswith("airrep") else 0.0
    clock = {"": seconds, "embedding_": embedding, "scoring_": seconds - embedding, "start_up_": 4.0}
    clock |= {"fitting_": None if method == "untrained" else fitting, "warmup_": 0.0}
    return {
        f"{part}{kind}": value if value is None else value * factor
        for part, value in clock.items()
        for kind, factor in (("seconds", 1.0), ("cpu_seconds", 1.5))
    }


def _differences(path: Path, evaluations: tuple[str, ...], lds: dict[str, float]) -> Path:
    schema = pa.schema(
        [(name, pa.string()) for name in ("method_a", "pooling_a", "method_b", "pooling_b", "evaluation")]
        + [(name, pa.float64()) for name in ("difference", "ci_low", "ci_high")]
    )
    rows = [
        {
            "method_a": "airrep",
            "pooling_a": "attention",
            "method_b": method,
            "pooling_b": pooling,
            "evaluation": name,
            "difference": lds["airrep"] - value + 0.04 * rank,
            "ci_low": lds["airrep"] - value + 0.04 * rank - 0.04,
            "ci_high": lds["airrep"] - value + 0.04 * rank + 0.04,
        }
        for name in evaluations
        for method, value in lds.items()
        if method != "airrep" and "airrep" in lds
        for rank, pooling in enumerate(POOLINGS.get(method, ("mean",)))
    ]
    write_table(path, pa.Table.from_pylist(rows, schema))
    return path


def _label_influence(folder: Path, evaluations: tuple[str, ...], methods: tuple[str, ...]) -> dict[str, Path]:
    """Rows of a label help the tests of the same one; the names of the first two are long, and the last is none."""
    rng = np.random.default_rng(6)
    labels = ["reading comprehension with commonsense", "struct to text and back", *TOPICS, None]
    rows, agreements = [], []
    for evaluation in evaluations:
        for method in methods:
            for train in labels:
                for test in labels:
                    helps = (train == test) + rng.normal(0, 0.2)
                    values = {"mean_score": helps, "advantage": helps, "top_share": 0.4 if train == test else 0.1}
                    values["measured"] = 0.03 * helps
                    ends = {f"{name}_low": value - 0.3 * abs(value) for name, value in values.items()}
                    ends |= {f"{name}_high": value + 0.3 * abs(value) for name, value in values.items()}
                    names = {"evaluation": evaluation, "method": method, "train_label": train, "test_label": test}
                    sizes = {"train_rows": 30, "tests": 5, "corpus_share": 1 / len(labels)}
                    left_out = {"train_labels_left_out": 3, "test_labels_left_out": 0}
                    rows.append({**names, **sizes, **values, **ends, **left_out})
            for prediction in ("mean_score", "top_share"):
                value = METHOD_LDS.get(method, 0.1)
                found = {"agreement": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "ceiling": 0.8}
                names = {"evaluation": evaluation, "method": method, "prediction": prediction}
                agreements.append({**names, **found, "n_cells": 64, "n_subsets": 100})
    paths = {"influence": folder / "label_influence.parquet", "agreements": folder / "label_agreement.parquet"}
    write_table(paths["influence"], pa.Table.from_pylist(rows, INFLUENCE_SCHEMA))
    write_table(paths["agreements"], pa.Table.from_pylist(agreements, AGREEMENT_SCHEMA))
    return paths


def _targets(path: Path, pool: str) -> Path:
    counts = {"runs": "10000", "diverged": "7"} if pool == "train" else {"runs": "200", "diverged": "0"}
    write_table(path, pa.table({"loss": pa.array([], pa.float32())}), **counts)
    return path


def _training(path: Path, generator: np.random.Generator) -> Path:
    steps = np.arange(1, 401, dtype=np.int32)
    losses = 0.35 + 0.35 * np.exp(-steps / 90) + generator.normal(0, 0.02, len(steps))
    validations = [0.6 - 0.35 * np.exp(-step / 120) if step % 25 == 0 else None for step in steps]
    columns = {
        "step": pa.array(steps),
        "loss": pa.array(losses, pa.float32()),
        "validation_lds": pa.array(validations, pa.float32()),
        "seconds": pa.array(steps * 0.5, pa.float32()),
    }
    write_table(path, pa.table(columns))
    return path


def _corpus(path: Path, rows: int, texts: list[str] | None) -> Path:
    topics = list(TOPICS)
    prompts, responses, labels = [], [], []
    for row in range(rows):
        topic = topics[row % len(topics)]
        filler = "the water had reached the lower road. " * (row % 13)
        prompts.append(texts[row % len(texts)] if texts else f"{TOPICS[topic]} {row}. {filler}")
        responses.append(texts[(row + 1) % len(texts)] if texts else f"Answer {row}: {'yes, ' * (row % 40)}done.")
        labels.append(None if row % 17 == 16 else texts[row % len(texts)] if texts else topic)
    columns = {
        "example_id": pa.array(range(rows), pa.int64()),
        "prompt": prompts,
        "response": responses,
        "label": pa.array(labels, pa.string()),
        "source_row": pa.array(range(1, rows + 1), pa.int64()),
        "source_file": [f"{path.stem}.jsonl"] * rows,
    }
    write_table(path, pa.table(columns))
    return path


def _scores(path: Path, tests: int, train: int, examples: int, generator: np.random.Generator) -> Path:
    columns = {name: [] for name in ("test_id", "sign", "rank", "example_id", "score")}
    low = 0.0 if path.parent.name == "tfidf" else -0.8
    for test in range(tests):
        chosen = generator.choice(train, 2 * examples, replace=False)
        scores = np.sort(generator.uniform(low, 1.0, 2 * examples))[::-1]
        columns["test_id"] += [test] * 2 * examples
        columns["sign"] += ["helpful"] * examples + ["harmful"] * examples
        columns["rank"] += [*range(1, examples + 1)] * 2
        columns["example_id"] += [*chosen[:examples], *chosen[examples:][::-1]]
        columns["score"] += [*scores[:examples], *scores[examples:][::-1]]
    types = [pa.int32(), pa.string(), pa.int32(), pa.int32(), pa.float32()]
    arrays = {name: pa.array(column, kind) for (name, column), kind in zip(columns.items(), types, strict=True)}
    write_table(path, pa.table(arrays))
    return path


def _rejected(path: Path) -> Path:
    rows = {
        "source_row": pa.array([3, 9, 11, 12, 13, 14, 15], pa.int64()),
        "source_file": ["train.jsonl"] * 7,
        "reason": ["the answer is empty"] * 6 + ["<b>not JSON</b>"],
    }
    write_table(path, pa.table(rows))
    return path


def _tokens(path: Path, rows: int, generator: np.random.Generator) -> Path:
    lengths = generator.lognormal(3.4, 0.6, rows).astype(int) + 2
    columns = {
        "example_id": pa.array(range(rows), pa.int32()),
        "input_ids": pa.array([[1] * length for length in lengths], pa.list_(pa.int32())),
        "prompt_tokens": pa.array([1] * rows, pa.int32()),
        "cut_tokens": pa.array([5 if row % 50 == 0 else 0 for row in range(rows)], pa.int32()),
    }
    write_table(path, pa.table(columns))
    return path


def _rejected_tokens(path: Path) -> Path:
    table = pa.table({"example_id": pa.array([7], pa.int32()), "reason": ["no response token within 64"]})
    table = table.append_column("source_file", [["train.jsonl"]]).append_column("source_row", [[8]])
    write_table(path, table)
    return path


def specs_of(config: Path) -> StageSpecs:
    """Specs of the study whose `config.resolved.yaml` this is."""
    return StageSpecs(StudyPlan(load_study(yaml.safe_load(config.read_text(encoding="utf-8")))))


def benchmarks_of(config: Path, stage: str) -> list[Path]:
    """Benchmark files of a stage's jobs, below `benchmarks/`."""
    return sorted(path for path, of in benchmark_stages(specs_of(config)).items() if of == stage)


def _benchmarks(folder: Path, config: Path) -> Path:
    header = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    jobs = {"finetune_shard": [130.5, 129.5, 141.0], "train_encoder": [95.0], "embed_corpus": [4.0, 3.5]}
    files = [
        (path, value)
        for stage, seconds in jobs.items()
        for path, value in zip(benchmarks_of(config, stage)[: len(seconds)], seconds, strict=True)
    ]
    # Of jobs of before: other sizes, and a method that was removed.
    files += [(Path("finetune_shard/train/f0099_s0000.tsv"), 1e6), (Path("score_pairs/gone/heldout.tsv"), 1e6)]
    for place, (path, value) in enumerate(files):
        row = f"{value}\t0:02:10\t{800 + place}.5\t-\t-\t-\t0\t0\t99\t{value * 0.9}\n"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(header + row, encoding="utf-8")
    (empty,) = benchmarks_of(config, "init_encoder")
    (folder / empty).parent.mkdir()
    (folder / empty).write_text("", encoding="utf-8")
    for path in folder.rglob("*.tsv"):
        # All ended at one time, so the longest one covers the others.
        os.utime(path, (1e9, 1e9))
    return folder


def _plan(path: Path, config: Path) -> Path:
    seconds = {"finetune_shard": 320.0, "train_encoder": 90.0, "embed_corpus": 8.0, "write_report": 5.0}
    stages = [{"stage": stage, "seconds": planned} for stage, planned in seconds.items()]
    study = spec_hash(specs_of(config).spec("write_plan", {})["study"])
    values = {"study": study, "stages": stages, "total": {"wall_seconds": 120.0}}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
