"""Losses against cross-entropy computed by hand, and the errors of loading."""

import math

import numpy as np
import pytest
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.losses import evaluate, example_losses, load_language_model
from workflow_scripts.language_model.tokens import TokenizedExample


class Unigrams(torch.nn.Module):
    """An LM that predicts token t with probability (t + 1) / 10, whatever stands before."""

    airrep_packed = False
    device = torch.device("cpu")

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, attention_mask, use_cache):
        logits = torch.log(torch.arange(1.0, 5.0) / 10)
        return type("Output", (), {"logits": logits.expand(*input_ids.shape, 4)})


def test_loss_is_the_mean_over_response_tokens_by_hand():
    batch = [
        TokenizedExample(np.array([0, 0, 3, 1]), prompt_tokens=2),  # response: 3, 1
        TokenizedExample(np.array([3, 2]), prompt_tokens=1),  # response: 2
    ]
    expected = [-(math.log(0.4) + math.log(0.2)) / 2, -math.log(0.3)]
    assert example_losses(Unigrams(), batch).tolist() == pytest.approx(expected, rel=1e-6)


def test_evaluation_budget_changes_no_loss(tiny):
    from workflow_scripts.language_model.tokens import read_examples

    lm = load_language_model(tiny.language_model)
    assert lm.airrep_packed
    batch = list(read_examples(tiny.tokens).values())
    wide, narrow = evaluate(lm, batch, 100_000), evaluate(lm, batch, 1)
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)
    assert wide.dtype == np.float32
    assert np.isfinite(wide).all()


def test_an_unknown_model_is_named_with_advice():
    with pytest.raises(StudyError, match=r"'nobody/no-such-model' can't be loaded: .*There is no local folder"):
        load_language_model("nobody/no-such-model")
