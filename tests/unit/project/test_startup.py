"""Which libraries a stage imports before it works; `benchmarks/startup.py` says what that costs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Each costs from a third of a second to three of processor time.
HEAVY = (
    "accelerate",
    "datasets",
    "deepspeed",
    "mlflow",
    "pandas",
    "peft",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "sympy",
    "tensorboard",
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "trackio",
    "transformers",
    "wandb",
)
TABLES = {"pandas"}
MODELS = {"torch", "transformers"}
# Stages that aren't here may import none of them.
ALLOWED = {
    "curation.select_examples": TABLES,
    "evaluation.check_leaks": {"pandas", "scipy", "sklearn"},
    "evaluation.choose_pooling": TABLES,
    "evaluation.evaluate_label_influence": TABLES,
    "evaluation.evaluate_lds": TABLES,
    "evaluation.score_blend": TABLES,
    "evaluation.weigh_blend": TABLES,
    "experiments.check_labels": TABLES,
    "experiments.draw_curated_data": TABLES,
    "experiments.draw_leave_out": TABLES,
    "experiments.draw_removal": TABLES,
    "experiments.draw_selection": TABLES,
    "experiments.evaluate_amortisation": TABLES,
    "experiments.evaluate_classification": {"pandas", "scipy"},
    "experiments.evaluate_curated_data": TABLES,
    "experiments.evaluate_detection": TABLES,
    "experiments.evaluate_leave_out": TABLES,
    "experiments.evaluate_removal": TABLES,
    "experiments.evaluate_selection": TABLES,
    "experiments.evaluate_transfer": TABLES,
    "plan.show_plan": TABLES,
    "report.write_report": TABLES,
    "provenance.check_environment": {"torch"},
    "embeddings.embed_corpus": MODELS,
    "encoder.init_encoder": MODELS,
    "encoder.take_encoder": MODELS,
    "encoder.train_encoder": MODELS | TABLES,
    "experiments.finetune_runs": MODELS | TABLES,
    "language_model.measure_losses": MODELS,
    "language_model.pretrain_base_lm": MODELS,
    "methods.embed_by_method": MODELS,
    "methods.fit_method": MODELS,
    "methods.warmup_lm": MODELS,
    "plan.run_pilot": MODELS | {"pandas", "scipy", "sklearn"},
    "release.package_encoder": MODELS,
    "targets.finetune_shard": MODELS,
}
IMPORTS_ONE_AFTER_ANOTHER = f"""
import importlib, json, sys
found = {{}}
for stage in sys.argv[1:]:
    importlib.import_module("workflow_scripts." + stage)
    found[stage] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(found))
"""


def stages() -> list[str]:
    rules = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    scripts = re.findall(r'"\.\./workflow_scripts/(\S+)\.py"', rules)
    return sorted({script.replace("/", ".") for script in scripts}, key=lambda stage: (len(allowed(stage)), stage))


def allowed(stage: str) -> set[str]:
    return ALLOWED.get(stage, set())


@pytest.mark.parametrize("with_torch", [False, True])
def test_a_stage_imports_no_more_heavy_libraries_than_it_needs(with_torch):
    names = [stage for stage in stages() if ("torch" in allowed(stage)) == with_torch]
    command = [sys.executable, "-c", IMPORTS_ONE_AFTER_ANOTHER, *names]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    before: set[str] = set()
    for stage, modules in found.items():
        assert set(modules) - before <= allowed(stage), f"{stage} imports them for the first time"
        before |= set(modules)


def test_the_list_names_stages():
    assert ALLOWED.keys() <= set(stages())


@pytest.mark.parametrize("stage", stages())
def test_snakemake_can_run_a_stage_as_a_script(stage):
    """Snakemake puts lines before a script, so it can't begin with an import from __future__."""
    script = ROOT / "workflow_scripts" / f"{stage.replace('.', '/')}.py"
    assert "from __future__" not in script.read_text(encoding="utf-8")
