"""Greedy answers don't depend on what shares their batch."""

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from workflow_scripts.language_model.generation import greedy_answers
from workflow_scripts.language_model.losses import load_language_model, use_packing
from workflow_scripts.language_model.pretrain_base_lm import new_language_model
from workflow_scripts.models.loading import save_folder


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def lm(request, tmp_path_factory):
    """An LM with random weights, whose answers differ from prompt to prompt."""
    folder = tmp_path_factory.mktemp(request.param) / "lm"
    save_folder(folder, new_language_model(64, 32, 2, 64, seed=3, architecture=request.param))
    return load_language_model(folder)


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(0)
    return [random.integers(1, 64, length) for length in (3, 9, 4, 21, 3, 14)]


def test_padding_and_batches_change_no_answer(lm, prompts):
    alone = [greedy_answers(lm, [prompt], 0, 10, 1000)[0] for prompt in prompts]
    for max_batch_tokens in (1000, 40):
        together = greedy_answers(lm, prompts, 0, 10, max_batch_tokens)
        assert [answer.tolist() for answer in together] == [answer.tolist() for answer in alone]
    assert len({tuple(answer) for answer in alone}) > 1


def test_an_answer_is_the_likeliest_token_after_token(lm, prompts):
    tokens = list(prompts[1])
    for _ in range(4):
        with torch.inference_mode():
            positions = torch.arange(len(tokens))[None]
            lm.set_attn_implementation("sdpa")
            logits = lm(input_ids=torch.tensor([tokens]), position_ids=positions).logits[0, -1]
        tokens.append(int(logits.argmax()))
    assert greedy_answers(lm, [prompts[1]], end_token=-1, new_tokens=4, max_batch_tokens=100)[0].tolist() == tokens[-4:]


def test_an_answer_ends_before_the_end_of_text_and_at_the_longest(lm, prompts):
    whole = greedy_answers(lm, prompts, 0, 12, 1000)
    assert max(map(len, whole)) == 12
    end = int(whole[0][5])
    first = whole[0].tolist().index(end)
    assert greedy_answers(lm, prompts[:1], end, 12, 1000)[0].tolist() == whole[0][:first].tolist()


def test_a_models_own_decoding_defaults_are_not_used(lm, prompts):
    plain = greedy_answers(lm, prompts, 0, 10, 1000)
    lm.generation_config.repetition_penalty = 5.0
    lm.generation_config.do_sample = True
    assert [one.tolist() for one in greedy_answers(lm, prompts, 0, 10, 1000)] == [one.tolist() for one in plain]


def test_the_lm_is_packed_again_afterwards(lm, prompts):
    before = lm.config._attn_implementation
    greedy_answers(lm, prompts[:2], 0, 2, 1000)
    assert lm.config._attn_implementation == before


def test_a_lm_without_fused_attention_answers(prompts):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    lm = Gemma2ForCausalLM(config).eval()
    use_packing(lm)
    before = lm.config._attn_implementation
    assert len(greedy_answers(lm, [prompt % 64 for prompt in prompts], 0, 3, 64)) == len(prompts)
    assert lm.config._attn_implementation == before
