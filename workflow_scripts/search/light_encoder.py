"""Embed a few texts by a BERT encoder in NumPy: torch and transformers take several times as long to load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from workflow_scripts.core.model_contents import SPLIT_FOLDERS
from workflow_scripts.corpora.templates import EncoderText
from workflow_scripts.encoder.sentence_modules import SentenceModules
from workflow_scripts.study.choices import View

# Coefficients of Abramowitz and Stegun 7.1.26; its error is below 1.5e-7.
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_SCALE = 0.3275911


@dataclass(frozen=True)
class _Part:
    """One part of an encoder.

    Parameters
    ----------
    tokenizer: tokenizer of its texts, which truncates and doesn't pad.
    tensors: weights of its transformer by name, float32.
    config: the transformer's config.json.
    weight: float32 [dimension, hidden], its projection.
    bias: float32 [dimension].
    normalized: whether the mean over tokens is scaled to length 1 before the projection.
    """

    tokenizer: Tokenizer
    tensors: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    weight: np.ndarray
    bias: np.ndarray
    normalized: bool

    def embed(self, text: str) -> np.ndarray:
        mean = self._states(np.array(self.tokenizer.encode(text).ids)).mean(axis=0)
        if self.normalized:
            mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return self.weight @ mean + self.bias

    def _states(self, ids: np.ndarray) -> np.ndarray:
        def tensor(name: str) -> np.ndarray:
            return self.tensors[f"embeddings.{name}.weight"]

        states = tensor("word_embeddings")[ids] + tensor("position_embeddings")[: len(ids)]
        states = self._normed(states + tensor("token_type_embeddings")[0], "embeddings.LayerNorm")
        for number in range(self.config["num_hidden_layers"]):
            states = self._layer(states, f"encoder.layer.{number}")
        return states

    def _layer(self, states: np.ndarray, name: str) -> np.ndarray:
        heads = self.config["num_attention_heads"]
        query, key, value = (
            self._linear(states, f"{name}.attention.self.{part}").reshape(len(states), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(np.float32(query.shape[-1]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        read = (weights / weights.sum(axis=-1, keepdims=True)) @ value
        read = read.transpose(1, 0, 2).reshape(len(states), -1)
        states = self._normed(
            self._linear(read, f"{name}.attention.output.dense") + states, f"{name}.attention.output.LayerNorm"
        )
        inner = _gelu(self._linear(states, f"{name}.intermediate.dense"))
        return self._normed(self._linear(inner, f"{name}.output.dense") + states, f"{name}.output.LayerNorm")

    def _linear(self, states: np.ndarray, name: str) -> np.ndarray:
        return states @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _normed(self, states: np.ndarray, name: str) -> np.ndarray:
        centered = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + np.float32(self.config["layer_norm_eps"]))
        return centered / spread * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


class LightEncoder:
    """An attribution encoder that embeds in NumPy, in float32.

    It computes what `encoder.model.AttributionEncoder` does, up to rounding, if the model's files mean what they
    usually do; whoever uses it compares an embedding with a stored one first.

    Parameters
    ----------
    parts: one for the view `joint`, two for `split`.
    """

    def __init__(self, parts: Sequence[_Part]):
        self._parts = parts

    @property
    def dimension(self) -> int:
        """Size of an embedding, all parts together."""
        return sum(len(part.weight) for part in self._parts)

    @property
    def view(self) -> View:
        return "joint" if len(self._parts) == 1 else "split"

    def encode(self, texts: Sequence[EncoderText]) -> np.ndarray:
        """Return the embeddings of texts, float32 [texts, dimension]; each has as many parts as the encoder."""
        vectors = [
            np.concatenate([part.embed(piece) for part, piece in zip(self._parts, text, strict=True)]) for text in texts
        ]
        return np.stack(vectors).astype(np.float32)


def load_light_encoder(folder: Path) -> LightEncoder | None:
    """Return the encoder of a folder; None if it isn't a trained BERT encoder of a kind that is read here.

    Parameters
    ----------
    folder: a model folder as `AttributionEncoder.save` writes it.
    """
    folders = [folder / part for part in SPLIT_FOLDERS if (folder / part).is_dir()] or [folder]
    try:
        parts = [_part(one) for one in folders]
    # Tokenizers raises this very class; whoever loads the model by torch says what is wrong.
    except Exception:
        return None
    return LightEncoder([part for part in parts if part]) if all(parts) else None


def _part(folder: Path) -> _Part | None:
    modules = SentenceModules(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    usual = {"model_type": "bert", "hidden_act": "gelu"}
    dense = modules.projection()
    if any(config.get(name) != value for name, value in usual.items()) or dense is None:
        return None
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return None
    projection = _tensors(dense[0])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    limits = [modules.max_tokens, named.get("model_max_length"), config["max_position_embeddings"]]
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(min(limit for limit in limits if limit)))
    weight = projection["linear.weight"]
    bias = projection.get("linear.bias", np.zeros(len(weight), np.float32))
    return _Part(tokenizer, _tensors(folder / "model.safetensors"), config, weight, bias, dense[1])


def _tensors(file: Path) -> dict[str, np.ndarray]:
    with safe_open(file, "np") as tensors:
        return {name: tensors.get_tensor(name).astype(np.float32, copy=False) for name in tensors.keys()}  # noqa: SIM118


def _gelu(values: np.ndarray) -> np.ndarray:
    scaled = np.abs(values) / np.sqrt(np.float32(2))
    step = 1 / (1 + np.float32(_ERF_SCALE) * scaled)
    series = np.zeros_like(values)
    for coefficient in reversed(_ERF):
        series = (series + np.float32(coefficient)) * step
    erf = np.sign(values) * (1 - series * np.exp(-scaled * scaled))
    return values * (1 + erf) / 2
