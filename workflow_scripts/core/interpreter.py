"""The Python that Snakemake starts jobs with."""

import sys

from workflow_scripts.core.errors import StudyError


def require_python_without_spaces() -> None:
    """Raise `StudyError` if this Python's path has a space, which Snakemake's command for a job does not quote."""
    if " " in sys.executable:
        raise StudyError(
            f"{sys.executable}: Snakemake starts no job by a Python whose path has a space. Move this folder, or the "
            "environment that Snakemake is installed in, to a path without one, and install again there."
        )
