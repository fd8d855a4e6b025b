"""The state of an encoder's training on disk, from which an interrupted run resumes to the same numbers."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from workflow_scripts.core.distributed import broadcast_from_rank_zero
from workflow_scripts.core.files import atomic_path, delete_begun
from workflow_scripts.core.progress import say


class TrainingState:
    """Weights, optimiser state, the best checkpoint so far and the log, in one safetensors file.

    Parameters
    ----------
    folder: folder of the file; its name contains the hash of everything that decides the run, so that a state of other
        data or settings is never restored.
    modules: what is trained, by name.
    optimizer: the optimiser of their parameters.

    Attributes
    ----------
    log: one {step, loss, validation_lds, seconds} per recorded step.
    best_score: the best validation LDS so far.
    best_weights: the weights of that validation, on the CPU.
    validations_since_best: number of validations after it.
    """

    def __init__(self, folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer):
        self.file = folder / "state.safetensors"
        self.modules, self.optimizer = modules, optimizer
        self.log: list[dict[str, Any]] = []
        self.best_score = -math.inf
        self.best_weights: dict[str, torch.Tensor] = {}
        self.validations_since_best = 0

    @property
    def steps_done(self) -> int:
        """The last recorded step; 0 if there is none."""
        return self.log[-1]["step"] if self.log else 0

    def record(self, step: int, loss: float | None, score: float | None, seconds: float) -> None:
        """Add a row to the log, and keep the current weights if the validation LDS is the best so far.

        Parameters
        ----------
        step: number of the step, from 1; 0 for the validation before training.
        loss: loss of the step; None before training.
        score: validation LDS after the step; None if there was no validation.
        seconds: since the start of training.
        """
        self.log.append({"step": step, "loss": loss, "validation_lds": score, "seconds": seconds})
        if score is None:
            return
        self.validations_since_best += 1
        if score > self.best_score:
            self.best_score, self.validations_since_best = score, 0
            self.best_weights = {name: tensor.cpu().clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, module in self.modules.items()
            for key, tensor in module.state_dict().items()
        }

    def save(self) -> None:
        """Write the state to disk, where it replaces the former one only once it is complete."""
        tensors = {f"now.{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        facts = {
            "log": self.log,
            "best_score": self.best_score,
            "validations_since_best": self.validations_since_best,
        }
        with atomic_path(self.file) as temporary:
            copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            metadata = {"facts": json.dumps(facts), "digest": _digest(copies, facts)}
            save_file(copies, temporary, metadata=metadata)

    def restore(self) -> None:
        """Load the state on disk, if there is a complete one; all processes load what rank 0 reads."""
        # Meanwhile the job of a killed driver may write the next one.
        if (state := broadcast_from_rank_zero(self._read())) is None:
            return
        facts, tensors = state
        self.log = facts["log"]
        self.best_score = facts["best_score"]
        self.validations_since_best = facts["validations_since_best"]
        self.best_weights = _with_prefix(tensors, "best.")
        self._load(_with_prefix(tensors, "now."))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _with_prefix(tensors, "optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        if not self.file.exists():
            return None
        try:
            with safe_open(self.file, framework="pt") as file:
                metadata = file.metadata()
                facts = json.loads(metadata["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["digest"] != _digest(tensors, facts):
                raise ValueError("its content was changed after it was written")
            return facts, tensors
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            say(f"train_encoder: {self.file} can't be read ({error}); training starts over")
            return None

    def load_best(self) -> None:
        """Load the weights of the best validation into the modules."""
        self._load(self.best_weights)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(_with_prefix(weights, f"{name}."))

    def clear(self) -> None:
        """Delete the state on disk, once the result is written, and those of trainings with other settings."""
        delete_begun(self.file.parent)


def _digest(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
