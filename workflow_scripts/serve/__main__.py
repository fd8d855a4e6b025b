"""Serve a page and an API for questions to a trained encoder: `python -m workflow_scripts.serve`."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.progress import say
from workflow_scripts.core.redaction import redact_output
from workflow_scripts.core.stage import temporary_trouble
from workflow_scripts.search.embedded import PROMPT_WORDS, embedded_corpus
from workflow_scripts.search.inputs import columns_given, prepared_corpus
from workflow_scripts.search.mapped import mapped_corpus
from workflow_scripts.study.config_files import read_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.sections import Corpus

PORT = 8000


def arguments_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow_scripts.serve",
        description="Serve a page, and an API, on which training examples help or harm an answer.",
    )
    parser.add_argument("--config", type=Path, help="config of a finished study, in place of the next four")
    parser.add_argument("--encoder", help="folder or hub id, e.g. results/mini/encoder")
    parser.add_argument("--corpus", help="training examples, of any kind that workflow_scripts.attribute takes")
    parser.add_argument(
        "--embeddings",
        type=Path,
        help="the corpus's embeddings, e.g. results/<run>/embeddings/trained/<corpus>.parquet; a file that doesn't "
        "exist is made (default: made for as long as the server runs)",
    )
    parser.add_argument(
        "--prompt-words",
        type=int,
        help=f"words of a prompt that are read: encoder.prompt_words of the encoder's study (default: {PROMPT_WORDS})",
    )
    parser.add_argument(
        "--columns", type=columns_given, default={}, help="columns of the file --corpus, as workflow_scripts.attribute"
    )
    parser.add_argument(
        "--max-rejected-share",
        type=float,
        default=Corpus(source="-").max_rejected_share,
        help="stop when more than this share of the rows of --corpus can't be used (default: %(default)s)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on; 0 for any (default: %(default)s)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="another host name under which the server is reached; requests for other names are refused",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    redact_output()
    parser = arguments_parser()
    given = parser.parse_args(arguments)
    named = [given.encoder, given.corpus, given.embeddings, given.prompt_words]
    if given.config and any(one is not None for one in named):
        parser.error("--config names encoder, corpus, embeddings and --prompt-words; leave it or them out")
    if not given.config and not (given.encoder and given.corpus):
        parser.error("--encoder and --corpus are needed, or --config")
    if not 0 <= given.port <= 65535:
        parser.error("--port must be from 0 to 65535")
    if given.prompt_words is not None and given.prompt_words < 1:
        parser.error("--prompt-words must be at least 1")
    if not 0 <= given.max_rejected_share <= 1:
        parser.error("--max-rejected-share must be from 0 to 1")
    # Until there is a server, a signal ends the process in order too, so that no temporary file stays.
    signal.signal(signal.SIGTERM, _stop)
    try:
        _serve(given)
    except StudyError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        trouble = temporary_trouble(error)
        if trouble is None:
            raise
        raise SystemExit(f"error: {trouble}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _stop(*_: object) -> NoReturn:
    raise SystemExit(143)


def _serve(given: argparse.Namespace) -> None:
    try:
        from workflow_scripts.serve.answers import Answerer
        from workflow_scripts.serve.app import create_app
        from workflow_scripts.serve.limits import LOCAL_NAMES
        from workflow_scripts.serve.server import make_server
    except ModuleNotFoundError as error:
        raise StudyError(
            f"{error.name} is not installed, which the server needs: run "
            "`pip install -r envs/requirements-serve.lock` in the workflow's environment."
        ) from error
    encoder, source, embeddings, prompt_words = _of_study(given.config) if given.config else _as_given(given)
    listening = _listen(given.host, given.port, given.name)
    with listening, tempfile.TemporaryDirectory() as temporary:
        corpus = prepared_corpus(
            source, Path(temporary), columns=given.columns, max_rejected_share=given.max_rejected_share
        )
        if embeddings is None or not embeddings.exists():
            say(f"Embedding {source} ...")
        with (
            embedded_corpus(encoder, corpus, embeddings, without_torch=True, prompt_words=prompt_words) as embedded,
            mapped_corpus(corpus, embedded.embeddings) as mapped,
        ):
            names = {*LOCAL_NAMES, given.host.lower(), *(name.lower() for name in given.name)}
            answerer = Answerer(embedded, mapped)
            app = create_app(answerer, encoder=encoder, corpus=source, names=names)
            host, port = (given.name[0] if given.name else given.host), listening.getsockname()[1]
            rows, dimension = mapped.vectors.shape
            say(f"Encoder: {encoder}\nCorpus:  {source}, {rows:,} rows, embeddings of {dimension:,} numbers")
            if given.host not in LOCAL_NAMES:
                say("Everybody who reaches this machine can read the corpus: there is no password.")
            say(f"Page:    http://{f'[{host}]' if ':' in host else host}:{port}/ (API: /docs); stop it with Ctrl-C")
            asyncio.run(make_server(app, given.host, port).serve(sockets=[listening]))
            say("Stopped.")


def _as_given(given: argparse.Namespace) -> tuple[str, str, Path | None, int]:
    return given.encoder, given.corpus, given.embeddings, given.prompt_words or PROMPT_WORDS


def _of_study(config: Path) -> tuple[str, str, Path | None, int]:
    """Return of a study its encoder, the training corpus of its first evaluation, that corpus's embeddings, and how
    many words of a prompt are read."""
    plan = StudyPlan(read_study(config))
    name = next(iter(plan.study.evaluations.values())).train
    encoder, corpus = plan.results / "encoder", plan.results / f"corpora/{name}.parquet"
    for path in (encoder, corpus):
        if not path.exists():
            raise StudyError(f"{path} isn't there: run the study first, make run CONFIG={config}")
    # Of a corpus that is embedded in parts there is no such file.
    embeddings = plan.results / f"embeddings/trained/{name}.parquet"
    stored = embeddings if embeddings.exists() else None
    return str(encoder), str(corpus), stored, plan.study.encoder.prompt_words


def _listen(host: str, port: int, names: Sequence[str]) -> socket.socket:
    """Return a listening socket, before anything is loaded: a port that is taken is told at once."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise StudyError(f"{host}:{port} can't be listened on ({error}); write another --port or --host") from None
    # "" and "0" are all addresses too: what was bound tells.
    if ipaddress.ip_address(listening.getsockname()[0]).is_unspecified and not names:
        listening.close()
        raise StudyError(f"--host {host or repr(host)} needs --name, the host name by which others reach this machine")
    return listening


if __name__ == "__main__":
    main()
