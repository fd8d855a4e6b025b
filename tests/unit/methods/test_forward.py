"""The gradient of the head, read from a forward pass, against autograd's on single examples."""

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.losses import load_language_model, summed_losses, use_packing
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.methods import forward
from workflow_scripts.methods.embedder import LanguageModelReader, WarmupExamples
from workflow_scripts.methods.projected_gradients import DAMPING
from workflow_scripts.study.sections import Finetuning

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def examples(tiny):
    return list(read_examples(tiny.tokens).values())


@pytest.fixture
def build(tiny):
    """Returns a function that loads an LM by its kind."""

    def built(kind):
        torch.manual_seed(0)
        if kind == "capped":
            # Its logits are capped after the head, so errors are not softmax minus one.
            config = Gemma2Config(vocab_size=400, num_key_value_heads=2, final_logit_softcapping=0.5, **SMALL)
            lm = Gemma2ForCausalLM(config).eval()
            use_packing(lm)
        elif kind == "gpt2":
            lm = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
            use_packing(lm)
        else:
            lm = load_language_model(tiny.language_model)
        if kind == "padded":
            lm.set_attn_implementation("sdpa")
            lm.airrep_packed = False
        return lm

    return built


def head_gradients(lm, examples):
    """The gradient of the head's weight by autograd, the head apart from the input embeddings: [examples, out, in]."""
    head = lm.get_output_embeddings()
    tied = head.weight
    head.weight = torch.nn.Parameter(tied.detach().clone())
    found = [torch.autograd.grad(summed_losses(lm, [one])[0].sum(), head.weight)[0] for one in examples]
    head.weight = tied
    return torch.stack(found)


def everything(lm):
    out, width = lm.get_output_embeddings().weight.shape
    return {forward.ERRORS: torch.eye(out), forward.STATES: torch.eye(width)}


@pytest.mark.parametrize("kind", ["packed", "padded", "gpt2", "capped"])
@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_it_is_autograds_gradient_of_the_head(build, examples, kind, batch_tokens):
    lm = build(kind)
    expected = head_gradients(lm, examples[:20])
    found = torch.empty_like(expected)
    for tokens in forward.response_tokens(
        LanguageModelReader(lm, batch_tokens, "float32"), examples[:20], everything(lm)
    ):
        found[tokens.examples] = tokens.gradients()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_layer_before_the_head_is_differentiated_and_the_head_gets_judged_positions_alone(build, examples):
    lm = build("packed")
    seen = []
    hook = lm.get_output_embeddings().register_forward_hook(lambda *step: seen.append(step[1][0]))
    chosen = examples[:9]
    reader = LanguageModelReader(lm, 100_000, "float32")
    (tokens,) = forward.response_tokens(reader, chosen, everything(lm))
    judged = sum(len(one.tokens) - one.prompt_tokens for one in chosen)
    assert [one.shape[:-1].numel() for one in seen] == [judged] == [sum(tokens.counts)]
    assert not any(one.requires_grad for one in seen)
    hook.remove()
    assert not any(module._forward_hooks for module in lm.modules())


def test_scores_are_those_of_the_dense_inverse(build, examples):
    lm = build("packed")
    reader = LanguageModelReader(lm, 300, "float32")
    measured, judged = examples[:30], examples[30:50]
    tensors = forward.fit(reader, WarmupExamples(examples, 30, Finetuning(), seed=5), rank=8, hidden_rank=32)
    found = forward.open_embedder(reader, tensors, False).embed(judged).astype(np.float64)
    of_errors, of_states = tensors[forward.ERRORS].double(), tensors[forward.STATES].double()
    # The states are as wide as they may be, so they are turned and not projected.
    torch.testing.assert_close(of_states @ of_states.T, torch.eye(32, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    mine, other = (
        (of_errors @ head_gradients(lm, some).double() @ of_states.T).flatten(1) for some in (measured, judged)
    )
    squares = mine.square().mean(0)
    expected = other / (squares + DAMPING * squares.mean()).sqrt()
    expected /= expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)


def test_wide_states_are_projected(build, examples):
    lm = build("packed")
    reader = LanguageModelReader(lm, 300, "float32")
    tensors = forward.fit(reader, WarmupExamples(examples, 10, Finetuning(), seed=5), rank=4, hidden_rank=6)
    assert tensors[forward.STATES].shape == (6, 32)
    assert forward.open_embedder(reader, tensors, False).dimension == 4 * 6


def test_a_head_that_is_not_called_is_refused(build, examples):
    lm = build("packed")
    other = torch.nn.Linear(32, lm.config.vocab_size)
    lm.get_output_embeddings = lambda: other
    reader = LanguageModelReader(lm, 300, "float32")
    with pytest.raises(StudyError, match="the method forward can't read it"):
        next(forward.response_tokens(reader, examples[:3], everything(lm)))
    lm.get_output_embeddings = lambda: None
    with pytest.raises(StudyError, match="the method forward can't read it"):
        forward.fit(reader, WarmupExamples(examples, 10, Finetuning(), seed=5), rank=4, hidden_rank=6)
