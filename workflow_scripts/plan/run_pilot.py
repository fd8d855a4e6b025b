"""Time one unit of each stage's work on this machine, with the study's own LM, encoder and corpora."""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers

from workflow_scripts.core.distributed import run_in_new_processes
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.gpus import visible_gpus
from workflow_scripts.core.hardware import hardware
from workflow_scripts.core.parquet import read_schema, read_table, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.init_encoder import init_encoder
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import AttributionEncoder, token_counts
from workflow_scripts.encoder.objective import Objective
from workflow_scripts.encoder.take_encoder import take_encoder
from workflow_scripts.encoder.training import backpropagate_step, draw_step, validation_lds
from workflow_scripts.language_model.pretrain_base_lm import pretrain_base_lm
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus
from workflow_scripts.models.loading import load_config, load_tokenizer
from workflow_scripts.models.transformers_import import AutoModelForCausalLM
from workflow_scripts.plan.pilot_jobs import repeated, typical_seconds
from workflow_scripts.plan.pilot_processes import side_by_side, time_starts
from workflow_scripts.study.costs import CorpusFacts, Pilot, distinct_examples, parameters_in_name
from workflow_scripts.study.sections import Corpus, Encoder, Pretraining
from workflow_scripts.study.stage_versions import STAGE_VERSIONS
from workflow_scripts.targets.tables import FoldTargets

SAMPLE_ROWS = 2000
STEP_SECONDS = 5.0
PILOT_JOBS = "workflow_scripts.plan.pilot_jobs"
MODELS = "models.json"
FEW_STEPS, MANY_STEPS = 2, 12
# A larger LM can't reasonably be fine-tuned thousands of times without a GPU.
LARGEST_LM_ON_A_CPU = 1e8

# What is assumed of a GPU that isn't here. The paper's own costs, 57.6 A100-seconds for a subset and 40 A100-hours for
# the encoder, are 18 % and 8 % of an A100's operations, if an example has 200 tokens.
GPU, GPU_OPERATIONS, LM_SHARE, ENCODER_SHARE = "an A100", 312e12, 0.18, 0.08
ASSUMED_LM_PARAMETERS, ASSUMED_ENCODER_PARAMETERS = 5e8, 3.3e7
ASSUMED_ROWS, ASSUMED_TESTS, ASSUMED_TOKENS, ASSUMED_ROW_BYTES = 100_000, 5_000, 200.0, 500.0


def run_pilot(
    corpora: list[Path],
    pilot: Path,
    *,
    language_model: dict[str, Any],
    runs: dict[str, Any] | None,
    training: dict[str, Any] | None,
    encoder: dict[str, Any],
    prompt_words: int,
    chunk_tokens: int | None,
    precision: str,
    tests_only: dict[str, bool],
    seed: int,
) -> None:
    """Write the seconds of each unit of work, and the sizes of the corpora.

    LM and encoder have the study's architecture; what is trained here stays in a temporary folder. Work that the study
    does in many one-core jobs is timed in as many processes as would run at a time on this machine. If LM or encoder
    can't be loaded, or the LM is too large for a machine without a GPU, the times of a GPU are assumed; so are the
    sizes of corpora that aren't available. The file says what was assumed.

    Parameters
    ----------
    corpora: `corpora/` files that are available.
    pilot: JSON file to write.
    language_model: values of the section `language_model`.
    runs: `finetuning`, and the `subset_examples` and `measured_examples` of one run; None for a study without any.
    training: the encoder's `target_corpus`, `objective`, and the sizes of a fold and of a `step`; None if it was
        trained elsewhere.
    encoder: arguments of `init_encoder`, or of `take_encoder` if it was trained elsewhere.
    prompt_words: number of words of a prompt that the encoder reads.
    chunk_tokens: most tokens in one forward pass of the encoder; None for the device's default.
    precision: `float32` or `bfloat16`, that of the encoder's forward passes.
    tests_only: for each corpus of the study, whether it is used for tests only.
    seed: seed of the samples.
    """
    settings = {name: value for name, value in locals().items() if name not in ("corpora", "pilot")}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="airrep-pilot-") as name:
        folder = Path(name)
        # In a process of its own, like the jobs after it, because some GPUs allow only one process at a time.
        run_in_new_processes(_time_models, 1, corpora=corpora, folder=folder, settings=settings)
        models = json.loads((folder / MODELS).read_text(encoding="utf-8"))
        lm = _LanguageModel(**models["lm"])
        missing, parameters = models["missing"], models["encoder_parameters"]
        facts = {name: CorpusFacts(**values) for name, values in models["facts"].items()}
        if missing:
            assumed = _assumed_seconds(lm.parameters, parameters, training, facts)
            gpus = 1
        else:
            assumed, gpus = {}, len(visible_gpus())
        say("run_pilot: jobs side by side ...")
        seconds = {**models["seconds"], **time_starts(), **_time_jobs(folder, models, lm, runs)}
    machine, absent = hardware(), sorted(tests_only.keys() - {path.stem for path in corpora})
    timed_on = machine["gpus"][:1] if visible_gpus() else []
    found = Pilot(
        hardware=" and ".join(
            [GPU if missing else "", *timed_on, f"{machine['cores']} cores of {machine['processor']}"]
        ).removeprefix(" and "),
        gpus=gpus,
        seconds={**seconds, **assumed},
        assumed_units=tuple(assumed),
        assumptions=tuple(_assumptions(missing, lm.parameters, parameters, absent)),
        corpora=facts,
        lm_parameters=lm.parameters,
        encoder_parameters=parameters,
    )
    with atomic_path(pilot) as temporary:
        temporary.write_text(
            json.dumps({"version": STAGE_VERSIONS["run_pilot"], "settings": settings, "found": asdict(found)}, indent=1)
            + "\n"
        )
    say(f"run_pilot: done in {time.monotonic() - start:.0f} s")


