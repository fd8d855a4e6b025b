"""Write docs/compatibility.md: how models of each family are read, measured anew.

The tests here compare each model with its row, and the page with the list of families.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison import Compared, compare_encoder, compare_language_model
from families import ENCODERS, LANGUAGE_MODELS

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

HEAD = """# Compatibility

Made by the tests (`python tests/models/compatibility.py`); don't edit.

Tiny models of {families} families, with random weights, are loaded as a study loads them and compared with plain libraries that read one example at a time. `make test-models` compares all of them, `make test` a few.

- LMs with `transformers`: the loss of each example is the same to 1e-5 (relative, where it is above 1), and the gradient of all weights to 1e-4 of its norm.
- Encoders with `sentence-transformers`: embeddings are the same to a cosine distance of 1e-5, before and after the encoder is saved.

Examples are read alone and in mixed batches, up to 90 tokens for LMs and up to the last position for encoders. Sliding windows, chunks, selections of keys and the positions of pretraining end at 40 tokens, so that both sides of each are compared.

| read | how |
|---|---|
| packed | examples lie end to end, without padding: the fastest way |
| padded | similar lengths share a padded batch: attention is of another kind than the packed one, or layers besides attention read the neighbours |
| refused | an error says what can be used instead |

Beyond its limit (rotary positions that depend on the longest example, chunks, selections of keys), or at any length where padding changes its numbers (ConvBERT), a model reads an example only beside others of the same length. A family that isn't listed is tried when it is loaded, in the same way but on short examples only.

A name is the `model_type` of config.json; in brackets, a variant.
"""  # noqa: E501

DECODERS = """Refused are models that read from both sides, which see the tokens that they should predict. Those that were trained as decoders say so in their config.json (`is_decoder`), and are read.
"""  # noqa: E501


def page(language_models: dict[str, str], encoders: dict[str, str]) -> str:
    """Return the text of the page, from how each model is read."""
    families = {name.split("|")[0] for name in [*language_models, *encoders]}
    parts = [
        HEAD.format(families=len(families)),
        _table("Language models", language_models),
        DECODERS,
        _table("Encoders", encoders),
    ]
    return "\n".join(parts)


def _table(title: str, ways: dict[str, str]) -> str:
    rows = [f"| {_shown(name)} | {way} |\n" for name, way in sorted(ways.items())]
    return f"## {title}\n\n| model | read |\n|---|---|\n{''.join(rows)}"


def _shown(name: str) -> str:
    family, _, variant = name.partition("|")
    return f"{family} ({variant})" if variant else family


def listed(title: str) -> dict[str, str]:
    """Return how the page says that each model of a section is read."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return {re.sub(r" \((.*)\)$", r"|\1", name): way for name, way in rows}


def measured(compare: Callable[[str, Path], Compared], names: Iterable[str]) -> dict[str, str]:
    """Return how each model is read."""
    ways = {}
    for name in names:
        with TemporaryDirectory() as folder:
            ways[name] = compare(name, Path(folder)).way
    return ways


if __name__ == "__main__":
    found = measured(compare_language_model, LANGUAGE_MODELS), measured(compare_encoder, ENCODERS)
    PAGE.write_text(page(*found), encoding="utf-8")
