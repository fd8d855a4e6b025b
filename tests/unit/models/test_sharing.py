"""An example's numbers are those of the example alone, also where a model's depend on what shares its batch."""

import copy
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from comparison import examples
from exact_gradients import exact_gradients
from families import LANGUAGE_MODELS, LIMIT, tiny_model

from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.generation import greedy_answers
from workflow_scripts.language_model.losses import evaluate, summed_losses, use_packing
from workflow_scripts.methods import rds
from workflow_scripts.methods.embedder import LanguageModelReader
from workflow_scripts.methods.example_gradients import ExampleGradients, mlp_layers, outer_sums
from workflow_scripts.models.sharing import apart_from, shared_passes

KINDS = [
    "gemma3_text|dynamic",
    "gpt_neox|dynamic",
    "llama|dynamic",
    "llama4_text",  # attention in chunks, but for every fourth layer's
    "mistral|longrope",
    "phi3|longrope",
    "qwen2|dynamic",
]
DENSE = [name for name in KINDS if name != "llama4_text"]


def made(name):
    return tiny_model(name, LANGUAGE_MODELS[name])


@pytest.mark.parametrize("name", KINDS)
def test_examples_beyond_the_limit_are_read_beside_those_of_their_length(name):
    lm, batch = made(name), examples()
    use_packing(lm)
    assert apart_from(lm) == LIMIT
    _, counts = summed_losses(lm, batch)
    assert counts.tolist() == [len(example.tokens) - example.prompt_tokens for example in batch]


@pytest.mark.parametrize("name", ["phi3|longrope", "llama|dynamic"])
def test_an_lm_that_is_no_worse_for_it_stays_packed(name):
    lm = made(name)
    assert use_packing(lm)


def test_chunks_are_read_padded(capsys):
    assert not use_packing(made("llama4_text"))
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
            copy.deepcopy(lm.model if name == "llama4_text" else lm.base_model)(
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


@pytest.mark.parametrize("name", ["phi3|longrope", "llama|dynamic"])
def test_answers_are_those_of_each_prompt_alone(name):
    lm = made(name)
    prompts = [example.tokens for example in examples()]
    use_packing(lm)
    together = greedy_answers(lm, prompts, 2, 8, 10_000)
    for prompt, answer in zip(prompts, together, strict=True):
        (one,) = greedy_answers(made(name), [prompt], 2, 8, 10_000)
        assert one.tolist() == answer.tolist()


@pytest.mark.parametrize("name", ["phi3|longrope", "llama|dynamic"])
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
    lm = made("qwen2")
    assert use_packing(lm)
    assert apart_from(lm) == sys.maxsize
    assert [chosen.tolist() for chosen in shared_passes(lm, np.array([90, 3, 5]))] == [[0, 1, 2]]
