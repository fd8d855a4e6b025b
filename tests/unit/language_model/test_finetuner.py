"""A fine-tuning run depends on its examples and seed alone, and is what a plain loop does."""

import numpy as np
import pytest
import torch
from tiny_study import FINETUNING
from transformers import AutoModelForCausalLM

from workflow_scripts.core.errors import StudyError, lacks_memory
from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.cuda_graphs import GraphedPasses
from workflow_scripts.language_model.finetuner import Finetuner, bfloat16_copy
from workflow_scripts.language_model.losses import load_language_model, summed_losses
from workflow_scripts.language_model.tokens import read_examples


@pytest.fixture
def pool(tiny):
    return list(read_examples(tiny.tokens).values())


def tuner(tiny, **changes):
    return Finetuner(load_language_model(tiny.language_model), **{**FINETUNING, **changes})


def run(tuner, examples, evaluated, *seed):
    assert tuner.finetune(examples, *seed)
    return tuner.losses(evaluated)


def test_reset_in_place_is_exact(tiny, pool):
    engine = tuner(tiny)
    addresses = [p.data_ptr() for p in engine.parameters]
    first = run(engine, pool[:10], pool[50:60], 1)
    second = run(engine, pool[10:20], pool[50:60], 2)
    again = run(engine, pool[:10], pool[50:60], 1)
    assert (first == again).all()
    assert not (first == second).any()
    assert addresses == [p.data_ptr() for p in engine.parameters]


def test_a_diverged_run_is_told_and_leaves_no_trace(tiny, pool):
    engine = tuner(tiny)
    before = run(engine, pool[:10], pool[50:60], 1)
    with torch.no_grad():
        engine.base_weights[0][:] *= 1e30
    assert not engine.finetune(pool[:10], 2)
    engine = tuner(tiny, learning_rate=1e30)
    assert not engine.finetune(pool[:10], 2)
    for group in engine.optimizer.param_groups:
        group["lr"] = FINETUNING["learning_rate"]
    assert (run(engine, pool[:10], pool[50:60], 1) == before).all()


def test_it_is_what_a_plain_loop_does(tiny, pool):
    """Padding, logits of every token, a new optimiser."""
    train, evaluated = pool[:10], pool[50:60]
    lm = AutoModelForCausalLM.from_pretrained(tiny.language_model).eval()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=FINETUNING["learning_rate"], weight_decay=0.0)

    def token_losses(batch):
        longest = max(len(e.tokens) for e in batch)
        tokens = torch.tensor([[*e.tokens, *[0] * (longest - len(e.tokens))] for e in batch])
        labels = tokens.clone()
        for row, e in enumerate(batch):
            labels[row, : e.prompt_tokens] = -100
            labels[row, len(e.tokens) :] = -100
        logits = lm(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none"), (
            labels[:, 1:] != -100
        )

    rng = generator(7)
    for _ in range(FINETUNING["epochs"]):
        order = rng.permutation(len(train))
        for first in range(0, len(train), FINETUNING["batch_examples"]):
            losses, counted = token_losses([train[i] for i in order[first : first + FINETUNING["batch_examples"]]])
            optimizer.zero_grad()
            (losses.sum() / counted.sum()).backward()
            optimizer.step()
    with torch.inference_mode():
        losses, counted = token_losses(evaluated)
    expected = (losses.sum(1) / counted.sum(1)).numpy()
    np.testing.assert_allclose(run(tuner(tiny), train, evaluated, 7), expected, rtol=1e-4)


def test_token_budgets_do_not_change_numbers(tiny, pool):
    wide = run(tuner(tiny), pool[:10], pool[50:60], 1)
    narrow = run(tuner(tiny, step_tokens=1, evaluation_tokens=1), pool[:10], pool[50:60], 1)
    np.testing.assert_allclose(narrow, wide, rtol=1e-4)


def test_training_lowers_the_loss_of_what_it_trains_on(tiny, pool):
    engine = tuner(tiny, epochs=5)
    base = engine.losses(pool[:10])
    assert run(engine, pool[:10], pool[:10], 1).mean() < base.mean() - 0.05


BFLOAT16 = {"precision": "bfloat16", "learning_rate": 3e-3}


def test_weights_in_bfloat16_learn_what_autocast_learns(tiny, pool):
    """Both are as far from float32 as bfloat16 is, which is little beside what is learned."""
    train, evaluated = pool[:10], pool[:10]
    exact = tuner(tiny, **{**BFLOAT16, "precision": "float32"})
    exact.reset()
    base, expected = exact.losses(evaluated), run(exact, train, evaluated, 1)
    learned = np.abs(expected - base).mean()
    for copied in (False, True):
        found = run(tuner(tiny, **BFLOAT16, bfloat16_weights=copied), train, evaluated, 1)
        assert np.abs(found - expected).mean() < 0.1 * learned


def test_weights_in_bfloat16_leave_no_trace_and_the_lm_in_float32(tiny, pool):
    engine = tuner(tiny, **BFLOAT16, bfloat16_weights=True)
    assert engine.working_lm is not engine.lm
    assert {p.dtype for p in engine.working_lm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in engine.lm.parameters()} == {torch.float32}
    first = run(engine, pool[:10], pool[50:60], 1)
    second = run(engine, pool[10:20], pool[50:60], 2)
    assert (run(engine, pool[:10], pool[50:60], 1) == first).all()
    assert not (second == first).any()
    for weight, copied in zip(engine.lm.parameters(), engine.working_lm.parameters(), strict=True):
        assert torch.equal(weight.bfloat16(), copied)


