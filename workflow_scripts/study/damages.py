"""Kinds of damage of the experiment `detection`; for modules that don't import pydantic, which the config needs."""

from __future__ import annotations

from typing import Literal

Damage = Literal["within_label", "across_labels", "trigger"]
