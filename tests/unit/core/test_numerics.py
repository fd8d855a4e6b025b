"""What must not change a number: the cut into batches, global random states; and what must not overflow."""

import random

import numpy as np
import pytest
import torch
from tiny_study import FINETUNING

from workflow_scripts.core.parquet import read_table
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.objective import group_scores
from workflow_scripts.scoring.group_scores import GroupScores, Membership

LOSS_TOLERANCE = 1e-4  # nats per token, float32
EMBEDDING_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def expected(tiny):
    return read_table(tiny.block(tiny.folder / "numerics" / "block.parquet", folds=[0, 1]))


@pytest.mark.parametrize(("step_tokens", "evaluation_tokens"), [(1, 1), (100, 64)])
def test_the_token_budget_changes_losses_by_rounding_only(tiny, tmp_path, expected, step_tokens, evaluation_tokens):
    budgets = {"step_tokens": step_tokens, "evaluation_tokens": evaluation_tokens}
    found = read_table(tiny.block(tmp_path / "block.parquet", folds=[0, 1], finetuning={**FINETUNING, **budgets}))
    for name in ("base_loss", "loss"):
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=LOSS_TOLERANCE)


def test_every_draw_has_a_seed_of_its_own(tiny, tmp_path, expected):
    """The global random states of Python, NumPy and torch decide nothing."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert read_table(tiny.block(tmp_path / "block.parquet", folds=[0, 1])).equals(expected)


def test_the_token_budget_changes_embeddings_by_rounding_only(tiny):
    encoder = load_encoder(tiny.untrained, 64)
    table = read_table(tiny.corpus, ["prompt"])
    examples = encoder.tokenize([(text,) for text in table["prompt"].to_pylist()[:20]])
    whole = encoder.encode(examples, 10**6)
    for max_batch_tokens in (1, 100):
        np.testing.assert_allclose(encoder.encode(examples, max_batch_tokens), whole, rtol=0, atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_attention_pooling_in_training_does_not_overflow(dtype, sign):
    """e^10000 is no number of any kind; the weights are taken relative to the largest."""
    tests = torch.tensor([[100.0]], dtype=dtype, requires_grad=True)
    examples = torch.tensor([[100.0 * sign], [50.0], [0.0]], dtype=dtype)
    scores = group_scores(tests, examples, torch.tensor([[0, 1, 2]]), "attention")
    scores.sum().backward()
    assert scores.float().item() == pytest.approx(1e4 * sign, rel=0.01)
    assert torch.isfinite(tests.grad).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_attention_pooling_over_tiles_does_not_overflow(order):
    """The largest score may come first or last."""
    groups = GroupScores(1, Membership([np.arange(3)]), ("attention",))
    for example in order:
        score = np.array([[(-1e4, 5e3, 0.0)[example]]], np.float32)
        groups.update(np.array([example]), score)
    assert groups.result("attention").ravel().tolist() == pytest.approx([-1e4])