def _time_models(corpora: list[Path], folder: Path, settings: dict[str, Any]) -> None:
    """Write to `folder` the times of LM and encoder, the sizes of the corpora, and what the jobs are timed with."""
    transformers.logging.set_verbosity_error()
    runs, training, prompt_words = settings["runs"], settings["training"], settings["prompt_words"]
    samples = {path.stem: _sample(path, folder / path.name, settings["seed"]) for path in corpora}
    read = samples.get(training["target_corpus"]) if training else None
    say("run_pilot: LM, encoder, corpora ...")
    # The progress that the stages print is not the study's.
    with contextlib.redirect_stderr(io.StringIO()):
        typical = read or next(iter(samples.values()), None) or _stand_in(folder)
        lm = _language_model(settings["language_model"], runs, samples, typical, folder)
        model, encoder_seconds, no_encoder = _encoder(settings["encoder"], typical, lm, prompt_words, folder)
        facts = {
            name: _facts(samples[name], lm, model, prompt_words, folder)
            if name in samples
            else _assumed_facts(only_tests, training)
            for name, only_tests in settings["tests_only"].items()
        }
        typical_tokens = _lm_tokens(typical, lm, folder)
    seconds = {**lm.seconds, **encoder_seconds}
    missing = [reason for reason in (lm.missing, no_encoder) if reason]
    if not missing:
        say("run_pilot: the encoder's work ...")
        chunk_tokens, precision = settings["chunk_tokens"], settings["precision"]
        seconds |= _time_encoder(model, typical, prompt_words, training, chunk_tokens, precision)
    found = {
        "lm": asdict(lm),
        "missing": missing,
        "encoder_parameters": ASSUMED_ENCODER_PARAMETERS if no_encoder else _parameters(model),
        "dimension": model.dimension,
        "facts": {name: asdict(values) for name, values in facts.items()},
        "seconds": seconds,
        "sample": str(typical.file),
        "tokens": str(typical_tokens),
    }
    (folder / MODELS).write_text(json.dumps(found), encoding="utf-8")


@dataclass(frozen=True)
class _Sample:
    """A file with some rows of a corpus; `rows` and `row_bytes` (mean bytes of a row) are those of the whole corpus."""

    file: Path
    rows: int
    row_bytes: float

    @property
    def table(self) -> pa.Table:
        return read_table(self.file)


def _sample(corpus: Path, file: Path, seed: int) -> _Sample:
    table = read_table(corpus)
    chosen = generator(seed, "pilot", corpus.stem).permutation(table.num_rows)[:SAMPLE_ROWS]
    return _written(table.take(np.sort(chosen)), file, table.num_rows, corpus.stat().st_size / table.num_rows)


