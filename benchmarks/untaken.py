"""Ways to fine-tune that the workflow does not take, each beside its own way, so that the choice can be checked.

- stacked: several LMs of the same shape are trained at once, their weights stacked (`torch.func`).
- compiled: the LM is compiled for lengths that change (`torch.compile`); what compiling takes is told apart.
- fused head: the LM head and the cross-entropy in one function that keeps no logits.

All ways train the same LMs on the same subsets in the same order, and their losses are compared.
Run: python benchmarks/untaken.py [--model qwen2.5-0.5b --examples 1000 --models 2]  (the large one where a GPU is)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from finetuning import BATCH, EPOCHS, LEARNING_RATE, MODELS, make_model, make_tuner, max_batch_tokens
from harness import in_fresh_process, precision, report
from lengths import flan_like_examples
from transformers import AutoModelForCausalLM, PreTrainedModel

from workflow_scripts.language_model import finetuner as engine
from workflow_scripts.language_model import losses as language_model
from workflow_scripts.language_model.losses import load_language_model, packed_logits
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import autocast, best_device, to_device
from workflow_scripts.models.packing import token_budget

# Rows of a stacked batch that are padded to one length: a batch is cut into so many, by length.
BUCKETS = 4


def subsets(examples: int, vocabulary: int, models: int) -> list[list[TokenizedExample]]:
    return [flan_like_examples(examples, vocabulary, 10 + number) for number in range(models)]


def one_by_one(folder: str, vocabulary: int, examples: int, models: int, change: str = "none") -> dict[str, Any]:
    """Fine-tune and evaluate each subset after the other by the LM's own forward pass; `change` is what is tried."""
    test = flan_like_examples(examples, vocabulary, 2)
    lm = load_language_model(folder)
    if change == "compiled":
        lm.model = torch.compile(lm.model, dynamic=True)
    if change == "fused head":
        # Training and evaluation name it by a module each.
        engine.summed_losses = language_model.summed_losses = fused_losses
    tuner = make_tuner(lm)
    # What is tried changes the LM's own forward pass, or takes its place.
    tuner.logits = packed_logits

    def work() -> list[np.ndarray]:
        losses = []
        for train in subsets(examples, vocabulary, models):
            tuner.finetune(train, 0)
            losses.append(tuner.losses(test))
        return losses

    return timed(work)


