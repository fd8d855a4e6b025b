"""The names of transformers' modelling code that the project uses, imported without what none of its stages needs.

Behind `transformers.modeling_utils` stand the compiler of torch, DTensor, FSDP, SciPy and accelerate: more than half of
the processor time that a short job needs to start (`benchmarks/startup.py`). Each of them is loaded when it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

# What modules of transformers ask before they import a library that costs time.
_AVAILABILITY = (
    "is_accelerate_available",
    "is_scipy_available",
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
)
_COMPILER = "torch._dynamo"
# Transformers' masks take a class from this module by its name.
_MASKS = "torch._dynamo._trace_wrapped_higher_order_op"


class _CompilerWhenUsed(ModuleType):
    """Stands for torch's compiler until an attribute is used that isn't one of its marks.

    Decorators mark what the compiler shall leave alone (optimizers, kernels of formats that no stage uses). While
    nothing is compiled, such a mark has no effect.
    """

    def disable(self, function: Any = None, *_: Any, **__: Any) -> Any:
        return function or _same

    def allow_in_graph(self, function: Any) -> Any:
        return function

    def assume_constant_result(self, function: Any) -> Any:
        return function

    def graph_break(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(_compiler(_COMPILER), name)


class _MasksWhenUsed(ModuleType):
    def TransformGetItemToIndex(self) -> Any:  # noqa: N802
        return _compiler(_MASKS).TransformGetItemToIndex()


def _compiler(module: str) -> ModuleType:
    for name in (_COMPILER, _MASKS):
        if isinstance(sys.modules.get(name), _CompilerWhenUsed | _MasksWhenUsed):
            del sys.modules[name]
    return importlib.import_module(module)


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@contextmanager
def _without_unused_libraries() -> Iterator[None]:
    # Where a process is one of several, transformers asks torch.distributed who it is.
    if "transformers.modeling_utils" in sys.modules or "RANK" in os.environ:
        yield
        return
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = torch._dynamo = _CompilerWhenUsed(_COMPILER)
        sys.modules[_MASKS] = _MasksWhenUsed(_MASKS)
    places = [importlib.import_module(f"transformers.utils{name}") for name in ("", ".import_utils")]
    before = [(place, name, getattr(place, name)) for place in places for name in _AVAILABILITY if hasattr(place, name)]
    for place, name, _ in before:
        setattr(place, name, _unavailable)
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _unavailable(*_: Any, **__: Any) -> bool:
    return False


with _without_unused_libraries():
    from transformers import (
        AttentionInterface,
        AutoModel,
        AutoModelForCausalLM,
        BertConfig,
        BertModel,
        GenerationConfig,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedModel,
        Qwen2Config,
        Qwen2ForCausalLM,
    )
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.pytorch_utils import Conv1D

__all__ = [
    "AttentionInterface",
    "AutoModel",
    "AutoModelForCausalLM",
    "BertConfig",
    "BertModel",
    "Conv1D",
    "GPT2Config",
    "GPT2LMHeadModel",
    "GenerationConfig",
    "GradientCheckpointingLayer",
    "PreTrainedModel",
    "Qwen2Config",
    "Qwen2ForCausalLM",
]
