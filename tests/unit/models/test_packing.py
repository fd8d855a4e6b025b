"""Packed batches give the losses and gradients of one example at a time, for several architectures."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.language_model.losses import example_losses, summed_losses, token_losses, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models import packing, packing_check
from workflow_scripts.models.device import autocast
from workflow_scripts.models.packing import ATTENTION, BUCKETS, attention_kernel, pack, token_budget
from workflow_scripts.models.packing_check import switch_to_packing

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
    last = TokenizedExample(batch[5].tokens, 30)  # its response is its last token alone
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
    assert packed.cu_seqlens.tolist() == [0, 1, 3, 6]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.max_length == 3


def test_token_budget_is_kept_and_every_example_comes_once():
    lengths = np.array([3, 50, 4, 4, 9, 1, 10])
    batches = list(token_budget(lengths, 12))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert all(lengths[batch].sum() <= 12 or len(batch) == 1 for batch in batches)
    assert [lengths[batch].tolist() for batch in batches] == [[1, 3, 4, 4], [9], [10], [50]]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - PADDED))
def test_varlen_gives_the_losses_and_gradients_of_buckets_and_of_padded_batches(name, varlen, monkeypatch):
    lm, batch = made(name), examples()
    lm.airrep_packed = False
    found = {}
    for way in ("padded", BUCKETS, ATTENTION):
        if way != "padded":
            assert use_packing(lm, attention=way)
        monkeypatch.setattr(packing, "attention_kernel", lambda value, dropout: "varlen")
        losses = example_losses(lm, batch)
        assert bool(varlen.calls) == (way == ATTENTION)
        found[way] = losses.detach(), flat_gradient(lm, losses.sum())
    for way in (BUCKETS, ATTENTION):
        torch.testing.assert_close(found[way][0], found["padded"][0], rtol=1e-5, atol=1e-5)
        assert (found[way][1] - found["padded"][1]).norm() <= 1e-5 * found["padded"][1].norm()


def made_bert() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES, hidden_act="gelu")).eval()


def test_the_gradient_of_an_encoder_that_ends_in_a_layer_norm_is_more_than_rounding(monkeypatch):
    """The plain sum of its output has no gradient: any two ways of rounding are 100 % apart."""
    distances = packing_check._distances
    found = []
    monkeypatch.setattr(packing_check, "_distances", lambda *numbers: found.append(distances(*numbers)) or found[-1])
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**SIZES, hidden_act="gelu"), add_pooling_layer=False).eval()
    encoder = AttributionEncoder(bert, SimpleNamespace(model_max_length=512), [torch.nn.Linear(32, 8)], 64)
    assert encoder.use_packing("bfloat16")
    # The first ones are of the attempt in float32 alone, when the encoder is made.
    assert max(distances[1] for distances in found if len(distances) == 2) < 0.01


def test_varlen_reads_both_directions_in_an_encoder(varlen, monkeypatch):
    bert = made_bert()
    batch = pack([example.tokens for example in examples()])

    def states() -> torch.Tensor:
        return bert(input_ids=batch.tokens, position_ids=batch.positions, packing=batch).last_hidden_state

    bert.set_attn_implementation(BUCKETS)
    expected = states()
    bert.set_attn_implementation(ATTENTION)
    monkeypatch.setattr(packing, "attention_kernel", lambda value, dropout: "varlen")
    found = states()
    assert varlen.calls == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = [
        torch.autograd.grad(some.square().sum(), bert.parameters(), allow_unused=True) for some in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_varlen_runs_in_half_precision_though_rotary_positions_are_float32(varlen):
    lm, batch = made("Qwen2"), examples()
    expected = one_by_one(lm, batch)
    assert use_packing(lm, "bfloat16")
    assert varlen.calls > 0
    assert varlen.dtypes == {torch.bfloat16}
    with autocast(lm.device, "bfloat16"):
        losses = example_losses(lm, batch)
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)


def test_the_kernel_depends_on_device_dtype_head_size_dropout_and_determinism(monkeypatch):
    value = torch.zeros(1, 2, 5, 16, dtype=torch.bfloat16)
    assert attention_kernel(value, 0.0) == "buckets", "there is no such kernel on a CPU"
    monkeypatch.setattr(packing, "_runs_varlen", lambda device: True)
    assert attention_kernel(value, 0.0) == "varlen"
    assert attention_kernel(value.half(), 0.0) == "varlen"
    assert attention_kernel(value.float(), 0.0) == "buckets"
    assert attention_kernel(value, 0.1) == "buckets"
    assert attention_kernel(value[..., :12], 0.0) == "buckets"
    assert attention_kernel(value.expand(1, 2, 5, 16).repeat(1, 1, 1, 17), 0.0) == "buckets"
    torch.use_deterministic_algorithms(True)
    try:
        assert attention_kernel(value, 0.0) == "buckets"
    finally:
        torch.use_deterministic_algorithms(False)


def test_grouped_heads_are_named_to_the_versions_of_torch_that_want_it(monkeypatch):
    assert packing._grouped_heads(False) == {}
    for takes, named in ((True, {"enable_gqa": True}), (False, {})):
        monkeypatch.setattr(packing, "_TAKES_ENABLE_GQA", takes)
        assert packing._grouped_heads(True) == named


@torch.library.custom_op("test_packing::opaque_attention", mutates_args=())
def opaque_attention(query: torch.Tensor, cu_seqlens: torch.Tensor, longest: int) -> torch.Tensor:
    """As opaque to the compiler as the real kernel is."""
    return query.clone()


opaque_attention.register_fake(lambda query, cu_seqlens, longest: torch.empty_like(query))
opaque_attention.register_autograd(lambda context, gradient: (gradient, None, None))


def test_graphs_of_whole_layers_serve_all_layers_and_lengths(varlen, monkeypatch):
    """Anything else would compile again and again, or in pieces."""
    # What other tests compiled counts towards the limit of this one.
    torch.compiler.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        packing, "varlen_attn", lambda q, k, v, cu, _, longest, *__, **___: opaque_attention(q, cu, longest)
    )
    monkeypatch.setattr(packing, "_runs_varlen", torch.compiler.assume_constant_result(lambda device: True))
    lm, random = made("Qwen2").bfloat16(), np.random.default_rng(0)
    lm.set_attn_implementation(ATTENTION)
    lm.airrep_packed = True
    for layer in lm.model.layers:
        layer.compile(backend=keep, dynamic=True, fullgraph=True)
    for _ in range(8):
        lengths = random.integers(5, 40, random.integers(2, 9))
        batch = [TokenizedExample(random.integers(0, VOCABULARY, length), 2) for length in lengths]
        example_losses(lm, batch).sum().backward()
    # The second one has a number of examples that may change.
    assert len(graphs) <= 2


def test_cudnn_builds_no_plan_for_every_bucket():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_kernel_that_is_wrong_in_half_precision_is_told_and_buckets_take_its_place(monkeypatch, varlen, capsys):
    def blind(query, key, value, *_, **__):
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1)

    monkeypatch.setattr(packing, "varlen_attn", blind)
    lm = made("Qwen2")
    assert use_packing(lm, "bfloat16")
    assert lm.config._attn_implementation == BUCKETS
    assert "attention `packed` can't be used: in bfloat16 its output is" in capsys.readouterr().err


def test_a_kernel_that_can_not_differentiate_is_told_and_buckets_take_its_place(monkeypatch, varlen, capsys):
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no kernel for the backward pass")

    monkeypatch.setattr(packing, "varlen_attn", lambda *inputs, **options: NoBackward.apply(varlen(*inputs, **options)))
    lm = made("Qwen2")
    assert use_packing(lm, "bfloat16")
    assert lm.config._attn_implementation == BUCKETS
    assert "no kernel for the backward pass" in capsys.readouterr().err


def test_padding_is_told_with_its_reason(capsys):
    assert not use_packing(made("Gemma2"))
    said = capsys.readouterr().err
    assert "soft caps" in said
    assert "batches are padded" in said


def test_a_lack_of_memory_is_no_reason_to_pad():
    lm = made("Qwen2")

    def read(packed, precision):
        if packed:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(1)

    with pytest.raises(torch.OutOfMemoryError):
        switch_to_packing(lm, read)


def test_packed_output_without_a_gradient_is_refused(capsys):
    lm = made("Qwen2")

    def read(packed, precision):
        output = lm.get_input_embeddings().weight[:4].sum(dim=1)
        return output.detach() if packed else output

    assert not switch_to_packing(lm, read, "bfloat16")
    assert "only one of the two outputs depends on the input embeddings" in capsys.readouterr().err


def test_the_reference_is_computed_without_tf32():
    seen = []

    def read(packed, precision):
        seen.append(torch.get_float32_matmul_precision())
        return torch.zeros(1)

    torch.set_float32_matmul_precision("high")
    try:
        switch_to_packing(made("Qwen2"), read)
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", sorted(PADDED))
def test_the_padded_way_computes_logits_of_response_tokens_alone(name):
    lm, batch = made(name), examples()
    assert not use_packing(lm)
    rows = []
    lm.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[:-1].numel())
    )
    losses = example_losses(lm, batch)
    assert sum(rows) == sum(len(e.tokens) - e.prompt_tokens for e in batch)
    torch.testing.assert_close(losses, one_by_one(lm, batch), rtol=1e-5, atol=1e-5)


def test_token_losses_are_float32():
    logits = torch.randn(5, 7).bfloat16()
    assert token_losses(logits, torch.arange(5)).dtype == torch.float32


def test_means_over_examples_are_the_same_bits_on_every_device():
    """A GPU takes them by segment, which a CPU can do too."""
    random = np.random.default_rng(0)
    batch = pack([random.integers(0, 9, length) for length in (7, 3, 200, 3, 1)])
    states = torch.randn(214, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ways = packing._means_by_index, packing._means_by_segment
    by_index, by_segment = (way(states, batch) for way in ways)
    assert torch.equal(by_index, by_segment)
    gradients = [torch.autograd.grad(means.square().sum(), states)[0] for means in (by_index, by_segment)]
    torch.testing.assert_close(*gradients)
    starts = np.cumsum([0, *batch.lengths.tolist()])
    packed = torch.stack([states[first:last].mean(0) for first, last in itertools.pairwise(starts)])
    given = packing.example_means(states, batch)
    torch.testing.assert_close(given[batch.order], packed)
    assert packing.example_means(states.bfloat16(), batch).dtype == torch.float32
    assert packing.example_means(states.double(), batch).dtype == torch.float64