def fused_losses(
    lm: PreTrainedModel, examples: Sequence[TokenizedExample], logits: object = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `language_model.summed_losses`, with PyTorch's own function for head and cross-entropy instead of `logits`."""
    batch = language_model.pack([example.tokens for example in examples], lm.device)
    responses = language_model.response_positions(batch.order, examples)
    places, owner, counts = (to_device(array, lm.device) for array in responses)
    states = lm.model(input_ids=batch.tokens, position_ids=batch.positions, packing=batch, use_cache=False)
    hidden = states.last_hidden_state[0, places - 1]
    token_losses = F.linear_cross_entropy(hidden, lm.lm_head.weight, batch.tokens[0, places], reduction="none")
    return torch.zeros(len(examples), device=lm.device).index_add(0, owner, token_losses.float()), counts


def stacked(folder: str, vocabulary: int, examples: int, models: int) -> dict[str, Any]:
    """Fine-tune and evaluate all subsets at once: every tensor has one more dimension, the models."""
    test = flan_like_examples(examples, vocabulary, 2)
    device = best_device()
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    lm.to(device).eval()
    base = {name: weight.detach() for name, weight in lm.named_parameters()}
    head = "lm_head.weight" if "lm_head.weight" in base else "model.embed_tokens.weight"

    def row_losses(weights: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the summed losses of a model's rows [rows]; head and loss read response tokens alone."""
        arguments = {"input_ids": batch["tokens"], "attention_mask": batch["mask"], "logits_to_keep": 1}
        arguments |= {"position_ids": batch["positions"], "use_cache": False, "output_hidden_states": True}
        states = torch.func.functional_call(lm, weights, kwargs=arguments).hidden_states[-1]
        kept = torch.take_along_dim(states, batch["places"][..., None], dim=1)
        logits = F.linear(kept, weights[head])
        losses = F.cross_entropy(logits.float().transpose(1, 2), batch["answers"], reduction="none", ignore_index=-100)
        return losses.sum(1)

    def work() -> list[np.ndarray]:
        weights = {name: torch.stack([weight] * models).requires_grad_() for name, weight in base.items()}
        optimizer = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        train = subsets(examples, vocabulary, models)
        for step in engine.batches(examples, BATCH, EPOCHS, 0):
            rows = [sorted((one[i] for i in step), key=lambda row: len(row.tokens)) for one in train]
            counts = [sum(len(row.tokens) - row.prompt_tokens for row in one) for one in rows]
            counts = torch.tensor(counts, device=device)
            optimizer.zero_grad()
            for part in np.array_split(np.arange(len(step)), BUCKETS):
                batch = rectangle([[one[i] for i in part] for one in rows], device)
                with autocast(device, precision()):
                    losses = torch.vmap(row_losses)(weights, batch)
                (losses.sum(1) / counts).sum().backward()
            optimizer.step()
        losses = np.empty((models, examples), np.float32)
        lengths = np.array([len(row.tokens) for row in test])
        with torch.no_grad():
            for chosen in token_budget(lengths, max_batch_tokens() // models):
                rows = [test[i] for i in chosen]
                batch = rectangle([rows] * models, device)
                counts = np.array([len(row.tokens) - row.prompt_tokens for row in rows])
                with autocast(device, precision()):
                    losses[:, chosen] = torch.vmap(row_losses)(weights, batch).cpu().numpy() / counts
        return list(losses)

    return timed(work)


def rectangle(rows: Sequence[Sequence[TokenizedExample]], device: torch.device) -> dict[str, torch.Tensor]:
    """Return batches of all models padded to one length: tensors [models, rows, ...]."""
    flat = [row for one in rows for row in one]
    longest = max(len(row.tokens) for row in flat)
    most = max(len(row.tokens) - row.prompt_tokens for row in flat)
    tokens = np.zeros((len(flat), longest), np.int64)
    places = np.zeros((len(flat), most), np.int64)
    answers = np.full((len(flat), most), -100, np.int64)
    for number, row in enumerate(flat):
        length, answer = len(row.tokens), row.tokens[row.prompt_tokens :]
        tokens[number, :length] = row.tokens
        places[number, : len(answer)] = np.arange(row.prompt_tokens - 1, length - 1)
        answers[number, : len(answer)] = answer
    # Padding stands at the end, so a causal mask alone keeps it out of sight of real tokens.
    future = torch.full((longest, longest), torch.finfo(torch.float32).min, device=device).triu(1)
    shape = (len(rows), len(rows[0]))
    made = {
        name: torch.from_numpy(array).to(device).unflatten(0, shape)
        for name, array in {"tokens": tokens, "places": places, "answers": answers}.items()
    }
    made["mask"] = future.expand(*shape, 1, longest, longest)
    made["positions"] = torch.arange(longest, device=device).expand(*shape, longest)
    return made


def timed(work: Any) -> dict[str, Any]:
    """Run `work` twice: the first time compiles and fills caches, the second time counts."""
    seconds, processor = [], []
    for _ in range(2):
        start, processor_start = time.perf_counter(), time.process_time()
        losses = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - processor_start)
    return {"first": seconds[0], "seconds": seconds[1], "processor": processor[1], "losses": np.stack(losses)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="builtin:tiny")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--models", type=int, default=8)
    given = parser.parse_args()
    size = (MODELS[given.model]["vocab_size"], given.examples, given.models)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(given.model, folder)
        own = in_fresh_process(one_by_one, folder, *size)
        ways = {
            "one by one": own,
            "stacked": in_fresh_process(stacked, folder, *size),
            "compiled": in_fresh_process(one_by_one, folder, *size, "compiled"),
            "fused head": in_fresh_process(one_by_one, folder, *size, "fused head"),
        }
    for name, way in ways.items():
        rows.append(
            {
                "way": name,
                "s a subset": way["seconds"] / given.models,
                "processor s": way["processor"] / given.models,
                "the first time": way["first"] / given.models,
                "times the speed": own["seconds"] / way["seconds"],
                "by processor time": own["processor"] / way["processor"],
                "MiB": way["peak_mib"],
                "largest difference": float(np.abs(way["losses"] - own["losses"]).max()),
            }
        )
    report("untaken", rows, model=given.model, models=given.models, examples=given.examples, precision=precision())


if __name__ == "__main__":
    main()
