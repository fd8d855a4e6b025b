"""An example's numbers are those of the example alone, also where a model's depend on what shares its batch."""

import copy
import sys
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from exact_gradients import exact_gradients
from transformers import AutoModelForCausalLM

from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.generation import greedy_answers
from workflow_scripts.language_model.losses import evaluate, example_losses, summed_losses, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods import rds
from workflow_scripts.methods.embedder import LanguageModelReader
from workflow_scripts.methods.example_gradients import ExampleGradients, mlp_layers, outer_sums
from workflow_scripts.models.sharing import apart_from, shared_passes

VOCABULARY = 61
LIMIT = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LIMIT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 8.0],
    "original_max_position_embeddings": LIMIT,
    "factor": 4.0,
}
LONG_SIZES = {**SIZES, "max_position_embeddings": 4 * LIMIT, "original_max_position_embeddings": LIMIT}
KINDS = {
    "Phi3": {**LONG_SIZES, "rope_parameters": LONG},
    "Llama": {**SIZES, "rope_parameters": DYNAMIC},
    "Qwen2": {**SIZES, "rope_parameters": DYNAMIC},
    "Mistral": {**LONG_SIZES, "rope_parameters": LONG, "sliding_window": None},
    "GPTNeoX": {**SIZES, "rope_parameters": {**DYNAMIC, "partial_rotary_factor": 1.0}},
    "Gemma3Text": {
        **SIZES,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": DYNAMIC,
        },
    },
    # Its attention is in chunks, but for every fourth layer's.
    "Llama4Text": {
        **SIZES,
        "head_dim": 8,
        "max_position_embeddings": 4 * LIMIT,
        "attention_chunk_size": LIMIT,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "num_experts_per_tok": 1,
    },
}
DENSE = sorted(KINDS.keys() - {"Llama4Text"})
LENGTHS = [90, 12, LIMIT, 55, LIMIT + 1, 56, 5, 55, LIMIT - 1, 23]


def made(name):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**KINDS[name])).eval()
    for parameter in lm.parameters():  # weights large enough for attention to matter
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return lm


