"""ZeRO over two CPU processes gives the native engine's numbers."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pytest
from tiny_study import FINETUNING, TinyStudy

from workflow_scripts.core.distributed import is_rank_zero, run_in_processes
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.study.sections import Finetuning
from workflow_scripts.targets.collect_targets import collect_targets
from workflow_scripts.targets.run_cache import FinishedRuns

pytestmark = pytest.mark.slow
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed==0.19.8"
)
LOSS_TOLERANCE = 1e-4  # nats per token, float32; seen: 2e-6
LABEL_TOLERANCE = 1e-3  # standard deviations; seen: 0
# Weight decay, large steps, and batches of several forward passes: what ZeRO does otherwise must show.
SETTINGS = {**FINETUNING, "learning_rate": 3e-3, "weight_decay": 0.1, "step_tokens": 100, "evaluation_tokens": 100}
# The last batch of B is a single example, so one process has none.
A, B = (slice(0, 10), 1), (slice(10, 19), 2)
ZERO = {
    "zero1": {"stage": 1, "offload": False},
    "zero2": {"stage": 2, "offload": False},
    "zero3": {"stage": 3, "offload": False},
    "zero2_offload": {"stage": 2, "offload": True},
    "zero3_offload": {"stage": 3, "offload": True},
}


def of_config(name):
    """What the config says for one of `ZERO`."""
    return {"engine": "deepspeed", "zero_stage": ZERO[name]["stage"], "offload": ZERO[name]["offload"]}


def losses_after_runs(tuner, tokens, runs):
    """The base losses of 9 examples, and those after each of the runs, float32 [1 + runs, 9]."""
    pool = list(read_examples(tokens).values())
    tuner.reset()
    rows = [tuner.losses(pool[50:59])]
    for examples, seed in runs:
        assert tuner.finetune(pool[examples], seed)
        rows.append(tuner.losses(pool[50:59]))
    return np.stack(rows)


def zero_losses(losses, tiny):
    """Write what each ZeRO setting gives for A, B, A, and A after a run that diverged; in a process of a group."""
    tiny = TinyStudy(**tiny)
    import deepspeed

    from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner

    def probe():
        raise AssertionError("each process would try the compiler on every kernel of DeepSpeed")

    deepspeed.ops._probe_compatible_ops = probe
    examples = list(read_examples(tiny.tokens).values())[:10]
    found = {}
    for name, settings in ZERO.items():
        tuner = ZeroFinetuner(load_language_model(tiny.language_model, device="cpu"), **settings, **SETTINGS)
        found[name] = losses_after_runs(tuner, tiny.tokens, [A, B, A])
        (group,) = tuner.optimizer.param_groups
        group["lr"] = 1e30
        assert not tuner.finetune(examples, 1)
        group["lr"] = SETTINGS["learning_rate"]
        found[f"{name} after a diverged run"] = losses_after_runs(tuner, tiny.tokens, [A])
    if is_rank_zero():
        np.savez(losses, **found)


def zero_shards(folder, tiny):
    """Fine-tune two folds x three subsets in two goes, with each stage of ZeRO; in a process of a group."""
    tiny = TinyStudy(**tiny)
    publish = FinishedRuns.publish

    def publish_late(self, runs, schema):
        """Let the others begin the second go before the first one's runs are in its file."""
        time.sleep(0.3)
        publish(self, runs, schema)

    if is_rank_zero():
        FinishedRuns.publish = publish_late
    for name in ("zero1", "zero2", "zero3"):
        for indexes in ([0, 2], [0, 3]):
            tiny.block(folder / f"{name}.parquet", indexes=indexes, finetuning=SETTINGS | of_config(name))


def zero_runs(folder, tiny):
    """Both of these, because most of the time goes into the start; in a process of a group."""
    zero_losses(folder / "losses.npz", tiny)
    zero_shards(folder, tiny)


def targets_of(losses):
    targets = losses.with_suffix(".targets.parquet")
    collect_targets([losses], targets, folds=2, subsets_per_fold=3, seeds=1, max_diverged_share=0.0)
    return read_table(targets)


@pytest.fixture(scope="module")
def native(tiny):
    return losses_after_runs(Finetuner(load_language_model(tiny.language_model), **SETTINGS), tiny.tokens, [A, B])


@pytest.fixture(scope="module")
def made_by_zero(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    run_in_processes(zero_runs, 2, folder=folder, tiny=asdict(tiny))
    return folder


@pytest.fixture(scope="module")
def with_zero(made_by_zero):
    return np.load(made_by_zero / "losses.npz")


@pytest.fixture(scope="module")
def shards(tiny, made_by_zero):
    tiny.block(made_by_zero / "native.parquet", finetuning=SETTINGS)
    return made_by_zero


@needs_deepspeed
@pytest.mark.parametrize("name", ZERO)
def test_losses_are_those_of_the_native_engine(native, with_zero, name):
    assert np.abs(native[1] - native[0]).max() > 1000 * LOSS_TOLERANCE
    np.testing.assert_allclose(with_zero[name][:3], native, rtol=0, atol=LOSS_TOLERANCE)


@needs_deepspeed
@pytest.mark.parametrize("name", ZERO)
def test_a_run_leaves_no_trace(with_zero, name):
    base, first, second, again = with_zero[name]
    assert not (second == first).any()
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(with_zero[f"{name} after a diverged run"], [base, first])


@needs_deepspeed
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_targets_have_the_labels_of_the_native_engine(shards, name):
    assert not list(shards.glob(".*")), "runs of a finished shard are left over"
    targets, expected = targets_of(shards / f"{name}.parquet"), targets_of(shards / "native.parquet")
    for column in ("fold", "subset", "seed", "example_id", "status"):
        assert targets[column].equals(expected[column])
    for column, tolerance in {"loss": LOSS_TOLERANCE, "label": LABEL_TOLERANCE}.items():
        np.testing.assert_allclose(targets[column].to_numpy(), expected[column].to_numpy(), rtol=0, atol=tolerance)


@needs_deepspeed
def test_buffers_go_where_the_weights_go(tiny):
    from workflow_scripts.language_model.deepspeed_finetuner import move_buffers

    lm = load_language_model(tiny.language_model, device="cpu")
    assert list(lm.buffers())
    move_buffers(lm, "meta")
    assert {buffer.device.type for buffer in lm.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in lm.parameters()} == {"cpu"}


@needs_deepspeed
def test_a_lack_of_memory_is_explained():
    from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner

    with (
        pytest.raises(StudyError, match=r"passes of 4,096 tokens.*Lower finetuning\.step_tokens, raise .*zero_stage"),
        ZeroFinetuner._explained("finetuning.step_tokens", 4096),
    ):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")


def test_without_deepspeed_the_stage_says_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    # Another test may have imported it.
    monkeypatch.delitem(sys.modules, "workflow_scripts.language_model.deepspeed_finetuner", raising=False)
    with pytest.raises(StudyError, match=r"pip install -r envs/requirements-deepspeed\.lock"):
        tiny.block(tmp_path / "block.parquet", finetuning=FINETUNING | of_config("zero3"))


def test_only_the_native_engine_compiles():
    with pytest.raises(ValueError, match="compile applies to the native engine only"):
        Finetuning(engine="deepspeed", compile=True)


@pytest.mark.parametrize("key", [{"zero_stage": 2}, {"offload": True}, {"processes": 2}])
def test_settings_of_deepspeed_need_its_engine(key):
    with pytest.raises(ValueError, match=f"{next(iter(key))} .*engine: deepspeed"):
        Finetuning(**key)
    assert Finetuning(engine="deepspeed", **key)
