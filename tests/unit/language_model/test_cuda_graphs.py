"""Batches padded to few shapes lose nothing by it; graphs themselves run on a GPU alone (`make gpu-test`)."""

import numpy as np
import pytest
import torch
from tiny_study import FINETUNING
from transformers import Qwen2Config, Qwen2ForCausalLM

from workflow_scripts.language_model import cuda_graphs
from workflow_scripts.language_model.cuda_graphs import Inputs, padded_inputs, weighted_loss
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model, summed_losses, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.models.device import to_device

VOCABULARY = 50


def examples(lengths=(9, 30, 2, 17)):
    random = np.random.default_rng(1)
    return [TokenizedExample(random.integers(0, VOCABULARY, n), max(1, n // 3)) for n in lengths]


@pytest.fixture
def lm():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(config).eval()


def test_a_padded_pass_has_the_loss_and_the_gradient_of_a_packed_one(lm, varlen, monkeypatch):
    assert use_packing(lm)
    # In float32, though the real kernel takes half precision alone.
    monkeypatch.setattr("workflow_scripts.models.packing.attention_kernel", lambda value, dropout: "varlen")
    batch = examples()
    expected = summed_losses(lm, batch)[0].sum() / 7
    expected_gradient = torch.autograd.grad(expected, lm.parameters())
    shape, arrays = padded_inputs(batch, 1 / 7)
    loss = weighted_loss(lm, Inputs(*(to_device(array, "cpu") for array in arrays)), shape.max_length)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(torch.autograd.grad(loss, lm.parameters()), expected_gradient, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_batches_of_near_sizes_have_one_shape():
    shapes = {padded_inputs(examples(lengths), 1.0)[0] for lengths in ((9, 30, 2, 17), (80, 100, 20, 50), (1, 2, 3, 4))}
    assert shapes == {(512, 512, 4, 512)}
    larger, inputs = padded_inputs(examples((500, 40, 600, 9)), 1.0)
    assert larger == (1536, 1024, 4, 1024)
    assert [array.shape[-1] for array in inputs] == [1536, 1536, 6, 1024, 1024, 1024]


def test_no_position_is_beyond_the_longest_example():
    _, inputs = padded_inputs(examples((9, 30, 2, 17)), 1.0)
    assert inputs.positions.max() == 29


def test_attention_by_buckets_is_refused_as_what_can_not_be_recorded(lm):
    assert use_packing(lm)  # on a CPU, by buckets
    _, arrays = padded_inputs(examples(), 1.0)
    with pytest.raises(RuntimeError, match="attention of variable length doesn't run here"):
        weighted_loss(lm, Inputs(*(to_device(array, lm.device) for array in arrays)), 512)


def test_a_full_row_of_tokens_still_has_a_filler():
    shape, inputs = padded_inputs(examples((256, 256)), 1.0)
    assert shape.tokens == 1024
    assert inputs.cu_seqlens.tolist() == [0, 256, 512, 1024]


def test_examples_without_a_response_weigh_nothing():
    shape, inputs = padded_inputs([TokenizedExample(np.arange(5), 5)], 1.0)
    assert shape.responses == 512
    assert not inputs.weights.any()


def test_a_pass_that_can_not_be_recorded_runs_without_a_graph(tiny, monkeypatch, capsys):
    pool = list(read_examples(tiny.tokens).values())[:20]
    losses = []
    for graphs in (False, True):
        tuner = Finetuner(load_language_model(tiny.language_model), **FINETUNING)
        if graphs:
            tuner.graphs = cuda_graphs.GraphedPasses(tuner.working_lm)

            def fail(*_):
                raise RuntimeError("operation not permitted when stream is capturing\nmore words")

            monkeypatch.setattr(tuner.graphs, "backpropagate", fail)
        assert tuner.finetune(pool, 1)
        losses.append(tuner.losses(pool))
    np.testing.assert_array_equal(*losses)
    said = capsys.readouterr().err
    assert said.count("aren't recorded as CUDA graphs: operation not permitted when stream is capturing\n") == 1
