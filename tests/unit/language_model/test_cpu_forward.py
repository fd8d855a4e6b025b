"""The fast forward pass on a CPU has the losses and gradients of the LM's own, or isn't used."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from workflow_scripts.language_model.cpu_forward import cpu_logits, has_cpu_forward
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import (
    cpu_or_packed_logits,
    fastest_logits,
    packed_logits,
    summed_losses,
    use_packing,
)
from workflow_scripts.language_model.tokens import TokenizedExample

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
SHAPES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "grouped": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "scaled": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}, "head_dim": 16},
    ),
}
OPTIONS = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "batch_examples": 4,
    "epochs": 2,
    "precision": "float32",
    "step_tokens": 64,
    "evaluation_tokens": 64,
}


def made(kind, config, **changes):
    torch.manual_seed(0)
    lm = kind(config(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        # Norms, whose weights are ones, and biases, which are zeros, would hide that they are left out.
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    lm.config.use_cache = False
    assert use_packing(lm)
    return lm


def drawn(responses, lengths=(3, 9, 9, 14, 30, 31)):
    rng = np.random.default_rng(1)
    return [
        TokenizedExample(rng.integers(0, SIZES["vocab_size"], length).astype(np.int32), max(length - response, 1))
        for length, response in zip(lengths, responses, strict=True)
    ]


def numbers(lm, examples, logits):
    lm.zero_grad()
    losses, _ = summed_losses(lm, examples, logits)
    (losses * torch.arange(1, len(examples) + 1)).sum().backward()
    return losses.detach(), {name: parameter.grad.clone() for name, parameter in lm.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("responses", [[2, 1, 3, 2, 4, 1], [2, 8, 8, 13, 29, 30], [2, 0, 0, 3, 0, 0], [0] * 6])
def test_losses_and_gradients_are_those_of_the_own_forward_pass(shape, responses):
    kind, config, changes = SHAPES[shape]
    lm = made(kind, config, **changes)
    assert fastest_logits(lm) is cpu_or_packed_logits
    own, own_gradients = numbers(lm, drawn(responses), packed_logits)
    fast, gradients = numbers(lm, drawn(responses), cpu_logits)
    torch.testing.assert_close(fast, own, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == own_gradients.keys()
    for name, gradient in gradients.items():
        largest = own_gradients[name].abs().max()
        assert (gradient - own_gradients[name]).abs().max() <= 1e-4 * largest.clamp(min=1e-3), name


@pytest.mark.parametrize("responses", [[2, 1, 3, 2, 4, 1], [2, 8, 8, 13, 29, 30]])
def test_what_isnt_read_of_the_last_layer_isnt_computed(responses):
    lm = made(*SHAPES["qwen2"][:2])
    sizes = []
    lm.model.layers[-1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    summed_losses(lm, drawn(responses), cpu_logits)
    assert sizes == [sum(responses)]


def adapted(lm):
    lm.model.layers[1].self_attn.v_proj = torch.nn.Sequential(lm.model.layers[1].self_attn.v_proj)
    return lm


@pytest.mark.parametrize(
    "lm",
    [
        lambda: made(GPT2LMHeadModel, GPT2Config),
        lambda: made(LlamaForCausalLM, LlamaConfig, num_hidden_layers=0),
        lambda: made(Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=40, max_window_layers=1),
        lambda: made(LlamaForCausalLM, LlamaConfig, hidden_act="gelu"),
        lambda: made(LlamaForCausalLM, LlamaConfig).double(),
        lambda: made(LlamaForCausalLM, LlamaConfig).train(),
        lambda: adapted(made(LlamaForCausalLM, LlamaConfig)),
    ],
    ids=["other architecture", "no layers", "sliding window", "other activation", "float64", "dropout", "adapter"],
)
def test_other_lms_keep_their_own_forward_pass(lm):
    lm = lm()
    assert not has_cpu_forward(lm)
    assert fastest_logits(lm) is packed_logits


@pytest.mark.parametrize(
    "change", [{"airrep_packed": False}, {"airrep_apart_from": 4}], ids=["padded", "lengths apart"]
)
def test_an_lm_that_is_padded_or_reads_lengths_apart_keeps_it_too(change):
    lm = made(LlamaForCausalLM, LlamaConfig)
    assert has_cpu_forward(lm)
    for name, value in change.items():
        setattr(lm, name, value)
    assert not has_cpu_forward(lm)


def test_a_pass_of_few_tokens_is_the_own_one():
    lm = made(LlamaForCausalLM, LlamaConfig)
    own = []
    # The fast forward pass doesn't call it.
    lm.model.norm.register_forward_pre_hook(lambda _, inputs: own.append(inputs[0].shape[1]))
    for length in (lm.config.hidden_size, lm.config.hidden_size + 1):
        summed_losses(lm, drawn([1], [length]), cpu_or_packed_logits)
    assert own == [lm.config.hidden_size]


def test_a_version_of_transformers_that_computes_otherwise_is_noticed(monkeypatch, capsys):
    lm = made(LlamaForCausalLM, LlamaConfig)
    norm = type(lm.model.norm)
    own = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, hidden: own(self, hidden) * 1.01)
    assert fastest_logits(lm) is packed_logits
    assert "no fast forward pass" in capsys.readouterr().err


def test_a_run_ends_with_the_same_losses():
    found = []
    for logits in (packed_logits, cpu_logits):
        tuner = Finetuner(made(*SHAPES["qwen2"][:2]), **OPTIONS)
        assert tuner.logits is cpu_or_packed_logits
        tuner.logits = logits
        assert tuner.finetune(drawn([2, 1, 3, 2, 4, 1]), 1)
        found.append(tuner.losses(drawn([1, 4, 4, 5, 20, 3])))
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize("choice", [{"precision": "bfloat16"}, {"compile": True}])
def test_a_run_in_bfloat16_or_compiled_is_computed_by_the_own_forward_pass(choice):
    tuner = Finetuner(made(*SHAPES["qwen2"][:2]), **{**OPTIONS, **choice})
    assert tuner.logits is packed_logits
