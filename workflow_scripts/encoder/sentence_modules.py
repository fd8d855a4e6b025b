"""The modules of a sentence-transformers model: what it does with a text, as its own files say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow_scripts.core.errors import StudyError

DENSE_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Module:
    """A module of a model: the name of its class, its folder, and its `config.json`."""

    kind: str
    folder: Path
    config: dict[str, Any]

    def __str__(self) -> str:
        details = []
        if self.kind == "Pooling":
            details = self.poolings
        elif self.kind == "Dense":
            details = [self.activation, *(key for key in ("use_residual",) if self.config.get(key))]
            if self.reads != "sentence_embedding":
                details.append(f"of {self.reads}")
        return f"{self.kind} ({', '.join(details)})" if details else self.kind

    @property
    def poolings(self) -> list[str]:
        """The ways in which a Pooling module makes one vector of many, e.g. `mean` or `cls`."""
        given = self.config.get("pooling_mode")
        if given is not None:
            return [given] if isinstance(given, str) else list(given)
        prefix = "pooling_mode_"
        names = [key.removeprefix(prefix) for key, on in self.config.items() if key.startswith(prefix) and on is True]
        # That of sentence-transformers, where a model's config says nothing.
        return [name.removesuffix("_tokens").removesuffix("_token") for name in names] or ["mean"]

    @property
    def activation(self) -> str:
        """The function after a Dense module's linear layer, e.g. `Identity`; a model's config may leave tanh out."""
        return str(self.config.get("activation_function", "Tanh")).rpartition(".")[2]

    @property
    def reads(self) -> str:
        """What a Dense module reads."""
        return str(self.config.get("module_input_name", "sentence_embedding"))

    @property
    def is_linear(self) -> bool:
        """Whether this is a linear layer of the vector so far and nothing else."""
        return (
            self.kind == "Dense"
            and self.activation == "Identity"
            and self.reads == "sentence_embedding"
            and not self.config.get("use_residual")
        )


class SentenceModules:
    """What stands in the model folder `folder` of sentence-transformers, or of transformers alone.

    Raises
    ------
    StudyError: the folder holds a projection and doesn't say what it is for, or texts are read by no transformer.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        file = folder / "modules.json"
        if not file.exists():
            if dense := sorted(path.name for path in folder.glob("[0-9]_Dense")):
                raise StudyError(f"{folder}: there is {dense[0]} and no modules.json. Use a complete copy.")
            self.modules = [Module("Transformer", folder, {})]
            return
        listed = sorted(_read_json(file), key=lambda module: module["idx"])
        self.modules = [self._module(str(each["type"]).rpartition(".")[2], each["path"]) for each in listed]
        if not self.modules or self.modules[0].kind != "Transformer":
            raise StudyError(f"{self._what_it_is()} Name a model whose first module is a Transformer.")

    def _module(self, kind: str, path: str) -> Module:
        name = "sentence_bert_config.json" if kind == "Transformer" else "config.json"
        return Module(kind, self.folder / path, _read_json(self.folder / path / name))

    def __str__(self) -> str:
        names = [str(module) for module in self.modules]
        if self._lowers_case:
            names[0] += " (do_lower_case)"
        return ", ".join(names)

    def _what_it_is(self) -> str:
        prompt = f", and every text follows {self._prompt!r}" if self._prompt else ""
        return f"{self.folder} is a sentence-transformers model of other modules: {self}{prompt}."

    @property
    def transformer(self) -> Path:
        """The folder of the transformer and its tokenizer."""
        return self.modules[0].folder

    @property
    def max_tokens(self) -> int | None:
        """Where the model cuts texts, if that isn't left to its tokenizer."""
        return self.modules[0].config.get("max_seq_length")

    @property
    def poolings(self) -> list[str]:
        """The ways in which it makes one vector of a text's tokens."""
        return [pooling for module in self.modules if module.kind == "Pooling" for pooling in module.poolings]

    @property
    def _lowers_case(self) -> bool:
        return bool(self.modules[0].config.get("do_lower_case"))

    @cached_property
    def _prompt(self) -> str:
        """What it puts before every text unless it is told otherwise."""
        config = _read_json(self.folder / "config_sentence_transformers.json")
        return (config.get("prompts") or {}).get(config.get("default_prompt_name")) or ""

    def projection(self) -> tuple[Path, bool] | None:
        """Return the weights of the projection, and whether means are of length 1 before it; None if it has none.

        Raises
        ------
        StudyError: it has a Dense module and isn't what an attribution encoder is: a linear layer of the mean over
            tokens, which may be scaled to length 1 before.
        """
        if not any(module.kind == "Dense" for module in self.modules):
            return None
        after = [module.kind for module in self.modules[1:]]
        dense, normalized = self.modules[-1], after == ["Pooling", "Normalize", "Dense"]
        is_linear = (normalized or after == ["Pooling", "Dense"]) and self.poolings == ["mean"] and dense.is_linear
        if not is_linear or self._lowers_case or self._prompt:
            raise StudyError(
                f"{self._what_it_is()} An attribution encoder is Transformer, Pooling (mean), in some a Normalize, and "
                "one Dense (Identity). To compare this model as it is, name it under scoring.sentence_encoders; to "
                "train an attribution encoder, start from a model without Dense."
            )
        weights = dense.folder / DENSE_WEIGHTS
        if not weights.exists():
            raise StudyError(f"{weights} is missing. Weights are read from safetensors only: use a complete copy.")
        return weights, normalized


def _read_json(file: Path) -> Any:
    """Return what a JSON file holds, an empty object if there is no such file."""
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{file} isn't JSON: {error}. Use a complete copy of the model.") from error
