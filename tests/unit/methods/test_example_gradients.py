"""Per-example gradients against autograd, one example at a time; preconditioners against their dense formulas."""

from contextlib import closing

import numpy as np
import pytest
import torch
import transformers
from exact_gradients import exact_gradients
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.losses import example_losses, load_language_model, summed_losses, use_packing
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.methods import example_gradients
from workflow_scripts.methods.example_gradients import ExampleGradients, block_layers, mlp_layers, outer_sums
from workflow_scripts.methods.projected_gradients import (
    DAMPING,
    ProjectedGradients,
    fisher_preconditioner,
    kronecker_preconditioner,
    layer_moments,
    principal_projections,
    random_projections,
)
from workflow_scripts.models.packing import pack

BATCH = {"batch_tokens": 300, "precision": "float32"}


@pytest.fixture
def lm(tiny):
    return load_language_model(tiny.language_model)


@pytest.fixture(scope="module")
def examples(tiny):
    return list(read_examples(tiny.tokens).values())[:23]


def gpt2():
    """An LM whose MLP layers are no `nn.Linear`; it is packed as well."""
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    use_packing(lm)
    return lm


def read_gradients(lm, layers, examples, mean=False):
    found = {name: torch.zeros(len(examples), *_shape(layer)) for name, layer in layers.items()}

    def take(name, rows, inputs, gradients):
        found[name][rows] = outer_sums(gradients, inputs)

    with closing(ExampleGradients(lm, layers)) as reader:
        reader.run(examples, take, mean)
    return found


def _shape(layer):
    return layer.weight.shape if isinstance(layer, torch.nn.Linear) else layer.weight.T.shape


@pytest.mark.parametrize("kind", ["packed", "padded", "gpt2"])
@pytest.mark.parametrize("mean", [False, True])
def test_gradients_are_those_of_each_example_alone(lm, examples, kind, mean):
    lm = gpt2() if kind == "gpt2" else lm
    if kind == "padded":
        lm.set_attn_implementation("sdpa")
        lm.airrep_packed = False
    layers = mlp_layers(lm)
    expected = {name: [exact_gradients(lm, example, name, mean) for example in examples] for name in layers}
    found = read_gradients(lm, layers, examples, mean)
    assert len(layers) == (4 if kind == "gpt2" else 6)
    for name, gradients in found.items():
        torch.testing.assert_close(gradients, torch.stack(expected[name]), rtol=1e-4, atol=1e-5)


def test_the_lm_is_as_it_was_when_the_reader_is_closed(lm, examples):
    before = example_losses(lm, examples).detach()
    read_gradients(lm, mlp_layers(lm), examples)
    assert not any(module._forward_hooks for module in lm.modules())
    torch.testing.assert_close(example_losses(lm, examples).detach(), before)
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_a_lm_without_mlp_layers_is_refused():
    with pytest.raises(StudyError, match="no linear layer whose name says that it belongs to an MLP"):
        mlp_layers(torch.nn.Linear(2, 2))


SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
}
MIXTURES = {
    # With an expert that every token sees, whose layers alone were read.
    "Qwen2Moe": {**SIZES, "num_experts": 4, "shared_expert_intermediate_size": 8},
    "DeepseekV3": {
        **SIZES,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "Llama4Text": {**SIZES, "num_local_experts": 4, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 2},
    "Glm4Moe": {**SIZES, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "Ernie4_5_Moe": {**SIZES, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "Dots1": {**SIZES, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "GraniteMoeShared": {**SIZES, "num_local_experts": 4, "shared_intermediate_size": 8},
    # Without one.
    "Mixtral": {**SIZES, "num_local_experts": 4},
    "Qwen3Moe": {**SIZES, "num_experts": 4},
    "Olmoe": {**SIZES, "num_experts": 4},
    "GptOss": {**SIZES, "num_local_experts": 4},
    # Its first layer is dense.
    "Lfm2Moe": {
        **SIZES,
        "num_experts": 4,
        "num_dense_layers": 1,
        "layer_types": ["full_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_experts_is_refused_shared_experts_or_not(name):
    config = getattr(transformers, f"{name}Config")(**MIXTURES[name])
    with pytest.raises(StudyError, match="gradient methods can't read it"):
        mlp_layers(AutoModelForCausalLM.from_config(config))


DENSE = {
    "Qwen2": SIZES,
    "Gemma3Text": SIZES,
    "Phi3": {**SIZES, "pad_token_id": 0},
    "GPTNeoX": SIZES,
    "OPT": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "Bloom": SIZES,
    "Falcon": {name: size for name, size in SIZES.items() if name != "head_dim"},
    "GPT2": {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2},
}


@pytest.mark.parametrize("name", DENSE)
def test_the_layers_hold_all_weights_of_dense_mlps(name):
    lm = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**DENSE[name]))
    layers = mlp_layers(lm)
    assert len(layers) in (4, 6)


@pytest.mark.parametrize("name", DENSE)
def test_layers_of_blocks_are_all_linear_ones_of_the_blocks(name):
    lm = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**DENSE[name]))
    found = block_layers(lm)
    others = {key for key, one in lm.named_modules() if hasattr(one, "weight") and one.weight.dim() == 2} - set(found)
    assert {one.rpartition(".")[2] for one in others} <= {
        *("embed_tokens", "embed_positions", "embed_in", "embed_out", "word_embeddings", "wte", "wpe", "lm_head")
    }
    assert any("attn" in one or "attention" in one for one in found)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_blocks_of_a_mixture_of_experts_are_refused(name):
    lm = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**MIXTURES[name]))
    with pytest.raises(StudyError, match="gradient methods can't read it"):
        block_layers(lm)


def test_projected_gradients_are_the_projections_of_whole_ones_whatever_the_batch(lm, examples):
    layers = mlp_layers(lm)
    projections = random_projections(layers, 3, seed=5)
    whole = read_gradients(lm, layers, examples)
    expected = [
        (projections[f"{name}.outputs"] @ whole[name] @ projections[f"{name}.inputs"].T).flatten(1) for name in layers
    ]
    for batch_tokens in (1, 300, 100_000):
        found = ProjectedGradients(lm, layers, projections, batch_tokens=batch_tokens, precision="float32")
        assert found.dimension == 6 * 9
        np.testing.assert_allclose(found.embed(examples), torch.cat(expected, 1), rtol=1e-3, atol=1e-5)


def test_corrected_gradients_are_corrected_before_they_are_projected(lm, examples):
    layers = mlp_layers(lm)
    projections = random_projections(layers, 3, seed=5)
    whole = read_gradients(lm, layers, examples)
    expected = [
        (projections[f"{name}.outputs"] @ whole[name].sign() @ projections[f"{name}.inputs"].T).flatten(1)
        for name in layers
    ]
    found = ProjectedGradients(lm, layers, projections, **BATCH, correct=lambda name, gradients: gradients.sign())
    np.testing.assert_allclose(found.embed(examples), torch.cat(expected, 1), rtol=1e-3, atol=2e-2)


def test_random_projections_keep_lengths_on_average(lm):
    layers = {"mlp": torch.nn.Linear(400, 300)}
    projections = random_projections(layers, 64, seed=1)
    assert {name: tuple(tensor.shape) for name, tensor in projections.items()} == {
        "mlp.inputs": (64, 400),
        "mlp.outputs": (64, 300),
    }
    vectors = torch.randn(200, 400, generator=torch.Generator().manual_seed(2))
    ratio = (vectors @ projections["mlp.inputs"].T).square().sum() / vectors.square().sum()
    assert float(ratio) == pytest.approx(1, abs=0.1)
    assert len(random_projections({"mlp": torch.nn.Linear(4, 300)}, 64, seed=1)["mlp.inputs"]) == 4


def test_moments_are_means_over_tokens(lm, examples):
    layers = mlp_layers(lm)
    name = next(iter(layers))
    states, slopes = [], []
    for example in examples:
        seen = []
        layer = lm.get_submodule(name)
        hook = layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.extend([inputs[0], output]))
        losses, _ = summed_losses(lm, [example])
        slopes.append(torch.autograd.grad(losses.sum(), seen[1])[0][0])
        states.append(seen[0][0].detach())
        hook.remove()
    states, slopes = torch.cat(states), torch.cat(slopes)
    found = layer_moments(lm, layers, examples, None, **BATCH)
    torch.testing.assert_close(found[f"{name}.inputs"], states.T @ states / len(states), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[f"{name}.outputs"], slopes.T @ slopes / len(slopes), rtol=1e-3, atol=1e-6)

    projections = random_projections(layers, 2, seed=3)
    small = layer_moments(lm, layers, examples, projections, **BATCH)
    side = f"{name}.inputs"
    torch.testing.assert_close(small[side], projections[side] @ found[side] @ projections[side].T, rtol=1e-3, atol=1e-5)


