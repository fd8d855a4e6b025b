"""A small corpus with its encoder and embeddings, served as `workflow_scripts.serve` does."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from report_run import HOSTILE

from workflow_scripts.corpora.templates import encoder_text
from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer
from workflow_scripts.search.attribution import attribute
from workflow_scripts.search.embedded import embedded_corpus
from workflow_scripts.search.inputs import prepared_corpus
from workflow_scripts.search.mapped import mapped_corpus
from workflow_scripts.search.query import Query
from workflow_scripts.serve.answers import Answerer
from workflow_scripts.serve.app import create_app
from workflow_scripts.serve.limits import LOCAL_NAMES
from workflow_scripts.serve.server import make_server

ROWS = [
    {
        "prompt": f"{please}what is the {thing} of {number}?",
        "response": f"The {thing} is surely {number}.",
        "label": thing,
    }
    for number in range(1, 13)
    for thing in ("sum", "root")
    for please in ("", "Please say: ")
]
ROWS += [{"prompt": f"Question {number}: {text}", "response": text[::-1]} for number, text in enumerate(HOSTILE)]
PROMPT, RESPONSE = "What is the sum of 9?", "The sum is surely 9."


def make_corpus(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    """Write `corpus.parquet`, `encoder` and `embeddings.parquet` into a folder."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "read").mkdir()
    prepared_corpus(str(folder / "rows.jsonl"), folder / "read").rename(folder / "corpus.parquet")
    texts = [encoder_text(row["prompt"], row["response"], 256, "joint") for row in rows]
    small_encoder(wordpiece_tokenizer(texts, 300), "joint", 16, 64, 32, 1, seed=1).save(folder / "encoder")
    embeddings = folder / "embeddings.parquet"
    query = [Query(PROMPT, RESPONSE)]
    attribute(str(folder / "encoder"), folder / "corpus.parquet", query, embeddings=embeddings, top=1, sign="helpful")
    return folder


@contextmanager
def answering(folder: Path) -> Iterator[Answerer]:
    """Yield what answers about the corpus of a folder."""
    corpus, embeddings = folder / "corpus.parquet", folder / "embeddings.parquet"
    with (
        embedded_corpus(str(folder / "encoder"), corpus, embeddings, without_torch=True) as embedded,
        mapped_corpus(corpus, embedded.embeddings) as mapped,
    ):
        yield Answerer(embedded, mapped)


def make_app(answerer: Answerer, **bounds: Any) -> Any:
    """Return the application, under the names of this machine."""
    return create_app(answerer, encoder="encoder", corpus="corpus.parquet", names=LOCAL_NAMES, **bounds)


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """Yield the port of 127.0.0.1 on which an application is served, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = make_server(app, "127.0.0.1", 0, kind=uvicorn.Server)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
