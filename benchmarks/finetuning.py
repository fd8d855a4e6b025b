"""Fine-tuning and evaluating one subset: the workflow's way beside the way most people would write.

Both ways train the same LM on the same batches in the same order, and their losses are compared.
Run: python benchmarks/finetuning.py [--model qwen2.5-0.5b --examples 1000]  (the large one where a GPU is)
     python benchmarks/finetuning.py --study results/mini  (its LM and its rows)
Each choice for GPUs can be timed alone: `--attention packed_buckets`, `--autocast`, `--compile`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from harness import in_fresh_process, matrix_rate, precision, report
from lengths import flan_like_examples
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model, packed_logits, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.models.device import best_device
from workflow_scripts.models.packing import ATTENTION, BUCKETS

BATCH, EPOCHS, LEARNING_RATE = 32, 2, 1e-3
MODELS = {
    "builtin:tiny": {
        "vocab_size": 2048,
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}


def make_model(name: str, folder: str) -> None:
    """Write an LM of this shape with random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(**MODELS[name], max_position_embeddings=1024, tie_word_embeddings=True)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def max_batch_tokens() -> int:
    """Return the tokens of one forward pass on this machine."""
    return 65_536 if torch.cuda.is_available() else 4096


def make_tuner(lm: PreTrainedModel, **choices: bool | None) -> Finetuner:
    """Return the workflow's own way to fine-tune `lm`; `choices` are those of `Finetuner` that change no result."""
    return Finetuner(
        lm,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        batch_examples=BATCH,
        epochs=EPOCHS,
        precision=precision(),
        step_tokens=max_batch_tokens(),
        evaluation_tokens=max_batch_tokens(),
        **choices,
    )


def drawn_examples(folder: str, examples: int) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
    """Return what is trained on and what is evaluated: rows of the LM's study, or made-up ones of real lengths."""
    study = Path(folder).parent
    if (study / "config.resolved.yaml").exists():
        corpus = yaml.safe_load((study / "config.resolved.yaml").read_text(encoding="utf-8"))["targets"]["corpus"]
        rows = list(read_examples(study / "tokens" / f"{corpus}.parquet").values())
        if len(rows) < 2 * examples:
            raise SystemExit(f"{study} has {len(rows):,} rows of {corpus}; --examples {examples} needs twice as many.")
        return rows[:examples], rows[examples : 2 * examples]
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    return flan_like_examples(examples, vocabulary, 1), flan_like_examples(examples, vocabulary, 2)


def fast(
    folder: str,
    examples: int,
    runs: int,
    attention: str,
    choices: dict[str, bool | None],
    own_forward: bool = False,
) -> dict[str, Any]:
    """Fine-tune and evaluate `runs` subsets as the stage does; the LM is loaded once.

    With `own_forward`, by the LM's own forward pass where the stage has a faster one.
    """
    train, test = drawn_examples(folder, examples)
    lm = load_language_model(folder, precision=precision())
    if attention != ATTENTION:
        use_packing(lm, precision(), attention)
    tuner = make_tuner(lm, **choices)
    if own_forward:
        tuner.logits = packed_logits
    tuner.finetune(train[:BATCH], 0)  # warm-up
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        tuner.finetune(train, 0)
        losses = tuner.losses(test)
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "losses": losses}


