"""Check the locked versions for known vulnerabilities: `python envs/audit.py`.

Asks pip-audit, which needs a network. Where it can't be asked, that is said, and nothing fails: a build without
network must not depend on it. A known vulnerability does fail.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_CHECKED = "NOT CHECKED for known vulnerabilities"


def locked_versions() -> list[str]:
    """Return every `name==version` of the locks, without hashes: pip-audit wants them for all lines or for none."""
    locks = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.lock"))]
    return re.findall(r"^[^#\s]+==[^\s;]+", "\n".join(locks), re.MULTILINE)


def ask(versions: list[str]) -> subprocess.CompletedProcess[str]:
    """Return what pip-audit says of `versions`; it looks at nothing else."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format=json", "--requirement"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(versions))
        file.flush()
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=False)


def main() -> int:
    """Print what was found; return 1 if a locked version has a known vulnerability."""
    if importlib.util.find_spec("pip_audit") is None:
        print(f"{NOT_CHECKED}: pip-audit is not installed (pip install -r envs/requirements-test.lock).")
        return 0
    asked = ask(locked_versions())
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"{NOT_CHECKED}: pip-audit could not ask ({reason}).")
        return 0
    # A mirror that knows no vulnerabilities answers too: with nothing.
    unknown = [one for one in packages if "skip_reason" in one]
    if len(unknown) == len(packages):
        reason = unknown[0]["skip_reason"] if unknown else "no packages"
        print(f"{NOT_CHECKED}: nothing is known of any of the {len(packages)} locked versions ({reason}).")
        return 0
    found = [(one, flaw) for one in packages for flaw in one.get("vulns", [])]
    for one, flaw in found:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {flaw['id']}, mended in {mended}")
    for one in unknown:
        print(f"{one['name']}: {NOT_CHECKED} ({one['skip_reason']})")
    checked = len(packages) - len(unknown)
    print(f"{checked} of {len(packages)} locked versions checked: {len(found)} known vulnerabilities.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
