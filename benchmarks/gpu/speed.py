"""How fast fine-tuning, the encoder's training step and embedding are: the old way, each choice alone, and all."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel, Qwen2ForCausalLM

from gpu.data import (
    GTE_SMALL,
    QWEN_05B,
    SMALL_BERT,
    encoder_examples,
    lm_examples,
    random_encoder,
    small_language_model,
    texts,
    total_tokens,
)
from gpu.environment import peak_rate, timed
from gpu.record import Case
from workflow_scripts.core.parquet import write_table
from workflow_scripts.embeddings.embed_corpus import embed_corpus
from workflow_scripts.encoder.model import token_counts
from workflow_scripts.encoder.objective import Objective
from workflow_scripts.encoder.training import Draw, backpropagate_step
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import use_packing
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.packing import ATTENTION, BUCKETS, token_budget

BATCH, EPOCHS = 32, 2
# What one H100 is to reach (see docs/gpu.md).
SUBSET_GOAL, STEP_GOAL, EMBEDDING_GOAL = 2.3, 2.5, 20_000
# Seconds of the way that the others are compared with.
_old: dict[str, float] = {}


@dataclass(frozen=True)
class SubsetWay:
    """How an LM is fine-tuned; the values given here are the old way."""

    varlen: bool = False
    fresh_gradients: bool = False
    bfloat16_weights: bool = False
    compiled: bool = False
    # Which need weights in bfloat16 and variable lengths.
    cuda_graphs: bool = False


SUBSET_WAYS = {
    "old": SubsetWay(),
    "all": SubsetWay(*[True] * len(fields(SubsetWay))),
    **{field.name: SubsetWay(**{field.name: True}) for field in fields(SubsetWay) if field.name != "cuda_graphs"},
    "not_compiled": SubsetWay(varlen=True, fresh_gradients=True, bfloat16_weights=True, cuda_graphs=True),
    "no_graphs": SubsetWay(varlen=True, fresh_gradients=True, bfloat16_weights=True, compiled=True),
}


def subset(case: Case, device: torch.device, way: str) -> None:
    """Fine-tune an LM of 0.5B random weights on 1,000 examples of 150 tokens, and measure it on 1,000 others."""
    chosen, large = SUBSET_WAYS[way], device.type == "cuda"
    if chosen.compiled and not large:
        case.skip("compiled on a GPU alone")
        return
    lm = _language_model(device)
    vocabulary = lm.config.vocab_size
    make = partial(lm_examples, 1000 if large else 40, vocabulary, 150 if large else 16)
    tuner = _tuner(lm, chosen)
    if large:
        torch.cuda.reset_peak_memory_stats()
    if way in ("all", "not_compiled"):
        test = make(seed=9)
        for number in (1, 2, 3):
            train = make(seed=number)
            training = timed(lambda train=train, number=number: _finetune(tuner, train, number), device)
            measuring = timed(partial(tuner.losses, test), device)
            if number == 2:
                continue
            goal = SUBSET_GOAL if large and number == 3 and way != "old" else None
            name = {1: "first", 3: "third"}[number]
            case.figure(f"{name} subset", training + measuring, "s", goal)
            case.figure(f"{name} subset: of which training", training, "s")
        if large:
            rate, known = peak_rate(device)
            work = operations(lm, train, 3 * EPOCHS) + operations(lm, test, 1)
            case.figure(f"third subset: share of the {known} rate", 100 * work / (training + measuring) / rate, "%")
            case.figure("third subset: hours for 10,000 of them", (training + measuring) * 10_000 / 3600, "h")
    few = make(seed=1)[: 10 * BATCH]
    steps = EPOCHS * -(-len(few) // BATCH)
    _finetune(tuner, few, 0)
    seconds = timed(partial(_finetune, tuner, few, 0), device) / steps
    case.figure("a step", 1000 * seconds, "ms")
    if way == "old":
        _old["subset"] = seconds
    elif "subset" in _old:
        case.figure("a step: the old way takes", _old["subset"] / seconds, "times as long")
    if large:
        case.figure("peak of memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def _language_model(device: torch.device) -> PreTrainedModel:
    if device.type != "cuda":
        return copy.deepcopy(small_language_model(False))
    torch.manual_seed(0)
    with torch.device(device):
        # A model writes its attention into its config, which the next one must not start with.
        lm = Qwen2ForCausalLM(copy.deepcopy(QWEN_05B)).eval()
    lm.config.use_cache = False
    return lm


def _tuner(lm: PreTrainedModel, way: SubsetWay) -> Finetuner:
    precision = "bfloat16" if lm.device.type == "cuda" else "float32"
    if not use_packing(lm, precision, ATTENTION if way.varlen else BUCKETS):
        raise RuntimeError("the LM isn't packed")
    tuner = Finetuner(
        lm,
        learning_rate=1e-5,
        weight_decay=0.0,
        batch_examples=BATCH,
        epochs=EPOCHS,
        precision=precision,
        step_tokens=65_536,
        evaluation_tokens=65_536,
        bfloat16_weights=way.bfloat16_weights,
        compile=way.compiled,
        cuda_graphs=way.cuda_graphs,
    )
    if not way.fresh_gradients:
        clear = tuner.optimizer.zero_grad
        tuner.optimizer.zero_grad = lambda set_to_none=False: clear(set_to_none=False)
    return tuner


def _finetune(tuner: Finetuner, examples: list[TokenizedExample], seed: int) -> None:
    if not tuner.finetune(examples, seed):
        raise RuntimeError("the run diverged")


def operations(lm: PreTrainedModel, examples: list[TokenizedExample], passes: int) -> float:
    """Return the operations of matrix products in `passes` forward passes; a backward pass is two. Attention is left
    out, and the head is counted where it predicts a response token."""
    embedding = lm.get_input_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in lm.parameters() if parameter.ndim == 2) - embedding
    responses = sum(len(example.tokens) - example.prompt_tokens for example in examples)
    return 2.0 * passes * (body * total_tokens(examples) + embedding * responses)


@dataclass(frozen=True)
class StepWay:
    """How the encoder's training step runs; the values given here are the old way."""

    varlen: bool = False
    long_chunks: bool = False
    bfloat16_weights: bool = False
    compiled: bool = False


