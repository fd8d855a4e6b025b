"""Job scripts without their imports: a process that has imported torch and transformers forks for each of them.

Snakemake starts every job script in a new Python. Most of a small job's processor time is then the import of the same
libraries, and the tests of the workflow run hundreds of small jobs. Here a server imports the libraries once, and a
command takes the place of Snakemake's Python: it asks the server for a fork that runs the script, with the command's
own arguments, folder, environment and standard streams, and ends as the fork ends.

A fork sees libraries that its script has not imported, and shares the seed of Python's hashes with the others; so some
studies of the tests run in new processes, as users' do (`Workspace.forks_jobs`).
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

# What the stages need most; `models.transformers_import` is how they import transformers.
LIBRARIES = (
    *("jinja2", "pandas", "pyarrow.parquet", "pydantic", "snakemake.script", "torch"),
    "workflow_scripts.models.transformers_import",
)
THREADS = (
    *("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
# Variables that may differ from the server's: Snakemake, its shell and the tests change them from job to job. Thread
# counts are read at import, so `_become` sets them again; the others are read when they are used (the allocator's only
# on a GPU). If any other variable differs, the imports might have gone another way, and the job gets a new process.
IGNORED = (
    *THREADS,
    # What libraries, and the workflow for DeepSpeed, write there when they are imported: in the tests' process as well.
    *("DS_ACCELERATOR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("HF_TOKEN", "TMPDIR", "TMP", "TEMP", "TEMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "LINES", "COLUMNS"),
)
IGNORED_PREFIXES = ("AIRREP_", "PYTEST_")
# What rules/common.smk gives to all jobs.
SET_BY_RULES = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000", "THP_MEM_ALLOC_ENABLE": "1"}
NEEDS_NEW_PROCESS = b"new process"
# Not what a test has changed by the time it needs the server.
AT_FIRST = dict(os.environ)


@functools.cache
def forking_python() -> str:
    """Start the server and return the path of the command that takes Python's place."""
    # As elsewhere in this file not at the top: the command, which is started for each job, doesn't need them.
    import subprocess
    import tempfile

    folder = tempfile.TemporaryDirectory(prefix="jobs-")
    command = os.path.join(folder.name, "python")
    with open(command, "w", encoding="utf-8") as file:
        file.write(f"#!{sys.executable} -SE\nimport sys\nsys.path.append({os.path.dirname(__file__)!r})\n")
        file.write(f"import forked_jobs\nforked_jobs.run_script({folder.name!r}, {sys.executable!r})\n")
    os.chmod(command, 0o700)
    server = subprocess.Popen(
        [sys.executable, __file__, folder.name],
        env={**SET_BY_RULES, **AT_FIRST, **dict.fromkeys(THREADS, "1")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    # The server ends when its standard input does, so even if this process is killed.
    atexit.register(folder.cleanup)
    atexit.register(server.communicate)
    assert server.stdout.readline(), f"the process that runs job scripts ended: {server.poll()}"
    return command


def run_script(folder: str, python: str) -> None:
    """Run this process's arguments as Python does: in a fork of the server if they are one script."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        os.execv(python, [python, *sys.argv[1:]])
    # As a terminal's interrupt ends it, it ends the fork.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asked = {"script": sys.argv[1], "folder": os.getcwd(), "environment": dict(os.environ), "command": os.getpid()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(folder, "socket"))
        # A message of its own: what follows may arrive in pieces.
        socket.send_fds(connection, [b"-"], [0, 1, 2])
        connection.sendall(marshal.dumps(asked))
        answer = connection.recv(64)
    if answer == NEEDS_NEW_PROCESS:
        os.execv(python, [python, *sys.argv[1:]])
    code = int(answer or -signal.SIGKILL)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def count_forks_as_children(command: str) -> None:
    """Make psutil report a fork as a child of the command that asked for it, as if that had run the script itself.

    Snakemake's benchmarks add up the processor time and the memory of a job's process and all that descend from it.
    """
    import psutil

    children = psutil.Process.children
    folder = os.path.dirname(command)

    def with_forks(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
        found = children(process, recursive)
        for one in [process, *found]:
            try:
                with open(_note(folder, one.pid), encoding="utf-8") as note:
                    fork = psutil.Process(int(note.read()))
                found += [fork, *children(fork, recursive)]
            except (FileNotFoundError, psutil.NoSuchProcess):
                continue
        return found

    psutil.Process.children = with_forks


def run_and_leave(work: Callable[[], object]) -> None:
    """Do the work of this process and end it as Python does, except for the modules.

    To take modules apart one by one costs a fork of a process that has many of them more than most jobs do.
    """
    code: object = None
    try:
        work()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _note(folder: str, command: int) -> str:
    """Return the file that holds the process id of the fork that a command waits for."""
    return os.path.join(folder, f"{command}.fork")


def _serve(folder: str) -> str:
    """Fork for each request until standard input ends; return only in a fork, with the script that it has to run."""
    _import_libraries()
    # What is there now is never collected, so that the forks share its memory.
    gc.freeze()
    environment, paths = dict(os.environ), list(sys.path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(folder, "socket"))
        listener.listen()
        print("ready", flush=True)
        attendants: set[int] = set()
        while sys.stdin not in (ready := select.select([sys.stdin, listener], [], [])[0]):
            attendants -= {one for one in attendants if os.waitpid(one, os.WNOHANG)[0]}
            if listener in ready:
                connection, _ = listener.accept()
                if not (attendant := os.fork()):
                    listener.close()
                    return _attend(connection, folder, environment, paths)
                attendants.add(attendant)
                connection.close()
    for one in attendants:
        os.waitpid(one, 0)
    sys.exit()


def _import_libraries() -> None:
    """Import the libraries, and forget the workflow's own modules: each job imports those of its workspace."""
    sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    for name in LIBRARIES:
        importlib.import_module(name)
    del sys.path[1]
    for name in [name for name in sys.modules if name.partition(".")[0] == "workflow_scripts"]:
        del sys.modules[name]


def _attend(connection: socket.socket, folder: str, environment: dict[str, str], paths: list[str]) -> str:
    """Answer one request: fork, and tell the command how the fork ended; a command that is killed ends its fork.

    Returns only in the fork.
    """
    descriptors = socket.recv_fds(connection, 1, 3)[1]
    with connection.makefile("rb") as request:
        asked = marshal.load(request)
    if fixed(asked["environment"]) != fixed(environment):
        connection.sendall(NEEDS_NEW_PROCESS)
        os._exit(0)
    job = os.fork()
    if not job:
        connection.close()
        _become(asked, descriptors, paths)
        return asked["script"]
    note = _note(folder, asked["command"])
    with open(note, "w", encoding="utf-8") as file:
        file.write(str(job))
    ended = os.pidfd_open(job)
    if connection in select.select([connection, ended], [], [])[0]:
        os.kill(job, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    os.remove(note)
    try:
        connection.sendall(str(code).encode())
    finally:
        os._exit(0)


def fixed(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that must be the server's for a fork."""
    return {
        name: value
        for name, value in environment.items()
        if name not in IGNORED and not name.startswith(IGNORED_PREFIXES)
    }


def _become(asked: dict, descriptors: list[int], paths: list[str]) -> None:
    """Give this process what `python <script>` would have."""
    import tempfile

    import torch

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.path[:] = [os.path.dirname(os.path.abspath(asked["script"])), *paths[1:]]
    sys.argv = [asked["script"]]


if __name__ == "__main__":
    import runpy

    path = _serve(sys.argv[1])
    run_and_leave(lambda: runpy.run_path(path, run_name="__main__"))
