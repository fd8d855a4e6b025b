"""Where does the time go on a GPU: in which kernels, and where does the GPU wait for Python?

Prints a line a measurement, and writes tables of kernels and of Python functions to a folder. Sizes are those of
`benchmarks/gpu_acceptance.py`; without a GPU everything runs on the CPU at a tiny size. See docs/gpu.md.

Run: PYTHONPATH=. python benchmarks/gpu_profile.py --out FOLDER [--only subset,encoder,attention,optimizer,embedding]
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa
import torch
from gpu import speed
from gpu.data import GTE_SMALL, SMALL_BERT, encoder_examples, lengths, lm_examples, random_encoder, texts
from gpu.environment import timed
from torch.profiler import ProfilerActivity, profile

from workflow_scripts.core.parquet import write_table
from workflow_scripts.embeddings.embed_corpus import embed_corpus
from workflow_scripts.encoder.model import AttributionEncoder, token_counts
from workflow_scripts.encoder.objective import Objective
from workflow_scripts.encoder.training import Draw, backpropagate_step
from workflow_scripts.models import packing
from workflow_scripts.models.packing import ATTENTION, token_budget

REPEATS = 5


class Profile:
    """Measurements on one device, printed, and tables in a folder."""

    def __init__(self, device: torch.device, out: Path):
        self.device, self.out, self.large = device, out, device.type == "cuda"

    def say(self, what: str, value: float, unit: str) -> None:
        print(f"{what:<60} {value:>12,.3f} {unit}", flush=True)

    def seconds(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """Return the seconds of one call, after one that warms up."""
        work()
        return timed(lambda: [work() for _ in range(repeats)], self.device) / repeats

    def kernels(self, name: str, work: Callable[[], object]) -> None:
        """Write the table of kernels of one call, and say how long they take together."""
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.large else [])
        with profile(activities=activities) as found:
            timed(work, self.device)
        events = found.key_averages()
        order = "self_cuda_time_total" if self.large else "self_cpu_time_total"
        table = events.table(sort_by=order, row_limit=50, max_name_column_width=110)
        (self.out / f"{name}.kernels.txt").write_text(table)
        if self.large:
            self.say(f"{name}: all kernels", sum(event.self_device_time_total for event in events) / 1000, "ms")

    def functions(self, name: str, work: Callable[[], object]) -> None:
        """Write the table of Python functions of one call."""
        profiler = cProfile.Profile()
        profiler.runcall(timed, work, self.device)
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(40)
        (self.out / f"{name}.functions.txt").write_text(text.getvalue())


def subset(found: Profile) -> None:
    """Fine-tuning: a step, its parts, and the losses afterwards."""
    lm = speed._language_model(found.device)
    tuner = speed._tuner(lm, speed.SUBSET_WAYS["all" if found.large else "not_compiled"])
    examples = lm_examples(320 if found.large else 40, lm.config.vocab_size, 150 if found.large else 16, seed=1)
    run = partial(speed._finetune, tuner, examples, 0)
    steps = speed.EPOCHS * -(-len(examples) // speed.BATCH)
    found.say("subset: a step", 1000 * found.seconds(run, 2) / steps, "ms")
    found.kernels("subset", run)
    batch = examples[: speed.BATCH]
    tuner._accumulate(batch, 65_536)
    for name, part in {
        "forward and backward": lambda: tuner._accumulate(batch, 65_536),
        "AdamW": tuner.optimizer.step,
        "copy of the weights": tuner._renew_copy,
        "reset": tuner.reset,
    }.items():
        found.say(f"subset: {name}", 1000 * found.seconds(part), "ms")
    tests = lm_examples(1000 if found.large else 20, lm.config.vocab_size, 150 if found.large else 16, seed=9)
    found.say("subset: losses of 1,000 examples", found.seconds(partial(tuner.losses, tests), 1), "s")
    found.kernels("losses", partial(tuner.losses, tests))


def optimizer(found: Profile) -> None:
    """AdamW on one flat tensor: PyTorch's, and compiled together with the copies to and from bfloat16."""
    numbers = 494_000_000 if found.large else 10_000
    weights, first, second = (torch.zeros(numbers, device=found.device) for _ in range(3))
    gradient = torch.randn(numbers, device=found.device, dtype=torch.bfloat16)
    copy, step = torch.zeros_like(gradient), torch.ones((), device=found.device)

    def update() -> None:
        wide = gradient.float()
        first.lerp_(wide, 0.1)
        second.mul_(0.999).addcmul_(wide, wide, value=0.001)
        spread = (second.sqrt() / (1 - 0.999**step).sqrt()).add_(1e-8)
        weights.sub_(1e-5 / (1 - 0.9**step) * first / spread)
        copy.copy_(weights)

    if found.large:
        found.say("optimizer: compiled, copies included", 1000 * found.seconds(torch.compile(update)), "ms")
    parameter = torch.zeros(numbers, device=found.device, requires_grad=True)
    parameter.grad = gradient.float()
    adamw = torch.optim.AdamW([parameter], lr=1e-5, fused=True)
    found.say("optimizer: PyTorch's, fused", 1000 * found.seconds(adamw.step), "ms")
    found.say("optimizer: a gradient to float32", 1000 * found.seconds(lambda: parameter.grad.copy_(gradient)), "ms")