def test_small_steps_are_not_lost_in_bfloat16(tiny, pool):
    """A step of a millionth of a weight is nothing in bfloat16: the weights that change are float32."""
    engine = tuner(tiny, **{**BFLOAT16, "learning_rate": 1e-7}, bfloat16_weights=True)
    assert engine.finetune(pool[:10], 1)
    moved = [
        (weight != base).float().mean() for weight, base in zip(engine.parameters, engine.base_weights, strict=True)
    ]
    assert min(moved) > 0


def test_gradients_of_several_passes_add_up_in_float32(tiny, pool):
    whole = tuner(tiny, **BFLOAT16, bfloat16_weights=True)
    cut = tuner(tiny, **BFLOAT16, bfloat16_weights=True)
    exact = tuner(tiny)
    for engine, tokens in ((whole, 10**6), (cut, 1), (exact, 10**6)):
        engine.reset()
        engine._accumulate(pool[:8], tokens)
    for one, other, expected in zip(whole.parameters, cut.parameters, exact.parameters, strict=True):
        assert one.grad.dtype == other.grad.dtype == torch.float32
        assert (one.grad - expected.grad).norm() < 0.05 * expected.grad.norm()
        assert (other.grad - expected.grad).norm() < 0.05 * expected.grad.norm()


def test_a_copy_in_bfloat16_keeps_buffers_and_tied_weights(tiny):
    lm = load_language_model(tiny.language_model)
    copied = bfloat16_copy(lm)
    assert copied.get_output_embeddings().weight is copied.get_input_embeddings().weight
    for buffer, kept in zip(lm.buffers(), copied.buffers(), strict=True):
        assert kept.dtype == buffer.dtype
        assert torch.equal(kept, buffer)
    assert {p.dtype for p in lm.parameters()} == {torch.float32}


@pytest.mark.parametrize("copied", [False, True])
def test_compiled_layers_give_the_same_numbers(tiny, pool, copied, monkeypatch):
    """Without Inductor, whose C++ takes a minute to compile: what is traced is the same."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend="aot_eager", **how))
    settings = {"precision": "bfloat16" if copied else "float32", "bfloat16_weights": copied}
    plain = run(tuner(tiny, **settings), pool[:10], pool[50:60], 1)
    compiled = tuner(tiny, **settings, compile=True)
    assert any(module._compiled_call_impl for module in compiled.working_lm.modules())
    np.testing.assert_allclose(run(compiled, pool[:10], pool[50:60], 1), plain, atol=2e-2 if copied else 1e-5)


def test_the_first_step_allocates_no_optimiser_state(tiny, pool, monkeypatch):
    """What AdamW needs is there from the start: a lack of memory in a step could leave it half done."""
    engine = tuner(tiny)
    before = {id(tensor) for state in engine.optimizer.state.values() for tensor in state.values()}
    assert len(before) == 3 * len(engine.parameters)
    assert all(not tensor.any() for state in engine.optimizer.state.values() for tensor in state.values())
    for parameter, base in zip(engine.parameters, engine.base_weights, strict=True):
        assert torch.equal(parameter, base)
        assert parameter.grad is None
    assert engine.finetune(pool[:4], 1)
    assert before == {id(tensor) for state in engine.optimizer.state.values() for tensor in state.values()}


def test_a_lm_that_can_not_be_trained_in_this_memory_is_told(tiny, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(StudyError, match=r"AdamW's moments of [\d,]+ parameters.*finetuning\.engine: deepspeed"):
        tuner(tiny)


def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_passes(tiny, pool, monkeypatch):
    expected = run(tuner(tiny), pool[:10], pool[50:60], 1)
    engine = tuner(tiny)

    def tight(lm, examples, logits):
        if torch.is_grad_enabled() and len(examples) > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return summed_losses(lm, examples, logits)

    monkeypatch.setattr("workflow_scripts.language_model.finetuner.summed_losses", tight)
    found = run(engine, pool[:10], pool[50:60], 1)
    assert engine.step_tokens < FINETUNING["step_tokens"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_pass_in_bfloat16_that_runs_out_of_memory_leaves_no_gradient_behind(tiny, pool, monkeypatch):
    in_bfloat16 = {"precision": "bfloat16", "bfloat16_weights": True}
    expected = run(tuner(tiny, **in_bfloat16, step_tokens=1), pool[:10], pool[50:60], 1)
    engine = tuner(tiny, **in_bfloat16)

    def tight(lm, examples, logits):
        losses, counts = summed_losses(lm, examples, logits)
        if torch.is_grad_enabled() and len(examples) > 1:
            losses.sum().backward()
            raise RuntimeError("CUDA error: out of memory")
        return losses, counts

    monkeypatch.setattr("workflow_scripts.language_model.finetuner.summed_losses", tight)
    np.testing.assert_array_equal(run(engine, pool[:10], pool[50:60], 1), expected)
    assert engine.step_tokens < FINETUNING["step_tokens"]


def test_losses_get_the_memory_of_recorded_passes_before_they_are_given_up(tiny, pool, monkeypatch):
    engine = tuner(tiny)
    engine.graphs = GraphedPasses(engine.working_lm)
    engine.graphs.graphs["a shape"] = None

    def tight(lm, examples, tokens, *_):
        if engine.graphs.graphs:
            raise RuntimeError("CUDA error: out of memory")
        return np.zeros(len(examples), np.float32)

    monkeypatch.setattr("workflow_scripts.language_model.finetuner.evaluate", tight)
    before = engine.evaluation_tokens
    assert engine.losses(pool[:3]).tolist() == [0, 0, 0]
    assert engine.evaluation_tokens == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 8192 bytes: Cannot allocate memory (12)"),
    ],
)
def test_a_lack_of_memory_is_recognised_however_it_is_told(error):
    assert lacks_memory(error)


def test_other_errors_are_no_lack_of_memory():
    assert not lacks_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
