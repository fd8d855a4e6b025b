"""Losses of the rows of a corpus by an LM."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.measure_losses import measure_losses
from workflow_scripts.language_model.tokens import read_examples


def measure(tiny, losses, language_model=None):
    source = {"model": "builtin:tiny", "revision": None, "trust_remote_code": False}
    limits = {"evaluation_tokens": 512, "precision": "float32"}
    measure_losses(tiny.tokens, losses, language_model=language_model or tiny.language_model, **source, **limits)
    return read_table(losses)


def test_a_loss_is_the_mean_over_the_response_tokens(tiny, tmp_path):
    found = measure(tiny, tmp_path / "losses.parquet")
    examples = read_examples(tiny.tokens)
    assert found["example_id"].to_pylist() == list(examples)
    lm = AutoModelForCausalLM.from_pretrained(tiny.language_model)
    for row in (0, 57):
        example = examples[found["example_id"][row].as_py()]
        tokens = torch.from_numpy(example.tokens.astype(np.int64))[None]
        with torch.no_grad():
            each = torch.log_softmax(lm(input_ids=tokens).logits[0, :-1], dim=-1)
        own = -each[torch.arange(len(example.tokens) - 1), tokens[0, 1:]]
        assert found["loss"][row].as_py() == pytest.approx(float(own[example.prompt_tokens - 1 :].mean()), rel=1e-4)


def test_a_damaged_lm_is_an_error(tiny, tmp_path):
    lm = load_language_model(tiny.language_model)
    with torch.no_grad():
        lm.lm_head.weight[5] = torch.nan
    lm.save_pretrained(tmp_path / "lm")
    with pytest.raises(StudyError):
        measure(tiny, tmp_path / "losses.parquet", tmp_path / "lm")