def plain(folder: str, examples: int, runs: int) -> dict[str, Any]:
    """The plain way: the LM is loaded again, batches are padded, logits are computed for every token."""
    train, test = drawn_examples(folder, examples)
    device = best_device()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        optimizer = torch.optim.AdamW(lm.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        rng = generator(0)
        for _ in range(EPOCHS):
            order = rng.permutation(len(train))
            for first in range(0, len(order), BATCH):
                batch = padded([train[i] for i in order[first : first + BATCH]], device)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bfloat16"):
                    loss = lm(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        losses = []
        with torch.no_grad():
            for first in range(0, len(test), BATCH):
                batch = padded(test[first : first + BATCH], device)
                labels = batch.pop("labels")[:, 1:]
                with torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bfloat16"):
                    logits = lm(**batch).logits[:, :-1].float()
                tokens = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
                losses.append(tokens.sum(1) / (labels != -100).sum(1))
        losses = torch.cat(losses).cpu().numpy()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "losses": losses}


def padded(examples: Sequence[TokenizedExample], device: torch.device) -> dict[str, torch.Tensor]:
    """Return a batch in the order given, padded on the right to its longest row."""
    longest = max(len(example.tokens) for example in examples)
    tokens = np.zeros((len(examples), longest), np.int64)
    labels = np.full((len(examples), longest), -100, np.int64)
    mask = np.zeros((len(examples), longest), np.int64)
    for row, example in enumerate(examples):
        length = len(example.tokens)
        tokens[row, :length], mask[row, :length] = example.tokens, 1
        labels[row, example.prompt_tokens : length] = example.tokens[example.prompt_tokens :]
    arrays = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def operations(folder: str, examples: int) -> tuple[float, int]:
    """Return the matrix operations that one subset needs, and its tokens; attention and padding left out."""
    shape = AutoConfig.from_pretrained(folder)
    head = shape.hidden_size // shape.num_attention_heads
    width = (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads) * head
    layer = shape.hidden_size * (width + 3 * shape.intermediate_size)
    body = 2 * layer * shape.num_hidden_layers
    output = 2 * shape.hidden_size * shape.vocab_size
    totals = []
    for drawn in drawn_examples(folder, examples):
        tokens = sum(len(example.tokens) for example in drawn)
        responses = sum(len(example.tokens) - example.prompt_tokens for example in drawn)
        totals.append((tokens, tokens * body + responses * output))
    (train_tokens, train), (test_tokens, test) = totals
    return 3 * EPOCHS * train + test, EPOCHS * train_tokens + test_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="builtin:tiny")
    parser.add_argument("--study", type=Path, help="folder of a study that has made its LM and tokens")
    parser.add_argument("--examples", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--attention", choices=[ATTENTION, BUCKETS], default=ATTENTION)
    parser.add_argument("--autocast", action="store_true", help="in bfloat16, without a copy of the weights")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.study and not (arguments.study / "targets" / "train.parquet").exists():
        parser.error(f"{arguments.study} has no targets; name the results of a finished study that trains an encoder")
    choices = {"bfloat16_weights": False if arguments.autocast else None, "compile": arguments.compile}
    rows = []
    rate = matrix_rate()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(arguments.study / "language_model" if arguments.study else Path(temporary) / "made")
        if not arguments.study:
            make_model(arguments.model, folder)
        for examples in arguments.examples:
            work = (folder, examples, arguments.runs)
            ours = in_fresh_process(fast, *work, arguments.attention, choices)
            own = in_fresh_process(fast, *work, arguments.attention, choices, True)
            theirs = in_fresh_process(plain, *work)
            needed, tokens = operations(folder, examples)
            rows.append(
                {
                    "examples": examples,
                    "fast s": ours["seconds"],
                    "own forward s": own["seconds"],
                    "plain s": theirs["seconds"],
                    "ratio": theirs["seconds"] / ours["seconds"],
                    "ratio to own forward": own["seconds"] / ours["seconds"],
                    "fast tokens/s": tokens / ours["seconds"],
                    "share of matrix rate": needed / ours["seconds"] / rate,
                    "fast MiB": ours["peak_mib"],
                    "plain MiB": theirs["peak_mib"],
                    "largest difference": max(
                        float(np.abs(ours["losses"] - other["losses"]).max()) for other in (own, theirs)
                    ),
                }
            )
    model = arguments.study.name if arguments.study else arguments.model
    report(
        "finetuning" if model == "builtin:tiny" else f"finetuning_{Path(model).name}",
        rows,
        model=model,
        precision=precision(),
        attention=arguments.attention,
        **choices,
        matrix_gflops=rate / 1e9,
        hours_for_10000_subsets=rows[-1]["fast s"] * 10_000 / 3600,
    )


if __name__ == "__main__":
    main()
