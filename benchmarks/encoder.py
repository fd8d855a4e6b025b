"""The encoder's training step and the embedding of a corpus, each beside the plain ways.

Training step: distinct examples encoded once and packed, beside the gradient-cached step that pads each subset
to its longest row and encodes every subset's examples again. Embedding: beside `SentenceTransformer.encode` of
the same folder, and beside padded batches in file order. Pages: a step of an encoder without layers, which moves
memory more than it computes, with and without huge pages for torch's tensors. Once: such a step on the embedded
corpus, as it computes the state of each token at each position once, beside the states of all tokens.
Run: python benchmarks/encoder.py [--model gte-small]  (the large one where a GPU is; else under five minutes)
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from harness import Timing, alternate, in_fresh_process, matrix_rate, precision, report
from lengths import flan_like_examples
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from workflow_scripts.corpora.builtin import mini_rows
from workflow_scripts.corpora.templates import EncoderText
from workflow_scripts.embeddings.embed_corpus import embed_share, tokenize_share
from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer
from workflow_scripts.encoder.initialization import random_projections
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import AttributionEncoder, EncoderTokens, token_counts
from workflow_scripts.encoder.objective import Objective, ranking_loss
from workflow_scripts.encoder.training import Draw, backpropagate_step

SHAPES = {
    "no layers": {"hidden_size": 384, "num_hidden_layers": 0, "intermediate_size": 1, "num_attention_heads": 1},
    "builtin:small": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 12},
    "gte-small": {"hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536, "num_attention_heads": 12},
}
VOCABULARY, DIMENSION, MAX_TOKENS = 4096, 384, 512
PLAIN_BATCH = 32


def make_encoder(shape: str, folder: str) -> None:
    """Write an encoder of this shape with random weights; its words are `w0`, `w1`, ..."""
    torch.manual_seed(0)
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    bert = BertModel(
        BertConfig(
            **SHAPES[shape],
            vocab_size=VOCABULARY,
            max_position_embeddings=MAX_TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    projection = random_projections(SHAPES[shape]["hidden_size"], DIMENSION, "joint", 0)
    AttributionEncoder(bert, fast, projection, MAX_TOKENS).save(Path(folder))


def corpus(examples: int) -> list[EncoderTokens]:
    """Return token arrays whose lengths are those of real instruction data."""
    return [(example.tokens.astype(np.int32),) for example in flan_like_examples(examples, VOCABULARY - 2, 3)]


def draw(pool: int, tests: int, subsets: int, size: int) -> Draw:
    """Draw subsets of a pool, as one training step sees them."""
    random = np.random.default_rng(0)
    members = np.stack([random.choice(pool, size, replace=False) for _ in range(subsets)])
    return Draw(np.arange(pool, pool + tests), members, random.standard_normal((subsets, tests)))


def fast_step(
    folder: str, pool: int, tests: int, subsets: int, size: int, chunk_tokens: int | None = None
) -> dict[str, Any]:
    """Time a training step as the stage runs it; return its timing, loss and gradient."""
    encoder = load_encoder(folder, MAX_TOKENS, precision=precision())
    tokens = dict(enumerate(corpus(pool + tests)))
    objective = Objective("attention", 0.1, 5.0, learned_scale=False).to(encoder.device)

    def run(step: Draw) -> float:
        encoder.zero_grad()
        loss = backpropagate_step(encoder, objective, tokens, step, chunk_tokens, precision())
        encoder.projections[0].weight.grad[0, 0].item()
        return loss

    return timed_step(encoder, run, draw(pool, tests, subsets, size), rounds=2)


def plain_step(folder: str, pool: int, tests: int, subsets: int, size: int) -> dict[str, Any]:
    """Time a gradient-cached step that encodes each subset again, padded to its longest row."""
    encoder = load_encoder(folder, MAX_TOKENS)
    encoder.transformer.set_attn_implementation("sdpa")
    tokens = corpus(pool + tests)

    def encode(rows: np.ndarray) -> torch.Tensor:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision() == "bfloat16"):
            return padded_embeddings(encoder, [tokens[i] for i in rows]).float()

    def run(step: Draw) -> float:
        encoder.zero_grad()
        groups = [step.tests, *step.members]
        labels = torch.from_numpy(step.labels.T.astype(np.float32)).to(encoder.device)
        with torch.no_grad():
            cached = [encode(rows) for rows in groups]
        leaves = [embeddings.requires_grad_() for embeddings in cached]
        scores = [leaves[0] @ leaf.T for leaf in leaves[1:]]
        group = torch.stack([(s.abs().softmax(-1) * s).sum(-1) for s in scores], dim=1)
        loss = ranking_loss(group, labels, 0.1, 5.0)
        loss.backward()
        for rows, leaf in zip(groups, leaves, strict=True):
            encode(rows).backward(leaf.grad)
        encoder.projections[0].weight.grad[0, 0].item()
        return loss.item()

    return timed_step(encoder, run, draw(pool, tests, subsets, size), rounds=1)


def timed_step(encoder: AttributionEncoder, run: Callable[[Draw], float], step: Draw, rounds: int) -> dict[str, Any]:
    """Time a step after a small one that warms up; return its timing, loss and gradient."""
    run(Draw(step.tests[:4], step.members[:3, :4], step.labels[:3, :4]))
    losses = []
    timing = alternate({"step": lambda: losses.append(run(step))}, rounds)["step"]
    gradients = [p.grad.reshape(-1) for p in encoder.parameters() if p.grad is not None]
    return {"timing": timing, "loss": losses[-1], "gradient": torch.cat(gradients).cpu().numpy()}


def padded_embeddings(encoder: AttributionEncoder, examples: list[EncoderTokens]) -> torch.Tensor:
    """Return embeddings of one padded batch, in the order given."""
    longest = max(len(tokens) for (tokens,) in examples)
    ids = np.zeros((len(examples), longest), np.int64)
    mask = np.zeros((len(examples), longest), np.int64)
    for row, (tokens,) in enumerate(examples):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    padded, present = (torch.from_numpy(array).to(encoder.device) for array in (ids, mask))
    states = encoder.transformer(input_ids=padded, attention_mask=present).last_hidden_state
    weights = present[:, :, None].to(states.dtype)
    return encoder.projections[0]((states * weights).sum(1) / weights.sum(1))


def fast_embedding(folder: str, examples: int) -> dict[str, Any]:
    """Time embedding as the stage does it."""
    encoder = load_encoder(folder, MAX_TOKENS, precision=precision())
    texts = sentences(examples)
    found: dict[str, np.ndarray] = {}

    def run(texts: list[str]) -> None:
        share = tokenize_share(encoder, [(text,) for text in texts])
        found["embeddings"] = embed_share(encoder, share, None, precision()).cpu().numpy()

    return timed_embedding(run, texts) | found


def library_embedding(folder: str, examples: int) -> dict[str, Any]:
    """Time `SentenceTransformer.encode`, which sorts by length."""
    library = SentenceTransformer(folder)
    if torch.cuda.is_available():
        library = library.bfloat16()
    texts = sentences(examples)
    found: dict[str, np.ndarray] = {}

    def run(texts: list[str]) -> None:
        found["embeddings"] = library.encode(texts, convert_to_tensor=True).float().cpu().numpy()

    return timed_embedding(run, texts) | found


def file_order_embedding(folder: str, examples: int) -> dict[str, Any]:
    """Time padded batches in the order of the file."""
    encoder = load_encoder(folder, MAX_TOKENS)
    encoder.transformer.set_attn_implementation("sdpa")
    texts = sentences(examples)

    @torch.inference_mode()
    def run(texts: list[str]) -> None:
        tokens = encoder.tokenize([(text,) for text in texts])
        for first in range(0, len(tokens), PLAIN_BATCH):
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision() == "bfloat16"):
                padded_embeddings(encoder, tokens[first : first + PLAIN_BATCH]).float().cpu().numpy()

    return timed_embedding(run, texts)


def timed_embedding(run: Callable[[list[str]], None], texts: list[str]) -> dict[str, Any]:
    """Time the embedding of `texts` after that of a few, which warms up."""
    run(texts[:8])
    return {"timing": alternate({"embedding": lambda: run(texts)}, 1)["embedding"]}


def sentences(examples: int) -> list[str]:
    return [" ".join(f"w{i}" for i in tokens + 2) for (tokens,) in corpus(examples)]


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Return the smallest cosine between rows of two arrays."""
    products = (left * right).sum(1)
    return float((products / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())


def operations_per_token(model: str) -> float:
    """Return the matrix operations of a forward pass; attention, the projection and padding left out."""
    shape = SHAPES[model]
    layer = 4 * shape["hidden_size"] ** 2 + 2 * shape["hidden_size"] * shape["intermediate_size"]
    return 2.0 * layer * shape["num_hidden_layers"]


def compared(ours: Timing, theirs: Timing) -> dict[str, float]:
    """Return how many times as fast ours is: by the clock, and by the time that the processor spent."""
    return {"ratio": theirs.seconds / ours.seconds, "cpu ratio": theirs.cpu_seconds / ours.cpu_seconds}


def step_row(model: str, folder: str, step: tuple[int, int, int, int], rate: float) -> dict[str, Any]:
    """Compare both ways of a training step."""
    ours, theirs = (in_fresh_process(way, folder, *step) for way in (fast_step, plain_step))
    drawn, lengths = draw(*step), token_counts(corpus(step[0] + step[1]))
    tokens = int(lengths[np.unique(np.concatenate([drawn.tests, drawn.members.ravel()]))].sum())
    seconds = ours["timing"].seconds
    return {
        "subsets x examples": f"{step[2]} x {step[3]}",
        "distinct tokens": tokens,
        "fast s": seconds,
        "plain s": theirs["timing"].seconds,
        **compared(ours["timing"], theirs["timing"]),
        "fast tokens/s": tokens / seconds,
        # Forward and backward once: that caching gradients takes a second forward pass is our affair.
        "share of matrix rate": 3 * tokens * operations_per_token(model) / seconds / rate,
        "fast MiB": ours["peak_mib"],
        "plain MiB": theirs["peak_mib"],
        "relative loss difference": abs(ours["loss"] / theirs["loss"] - 1),
        "relative gradient difference": float(
            np.linalg.norm(ours["gradient"] - theirs["gradient"]) / np.linalg.norm(theirs["gradient"])
        ),
    }


def page_rows(folder: str, step: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Compare a training step with and without huge pages, all examples in one pass."""
    rows = []
    for asked, pages in (("0", "as the system has them"), ("1", "huge")):
        taken = in_fresh_process(fast_step, folder, *step, 262_144, THP_MEM_ALLOC_ENABLE=asked)
        seconds, cpu_seconds = taken["timing"]
        rows.append(
            {"pages": pages, "s": seconds, "cpu s": cpu_seconds, "MiB": taken["peak_mib"], "loss": taken["loss"]}
        )
    return rows


def once_rows() -> dict[str, Any]:
    """Compare a step that computes each token at each position once with one that computes all; the embedded corpus."""
    rows = list(itertools.islice(mini_rows(), 1200))
    texts: list[EncoderText] = [(row["prompt"], row["response"]) for row in rows]
    encoder = small_encoder(wordpiece_tokenizer(texts, 1024), "split", 128, 128, 128, 0, 1)
    tokens, step = dict(enumerate(encoder.tokenize(texts))), draw(1000, 200, 24, 100)
    objective = Objective("attention", 0.1, 5.0, learned_scale=False)
    found: dict[bool, tuple[float, np.ndarray]] = {}

    def run(once: bool) -> None:
        encoder.zero_grad()
        with patch.object(AttributionEncoder, "_is_context_free", lambda _: once):
            loss = backpropagate_step(encoder, objective, tokens, step, 262_144, precision())
        gradients = [parameter.grad.reshape(-1) for parameter in encoder.parameters() if parameter.grad is not None]
        found[once] = loss, torch.cat(gradients).numpy()

    timings = alternate({"once": lambda: run(True), "all": lambda: run(False)}, 10)
    (loss, gradient), (own_loss, own_gradient) = found[True], found[False]
    return {
        "tokens": sum(len(part) for example in tokens.values() for part in example),
        "once s": timings["once"].seconds,
        "all s": timings["all"].seconds,
        **compared(timings["once"], timings["all"]),
        "relative loss difference": abs(loss / own_loss - 1),
        "relative gradient difference": float(np.linalg.norm(gradient - own_gradient) / np.linalg.norm(own_gradient)),
    }


def embedding_row(model: str, folder: str, examples: int, rate: float) -> dict[str, Any]:
    """Compare the three ways of embedding."""
    ours, library, plain = (
        in_fresh_process(way, folder, examples) for way in (fast_embedding, library_embedding, file_order_embedding)
    )
    tokens, seconds = int(token_counts(corpus(examples)).sum()), ours["timing"].seconds
    over_library, over_plain = (compared(ours["timing"], other["timing"]) for other in (library, plain))
    return {
        "examples": examples,
        "fast examples/s": examples / seconds,
        "over library": over_library["ratio"],
        "over library, cpu": over_library["cpu ratio"],
        "over file order": over_plain["ratio"],
        "over file order, cpu": over_plain["cpu ratio"],
        "fast tokens/s": tokens / seconds,
        "share of matrix rate": tokens * operations_per_token(model) / seconds / rate,
        "fast MiB": ours["peak_mib"],
        "library MiB": library["peak_mib"],
        "file order MiB": plain["peak_mib"],
        "smallest cosine to library": cosine(ours["embeddings"], library["embeddings"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, help="the shape of both (default: one that fits each)")
    parser.add_argument("--only", choices=["step", "embedding", "pages", "once"], help="one of the benchmarks")
    given = parser.parse_args()
    large = given.model == "gte-small"
    # (pool, tests, subsets, their examples): an eighth, a quarter, a half of the default study's step; or the paper's.
    steps = [(100_000, 1000, 32, 1000)] if large else [(125, 25, 24, 12), (250, 50, 24, 25), (500, 100, 24, 50)]
    sizes = [50_000] if large else [64, 128, 256]
    suffix = f"_{given.model.replace('-', '_')}" if given.model else ""
    rate = in_fresh_process(measured_rate)["rate"]
    facts = {"precision": precision(), "matrix_gflops": rate / 1e9}
    with tempfile.TemporaryDirectory() as folder:
        if given.only in (None, "step"):
            model = given.model or "builtin:small"
            make_encoder(model, f"{folder}/step")
            rows = [step_row(model, f"{folder}/step", step, rate) for step in steps]
            report(f"encoder_step{suffix}", rows, model=model, **facts)
        if given.only in (None, "embedding"):
            model = given.model or "minilm"
            make_encoder(model, f"{folder}/embedding")
            rows = [embedding_row(model, f"{folder}/embedding", size, rate) for size in sizes]
            report(f"embedding{suffix}", rows, model=model, **facts)
        if given.only in (None, "pages"):
            make_encoder("no layers", f"{folder}/pages")
            report("encoder_pages", page_rows(f"{folder}/pages", (1000, 200, 24, 100)), **facts)
        if given.only in (None, "once"):
            taken = in_fresh_process(once_rows, OMP_NUM_THREADS="1")
            report("encoder_once", [{name: value for name, value in taken.items() if name != "peak_mib"}], **facts)


def measured_rate() -> dict[str, float]:
    return {"rate": matrix_rate()}


if __name__ == "__main__":
    main()
