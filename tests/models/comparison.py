"""How far losses, gradients and embeddings are from those of plain transformers, one text at a time."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from families import ENCODERS, LANGUAGE_MODELS, LIMIT, VOCABULARY, tiny_model
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from workflow_scripts.core.errors import StudyError
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.language_model.losses import evaluate, example_losses, load_language_model
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.sharing import apart_from

# Like and unlike, on both sides of every limit, not sorted.
LENGTHS = [90, 12, LIMIT, 55, LIMIT + 1, 56, 5, 55, LIMIT - 1, 23]


@dataclass(frozen=True)
class Compared:
    """How an LM is read, and how far it is from plain transformers.

    Parameters
    ----------
    way: how batches are read; of a model that is refused, the first sentence of the error.
    distance: largest difference of a loss, relative to losses above 1; or largest cosine distance of an embedding.
    gradients: of an LM, distance of the gradients of all weights, relative to their norm.
    """

    way: str
    distance: float = 0.0
    gradients: float = 0.0


def examples() -> list[TokenizedExample]:
    rng = np.random.default_rng(1)
    return [TokenizedExample(rng.integers(3, VOCABULARY, n), max(1, n // 3)) for n in LENGTHS]


def plain_loss(lm: PreTrainedModel, example: TokenizedExample) -> torch.Tensor:
    """The loss of one example, as it is written in any introduction to fine-tuning."""
    tokens = torch.from_numpy(example.tokens)[None]
    logits = lm(input_ids=tokens, use_cache=False).logits[0]
    return F.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")[example.prompt_tokens - 1 :].mean()


def gradient(lm: PreTrainedModel) -> torch.Tensor:
    """All gradients in one vector; those of weights that have none are 0."""
    return torch.cat([(p.new_zeros(p.shape) if p.grad is None else p.grad).reshape(-1) for p in lm.parameters()])


def _compare_language_model(name: str, folder: Path) -> Compared:
    """Save a tiny LM of a family, load it as a study does, and compare."""
    tiny_model(name, LANGUAGE_MODELS[name]).save_pretrained(folder)
    plain, batch = AutoModelForCausalLM.from_pretrained(folder).eval(), examples()
    lm = load_language_model(folder)
    expected = []
    for example in batch:
        # Some remember what they have read.
        one = copy.deepcopy(plain)
        loss = plain_loss(one, example)
        loss.backward()
        expected.append((loss.detach(), gradient(one)))
    losses = torch.stack([loss for loss, _ in expected])
    whole = sum(each for _, each in expected)
    found = example_losses(lm, batch)
    found.sum().backward()
    distance = (gradient(lm) - whole).norm() / whole.norm()
    reads = [found.detach(), *(torch.from_numpy(evaluate(lm, batch, budget)) for budget in (1, 100, 10_000))]
    with torch.no_grad():
        reads.append(example_losses(lm, batch[::-1]).flip(0))
    furthest = max(((read - losses).abs() / losses.clamp(min=1)).max().item() for read in reads)
    return Compared(way_of(lm, lm.airrep_packed), furthest, distance.item())


def way_of(model: PreTrainedModel, packed: bool) -> str:
    limit = apart_from(model)
    if limit == 0:
        return "one length"
    way = "packed" if packed else "padded"
    return way if limit == sys.maxsize else f"{way}, one length beyond its limit"


# Some longer than any model here has positions for.
TEXTS = ["the first of a few words, and many more than fit here " * n for n in (1, 20, 2, 3)]
TEXTS += ["a", "few words", "words, and more words", "first of a few"]
SPECIAL = ["<pad>", "<pad too>", "<unk>", "<s>", "</s>", "<mask>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the words of `TEXTS`, which doesn't say where texts are cut."""
    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def _compare_encoder(name: str, folder: Path) -> Compared:
    """Save a tiny encoder of a family, load it as a study does, and compare; and once more as it is saved then.

    The reference is sentence-transformers, one text at a time. Distances are 1 - cosine.
    """
    tokenizer = tiny_tokenizer()
    tiny_model(name, ENCODERS[name], AutoModel, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(folder, 512, dimension=8)
    tokens = encoder.tokenize([(text,) for text in TEXTS])
    plain = SentenceTransformer(str(folder), device="cpu")
    plain.max_seq_length = encoder.max_tokens
    expected = torch.from_numpy(np.stack([plain.encode(text) for text in TEXTS]))
    with torch.inference_mode():
        reads = [
            torch.cat([encoder.means([text]) for text in tokens]),
            encoder.means(tokens),
            encoder.means(tokens[::-1]).flip(0),
        ]
    distances = [_cosine_distance(read[:, 0], expected) for read in reads]
    encoder.save(folder / "saved")
    saved = SentenceTransformer(str(folder / "saved"), device="cpu")
    vectors = torch.from_numpy(np.stack([saved.encode(text) for text in TEXTS]))
    distances.append(_cosine_distance(torch.from_numpy(encoder.encode(tokens)), vectors))
    return Compared(way_of(encoder.transformer, encoder.packed), max(distances))


def _cosine_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return 1 - F.cosine_similarity(found.double(), expected.double()).min().item()


def compare_language_model(name: str, folder: Path) -> Compared:
    """The result of comparing an LM, or that it is refused."""
    return _or_refused(_compare_language_model, name, folder)


def compare_encoder(name: str, folder: Path) -> Compared:
    """The result of comparing an encoder, or that it is refused."""
    return _or_refused(_compare_encoder, name, folder)


def _or_refused(compare: Callable[[str, Path], Compared], name: str, folder: Path) -> Compared:
    try:
        return compare(name, folder)
    except StudyError as error:
        said = str(error).removeprefix(f"{folder}: ")
        assert "Name a" in said or "Write `" in said, "the message says what can be used"
        return Compared(f"refused: {said.split('. ')[0]}")
