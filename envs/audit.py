"""Check the locked versions for known vulnerabilities: `python envs/audit.py`.

Asks pip-audit, which needs a network. Where it can't be asked, that is said, and nothing fails: a build without
network must not depend on it.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
LOCKS = ("requirements.lock", "requirements-test.lock")


def main() -> int:
    """Print what was found; return 1 if a locked version has a known vulnerability."""
    if importlib.util.find_spec("pip_audit") is None:
        print("NOT CHECKED for known vulnerabilities: pip-audit is not installed (pip install pip-audit).")
        return 0
    locks = [word for name in LOCKS for word in ("--requirement", str(FOLDER / name))]
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format=json", *locks]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"NOT CHECKED for known vulnerabilities: pip-audit could not ask ({reason}).")
        return 0
    found = [(one, flaw) for one in packages for flaw in one.get("vulns", [])]
    for one, flaw in found:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {flaw['id']}, mended in {mended}")
    print(f"{len(packages)} locked versions checked: {len(found)} known vulnerabilities.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