STEP_WAYS = {
    "old": StepWay(),
    "all": StepWay(*[True] * len(fields(StepWay))),
    "not_compiled": StepWay(varlen=True, long_chunks=True, bfloat16_weights=True),
    "autocast": StepWay(varlen=True, long_chunks=True, compiled=True),
    **{field.name: StepWay(**{field.name: True}) for field in fields(StepWay)},
}


def encoder_step(case: Case, device: torch.device, way: str) -> None:
    """Take a training step of GTE-small's shape: 32 subsets of 1,000 examples that don't overlap, 1,000 tests."""
    chosen, large = STEP_WAYS[way], device.type == "cuda"
    if chosen.compiled and not large:
        case.skip("compiled on a GPU alone")
        return
    subsets, size = (32, 1000) if large else (4, 6)
    encoder = random_encoder(GTE_SMALL if large else SMALL_BERT, 512, 30_522 if large else 200).to(device)
    encoder.transformer.set_attn_implementation(ATTENTION if chosen.varlen else BUCKETS)
    encoder.bfloat16_weights = chosen.bfloat16_weights and large
    if chosen.compiled:
        encoder.compile_layers()
    examples = encoder_examples((subsets + 1) * size, 200, 150 if large else 16, 6)
    tokens = dict(enumerate(examples))
    members = size + np.arange(subsets * size).reshape(subsets, size)
    step = Draw(np.arange(size), members, np.random.default_rng(0).standard_normal((subsets, size)))
    objective = Objective("attention", 0.1, 5.0, learned_scale=True).to(device)
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)
    precision = "bfloat16" if large else "float32"
    chunk_tokens = (65_536 if chosen.long_chunks else 16_384) if large else 64

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        backpropagate_step(encoder, objective, tokens, step, chunk_tokens, precision)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    if large:
        torch.cuda.reset_peak_memory_stats()
    case.figure("first step", timed(run, device), "s")
    seconds = timed(run, device)
    case.figure("second step", seconds, "s", STEP_GOAL if large and way == "all" else None)
    if way == "old":
        _old["step"] = seconds
    elif "step" in _old:
        case.figure("second step: the old way takes", _old["step"] / seconds, "times as long")
    if large:
        rate, known = peak_rate(device)
        body = sum(p.numel() for name, p in encoder.named_parameters() if p.ndim == 2 and "embeddings" not in name)
        # Forward and backward once: that caching gradients takes a second forward pass is our affair.
        work = 2.0 * 3 * body * int(token_counts(examples).sum())
        case.figure(f"second step: share of the {known} rate", 100 * work / seconds / rate, "%")
        case.figure("peak of memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def encoder_step_parts(case: Case, device: torch.device) -> None:
    """Take the same step apart: packing, the pass without a graph, loss and its gradient, the pass with one."""
    large = device.type == "cuda"
    subsets, size = (32, 1000) if large else (4, 6)
    encoder = random_encoder(GTE_SMALL if large else SMALL_BERT, 512, 30_522 if large else 200).to(device)
    encoder.transformer.set_attn_implementation(ATTENTION)
    if large:
        encoder.bfloat16_weights = True
        encoder.compile_layers()
    examples = encoder_examples((subsets + 1) * size, 200, 150 if large else 16, 6)
    chunks = list(token_budget(token_counts(examples), 65_536 if large else 64))
    precision = "bfloat16" if large else "float32"
    objective = Objective("attention", 0.1, 5.0, learned_scale=True).to(device)
    tests = torch.arange(size, device=device)
    members = size + torch.arange(subsets * size, device=device).reshape(subsets, size)
    labels = torch.randn(size, subsets, device=device)
    found: dict[str, list[torch.Tensor]] = {}

    def first_pass() -> None:
        with torch.no_grad():
            found["vectors"] = [encoder.embed(batch, precision) for batch in batches]

    def loss() -> None:
        embeddings = torch.cat(found["vectors"]).requires_grad_()
        objective(embeddings[tests], embeddings, members, labels).backward()
        found["gradients"] = list(embeddings.grad.split([len(chunk) for chunk in chunks]))

    def second_pass() -> None:
        for batch, gradient in zip(batches, found["gradients"], strict=True):
            encoder.embed(batch, precision).backward(gradient)

    batches = [encoder.pack([examples[i] for i in chunk]) for chunk in chunks]
    case.figure("packing", timed(lambda: [encoder.pack([examples[i] for i in c]) for c in chunks], device), "s")
    for name, part in (("first pass", first_pass), ("loss and gradient", loss), ("second pass", second_pass)):
        part()
        case.figure(name, timed(part, device), "s")


def embedding(case: Case, device: torch.device) -> None:
    """Embed texts of 128 tokens: tokenise, encode, and the whole stage from Parquet to Parquet."""
    large = device.type == "cuda"
    vocabulary, rows = (30_522, 65_536) if large else (2000, 64)
    encoder = random_encoder(GTE_SMALL if large else SMALL_BERT, 512, vocabulary).to(device)
    precision = "bfloat16" if large else "float32"
    responses = texts(rows, 128 if large else 24, 7)
    inputs = [(text,) for text in responses]
    found = []
    seconds = timed(lambda: found.append(encoder.tokenize(inputs)), device)
    tokens = found[0]
    case.figure("tokens a row", float(token_counts(tokens).mean()), "tokens")
    case.figure("tokenise", rows / seconds, "rows/s")
    encoder.encode(tokens[:256], 65_536, precision)
    case.figure("encode", rows / timed(lambda: encoder.encode(tokens, 65_536, precision), device), "rows/s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder.save(folder / "encoder")
        ids = pa.array(np.arange(rows, dtype=np.int32))
        hashes = [f"{number:016x}" for number in range(rows)]
        prompts = ["what follows"] * rows
        table = pa.table({"example_id": ids, "hash": hashes, "prompt": prompts, "response": responses})
        write_table(folder / "corpus.parquet", table)
        settings = {"prompt_words": 256, "max_tokens": 512, "embedding_precision": "float16", "precision": precision}
        stage = partial(embed_corpus, folder / "corpus.parquet", folder / "encoder", chunk_tokens=65_536, **settings)
        for name in ("first", "second"):
            seconds = timed(partial(stage, folder / f"{name}.parquet"), device)
        goal = EMBEDDING_GOAL if large else None
        case.figure("end to end, loading included", rows / seconds, "rows/s", goal, at_least=True)