def _stand_in(folder: Path) -> _Sample:
    """Return a sample of the builtin corpus, for a study none of whose corpora is available."""
    file, source = folder / "stand_in.parquet", Corpus(source="builtin:mini", limit=SAMPLE_ROWS)
    prepare_corpus(file, folder / "stand_in.rejected.parquet", **source.model_dump(exclude={"without"}))
    return _Sample(file, read_schema(file)[1], ASSUMED_ROW_BYTES)


def _written(table: pa.Table, file: Path, rows: int, row_bytes: float) -> _Sample:
    if "example_id" in table.column_names:
        table = table.drop_columns("example_id")
    write_table(file, table.append_column("example_id", pa.array(np.arange(table.num_rows))))
    return _Sample(file, rows, row_bytes)


@dataclass(frozen=True)
class _LanguageModel:
    """The LM, or what stands in for its tokenizer; `missing` says why it can't be timed here."""

    loading: dict[str, Any]  # arguments of `tokenize_corpus`
    parameters: float
    seconds: dict[str, float]
    missing: str | None = None


def _language_model(
    settings: Mapping[str, Any],
    runs: Mapping[str, Any] | None,
    samples: Mapping[str, _Sample],
    typical: _Sample,
    folder: Path,
) -> _LanguageModel:
    loading = {
        name: settings[name] for name in ("model", "revision", "trust_remote_code", "max_tokens", "chat_template")
    }
    pretraining = {**settings["pretraining"]}
    read = samples.get(pretraining.pop("corpus"), typical)
    if not runs:
        return _LanguageModel(_stand_in_tokenizer(loading, read.file, folder), 0.0, {})
    if settings["model"] == "builtin:tiny":
        seconds = _time_pretraining(read.file, folder / "language_model", settings["max_tokens"], pretraining)
        own = {**loading, "language_model": str(folder / "language_model")}
        return _LanguageModel(own, _lm_parameters(folder / "language_model", None, False), seconds)
    try:
        load_tokenizer(settings["model"], settings["revision"], settings["trust_remote_code"])
        parameters = _lm_parameters(settings["model"], settings["revision"], settings["trust_remote_code"])
    except StudyError as error:
        parameters = parameters_in_name(settings["model"]) or ASSUMED_LM_PARAMETERS
        return _LanguageModel(_stand_in_tokenizer(loading, read.file, folder), parameters, {}, str(error))
    missing = None
    if runs["finetuning"].get("engine", "native") != "native":
        missing = "fine-tuning by DeepSpeed shares several GPUs"
    elif not visible_gpus() and parameters > LARGEST_LM_ON_A_CPU:
        missing = f"{settings['model']} has {parameters / 1e6:,.0f} million parameters, too many for a CPU"
    return _LanguageModel({**loading, "language_model": None}, parameters, {}, missing)


def _stand_in_tokenizer(loading: Mapping[str, Any], corpus: Path, folder: Path) -> dict[str, Any]:
    values = {**Pretraining().model_dump(exclude={"corpus"}), "hidden": 32, "layers": 1, "steps": 1}
    pretrain_base_lm(corpus, folder / "language_model", max_tokens=loading["max_tokens"], seed=0, **values)
    return {**loading, "language_model": str(folder / "language_model"), "chat_template": False}


def _time_pretraining(corpus: Path, folder: Path, max_tokens: int, values: Mapping[str, Any]) -> dict[str, float]:
    def pretrain(steps: int) -> None:
        pretrain_base_lm(corpus, folder, max_tokens=max_tokens, seed=0, **{**values, "steps": steps})

    pretrain(1)  # warm-up
    few, many = (typical_seconds(partial(pretrain, steps), 0) for steps in (FEW_STEPS, MANY_STEPS))
    of_step = max(many - few, 0.0) / (MANY_STEPS - FEW_STEPS)
    return {"pretraining_start": max(few - FEW_STEPS * of_step, 0.0), "pretraining_step": of_step}


def _lm_parameters(model: str | Path, revision: str | None, trust_remote_code: bool) -> float:
    config = load_config(model, revision, trust_remote_code)
    with torch.device("meta"):
        return float(_parameters(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)))


def _parameters(model: torch.nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in model.parameters()))


