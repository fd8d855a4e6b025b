"""The encoder's training step and the embedding of a corpus, each beside the plain ways.

Training step: distinct examples encoded once and packed, beside the gradient-cached step that pads each subset
to its longest row and encodes every subset's examples anew. Embedding: beside `SentenceTransformer.encode` of
the same folder, and beside padded batches in file order.
Run: python benchmarks/encoder.py [--model gte-small]  (the large one where a GPU is)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import alternate, in_fresh_process, report
from lengths import flan_like_examples
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from workflow_scripts.lib.encoder import AttributionEncoder, EncoderTokens, load_encoder, random_projections
from workflow_scripts.lib.encoder_training import Draw, Objective, backpropagate_step
from workflow_scripts.lib.ranking import ranking_loss

SHAPES = {
    "builtin:small": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4},
    "gte-small": {"hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536, "num_attention_heads": 12},
}
VOCABULARY, DIMENSION, MOST_TOKENS = 4096, 384, 512
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
            max_position_embeddings=MOST_TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    projection = random_projections(SHAPES[shape]["hidden_size"], DIMENSION, "joint", 0)
    AttributionEncoder(bert, fast, projection, MOST_TOKENS).save(Path(folder))


def corpus(examples: int) -> list[EncoderTokens]:
    """Return token arrays whose lengths are those of real instruction data."""
    return [(example.tokens.astype(np.int32),) for example in flan_like_examples(examples, VOCABULARY - 2, 3)]


def precision() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def draw(pool: int, tests: int, subsets: int, size: int) -> Draw:
    """Draw subsets of a pool, as one training step sees them."""
    random = np.random.default_rng(0)
    members = np.stack([random.choice(pool, size, replace=False) for _ in range(subsets)])
    return Draw(np.arange(pool, pool + tests), members, random.standard_normal((subsets, tests)))


def fast_step(folder: str, pool: int, tests: int, subsets: int, size: int) -> dict[str, Any]:
    """Time a training step as the stage runs it; return its seconds and the projection's gradient."""
    encoder, step = load_encoder(folder, MOST_TOKENS), draw(pool, tests, subsets, size)
    tokens = dict(enumerate(corpus(pool + tests)))
    objective = Objective("attention", 0.1, 5.0, learned_scale=False).to(encoder.device)

    def run() -> None:
        encoder.zero_grad()
        backpropagate_step(encoder, objective, tokens, step, 16_384, precision())
        encoder.projections[0].weight.grad[0, 0].item()

    run()
    seconds = alternate({"fast": run}, 3)["fast"].seconds
    return {"seconds": seconds, "gradient": encoder.projections[0].weight.grad.cpu().numpy()}


def plain_step(folder: str, pool: int, tests: int, subsets: int, size: int) -> dict[str, Any]:
    """Time a gradient-cached step that encodes each subset anew, padded to its longest row."""
    encoder, step = load_encoder(folder, MOST_TOKENS), draw(pool, tests, subsets, size)
    encoder.transformer.set_attn_implementation("sdpa")
    tokens = corpus(pool + tests)
    labels = torch.from_numpy(step.labels.T.astype(np.float32)).to(encoder.device)
    groups = [step.tests, *step.members]

    def encode(rows: np.ndarray) -> torch.Tensor:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision() == "bfloat16"):
            return padded_embeddings(encoder, [tokens[i] for i in rows]).float()

    def run() -> None:
        encoder.zero_grad()
        with torch.no_grad():
            cached = [encode(rows) for rows in groups]
        leaves = [embeddings.requires_grad_() for embeddings in cached]
        scores = [leaves[0] @ leaf.T for leaf in leaves[1:]]
        group = torch.stack([(s.abs().softmax(-1) * s).sum(-1) for s in scores], dim=1)
        ranking_loss(group, labels, 0.1, 5.0).backward()
        for rows, leaf in zip(groups, leaves, strict=True):
            encode(rows).backward(leaf.grad)
        encoder.projections[0].weight.grad[0, 0].item()

    run()
    seconds = alternate({"plain": run}, 2)["plain"].seconds
    return {"seconds": seconds, "gradient": encoder.projections[0].weight.grad.cpu().numpy()}


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
    encoder = load_encoder(folder, MOST_TOKENS)
    texts = sentences(examples)
    found: dict[str, np.ndarray] = {}

    def run() -> None:
        found["embeddings"] = encoder.encode(encoder.tokenize([(text,) for text in texts]), 16_384, precision())

    return {"seconds": alternate({"fast": run}, 3)["fast"].seconds, "embeddings": found["embeddings"]}


