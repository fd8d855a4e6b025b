"""Write docs/compatibility.md: how models of each family are read, measured anew. `python tests/models/compatibility.py`.

`test_compatibility.py` compares the page with the list of families, and the other tests here the list with the models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from families import ENCODERS, LANGUAGE_MODELS, NOT_CAUSAL, PACKED, PADDED, REFUSED_ENCODERS

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
"""


def page() -> str:
    """Return the text of the page."""
    families = {name.split("|")[0] for name in [*LANGUAGE_MODELS, *ENCODERS]}
    sections = [
        HEAD.format(families=len(families)),
        _table("Language models", LANGUAGE_MODELS, _language_model_row),
        "Refused are models that read from both sides, which see the tokens that they should predict. Those that were "
        "trained as decoders say so in their config.json (`is_decoder`), and are read.\n",
        _table("Encoders", ENCODERS, _encoder_row),
    ]
    return "\n".join(sections)


def _table(title: str, names: dict[str, object], row: Callable[[str], str]) -> str:
    rows = [f"| {_shown(name)} | {row(name)} |\n" for name in sorted(names)]
    return f"## {title}\n\n| model | read |\n|---|---|\n{''.join(rows)}"


def _shown(name: str) -> str:
    family, _, variant = name.partition("|")
    return f"{family} ({variant})" if variant else family


def _language_model_row(name: str) -> str:
    if name in NOT_CAUSAL:
        return "refused: reads the tokens that it should predict"
    return (PACKED | PADDED)[name][0]


def _encoder_row(name: str) -> str:
    return f"refused: {REFUSED_ENCODERS[name][1]}" if name in REFUSED_ENCODERS else ENCODERS[name][0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
