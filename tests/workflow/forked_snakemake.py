"""Snakemake without its start: a process that has imported it runs it in forks of itself.

A dry run takes a fraction of the time of the imports before it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from forked_jobs import count_forks_as_children, run_and_leave


def run_forked(
    arguments: list[str], folder: Path, environment: Mapping[str, str], python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run `snakemake <arguments>` in a folder; its standard error stands in its standard output.

    Its jobs are run by the command `python`, as that of `forked_jobs.forking_python`.
    """
    server = _server()
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as screen:
        asked = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": dict(environment),
            "python": python,
            "screen": screen.name,
        }
        print(json.dumps(asked), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, f"the process that runs Snakemake ended: {server.poll()}"
        return subprocess.CompletedProcess(["snakemake", *arguments], int(answer), screen.read())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the process; it ends when this one closes its end of the pipe."""
    command = [sys.executable, __file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    """Fork for every line of standard input, and answer with the exit code."""
    # Besides the plugins, which the parser looks for, a dry run imports these late.
    import nbformat  # noqa: F401
    import smart_open  # noqa: F401
    from snakemake.cli import get_argument_parser, main

    get_argument_parser()
    # What is there now is never collected, so that the forks share its memory.
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else:
            _become(**asked)
            run_and_leave(main)


def _become(arguments: list[str], folder: str, environment: dict[str, str], python: str, screen: str) -> None:
    """Give this process what `python -m snakemake` would have, started in the folder."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(screen, os.O_WRONLY | os.O_APPEND), stream.fileno())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    if python != sys.executable:
        count_forks_as_children(python)
        sys.executable = python
    sys.argv = ["snakemake", *arguments]


if __name__ == "__main__":
    _serve()
