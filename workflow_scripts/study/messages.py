"""Error messages for the config: which key is wrong, why, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

# Former name of a key -> its name.
RENAMED = {"smallest_difference": "min_label_gap", "largest_weight": "max_pair_weight"}


def explain(detail: Mapping[str, Any], section: type[BaseModel]) -> str:
    """Return one line for a validation error: the key, what is wrong, and what to write instead.

    Parameters
    ----------
    detail: one of the `errors()` of a pydantic `ValidationError`.
    section: model that was validated; its fields are suggested for an unknown key.
    """
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]") or "study"
    if detail["type"] == "extra_forbidden":
        if new := RENAMED.get(str(detail["loc"][-1])):
            return f"  {key}: was renamed to {new!r}; write {new}"
        known = _known_keys(detail["loc"][:-1], section)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"  {key}: no such key; {advice}"
    if detail["type"] == "missing":
        return f"  {key}: is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if isinstance(detail["input"], dict | BaseModel) else f" (you wrote {detail['input']!r})"
    return f"  {key}: {message}{given}"


def _known_keys(location: tuple[int | str, ...], section: type[BaseModel]) -> list[str]:
    annotation: Any = section
    for part in location:
        model = _model_in(annotation)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[part].annotation
        # else: `part` is a key of a dict of sections, whose annotation already names the section
    model = _model_in(annotation)
    return sorted(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(argument) for argument in get_args(annotation))), None)