def test_principal_projections_are_the_largest_axes():
    axes, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
    moment = axes @ torch.diag(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])) @ axes.T
    found = principal_projections({"x": moment}, 2)["x"]
    torch.testing.assert_close((found @ axes[:, [0, 2]]).abs(), torch.eye(2), rtol=1e-4, atol=1e-4)


def test_principal_projections_are_taken_on_the_device_one_at_a_time(monkeypatch):
    """A stand-in for a GPU: what is sent there comes in float64, and is back on the CPU when the next one is sent."""
    on_device, to, eigh, shapes = [], torch.Tensor.to, torch.linalg.eigh, []
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, place: (on_device.append(1), to(self, torch.float64))[1] if place == "gpu" else to(self, place),
    )
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda moment: (shapes.append((len(on_device), moment.dtype)), eigh(moment))[1]
    )
    generator = torch.Generator().manual_seed(0)
    moments = {name: (rows := torch.randn(9, 4, generator=generator)).T @ rows for name in "ab"}
    found = principal_projections(moments, 2, "gpu")
    assert shapes == [(1, torch.float64), (2, torch.float64)]
    for name, expected in principal_projections(moments, 2).items():
        torch.testing.assert_close(found[name].float().abs(), expected.abs(), rtol=1e-3, atol=1e-4)


def test_which_examples_a_bucket_has_is_sent_once_for_all_layers(lm, examples, monkeypatch):
    sent = []
    monkeypatch.setattr(
        example_gradients, "to_device", lambda array, device: (sent.append(1), torch.from_numpy(array))[1]
    )
    layers = mlp_layers(lm)
    read_gradients(lm, layers, examples)
    assert 0 < len(sent) < len(layers) * len(pack([example.tokens for example in examples]).buckets)


def test_kronecker_scores_are_those_of_the_dense_inverse(lm, examples):
    layers = mlp_layers(lm)
    projections = random_projections(layers, 3, seed=5)
    moments = layer_moments(lm, layers, examples, projections, **BATCH)
    plain = ProjectedGradients(lm, layers, projections, **BATCH).embed(examples)
    tensors = kronecker_preconditioner(layers, projections, moments)
    found = ProjectedGradients(lm, layers, tensors, **BATCH).embed(examples)
    for number, name in enumerate(layers):
        # In row-major order, out x in: the Kronecker product of both moments.
        hessian = torch.kron(moments[f"{name}.outputs"], moments[f"{name}.inputs"]).double()
        hessian += DAMPING * hessian.diagonal().mean() * torch.eye(9)
        gradients = torch.from_numpy(plain[:, number * 9 : number * 9 + 9]).double()
        expected = gradients @ torch.linalg.solve(hessian, gradients.T)
        part = found[:, number * 9 : number * 9 + 9].astype(np.float64)
        np.testing.assert_allclose(part @ part.T, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("by_layer", [True, False])
def test_fisher_scores_are_those_of_the_dense_inverse(lm, examples, by_layer):
    layers = mlp_layers(lm)
    projections = random_projections(layers, 2, seed=5)
    plain = ProjectedGradients(lm, layers, projections, **BATCH)
    gradients = plain.embed(examples).astype(np.float64)
    factors = fisher_preconditioner(plain, examples, by_layer)
    found = ProjectedGradients(lm, layers, projections | factors, **BATCH).embed(examples).astype(np.float64)
    fisher = gradients.T @ gradients / len(examples)
    places = list(plain.slices.values()) if by_layer else [slice(None)]
    expected = 0
    for place in places:
        block = fisher[place, place]
        block = block + DAMPING * np.diag(block).mean() * np.eye(len(block))
        expected = expected + gradients[:, place] @ np.linalg.solve(block, gradients[:, place].T)
    np.testing.assert_allclose(found @ found.T, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
