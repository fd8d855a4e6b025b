"""Packed batches give the losses and gradients of one example at a time, for several architectures."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from workflow_scripts.language_model.losses import TokenizedExample, example_losses, summed_losses, use_packing
from workflow_scripts.models.packing import pack, token_budget

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ARCHITECTURES = {
    "Qwen2": {**SIZES, "num_key_value_heads": 2},
    "Llama": {**SIZES, "num_key_value_heads": 4},
    "Mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": 7},
    "GPTNeoX": SIZES,
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    # Attention that this fused one can't do: with a bias of distances, or a soft cap on its weights.
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Gemma2": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": 50.0},
}
PADDED = {"Bloom", "Gemma2"}


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    lm = AutoModelForCausalLM.from_config(config).eval()
    for parameter in lm.parameters():  # weights large enough for attention to matter
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return lm


def examples() -> list[TokenizedExample]:
    random = np.random.default_rng(1)
    lengths = [9, 30, 2, 17, 30, 31, 5, 12]
    return [TokenizedExample(random.integers(0, VOCABULARY, n), max(1, n // 3)) for n in lengths]


def one_by_one(lm: torch.nn.Module, batch: list[TokenizedExample]) -> torch.Tensor:
    """The plain way: a forward pass for each example, logits of every token."""
    losses = []
    for example in batch:
        tokens = torch.from_numpy(example.tokens)[None]
        logits = lm(input_ids=tokens, use_cache=False).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
        losses.append(each[example.prompt_tokens - 1 :].mean())
    return torch.stack(losses)


def flat_gradient(lm: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    lm.zero_grad()
    loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in lm.parameters() if p.grad is not None]).clone()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_single_examples(name):
    lm, batch = made(name), examples()
    plain = one_by_one(lm, batch)
    expected = flat_gradient(lm, plain.sum())
    packed = use_packing(lm)
    losses = example_losses(lm, batch)
    found = flat_gradient(lm, losses.sum())
    assert packed == (name not in PADDED)
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-5, atol=1e-5, check_stride=False)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_an_example_does_not_see_its_neighbours():
    lm, batch = made("Qwen2"), examples()
    assert use_packing(lm)
    before = example_losses(lm, batch)
    others = [batch[0], *(TokenizedExample((e.tokens + 7) % VOCABULARY, e.prompt_tokens) for e in batch[1:])]
    after = example_losses(lm, others)
    assert torch.equal(after[0], before[0])
    assert not torch.isclose(after[1:], before[1:]).any()


def test_a_window_hides_what_is_far_away():
    lm, batch = made("Mistral"), examples()
    assert use_packing(lm)
    first_changed = batch[5].tokens.copy()
    first_changed[0] = (first_changed[0] + 1) % VOCABULARY
    last = TokenizedExample(batch[5].tokens, 30)  # judged on its last token alone
    changed = TokenizedExample(first_changed, 30)
    # Two layers with a window of 7 see 12 tokens back; the first one is 29 away.
    assert torch.equal(example_losses(lm, [last]), example_losses(lm, [changed]))


def test_summed_losses_count_response_tokens():
    lm, batch = made("Qwen2"), examples()
    use_packing(lm)
    losses, counts = summed_losses(lm, batch)
    assert counts.tolist() == [len(e.tokens) - e.prompt_tokens for e in batch]
    torch.testing.assert_close(losses / counts, example_losses(lm, batch))


def test_pack_lays_examples_end_to_end_shortest_first():
    packed = pack([np.array([5, 6, 7]), np.array([8]), np.array([9, 10])])
    assert packed.tokens.tolist() == [[8, 9, 10, 5, 6, 7]]
    assert packed.positions.tolist() == [[0, 0, 1, 0, 1, 2]]
    assert packed.order.tolist() == [1, 2, 0]
    assert packed.lengths.tolist() == [1, 2, 3]


def test_token_budget_is_kept_and_every_example_comes_once():
    lengths = np.array([3, 50, 4, 4, 9, 1, 10])
    batches = list(token_budget(lengths, 12))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert all(lengths[batch].sum() <= 12 or len(batch) == 1 for batch in batches)
    assert [lengths[batch].tolist() for batch in batches] == [[1, 3, 4, 4], [9], [10], [50]]