def library_embedding(folder: str, examples: int) -> dict[str, Any]:
    """Time `SentenceTransformer.encode`, which sorts by length."""
    library = SentenceTransformer(folder)
    if torch.cuda.is_available():
        library = library.bfloat16()
    texts = sentences(examples)
    found: dict[str, np.ndarray] = {}

    def run() -> None:
        found["embeddings"] = library.encode(texts, convert_to_tensor=True).float().cpu().numpy()

    return {"seconds": alternate({"library": run}, 2)["library"].seconds, "embeddings": found["embeddings"]}


def file_order_embedding(folder: str, examples: int) -> dict[str, Any]:
    """Time padded batches in the order of the file."""
    encoder = load_encoder(folder, MOST_TOKENS)
    encoder.transformer.set_attn_implementation("sdpa")
    texts = sentences(examples)

    @torch.inference_mode()
    def run() -> None:
        tokens = encoder.tokenize([(text,) for text in texts])
        for first in range(0, len(tokens), PLAIN_BATCH):
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision() == "bfloat16"):
                padded_embeddings(encoder, tokens[first : first + PLAIN_BATCH]).float().cpu().numpy()

    return {"seconds": alternate({"file order": run}, 2)["file order"].seconds}


def sentences(examples: int) -> list[str]:
    return [" ".join(f"w{i}" for i in tokens + 2) for (tokens,) in corpus(examples)]


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Return the smallest cosine between rows of two arrays."""
    products = (left * right).sum(1)
    return float((products / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="builtin:small")
    model = parser.parse_args().model
    large = model != "builtin:small"
    # (pool, tests, subsets, examples of a subset): a step of the default study, half and twice of it, or the paper's.
    steps = [(100_000, 1000, 32, 1000)] if large else [(500, 100, 12, 50), (1000, 200, 24, 100), (2000, 200, 24, 200)]
    sizes = [50_000] if large else [1000, 2000, 4000]
    with tempfile.TemporaryDirectory() as folder:
        make_encoder(model, folder)
        rows = []
        for step in steps:
            ours, theirs = (in_fresh_process(way, folder, *step) for way in (fast_step, plain_step))
            difference = np.abs(ours["gradient"] - theirs["gradient"]).max() / np.abs(theirs["gradient"]).max()
            rows.append(
                {
                    "subsets x examples": f"{step[2]} x {step[3]}",
                    "fast s": ours["seconds"],
                    "plain s": theirs["seconds"],
                    "ratio": theirs["seconds"] / ours["seconds"],
                    "fast MiB": ours["peak_mib"],
                    "plain MiB": theirs["peak_mib"],
                    "relative gradient difference": float(difference),
                }
            )
        suffix = "_gte_small" if large else ""
        report(f"encoder_step{suffix}", rows, model=model, precision=precision())
        rows = []
        for size in sizes:
            ours = in_fresh_process(fast_embedding, folder, size)
            library = in_fresh_process(library_embedding, folder, size)
            plain = in_fresh_process(file_order_embedding, folder, size)
            rows.append(
                {
                    "examples": size,
                    "fast examples/s": size / ours["seconds"],
                    "library examples/s": size / library["seconds"],
                    "file order examples/s": size / plain["seconds"],
                    "over library": library["seconds"] / ours["seconds"],
                    "over file order": plain["seconds"] / ours["seconds"],
                    "fast MiB": ours["peak_mib"],
                    "library MiB": library["peak_mib"],
                    "smallest cosine to library": cosine(ours["embeddings"], library["embeddings"]),
                }
            )
        report(f"embedding{suffix}", rows, model=model, precision=precision())


if __name__ == "__main__":
    main()