def _encoder(
    settings: Mapping[str, Any], typical: _Sample, lm: _LanguageModel, prompt_words: int, folder: Path
) -> tuple[AttributionEncoder, dict[str, float], str | None]:
    """Return the encoder, the seconds to make it and to tokenise a row, and why it is a stand-in (None if it isn't)."""
    missing = None
    max_tokens = settings.get("settings", settings)["max_tokens"]
    start = time.perf_counter()
    try:
        if "settings" in settings:
            values = {**settings, "settings": Encoder(**settings["settings"])}
            init_encoder(typical.file, folder / "encoder", language_model=lm.loading.get("language_model"), **values)
        else:
            take_encoder(folder / "encoder", **settings)
    except StudyError as error:
        missing = str(error)
        init_encoder(typical.file, folder / "encoder", settings=Encoder(max_tokens=max_tokens), seed=0)
    seconds = {"encoder_start": time.perf_counter() - start}
    model = load_encoder(folder / "encoder", max_tokens)
    texts = encoder_texts(typical.table, prompt_words, model.view)
    seconds["encoder_tokenized_row"] = typical_seconds(lambda: model.tokenize(texts), 0) / len(texts)
    return model, seconds, missing


def _facts(
    sample: _Sample, lm: _LanguageModel, model: AttributionEncoder, prompt_words: int, folder: Path
) -> CorpusFacts:
    tokens = _lm_tokens(sample, lm, folder)
    lengths = pc.list_value_length(read_table(tokens, ["input_ids"])["input_ids"])
    texts = encoder_texts(sample.table, prompt_words, model.view)
    return CorpusFacts(
        rows=sample.rows,
        lm_tokens=float(pc.mean(lengths).as_py() or 0.0),
        encoder_tokens=float(token_counts(model.tokenize(texts)).mean()),
        row_bytes=sample.row_bytes,
    )


def _lm_tokens(sample: _Sample, lm: _LanguageModel, folder: Path) -> Path:
    tokens = folder / f"{sample.file.stem}.tokens.parquet"
    tokenize_corpus(sample.file, tokens, folder / "cut.parquet", **lm.loading)
    return tokens


def _assumed_facts(only_tests: bool, training: Mapping[str, Any] | None) -> CorpusFacts:
    fold = training["step"]["pool_examples"] + training["step"]["tests_per_fold"] if training else 0
    rows = ASSUMED_TESTS if only_tests else max(ASSUMED_ROWS, fold)
    return CorpusFacts(rows, ASSUMED_TOKENS, ASSUMED_TOKENS, ASSUMED_ROW_BYTES)