def examples():
    random = np.random.default_rng(1)
    return [TokenizedExample(random.integers(3, VOCABULARY, n), max(1, n // 3)) for n in LENGTHS]


def alone(lm, example):
    """The loss of one example by an LM that has read nothing before."""
    tokens = torch.from_numpy(example.tokens)[None]
    logits = copy.deepcopy(lm)(input_ids=tokens, use_cache=False).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
    return each[example.prompt_tokens - 1 :].mean()


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_those_of_each_example_alone_on_both_sides_of_the_limit(name):
    lm, batch = made(name), examples()
    with torch.no_grad():
        expected = torch.stack([alone(lm, example) for example in batch])
    use_packing(lm)
    assert apart_from(lm) == LIMIT
    with torch.no_grad():
        torch.testing.assert_close(example_losses(lm, batch), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(example_losses(lm, batch[::-1]).flip(0), expected, rtol=1e-5, atol=1e-5)
    for budget in (1, 100, 10_000):
        np.testing.assert_allclose(evaluate(lm, batch, budget), expected.numpy(), rtol=1e-5, atol=1e-5)
    _, counts = summed_losses(lm, batch)
    assert counts.tolist() == [len(example.tokens) - example.prompt_tokens for example in batch]


@pytest.mark.parametrize("name", ["Phi3", "Llama"])
def test_an_lm_that_is_no_worse_for_it_stays_packed(name):
    lm = made(name)
    assert use_packing(lm)


def test_chunks_are_read_padded(capsys):
    assert not use_packing(made("Llama4Text"))
    assert "batches are padded" in capsys.readouterr().err


@pytest.mark.parametrize("name", DENSE)
def test_gradients_are_those_of_each_example_alone(name):
    lm, batch = made(name), examples()
    layers = mlp_layers(lm)
    plain = copy.deepcopy(lm)
    plain.airrep_packed = False
    use_packing(lm)
    found = {name: torch.zeros(len(batch), *layer.weight.shape) for name, layer in layers.items()}

    def take(name, rows, inputs, gradients):
        found[name][rows] = outer_sums(gradients, inputs)

    with closing(ExampleGradients(lm, layers)) as reader:
        reader.run(batch, take)
    for layer, gradients in found.items():
        expected = torch.stack([exact_gradients(copy.deepcopy(plain), example, layer, False) for example in batch])
        assert (gradients - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", KINDS)
def test_mean_states_are_those_of_each_example_alone(name):
    lm, batch = made(name), examples()
    with torch.no_grad():
        expected = [  # Llama 4 names itself as its base
            copy.deepcopy(lm.model if name == "Llama4Text" else lm.base_model)(
                input_ids=torch.from_numpy(example.tokens)[None]
            )
            .last_hidden_state[0]
            .mean(0)
            for example in batch
        ]
    expected = torch.nn.functional.normalize(torch.stack(expected), dim=1).numpy()
    use_packing(lm)
    found = rds.open_embedder(LanguageModelReader(lm, 10_000, "float32"), {}, False).embed(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Phi3", "Llama"])
def test_answers_are_those_of_each_prompt_alone(name):
    lm = made(name)
    prompts = [example.tokens for example in examples()]
    use_packing(lm)
    together = greedy_answers(lm, prompts, 2, 8, 10_000)
    for prompt, answer in zip(prompts, together, strict=True):
        (one,) = greedy_answers(made(name), [prompt], 2, 8, 10_000)
        assert one.tolist() == answer.tolist()


@pytest.mark.parametrize("name", ["Phi3", "Llama"])
def test_fine_tuning_does_not_depend_on_what_was_read_before(name):
    settings = {"learning_rate": 1e-2, "weight_decay": 0.0, "batch_examples": 4, "epochs": 1, "precision": "float32"}
    settings |= {"evaluation_tokens": 10_000}
    found = []
    for step_tokens in (1, 10_000):
        lm = made(name)
        use_packing(lm)
        tuner = Finetuner(lm, **settings, step_tokens=step_tokens)
        evaluate(lm, examples()[:1], 10_000)
        tuner.finetune(examples(), 1)
        found.append(tuner.losses(examples()))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


def test_examples_of_most_models_share_one_pass():
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(transformers.Qwen2Config(**SIZES)).eval()
    assert use_packing(lm)
    assert apart_from(lm) == sys.maxsize
    assert [chosen.tolist() for chosen in shared_passes(lm, np.array([90, 3, 5]))] == [[0, 1, 2]]


BERT = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"} | {"max_position_embeddings": 128}
ENCODERS = {
    "ConvBert": {**BERT, "embedding_size": 32, "conv_kernel_size": 9},
    "FNet": BERT,
    "MobileBert": BERT,  # reads the words beside each word
    "Yoso": BERT,
    "Bert": BERT,
    "DebertaV2": {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
    "ModernBert": {**BERT, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "EuroBert": {**BERT, "rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT, "mask_token_id": 3},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_are_those_of_each_text_alone(name):
    torch.manual_seed(0)
    transformer = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**ENCODERS[name])).eval()
    plain, projection = copy.deepcopy(transformer), torch.nn.Linear(32, 8)
    encoder = AttributionEncoder(transformer, SimpleNamespace(model_max_length=512), [projection], 512)
    batch = [example.tokens[: encoder.max_tokens] for example in examples()]
    with torch.no_grad():
        expected = torch.stack(
            [
                projection(
                    copy.deepcopy(plain)(
                        input_ids=torch.from_numpy(tokens)[None], attention_mask=torch.ones(1, len(tokens)).long()
                    )
                    .last_hidden_state[0]
                    .mean(0)
                )
                for tokens in batch
            ]
        )
    np.testing.assert_allclose(encoder.encode([(tokens,) for tokens in batch]), expected.numpy(), atol=1e-5)
    assert (apart_from(transformer) == 0) == (name in ("ConvBert", "FNet", "MobileBert", "Yoso"))
