"""The names of transformers that the project uses where it has models, imported without what none of its stages needs.

`transformers.modeling_utils` imports the compiler of torch, DTensor, FSDP, SciPy and accelerate: about two fifths of
the processor time that a job needs to start (docs/results/speed.md). The compiler is loaded once something is compiled.
The others are told to be absent while transformers is imported, so that what it does with them (device maps, sharded
parameters, detection losses, flex attention) isn't available in this process. Other libraries may use them: a
submodule of torch that transformers would have loaded, as `torch.distributed.tensor` in peft, is imported when asked
for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

import torch

import workflow_scripts.models.transformers_scan  # noqa: F401  # before transformers is imported

Function: TypeAlias = Callable[..., Any]

# What modules of transformers ask before they import a library that costs time.
_AVAILABILITY = (
    "is_accelerate_available",
    "is_psutil_available",
    "is_scipy_available",
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
)
# Packages of torch that don't load these parts of theirs by themselves.
_PACKAGES = ("torch.distributed", "torch.fx.experimental", "torch.nn.attention", "torch.utils")
_COMPILER = "torch._dynamo"
# Transformers' masks take a class from this module by its name.
_MASKS = "torch._dynamo._trace_wrapped_higher_order_op"


class _CompilerWhenUsed(ModuleType):
    """Stands for torch's compiler until something is compiled, and remembers what was marked for it until then.

    Optimizers, attention, and kernels of transformers carry such marks, which have no effect while nothing is compiled.
    """

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.marks: list[Callable[[ModuleType], object]] = []

    def disable(self, function: Function | None = None, *options: Any, **named_options: Any) -> Function:
        if function is None:
            return lambda function: self.disable(function, *options, **named_options)
        marked = function

        @functools.wraps(function)
        def run(*arguments: Any, **named_arguments: Any) -> Any:
            return marked(*arguments, **named_arguments)

        def mark(compiler: ModuleType) -> None:
            nonlocal marked
            marked = compiler.disable(function, *options, **named_options)

        self.marks.append(mark)
        return run

    def allow_in_graph(self, function: Function) -> Function:
        self.marks.append(lambda compiler: compiler.allow_in_graph(function))
        return function

    def assume_constant_result(self, function: Function) -> Function:
        self.marks.append(lambda compiler: compiler.assume_constant_result(function))
        return function

    def graph_break(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks all modules where they come from; the import of a submodule asks for the path.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_compiler(), name)


class _MasksWhenUsed(ModuleType):
    def TransformGetItemToIndex(self) -> Any:  # noqa: N802
        _compiler()
        return importlib.import_module(_MASKS).TransformGetItemToIndex()


def _compiler() -> ModuleType:
    """Return torch's compiler in place of what stood for it."""
    stand_in = sys.modules[_COMPILER]
    if not isinstance(stand_in, _CompilerWhenUsed):
        return stand_in
    del sys.modules[_COMPILER], sys.modules[_MASKS]
    compiler = importlib.import_module(_COMPILER)
    for mark in stand_in.marks:
        mark(compiler)
    return compiler


@contextmanager
def _without_unused_libraries() -> Iterator[None]:
    # Where a process is one of several, transformers asks torch.distributed who it is.
    if "transformers.modeling_utils" in sys.modules or "RANK" in os.environ:
        yield
        return
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = torch._dynamo = _CompilerWhenUsed()
        sys.modules[_MASKS] = _MasksWhenUsed(_MASKS)
    for package in _PACKAGES:
        _import_submodules_when_used(importlib.import_module(package))
    places = [importlib.import_module(f"transformers.utils{name}") for name in ("", ".import_utils")]
    before = [(place, name, getattr(place, name)) for place in places for name in _AVAILABILITY if hasattr(place, name)]
    for place, name, _ in before:
        setattr(place, name, _unavailable)
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _import_submodules_when_used(package: ModuleType) -> None:
    def find(name: str) -> ModuleType:
        submodule = f"{package.__name__}.{name}"
        # What Python and `inspect` ask every module for is no submodule.
        if name.startswith("__") or importlib.util.find_spec(submodule) is None:
            raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
        return importlib.import_module(submodule)

    if not hasattr(package, "__getattr__"):
        package.__getattr__ = find  # type: ignore[method-assign]  # of modules: PEP 562


def _unavailable(*_: Any, **__: Any) -> bool:
    return False


with _without_unused_libraries():
    from transformers import (
        AttentionInterface,
        AttentionMaskInterface,
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        BertConfig,
        BertModel,
        BertTokenizerFast,
        GenerationConfig,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.pytorch_utils import Conv1D

__all__ = [
    "AttentionInterface",
    "AttentionMaskInterface",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "BertConfig",
    "BertModel",
    "BertTokenizerFast",
    "Conv1D",
    "GPT2Config",
    "GPT2LMHeadModel",
    "GenerationConfig",
    "GradientCheckpointingLayer",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "Qwen2Config",
    "Qwen2ForCausalLM",
]