def attention(found: Profile) -> None:
    """Attention of variable length at several head sizes, forward, and with its backward pass."""
    if packing.varlen_attn is None or not found.large:
        return
    own = np.sort(lengths(440, 150, 3))
    ends = torch.from_numpy(np.append(0, np.cumsum(own)).astype(np.int32)).to(found.device)
    longest = int(own.max())
    for heads, size, causal in ((12, 32, False), (12, 64, False), (6, 64, False), (14, 64, True)):
        shape = (int(own.sum()), heads, size)
        query, key, value = (
            torch.randn(shape, device=found.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
        )
        window = (-1, 0 if causal else -1)
        attend = partial(packing.varlen_attn, query, key, value, ends, ends, longest, longest, window_size=window)
        gradient = torch.randn_like(attend())
        name = f"attention: {heads} heads of {size}{', causal' if causal else ''}, {shape[0]:,} tokens"
        found.say(f"{name}: forward", 1000 * found.seconds(attend), "ms")
        found.say(f"{name}: both", 1000 * found.seconds(partial(_both, attend, gradient)), "ms")


def _both(attend: Callable[[], torch.Tensor], gradient: torch.Tensor) -> None:
    attend().backward(gradient)


def encoder(found: Profile) -> None:
    """The encoder's training step: a chunk with weights in bfloat16 and by autocast, then the whole."""
    subsets, size = (32, 1000) if found.large else (4, 6)
    examples = encoder_examples((subsets + 1) * size, 200, 150 if found.large else 16, 6)
    chunks = list(token_budget(token_counts(examples), 65_536 if found.large else 64))
    precision = "bfloat16" if found.large else "float32"
    for name, narrow in (("autocast", False), ("bfloat16", True)):
        torch._dynamo.reset()
        model = _encoder(found, 30_522 if found.large else 200)
        model.transformer.set_attn_implementation(ATTENTION)
        model.bfloat16_weights = narrow and found.large
        if found.large:
            model.compile_layers()
        batch = model.pack([examples[i] for i in chunks[len(chunks) // 2]])

        def both(model: AttributionEncoder = model, batch: packing.PackedBatch = batch) -> None:
            vectors = model.embed(batch, precision)
            vectors.backward(torch.ones_like(vectors))

        found.say(f"encoder, {name}: forward and backward of a chunk", 1000 * found.seconds(both), "ms")
        found.kernels(f"encoder_{name}", both)
    members = size + np.arange(subsets * size).reshape(subsets, size)
    draw = Draw(np.arange(size), members, np.random.default_rng(0).standard_normal((subsets, size)))
    objective = Objective("attention", 0.1, 5.0, learned_scale=True).to(found.device)
    tokens = dict(enumerate(examples))
    chunk_tokens = 65_536 if found.large else 64
    step = partial(backpropagate_step, model, objective, tokens, draw, chunk_tokens, precision)
    for number in (1, 2):
        model.zero_grad(set_to_none=True)
        found.say(f"encoder: whole step, number {number}", timed(step, found.device), "s")
    if found.large:
        memory = torch.cuda.memory_stats()
        found.say("encoder: allocations that were tried again", memory["num_alloc_retries"], "")
        found.say("encoder: calls of cudaMalloc", memory["num_device_alloc"], "")
    found.functions("encoder_step", step)


def embedding(found: Profile) -> None:
    """Embedding: tokens, forward passes in three ways, and the whole stage."""
    rows = 16_384 if found.large else 64
    vocabulary = 30_522 if found.large else 2000
    model = _encoder(found, vocabulary)
    precision = "bfloat16" if found.large else "float32"
    responses = texts(rows, 128 if found.large else 24, 7)
    inputs = [(text,) for text in responses]
    encode_batch = model.tokenizer.backend_tokenizer.encode_batch_fast
    found.say("embedding: tokenise", rows / found.seconds(lambda: model.tokenize(inputs), 1), "rows/s")
    found.say("embedding: the tokenizer alone", rows / found.seconds(lambda: encode_batch(responses), 1), "rows/s")
    tokens = model.tokenize(inputs)
    packed = model.use_packing(precision)
    found.say("embedding: packed", float(packed), "")
    for chunk_tokens in (16_384, 65_536, 131_072):
        seconds = found.seconds(partial(model.encode, tokens, chunk_tokens, precision), 1)
        found.say(f"embedding: encode, chunks of {chunk_tokens:,}", rows / seconds, "rows/s")
    model.bfloat16_weights = found.large
    found.say(
        "embedding: encode, narrow weights",
        rows / found.seconds(partial(model.encode, tokens, 65_536, precision), 1),
        "rows/s",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _encoder(found, vocabulary).save(folder / "encoder")
        columns = {"hash": [f"{row:016x}" for row in range(rows)], "prompt": ["what follows"] * rows}
        ids = pa.array(np.arange(rows, dtype=np.int32))
        write_table(folder / "corpus.parquet", pa.table({"example_id": ids, **columns, "response": responses}))
        settings = {"prompt_words": 256, "max_tokens": 512, "embedding_precision": "float16", "precision": precision}
        stage = partial(embed_corpus, folder / "corpus.parquet", folder / "encoder", chunk_tokens=65_536, **settings)
        stage(folder / "first.parquet")
        seconds = timed(partial(stage, folder / "second.parquet"), found.device)
        found.say("embedding: the stage, loading included", rows / seconds, "rows/s")
        found.functions("embed_corpus", partial(stage, folder / "third.parquet"))


def _encoder(found: Profile, vocabulary: int) -> AttributionEncoder:
    return random_encoder(GTE_SMALL if found.large else SMALL_BERT, 512, vocabulary).to(found.device)


PARTS = {part.__name__: part for part in (subset, encoder, attention, optimizer, embedding)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, of {','.join(PARTS)}")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = Profile(torch.device("cuda" if torch.cuda.is_available() else "cpu"), given.out)
    for name in given.only.split(","):
        PARTS[name](found)


if __name__ == "__main__":
    main()
