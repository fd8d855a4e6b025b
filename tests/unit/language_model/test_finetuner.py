"""A fine-tuning run depends on its examples and seed alone, and is what a plain loop does."""

import numpy as np
import pytest
import torch
from tiny_study import FINETUNING
from transformers import AutoModelForCausalLM

from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.targets.run_cache import read_examples


@pytest.fixture
def pool(tiny):
    return list(read_examples(tiny.tokens).values())


def tuner(tiny, **changes):
    return Finetuner(load_language_model(tiny.language_model), **{**FINETUNING, **changes})


def run(tuner, examples, judged, *seed):
    assert tuner.finetune(examples, *seed)
    return tuner.losses(judged)


def test_reset_in_place_is_exact(tiny, pool):
    engine = tuner(tiny)
    addresses = [p.data_ptr() for p in engine.parameters]
    first = run(engine, pool[:10], pool[50:60], 1)
    second = run(engine, pool[10:20], pool[50:60], 2)
    again = run(engine, pool[:10], pool[50:60], 1)
    assert (first == again).all()
    assert not (first == second).any()
    assert addresses == [p.data_ptr() for p in engine.parameters]


def test_a_diverged_run_is_told_and_leaves_no_trace(tiny, pool):
    engine = tuner(tiny)
    before = run(engine, pool[:10], pool[50:60], 1)
    with torch.no_grad():
        engine.base_weights[0][:] *= 1e30
    assert not engine.finetune(pool[:10], 2)
    engine = tuner(tiny, learning_rate=1e30)
    assert not engine.finetune(pool[:10], 2)
    for group in engine.optimizer.param_groups:
        group["lr"] = FINETUNING["learning_rate"]
    assert (run(engine, pool[:10], pool[50:60], 1) == before).all()


def test_it_is_what_a_plain_loop_does(tiny, pool):
    """Padding, logits of every token, a new optimiser."""
    train, judged = pool[:10], pool[50:60]
    lm = AutoModelForCausalLM.from_pretrained(tiny.language_model).eval()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=FINETUNING["learning_rate"], weight_decay=0.0)

    def token_losses(batch):
        longest = max(len(e.tokens) for e in batch)
        tokens = torch.tensor([[*e.tokens, *[0] * (longest - len(e.tokens))] for e in batch])
        labels = tokens.clone()
        for row, e in enumerate(batch):
            labels[row, : e.prompt_tokens] = -100
            labels[row, len(e.tokens) :] = -100
        logits = lm(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none"), (
            labels[:, 1:] != -100
        )

    random = generator(7)
    for _ in range(FINETUNING["epochs"]):
        order = random.permutation(len(train))
        for first in range(0, len(train), FINETUNING["batch_examples"]):
            losses, counted = token_losses([train[i] for i in order[first : first + FINETUNING["batch_examples"]]])
            optimizer.zero_grad()
            (losses.sum() / counted.sum()).backward()
            optimizer.step()
    with torch.inference_mode():
        losses, counted = token_losses(judged)
    expected = (losses.sum(1) / counted.sum(1)).numpy()
    np.testing.assert_allclose(run(tuner(tiny), train, judged, 7), expected, rtol=1e-4)


def test_token_budgets_do_not_change_numbers(tiny, pool):
    wide = run(tuner(tiny), pool[:10], pool[50:60], 1)
    narrow = run(tuner(tiny, step_tokens=1, evaluation_tokens=1), pool[:10], pool[50:60], 1)
    np.testing.assert_allclose(narrow, wide, rtol=1e-4)


def test_training_lowers_the_loss_of_what_it_trains_on(tiny, pool):
    engine = tuner(tiny, epochs=5)
    base = engine.losses(pool[:10])
    assert run(engine, pool[:10], pool[:10], 1).mean() < base.mean() - 0.05
