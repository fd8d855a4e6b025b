"""The attribution encoder (paper, section 3.2): BERT, mean over tokens, linear projection, no normalisation."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from workflow_scripts.core.files import atomic_folder
from workflow_scripts.core.model_contents import SPLIT_FOLDERS
from workflow_scripts.corpora.templates import EncoderText
from workflow_scripts.language_model.losses import compile_layers
from workflow_scripts.models.device import autocast, to_device
from workflow_scripts.models.packing import ATTENTION, PackedBatch, example_means, pack, token_budget
from workflow_scripts.models.packing_check import switch_to_packing
from workflow_scripts.models.sharing import apart_from, forget_lengths
from workflow_scripts.models.transformers_import import BertModel, PreTrainedModel, PreTrainedTokenizerBase
from workflow_scripts.study.choices import View

DENSE_FOLDERS = ("2_Dense", "3_Dense")  # without and with a Normalize module before it
# Too short for any truncation.
A_WORD = "a"
# Default of the most tokens in one forward pass, by type of device.
CHUNK_TOKENS = {"cpu": 16_384, "cuda": 65_536}

EncoderTokens = tuple[np.ndarray, ...]  # int32 [length] of each part of an example


class AttributionEncoder(nn.Module):
    """Turns texts into vectors whose inner products are attribution scores (paper, section 3.2).

    Parameters
    ----------
    transformer: any BERT-type model.
    tokenizer: its tokenizer.
    projections: linear layers from its hidden size, one for each part of an example (`corpora.templates.encoder_text`);
        an embedding is their outputs, concatenated.
    max_tokens: longest part in tokens, special tokens included; less where model or tokenizer allow less.
    normalized: whether the mean over a part's tokens is scaled to length 1 before the projection.

    Attributes
    ----------
    packed: whether the transformer reads packed batches.
    bfloat16_weights: whether a forward pass in bfloat16 has weights in bfloat16, copied again from those in float32 for
        each pass, instead of autocast. No activation is float32 then, which moves less memory, and gradients are ten
        times as far from those in float32, because texts differ by little of what their means have in common.
    """

    bfloat16_weights = False

    def __init__(
        self,
        transformer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        projections: Sequence[nn.Linear],
        max_tokens: int,
        normalized: bool = False,
    ):
        super().__init__()
        self.transformer, self.tokenizer = transformer, tokenizer
        self.projections = nn.ModuleList(projections)
        self.normalized = normalized
        self.max_tokens = min(max_tokens, position_limit(transformer), tokenizer.model_max_length)
        self.packed = False
        self.eval()
        self.use_packing()

    @property
    def device(self) -> torch.device:
        return self.projections[0].weight.device

    @property
    def dimension(self) -> int:
        """Size of an embedding, all parts together."""
        return sum(projection.out_features for projection in self.projections)

    @property
    def view(self) -> View:
        return "joint" if len(self.projections) == 1 else "split"

    def tokenize(self, texts: Sequence[EncoderText], keep: str = "first") -> list[EncoderTokens]:
        """Return the token ids of each text: one int32 [length] per part, special tokens included.

        Parameters
        ----------
        texts: each has as many parts as the encoder has projections.
        keep: which `max_tokens` tokens of a longer part are kept, the `first` or the `last`.
        """
        self.tokenizer.truncation_side = {"first": "right", "last": "left"}[keep]
        parts = [part for text in texts for part in text]
        tokens = [np.asarray(ids, np.int32) for ids in self._token_ids(parts)]
        width = len(self.projections)
        return [tuple(tokens[first : first + width]) for first in range(0, len(tokens), width)]

    def _token_ids(self, parts: list[str]) -> Iterable[list[int]]:
        def ids_of(some: list[str]) -> list[list[int]]:
            return self.tokenizer(some, truncation=True, max_length=self.max_tokens, return_attention_mask=False)[
                "input_ids"
            ]

        if not self.tokenizer.is_fast or not parts:
            return ids_of(parts) if parts else []
        # Wrapping each result, as a call of the tokenizer does, costs more of the one Python thread than all else. The
        # call for a word sets the truncation, and tells whether the tokenizer's class does more than pass texts on.
        word = ids_of([A_WORD])
        encode = self.tokenizer.backend_tokenizer.encode_batch_fast
        if [encoding.ids for encoding in encode([A_WORD])] != word:
            return ids_of(parts)
        return (encoding.ids for encoding in encode(parts))

    def pack(self, examples: Sequence[EncoderTokens]) -> PackedBatch:
        """Return the parts of tokenised texts as one packed batch on the encoder's device, for `embed`."""
        parts = [part for example in examples for part in example]
        return pack(parts, self.device, apart_from(self.transformer))

    def forward(self, examples: Sequence[EncoderTokens]) -> torch.Tensor:
        """Return the embeddings of tokenised texts, float32 [examples, dimension], in the order given."""
        return self.embed(self.pack(examples))

    def embed(self, batch: PackedBatch, precision: str = "float32") -> torch.Tensor:
        """Return the embeddings of a packed batch, float32 [examples, dimension].

        Parameters
        ----------
        batch: result of `pack`.
        precision: `float32` or `bfloat16`, that of the forward pass; means over tokens are taken in float32.
        """
        with self._autocast(precision):
            means = self._means(batch, precision)
            vectors = torch.cat([layer(means[:, part]) for part, layer in enumerate(self.projections)], dim=1)
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))

    def means(self, examples: Sequence[EncoderTokens]) -> torch.Tensor:
        """Return the inputs of the projections, the mean over each part's tokens, float32 [examples, parts, hidden]."""
        return self._means(self.pack(examples), "float32")

    def _means(self, batch: PackedBatch, precision: str) -> torch.Tensor:
        if self._is_context_free() and not self._casts_weights(precision):
            means = self._context_free_means(batch)
        else:
            states = self._packed_states(batch, precision) if self.packed else self._padded_states(batch, precision)
            means = example_means(states, batch)
        means = F.normalize(means, dim=-1) if self.normalized else means
        return means.unflatten(0, (-1, len(self.projections)))

    def _is_context_free(self) -> bool:
        """Return whether hidden states depend on token and position alone: a BERT without layers or dropout, on a CPU.

        On a GPU, the backward pass of an embedding bag isn't deterministic.
        """
        without_layers = type(self.transformer) is BertModel and not self.transformer.encoder.layer
        return without_layers and self.device.type == "cpu" and not self.training

    def _context_free_means(self, batch: PackedBatch) -> torch.Tensor:
        """Return the means over context-free hidden states; each (token, position) is computed once."""
        longest = batch.max_length
        keys, places = torch.unique(batch.tokens[0] * longest + batch.positions[0], return_inverse=True)
        states = self.transformer.embeddings(input_ids=keys[None] // longest, position_ids=keys[None] % longest)[0]
        means = F.embedding_bag(places, states, batch.starts, mode="mean")
        return means.index_select(0, to_device(np.argsort(batch.order), states.device))

    def _autocast(self, precision: str) -> torch.autocast:
        return autocast(self.device, "float32" if self._casts_weights(precision) else precision)

    def _casts_weights(self, precision: str) -> bool:
        return precision == "bfloat16" and self.bfloat16_weights

    def _states(self, precision: str, **inputs: object) -> torch.Tensor:
        if not self._casts_weights(precision):
            return self.transformer(**inputs).last_hidden_state
        weights = {name: weight.bfloat16() for name, weight in self.transformer.named_parameters()}
        return functional_call(self.transformer, weights, kwargs=inputs).last_hidden_state

    def _packed_states(self, batch: PackedBatch, precision: str) -> torch.Tensor:
        return self._states(precision, input_ids=batch.tokens, position_ids=batch.positions, packing=batch)[0]

    def _padded_states(self, batch: PackedBatch, precision: str) -> torch.Tensor:
        rows = []
        for bucket, tokens in batch.by_bucket(batch.tokens[0]):
            forget_lengths(self.transformer)
            states = self._states(precision, input_ids=bucket.rectangle(tokens), attention_mask=bucket.attention_mask)
            rows.append(bucket.row(states))
        return torch.cat(rows)

    def use_packing(self, precision: str = "float32", attention: str = ATTENTION) -> bool:
        """Switch to packed attention if the means over tokens stay the same; return whether it did.

        Parameters
        ----------
        precision: `float32` or `bfloat16`, in which the means are compared.
        attention: name of the attention implementation, see `packing_check.switch_to_packing`.
        """
        rng = np.random.default_rng(0)
        lengths = [min(length, self.max_tokens) for length in (4, 7, 21)]
        texts = [rng.integers(0, self.transformer.config.vocab_size, length) for length in lengths]
        sample = [(tokens,) * len(self.projections) for tokens in texts]

        def means(packed: bool, precision: str) -> torch.Tensor:
            self.packed = packed
            with self._autocast(precision):
                return self._means(self.pack(sample), precision)

        self.packed = switch_to_packing(self.transformer, means, precision, attention)
        return self.packed

    def compile_layers(self) -> None:
        """Compile each layer with `torch.compile`, for batches of any length."""
        compile_layers(self.transformer)

    @torch.inference_mode()
    def encode_on_device(
        self, examples: Sequence[EncoderTokens], max_batch_tokens: int | None = None, precision: str = "float32"
    ) -> torch.Tensor:
        """Return the embeddings of tokenised texts, float32 [examples, dimension], on the encoder's device.

        Texts are batched by length. A GPU may still be at work when this returns.

        Parameters
        ----------
        examples: tokenised texts, in any order.
        max_batch_tokens: most tokens in one forward pass; None for the device's number in `CHUNK_TOKENS`.
        precision: `float32` or `bfloat16`, that of the forward passes.
        """
        embeddings = torch.empty(len(examples), self.dimension, device=self.device)
        for chosen in token_budget(token_counts(examples), max_batch_tokens or CHUNK_TOKENS[self.device.type]):
            vectors = self.embed(self.pack([examples[i] for i in chosen]), precision)
            embeddings.index_copy_(0, to_device(chosen, self.device), vectors)
        return embeddings

    def encode(
        self, examples: Sequence[EncoderTokens], max_batch_tokens: int | None = None, precision: str = "float32"
    ) -> np.ndarray:
        """Return the result of `encode_on_device` as a NumPy array; parameters as there."""
        return self.encode_on_device(examples, max_batch_tokens, precision).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write a folder that `SentenceTransformer(folder)` and `AutoModel.from_pretrained` load.

        Under the view `split` there are two such folders in it, `prompt` and `response`; an embedding is the vectors of
        both, concatenated.
        """
        parts = ("",) if self.view == "joint" else SPLIT_FOLDERS
        attention = self.transformer.config._attn_implementation
        # A tokenizer keeps which end it cut last: training may read the last tokens, and scoring reads the first.
        self.tokenize([(A_WORD,) * len(self.projections)])
        # What it had before: some kinds have no other (FNet).
        self.transformer.set_attn_implementation(getattr(self.transformer, "airrep_plain_attention", attention))
        with atomic_folder(folder) as temporary:
            for part, projection in zip(parts, self.projections, strict=True):
                self._save_part(temporary / part, projection)
        if self.packed:
            self.transformer.set_attn_implementation(attention)

    def _save_part(self, folder: Path, projection: nn.Linear) -> None:
        (folder / "1_Pooling").mkdir(parents=True)
        self.transformer.save_pretrained(folder)
        self.tokenizer.model_max_length = self.max_tokens
        self.tokenizer.save_pretrained(folder)
        dense = {
            "in_features": projection.in_features,
            "out_features": projection.out_features,
            "bias": projection.bias is not None,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        pooling = {"word_embedding_dimension": projection.in_features, "pooling_mode_mean_tokens": True}
        dense_folder = DENSE_FOLDERS[self.normalized]
        (folder / dense_folder).mkdir()
        names = [("", "Transformer"), ("1_Pooling", "Pooling"), (dense_folder, "Dense")]
        if self.normalized:
            (folder / "2_Normalize").mkdir()
            names.insert(2, ("2_Normalize", "Normalize"))
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(names)
        ]
        transformer = {"max_seq_length": self.max_tokens, "do_lower_case": False}
        if "add_pooling_layer" in inspect.signature(type(self.transformer)).parameters:
            # Nobody reads BERT's pooler, and its weights aren't here.
            transformer["model_args"] = {"add_pooling_layer": False}
        for name, content in {
            "modules.json": modules,
            "sentence_bert_config.json": transformer,
            "config_sentence_transformers.json": {"similarity_fn_name": "dot"},
            "1_Pooling/config.json": pooling,
            f"{dense_folder}/config.json": dense,
        }.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        weights = {f"linear.{name}": tensor.contiguous() for name, tensor in projection.state_dict().items()}
        save_file(weights, folder / dense_folder / "model.safetensors")


def token_counts(examples: Sequence[EncoderTokens]) -> np.ndarray:
    """Return the number of tokens of each example, all parts together, int64 [examples]."""
    return np.fromiter((sum(map(len, example)) for example in examples), np.int64, len(examples))


def position_limit(transformer: PreTrainedModel) -> int:
    """Return the most tokens that a transformer has positions for, `sys.maxsize` where nothing limits it."""
    for name, module in transformer.named_modules():
        # RoBERTa and its like number positions from the one after that of padding.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return len(module.weight) - module.padding_idx - 1
    # XLNet says -1.
    limit = getattr(transformer.config, "max_position_embeddings", None) or 0
    return limit if limit > 0 else sys.maxsize
