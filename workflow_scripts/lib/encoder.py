"""The attribution encoder (paper, section 3.2): BERT, mean over tokens, linear projection, no normalisation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.language_model import autocast, best_device
from workflow_scripts.lib.models import load_pretrained, load_tokenizer, model_folder, publish_folder
from workflow_scripts.lib.packing import ATTENTION, PackedBatch, pack, token_budget

DENSE_FOLDER = "2_Dense"


class AttributionEncoder(nn.Module):
    """Turns texts into vectors whose inner products are attribution scores.

    Attributes
    ----------
    transformer: any BERT-type model; projection: linear, [hidden] -> [dimension].
    max_tokens: where texts are cut. packed: whether the transformer reads packed batches.
    """

    def __init__(
        self,
        transformer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        projection: nn.Linear,
        max_tokens: int,
    ):
        super().__init__()
        self.transformer, self.tokenizer, self.projection = transformer, tokenizer, projection
        limit = getattr(transformer.config, "max_position_embeddings", max_tokens)
        self.max_tokens = min(max_tokens, limit)
        self.packed = False
        self.eval()
        self._use_packing()

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    @property
    def dimension(self) -> int:
        return self.projection.out_features

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each text, int32, special tokens included, cut at `max_tokens`."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, return_attention_mask=False)
        return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]

    def forward(self, examples: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the embeddings of tokenised texts, float [examples, dimension], in the order given."""
        batch = pack(examples, self.device)
        hidden = self._packed_states(batch) if self.packed else self._padded_states(batch)
        owner = torch.repeat_interleave(
            torch.from_numpy(batch.order).to(self.device), batch.lengths, output_size=len(hidden)
        )
        sums = hidden.new_zeros(len(examples), hidden.shape[1]).index_add(0, owner, hidden)
        lengths = torch.empty_like(batch.lengths)
        lengths[torch.from_numpy(batch.order).to(self.device)] = batch.lengths
        return self.projection(sums / lengths[:, None])

    def _packed_states(self, batch: PackedBatch) -> torch.Tensor:
        return self.transformer(input_ids=batch.tokens, position_ids=batch.positions, packing=batch).last_hidden_state[
            0
        ]

    def _padded_states(self, batch: PackedBatch) -> torch.Tensor:
        rows = []
        for bucket in batch.buckets:
            shape = (bucket.examples, bucket.longest)
            mask = torch.ones(shape, dtype=torch.long, device=self.device)
            if bucket.mask is not None:
                mask = bucket.mask[:, 0, 0].long()
            states = self.transformer(
                input_ids=batch.tokens[0, bucket.rows].view(shape), attention_mask=mask
            ).last_hidden_state.flatten(0, 1)
            rows.append(states if bucket.real is None else states[bucket.real])
        return torch.cat(rows)

    def _use_packing(self) -> None:
        """Switch to packed attention if that leaves the embeddings as they are."""
        plain = self.transformer.config._attn_implementation
        random = np.random.default_rng(0)
        lengths = [min(length, self.max_tokens) for length in (4, 7, 21)]
        sample = [random.integers(0, self.transformer.config.vocab_size, length) for length in lengths]
        with torch.inference_mode():
            expected = self(sample)
            try:
                self.transformer.set_attn_implementation(ATTENTION)
                self.packed = True
                exact = torch.allclose(self(sample), expected, atol=1e-3)
            except (TypeError, ValueError, RuntimeError, KeyError):
                exact = False
        if not exact:
            self.transformer.set_attn_implementation(plain)
            self.packed = False

    @torch.inference_mode()
    def encode(self, examples: Sequence[np.ndarray], most_tokens: int, precision: str = "float32") -> np.ndarray:
        """Return the embeddings of tokenised texts, float32 [examples, dimension], batched by length."""
        embeddings = np.empty((len(examples), self.dimension), np.float32)
        lengths = np.fromiter((len(example) for example in examples), np.int64, len(examples))
        for chosen in token_budget(lengths, most_tokens):
            with autocast(self.device, precision):
                embeddings[chosen] = self([examples[i] for i in chosen]).float().cpu().numpy()
        return embeddings

    def save(self, folder: Path) -> None:
        """Write a folder that `SentenceTransformer(folder)` and `AutoModel.from_pretrained` load."""
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "1_Pooling").mkdir(parents=True)
        (temporary / DENSE_FOLDER).mkdir()
        self.transformer.set_attn_implementation("sdpa")
        self.transformer.save_pretrained(temporary)
        if self.packed:
            self.transformer.set_attn_implementation(ATTENTION)
        self.tokenizer.model_max_length = self.max_tokens
        self.tokenizer.save_pretrained(temporary)
        hidden = self.projection.in_features
        dense = {
            "in_features": hidden,
            "out_features": self.dimension,
            "bias": self.projection.bias is not None,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
        names = [("", "Transformer"), ("1_Pooling", "Pooling"), (DENSE_FOLDER, "Dense")]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(names)
        ]
        for name, content in {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": self.max_tokens, "do_lower_case": False},
            "config_sentence_transformers.json": {"similarity_fn_name": "dot"},
            "1_Pooling/config.json": pooling,
            f"{DENSE_FOLDER}/config.json": dense,
        }.items():
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n")
        weights = {f"linear.{name}": tensor.contiguous() for name, tensor in self.projection.state_dict().items()}
        save_file(weights, temporary / DENSE_FOLDER / "model.safetensors")
        publish_folder(temporary, folder)


def load_encoder(
    model: str | Path,
    max_tokens: int,
    *,
    dimension: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> AttributionEncoder:
    """Load an encoder from a folder or hub id.

    The model's own projection is used; without one, a random projection to `dimension` is made from `seed`
    (paper, section 3.2).

    Raises
    ------
    StudyError: the model can't be loaded, or its weights aren't whole.
    """
    folder = model_folder(model, revision)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    transformer, found = load_pretrained(
        AutoModel, folder, None, trust_remote_code, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    # Weights that a file lacks would be random ones. The pooler isn't used, so it may be missing.
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise StudyError(f"{model}: {len(missing)} weights are missing, e.g. {missing[0]}. Take a whole copy of it.")
    transformer.pooler = None
    projection = stored_projection(folder)
    if projection is None:
        projection = random_projection(transformer.config.hidden_size, dimension or 384, seed)
    return AttributionEncoder(transformer, tokenizer, projection, max_tokens).to(best_device())


def random_projection(hidden: int, dimension: int, seed: int) -> nn.Linear:
    """Return a linear layer [hidden] -> [dimension] started at random from `seed`, bias zero."""
    layer = nn.Linear(hidden, dimension)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(std=dimension**-0.5, generator=random)
        layer.bias.zero_()
    return layer


def stored_projection(folder: Path) -> nn.Linear | None:
    """Return the projection that lies in a model folder, or None.

    It is the `2_Dense` module of sentence-transformers, or `projector` among the model's weights, as in the
    checkpoint that the paper's authors published.
    """
    places = {"linear.": folder / DENSE_FOLDER / "model.safetensors", "projector.": folder / "model.safetensors"}
    for prefix, file in places.items():
        if not file.exists():
            continue
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights = {name.removeprefix(prefix): tensors.get_tensor(name).float() for name in names}
        if weights:
            outputs, inputs = weights["weight"].shape
            layer = nn.Linear(inputs, outputs, bias="bias" in weights)
            layer.load_state_dict(weights)
            return layer
    return None
