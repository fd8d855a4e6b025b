"""Train the encoder to rank a fold's subsets by their measured effect (paper, section 3.3)."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from workflow_scripts.core.distributed import broadcast_from_rank_zero, is_rank_zero
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import begun_folder, file_hash, folder_hash
from workflow_scripts.core.gpus import determinism
from workflow_scripts.core.parquet import read_table, spec_hash, write_table
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.core.tracking import Tracking, require_tracker
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.checkpoint import TrainingState
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import AttributionEncoder, EncoderTokens
from workflow_scripts.encoder.objective import Objective
from workflow_scripts.encoder.tracked_curves import TrackedCurves
from workflow_scripts.encoder.training import backpropagate_step, draw_step, encode_together, validation_lds
from workflow_scripts.models.device import to_device
from workflow_scripts.study.sections import EncoderTraining
from workflow_scripts.study.stage_versions import STAGE_VERSIONS
from workflow_scripts.targets.tables import FoldTargets, read_folds

LOG_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float32()),
        ("validation_lds", pa.float32()),
        ("seconds", pa.float32()),
    ]
)


def train_encoder(
    corpus: Path,
    untrained: Path,
    subsets: Path,
    targets: Path,
    encoder: Path,
    log: Path,
    *,
    surrogate_subsets: Path | None = None,
    surrogate_targets: Path | None = None,
    training: EncoderTraining,
    prompt_words: int,
    max_tokens: int,
    seed: int,
    tracking: Tracking | None = None,
) -> None:
    """Train the encoder and write the checkpoint with the best validation LDS.

    The last `training.validation_folds` folds are held out for validation; they are always measured ones. Of the steps,
    `training.surrogate_share` learn from predicted targets, evenly spread. After each validation the whole state is
    saved beside `encoder`; an interrupted run resumes from there to the same numbers.

    In several processes (`core.distributed`), each encodes its share of every step and of every validation; they hold
    the same weights throughout, and rank 0 writes. Their number changes results by rounding only, so a run may be
    resumed with another number.

    Parameters
    ----------
    corpus: `corpora/` file of the examples.
    untrained: folder of the encoder to start from.
    subsets: file that `sample_subsets` wrote.
    targets: file that `collect_targets` wrote.
    encoder: folder to write.
    log: Parquet file to write, one row per step: the loss, the validation LDS if there was a validation, and the
        seconds since the start; step 0 is the validation before training.
    surrogate_subsets: file that `sample_subsets` wrote for the surrogate's folds; None if no step is on them.
    surrogate_targets: file that `predict_targets` wrote; likewise.
    training: the section `encoder_training` of the config.
    prompt_words: number of words of a prompt that are read.
    max_tokens: longest text in tokens.
    seed: seed of the order of folds and of each step's draw.
    tracking: tracker that loss, validation LDS and learned scale are sent to as the steps happen; None for none.

    Raises
    ------
    StudyError: the encoder or a file can't be read, targets and subsets don't belong together, a loss is not finite,
        no fold can validate, or the tracker isn't installed or can't start.
    """
    if tracking:
        require_tracker(tracking.tracker)
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["train_encoder"],
            "data": file_hash(corpus, subsets, targets, *filter(None, [surrogate_subsets, surrogate_targets])),
            "start": folder_hash(untrained),
            "training": training.spec(),
            "text": [prompt_words, max_tokens],
            "seed": seed,
            **determinism(),
        }
    )
    model = load_encoder(untrained, max_tokens, precision=training.precision)
    start_work()
    if training.compile:
        model.compile_layers()
    objective = Objective(
        training.pooling, training.min_label_gap, training.max_pair_weight, training.learned_scale
    ).to(model.device)
    labels = (training.label_spread, training.label_clip)
    folds = read_folds(subsets, targets, *labels)
    measured, held_out = folds[: -training.validation_folds], folds[-training.validation_folds :]
    predicted = (
        read_folds(surrogate_subsets, surrogate_targets, *labels) if surrogate_subsets and surrogate_targets else []
    )
    tokens = tokenize(model, corpus, [*folds, *predicted], prompt_words, training.truncation)
    passes = (training.chunk_tokens, training.precision)

    parameters = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0, fused=True)
    folder = begun_folder(encoder, key, "state")
    state = TrainingState(folder, {"encoder": model, "objective": objective}, optimizer)
    state.restore()
    curves = _curves(tracking, encoder, key, state) if tracking and is_rank_zero() else None
    progress = Progress("train_encoder", training.steps, "steps", done=state.steps_done)
    started = time.monotonic() - (state.log[-1]["seconds"] if state.log else 0.0)

    def validate() -> float:
        return broadcast_from_rank_zero(validation_lds(model, objective, tokens, held_out, *passes))

    def record(step: int, loss: float | None, score: float | None) -> None:
        state.record(step, loss, score, time.monotonic() - started)
        if curves:
            scale = objective.log_scale.exp().item() if training.learned_scale else None
            curves.log(step, {"loss": loss, "validation_lds": score, "scale": scale})

    if not state.log:
        if training.learned_scale:
            _start_scales(model, objective, tokens, (measured or predicted)[0], *passes)
        untrained_lds = validate()
        if not math.isfinite(untrained_lds):
            raise StudyError(
                "the encoder can't be validated: for no test of the held-out folds do the labels and its group scores "
                "differ between subsets. Raise targets.subsets_per_fold or encoder_training.validation_folds; where "
                "all texts are alike as far as they are read, raise encoder.max_tokens or encoder.prompt_words."
            )
        record(0, None, untrained_lds)
        say(f"train_encoder: validation LDS {state.best_score:.3f} before training")
    for step in range(state.steps_done + 1, training.steps + 1):
        # Asked before a step, so that a run that is resumed after its last one ends there too.
        if training.patience and state.validations_since_best >= training.patience:
            say(f"train_encoder: no better validation LDS in {training.patience} validations, so it stops here")
            break
        fold = _fold_of_step(step, measured, predicted, training.surrogate_share, seed)
        draw = draw_step(fold, training.subsets_per_step, training.examples_per_step, seed, "step", step)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(step / max(training.warmup_steps, 1), 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss = backpropagate_step(model, objective, tokens, draw, *passes)
        if not math.isfinite(loss):
            raise StudyError(
                f"the encoder's loss at step {step} is not a finite number, so nothing can be learned from it: lower "
                "encoder_training.learning_rate."
            )
        torch.nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
        optimizer.step()
        validates = step % training.validate_every == 0 or step == training.steps
        score = validate() if validates else None
        record(step, loss, score)
        progress.advance(note=f"loss {loss:.4f}, best validation LDS {state.best_score:.3f}")
        if validates:
            say(f"train_encoder: validation LDS {score:.3f} after {step} steps")
            if is_rank_zero():
                state.save()
    if curves:
        curves.close()
    if is_rank_zero():
        _publish(state, encoder, log)


def _curves(tracking: Tracking, encoder: Path, key: str, state: TrainingState) -> TrackedCurves:
    curves = TrackedCurves(tracking, f"{encoder.parent.name}/{encoder.name}", key, resumes=bool(state.log))
    for row in state.log:
        # Not yet written where the tracker was turned on after the training began.
        curves.log(row["step"], {name: row[name] for name in ("loss", "validation_lds")})
    return curves


def _publish(state: TrainingState, encoder: Path, log: Path) -> None:
    model, objective = state.modules["encoder"], state.modules["objective"]
    state.load_best()
    _fold_scale(model, objective)
    model.save(encoder)
    write_table(log, pa.Table.from_pylist(state.log, schema=LOG_SCHEMA))
    state.clear()


def _fold_of_step(
    step: int, measured: Sequence[FoldTargets], predicted: Sequence[FoldTargets], share: float, seed: int
) -> FoldTargets:
    """Return the fold of a step (from 1); of all steps so far, `share` are on predicted targets, rounded down.

    Of each kind, every round visits each fold once, in an order drawn for the round.
    """
    predictions = math.floor(step * share)
    if predictions > math.floor((step - 1) * share):
        return predicted[_place_in_rounds(predictions, len(predicted), seed, "surrogate fold order")]
    return measured[_place_in_rounds(step - predictions, len(measured), seed, "fold order")]


def _place_in_rounds(number: int, folds: int, *seed: int | str) -> int:
    round_, place = divmod(number - 1, folds)
    return int(generator(*seed, round_).permutation(folds)[place])


def tokenize(
    model: AttributionEncoder, corpus: Path, folds: list[FoldTargets], prompt_words: int, truncation: str = "first"
) -> Mapping[int, EncoderTokens]:
    """Return the encoder's tokens of every example that occurs in `folds`, by example id.

    Parameters
    ----------
    model: the encoder, whose tokenizer and limit of tokens are used.
    corpus: `corpora/` file of the examples.
    folds: their tests and members are tokenised.
    prompt_words: number of words of a prompt that are read.
    truncation: which tokens of a longer text are kept, the `first` or the `last`.
    """
    used = np.unique(np.concatenate([part.reshape(-1) for fold in folds for part in (fold.tests, fold.members)]))
    table = read_table(corpus, ["prompt", "response"]).take(used)
    tokens = model.tokenize(encoder_texts(table, prompt_words, model.view), truncation)
    return dict(zip(used.tolist(), tokens, strict=True))


def _start_scales(
    model: AttributionEncoder,
    objective: Objective,
    tokens: Mapping[int, EncoderTokens],
    fold: FoldTargets,
    chunk_tokens: int | None,
    precision: str,
) -> None:
    ids = np.unique(np.concatenate([fold.tests, fold.members.reshape(-1)]))
    embeddings = encode_together(model, [tokens[int(i)] for i in ids], chunk_tokens, precision)
    tests = embeddings.index_select(0, to_device(np.searchsorted(ids, fold.tests), model.device))
    members = to_device(np.searchsorted(ids, fold.members), model.device)
    objective.start_scales(tests, embeddings, members)


@torch.no_grad()
def _fold_scale(model: AttributionEncoder, objective: Objective) -> None:
    factor = torch.exp(objective.log_scale / 2)
    for parameter in model.projections.parameters():
        parameter.mul_(factor)


if __name__ == "__main__":
    run_stage(train_encoder)
