"""Types of config values that code branches on; for modules that don't import pydantic, which the config needs."""

from __future__ import annotations

from typing import Literal

# How scores of examples become the score of a group.
Pooling = Literal["attention", "signed", "mean", "sum"]
# Whether an encoder reads prompt and response as one text or as two.
View = Literal["joint", "split"]
