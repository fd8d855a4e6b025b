"""What mypy is told not to see has its reason beside it."""

import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "workflow_scripts"


def ignores_without_a_reason(source: str) -> list[str]:
    comments = (
        one.string for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type == tokenize.COMMENT
    )
    return [text for text in comments if "type: ignore" in text and not text.partition("]")[2].strip(" #")]


def test_every_ignore_has_a_reason_beside_it():
    assert ignores_without_a_reason("a = b  # type: ignore[name-defined]  # made by exec\n") == []
    assert ignores_without_a_reason("a = b  # type: ignore[name-defined]\n")
    assert ignores_without_a_reason("a = b  # type: ignore\n")
    for path in PACKAGE.rglob("*.py"):
        assert not ignores_without_a_reason(path.read_text(encoding="utf-8")), path
