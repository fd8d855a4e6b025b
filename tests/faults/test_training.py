"""The encoder's training under faults: the weights are those of a straight run, bit for bit."""

import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from faults import FLIP_SEED, changed_bytes, flipped, in_twin, killed
from tiny_study import TRAINING, training_values
from torch import nn

from workflow_scripts.core.stage import run_job
from workflow_scripts.encoder import checkpoint as training_state
from workflow_scripts.encoder import train_encoder as stage
from workflow_scripts.encoder.checkpoint import TrainingState
from workflow_scripts.encoder.loading import load_encoder


@pytest.fixture
def train(tiny, training_files):
    """Train in a folder, and return the weights."""

    def trained(folder, **changes):
        stage.train_encoder(
            corpus=tiny.corpus,
            untrained=tiny.untrained,
            subsets=training_files.subsets,
            targets=training_files.targets,
            encoder=folder / "encoder",
            log=folder / "log.parquet",
            **training_values(**changes),
        )
        return load_encoder(folder / "encoder", 64).state_dict()

    return trained


@pytest.fixture
def expected(train, tmp_path):
    return train(tmp_path / "straight")


def differ(found, expected):
    return not all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_at_random_moments(train, tmp_path, fault_table, kills):
    start = time.monotonic()
    expected = train(tmp_path / "straight")
    seconds, moments = time.monotonic() - start, random.Random(kills)
    folder, injected, wrong = tmp_path / "killed", 0, 0
    while injected < kills:
        injected += killed(lambda: train(folder), moments.uniform(0, seconds))
        if (folder / "log.parquet").exists() or injected == kills:
            wrong += differ(train(folder), expected)
            (folder / "log.parquet").unlink()
    saw = "resuming at ... steps"
    fault_table.record("kill -9 of the encoder's training at random moments", kills, saw, wrong=wrong)


@pytest.mark.parametrize("moment", ["inside a step", "while the state is written", "while the encoder is written"])
def test_kill_at_the_worst_moment(train, expected, tmp_path, monkeypatch, fault_table, moment):
    calls = []

    def deadly(function, number):
        def called(*arguments, **keywords):
            result = function(*arguments, **keywords)
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    with monkeypatch.context() as patch:
        match moment:
            case "inside a step":
                # Gradients are there, and the weights are those of before.
                patch.setattr(torch.nn.utils, "clip_grad_norm_", deadly(torch.nn.utils.clip_grad_norm_, 5))
            case "while the state is written":
                patch.setattr(training_state, "save_file", deadly(training_state.save_file, 3))
            case _:
                patch.setattr(stage.AttributionEncoder, "_save_part", deadly(stage.AttributionEncoder._save_part, 1))
        assert in_twin(lambda: train(tmp_path / "killed")) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "encoder").exists()
    steps, backpropagate = [], stage.backpropagate_step
    monkeypatch.setattr(stage, "backpropagate_step", lambda *given: (steps.append(1), backpropagate(*given))[1])
    wrong = differ(train(tmp_path / "killed"), expected)
    # The last state that was whole, of one after every second step.
    states = {"inside a step": 4, "while the state is written": 4, "while the encoder is written": 8}[moment]
    lost = len(steps) - (TRAINING.steps - states)
    fault_table.record(
        f"kill -9 of the training {moment}", 1, f"resuming at {states} of 8 steps", lost=lost, wrong=wrong
    )


def test_out_of_memory_is_one_message_and_a_smaller_chunk_gives_the_same(
    train, expected, tmp_path, monkeypatch, fault_table, capsys
):
    lengths, backpropagate = [], stage.backpropagate_step

    def narrow(model, objective, tokens, draw, chunk_tokens, precision):
        lengths.append(chunk_tokens)
        if chunk_tokens > 400 and len(lengths) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return backpropagate(model, objective, tokens, draw, chunk_tokens, precision)

    monkeypatch.setattr(stage, "backpropagate_step", narrow)
    job = SimpleNamespace(
        input={},
        output={"folder": str(tmp_path / "lacking")},
        params=SimpleNamespace(spec={"version": 1}),
        threads=1,
        resources={},
        log=[str(tmp_path / "log")],
        rule="train_encoder",
    )
    with pytest.raises(SystemExit):
        run_job(job, train)
    told = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error in"))
    assert "Lower encoder_training.chunk_tokens" in told
    found = train(tmp_path / "lacking", chunk_tokens=400)
    # Gradients are cached now, and sums have another order.
    wrong = not all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    fault_table.record("out of memory in the encoder's training", 1, told, wrong=wrong)


def test_a_damaged_state_is_never_taken_up(tmp_path, fault_table, capsys):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = TrainingState(tmp_path / "state", {"encoder": module}, optimizer)
    state.record(1, 0.5, 0.1, 1.0)
    state.save()
    saved = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    path, noticed, wrong = state.file, 0, 0
    sizes = [0, 7, path.stat().st_size // 2, path.stat().st_size - 1]
    damages = [(lambda whole, size=size: whole[:size]) for size in sizes]
    damages += [flipped(bit) for bit in random.Random(FLIP_SEED).sample(range(8 * path.stat().st_size), 300)]
    for damage in damages:
        with changed_bytes(path, damage):
            nn.init.zeros_(module.weight)
            again = TrainingState(tmp_path / "state", {"encoder": module}, optimizer)
            again.restore()
            noticed += not again.log
            wrong += bool(again.log) and any(not torch.equal(module.state_dict()[name], saved[name]) for name in saved)
    assert noticed > len(damages) / 2
    saw = next(line for line in capsys.readouterr().err.splitlines() if "training starts over" in line)
    saw = saw.replace(str(tmp_path), "...")
    fault_table.record("a damaged state of the training", len(damages), saw, wrong=wrong)
