"""Bad inputs, and the message that each one gives: what docs/errors.md is made of.

`python tests/faults/bad_input.py` writes that page.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bad_config import CONFIG, WRONG_KINDS
from bad_data import CORPORA, SIZES
from bad_models import MODELS, RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ALL = [*CONFIG, *CORPORA, *SIZES, *MODELS, *RESULTS, *WRONG_KINDS]

HEAD = """# Bad input, and what is said about it

Each of these was tried, and the message is what came. None shows a traceback, and all are told before anything is \
fine-tuned, but for those under "Results". `...` stands for a folder. What to do about messages in general: \
[troubleshooting.md](troubleshooting.md).

This page is made by `python tests/faults/bad_input.py`; a test fails where it is stale.
"""


def page(messages: list[str]) -> str:
    """Return the page, from the message of each of `ALL`."""
    lines, section = [HEAD], None
    for one, message in zip(ALL, messages, strict=True):
        if one.section != section:
            section = one.section
            lines.append(f"\n## {section}\n\n| input | message |\n|---|---|\n")
        shown = "<br>".join(f"`` {line.strip()} ``" for line in message.splitlines() if line.strip())
        lines.append(f"| {one.what} | {shown.replace('|', chr(92) + '|')} |\n")
    return "".join(lines)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    PAGE.write_text(page([one.message() for one in ALL]), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