def _time_jobs(
    folder: Path, models: Mapping[str, Any], lm: _LanguageModel, runs: Mapping[str, Any] | None
) -> dict[str, float]:
    """Return the seconds that `plan.pilot_jobs` measures, the mean over the processes that run at a time."""
    model = lm.loading["language_model"] or lm.loading["model"]
    source = [model, lm.loading["revision"], lm.loading["trust_remote_code"]]
    settings = {
        "sample": models["sample"],
        "tokens": models["tokens"],
        "tokenizing": lm.loading,
        "finetuning": {"source": source, **runs} if runs and not lm.missing else None,
        "dimension": models["dimension"],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    found = [json.loads(said.splitlines()[-1]) for said in side_by_side("-m", PILOT_JOBS, str(folder))]
    return {unit: statistics.fmean(one[unit] for one in found) for unit in found[0]}


def _time_encoder(
    model: AttributionEncoder,
    typical: _Sample,
    prompt_words: int,
    training: Mapping[str, Any] | None,
    chunk_tokens: int | None,
    precision: str,
) -> dict[str, float]:
    """Return the seconds to embed a token, and for an encoder to train, those of a step and of validating on a fold.

    A step that would take longer than some seconds is timed at a smaller size and scaled by its tokens.
    """
    texts = encoder_texts(typical.table, prompt_words, model.view)
    examples = model.tokenize(texts)
    embedded = int(token_counts(examples).sum())
    model.encode(examples[:100], chunk_tokens, precision)  # warm-up
    per_token = typical_seconds(lambda: model.encode(model.tokenize(texts), chunk_tokens, precision)) / embedded
    if not training:
        return {"embedded_token": per_token}

    step = training["step"]
    fold_tokens = _fold_tokens(step, embedded / len(examples))
    # A step reads each token twice forwards and once backwards, which costs as much as four times forwards.
    share = min(1.0, STEP_SECONDS / (4 * per_token * fold_tokens["step"]))
    sizes = {name: max(round(number * share), 2) for name, number in step.items()}
    fold = _random_fold(sizes)
    tokens = dict(enumerate(repeated(examples, sizes["pool_examples"] + sizes["tests_per_fold"])))
    ranking = Objective(**training["objective"]).to(model.device)
    parameters = [one for one in (*model.parameters(), *ranking.parameters()) if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    drawn = iter(range(1_000_000))

    def train() -> None:
        draw = draw_step(fold, step["subsets"], sizes["tests"], next(drawn))
        optimizer.zero_grad(set_to_none=True)
        backpropagate_step(model, ranking, tokens, draw, chunk_tokens, precision)
        optimizer.step()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    train()  # warm-up
    scale = {name: whole / _fold_tokens(sizes, embedded / len(examples))[name] for name, whole in fold_tokens.items()}
    trained, validated = (
        typical_seconds(train),
        typical_seconds(lambda: validation_lds(model, ranking, tokens, [fold], chunk_tokens, precision), 0),
    )
    return {
        "encoder_step": trained * scale["step"],
        "validated_fold": validated * scale["fold"],
        "embedded_token": per_token,
    }


def _fold_tokens(step: Mapping[str, int], tokens: float) -> dict[str, float]:
    """Return the encoder's tokens in a training step, and in a whole fold."""
    of_step, of_fold = (
        distinct_examples(step["pool_examples"], subsets, step["subset_examples"]) + tests
        for subsets, tests in ((step["subsets"], step["tests"]), (step["subsets_per_fold"], step["tests_per_fold"]))
    )
    return {"step": of_step * tokens, "fold": of_fold * tokens}


def _random_fold(step: Mapping[str, int]) -> FoldTargets:
    rng = generator("pilot fold")
    pool, tests, subsets = step["pool_examples"], step["tests_per_fold"], step["subsets_per_fold"]
    size = min(step["subset_examples"], pool)
    return FoldTargets(
        tests=np.arange(pool, pool + tests),
        members=np.stack([rng.choice(pool, size, replace=False) for _ in range(subsets)]),
        labels=rng.standard_normal((subsets, tests)).astype(np.float32),
    )


def _assumed_seconds(
    lm_parameters: float,
    encoder_parameters: float,
    training: Mapping[str, Any] | None,
    corpora: Mapping[str, CorpusFacts],
) -> dict[str, float]:
    """Return the seconds of the GPU stages' units from counts of operations: two for each parameter and token forwards.

    Backwards takes twice as much as forwards; a training step of the encoder reads every token twice forwards.
    """
    lm = 2 * lm_parameters / (LM_SHARE * GPU_OPERATIONS)
    encoder = 2 * encoder_parameters / (ENCODER_SHARE * GPU_OPERATIONS)
    seconds = {"trained_token": 3 * lm, "evaluated_token": lm, "gradient_token": 3 * lm, "embedded_token": encoder}
    if training:
        fold = _fold_tokens(training["step"], corpora[training["target_corpus"]].encoder_tokens)
        seconds |= {"encoder_step": 4 * encoder * fold["step"], "validated_fold": encoder * fold["fold"]}
    return seconds


def _assumptions(missing: list[str], lm_parameters: float, encoder_parameters: float, absent: list[str]) -> list[str]:
    said = list(missing)
    if missing:
        said.append(
            f"So GPU hours are those of {GPU}: {GPU_OPERATIONS / 1e12:.0f}e12 operations a second at most, of which "
            f"fine-tuning reaches {LM_SHARE:.0%} and the encoder {ENCODER_SHARE:.0%} (what the paper's own hours come "
            f"to); 2 operations for each token and parameter forwards, 4 backwards; {lm_parameters / 1e6:,.0f} million "
            f"parameters in the LM, {encoder_parameters / 1e6:,.0f} million in the encoder. On a cluster, "
            "`snakemake --profile slurm plan` times them on one of its GPUs."
        )
    if absent:
        said.append(
            f"Corpora that are not here, {', '.join(absent)}, are taken to have {ASSUMED_ROWS:,} rows (tests "
            f"{ASSUMED_TESTS:,}) of {ASSUMED_TOKENS:.0f} tokens."
        )
    return said


if __name__ == "__main__":
    run_stage(run_pilot)
