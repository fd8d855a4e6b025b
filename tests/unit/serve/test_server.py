"""The server: slow and many clients, waiting requests scored together, signals, and what the command line refuses."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from served_corpus import PROMPT, RESPONSE, answering, make_app, make_corpus, serving

from workflow_scripts.core.errors import StudyError
from workflow_scripts.serve import limits
from workflow_scripts.serve.__main__ import _of_study, main
from workflow_scripts.serve.batching import Batcher
from workflow_scripts.serve.server import BoundedProtocol

ROOT = Path(__file__).parents[3]
BODY = json.dumps({"queries": [{"prompt": PROMPT, "response": RESPONSE}]}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def answerer(folder):
    with answering(folder) as answerer:
        yield answerer


def _post(port, body=BODY):
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/api/attribute", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def _told(port, sent):
    """Return everything that a connection is told until it is closed, after these bytes were sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        told = b""
        while part := connection.recv(65536):
            told += part
        return told


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: "])
def test_a_head_that_never_ends_is_not_waited_for(answerer, monkeypatch, sent):
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.2)
    with serving(make_app(answerer)) as port:
        assert _told(port, sent) == b""
        monkeypatch.undo()
        assert _post(port)[0] == 200


def test_a_second_head_that_never_ends_is_not_waited_for(answerer, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.5)
    with serving(make_app(answerer)) as port:
        told = _told(port, b"GET /page.css HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET / HT")
        assert told.count(b"HTTP/1.1 200") == 1


def test_a_body_that_never_ends_is_refused(answerer):
    with serving(make_app(answerer, body_seconds=1)) as port:
        told = _told(port, b"POST /api/attribute HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99\r\n\r\n{")
        assert told.startswith(b"HTTP/1.1 408 ")
        assert _post(port)[0] == 200


def test_an_answer_that_is_not_read_is_given_up(answerer, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "request_seconds", 0.5)
    body = json.dumps({"queries": [{"prompt": PROMPT}] * 10, "top": 100}).encode()
    head = "POST /api/attribute HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with serving(make_app(answerer, active=1)) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(head.encode() + body)
        # Once it is being answered, its time is running, and others have the usual one.
        _until(port, 429)
        monkeypatch.undo()
        _until(port, 200)


LARGE = 16_000_000


async def _large_then_slow(scope, receive, send):
    """Answer with a body that no buffer of the system takes at once, or for /slow with a small one later."""
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    body = b"a" * (10 if scope["path"] == "/slow" else LARGE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _reading_little(port):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        yield connection


def test_a_complete_answer_is_sent_to_the_end_to_somebody_who_reads_slowly(monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.5)
    told = 0
    with serving(_large_then_slow) as port, _reading_little(port) as connection:
        while part := connection.recv(65536):
            told += len(part)
            time.sleep(0.01)
    assert told > LARGE


@pytest.mark.parametrize("bound", ["head_seconds", "request_seconds"])
def test_a_complete_answer_is_given_up_if_it_is_not_read_or_not_in_time(monkeypatch, bound):
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.5)
    if bound == "request_seconds":
        monkeypatch.setattr(BoundedProtocol, "request_seconds", 1.0)
    closed = threading.Event()
    lost = BoundedProtocol.connection_lost
    monkeypatch.setattr(BoundedProtocol, "connection_lost", lambda self, exc: (lost(self, exc), closed.set())[0])
    with serving(_large_then_slow) as port, _reading_little(port) as connection:
        for _ in range(100):
            if bound == "request_seconds":
                with contextlib.suppress(ConnectionError):
                    connection.recv(32768)
            if closed.wait(0.1):
                break
        assert closed.is_set()
        told = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                told += len(part)
    assert told < LARGE


def test_a_second_request_sent_with_the_first_has_the_time_of_a_request(monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.5)
    head = "GET /slow HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    with serving(_large_then_slow) as port:
        told = _told(port, f"{head}\r\n{head}connection: close\r\n\r\n".encode())
    assert told.count(b"HTTP/1.1 200") == 2


def _until(port, status, body=BODY):
    """Ask until this is the answer's status; a connection that is closed meanwhile is none."""
    for _ in range(300):
        with contextlib.suppress(OSError, HTTPException):
            if _post(port, body)[0] == status:
                return
        time.sleep(0.05)
    raise AssertionError(f"the answer is never {status}")


def test_what_is_too_large_is_refused_before_it_is_read(answerer):
    with serving(make_app(answerer)) as port:
        head = "POST /api/attribute HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        told = _told(port, f"{head}content-length: {limits.BODY_BYTES + 1}\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 413 ")
        assert _told(port, f"{head}content-length: 12345678901234567890123\r\n\r\n".encode()).startswith(b"HTTP/1.1 4")
        chunk = b"f4240\r\n" + b" " * 1_000_000 + b"\r\n"
        told = _told(port, f"{head}transfer-encoding: chunked\r\n\r\n".encode() + 2 * chunk + b"1\r\n ")
        assert told.startswith(b"HTTP/1.1 413 ")
        assert _told(port, b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 70_000).startswith(b"HTTP/1.1 400 ")
        assert _told(port, b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert _post(port)[0] == 200


def test_without_a_host_or_with_two_nothing_is_answered(answerer):
    with serving(make_app(answerer)) as port:
        close = b"connection: close\r\n\r\n"
        assert _told(port, b"GET / HTTP/1.0\r\n" + close).startswith(b"HTTP/1.1 400 ")
        assert _told(port, b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\n" + close).startswith(b"HTTP/1.1 400 ")


def test_more_connections_than_allowed_are_closed(answerer, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "connections_at_once", 3)
    with serving(make_app(answerer)) as port:
        first = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        fourth = socket.create_connection(("127.0.0.1", port), timeout=30)
        with fourth, contextlib.suppress(ConnectionError):
            assert fourth.recv(1) == b""
        for connection in first:
            connection.close()
        _until(port, 200)


def test_requests_beyond_those_that_may_wait_are_told_to_come_again(answerer, monkeypatch):
    go = threading.Event()
    inner = answerer.answer
    monkeypatch.setattr(answerer, "answer", lambda requests: (go.wait(30), inner(requests))[1])
    with serving(make_app(answerer, active=2)) as port:
        found = []
        threads = [threading.Thread(target=lambda: found.append(_post(port)[0])) for _ in range(5)]
        for thread in threads:
            thread.start()
        while len(found) < 3:
            time.sleep(0.01)
        go.set()
        for thread in threads:
            thread.join()
        assert sorted(found) == [200, 200, 429, 429, 429]


def test_a_request_whose_client_has_gone_is_not_answered_and_leaves_its_place(answerer, monkeypatch):
    go, answered, waiting = threading.Event(), [], threading.Semaphore(0)
    inner, unknown = answerer.answer, answerer.unknown_labels

    def answer(requests):
        answered.extend(query.prompt for request in requests for query in request.queries)
        go.wait(30)
        return inner(requests)

    monkeypatch.setattr(answerer, "answer", answer)
    monkeypatch.setattr(answerer, "unknown_labels", lambda options: (waiting.release(), unknown(options))[1])
    head = "POST /api/attribute HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    bodies = [json.dumps({"queries": [{"prompt": prompt}], "top": 1}) for prompt in ("first", "gone", "last")]
    with serving(make_app(answerer, active=2)) as port:
        first = threading.Thread(target=_post, args=(port, bodies[0].encode()))
        first.start()
        assert waiting.acquire(timeout=30)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{head}content-length: {len(bodies[1])}\r\n\r\n{bodies[1]}".encode())
            assert waiting.acquire(timeout=30)
        # Refused until the place is free, the last one waits for the first.
        found = []
        last = threading.Thread(target=lambda: found.append(_until(port, 200, bodies[2].encode())))
        last.start()
        came = waiting.acquire(timeout=10)
        go.set()
        first.join()
        last.join()
    assert came
    assert answered == ["first", "last"]


def test_half_a_request_whose_client_has_gone_is_not_answered():
    reached = []

    async def app(scope, receive, send):
        reached.append(scope)

    async def ask():
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            reached.append(message)

        scope = {"type": "http", "headers": [(b"host", b"localhost")]}
        await limits.Guard(app, limits.LOCAL_NAMES)(scope, receive, send)

    asyncio.run(ask())
    assert reached == []


def test_queries_that_wait_are_scored_together(answerer, monkeypatch):
    go, batches, asked = threading.Event(), [], []
    inner = answerer.mapped.search
    monkeypatch.setattr(answerer, "unknown_labels", lambda options: asked.append(options))

    def search(vectors, wanted):
        batches.append(len(vectors))
        go.wait(30)
        return inner(vectors, wanted)

    monkeypatch.setattr(answerer.mapped, "search", search)
    with serving(make_app(answerer)) as port:
        bodies = [json.dumps({"queries": [{"prompt": f"And {number}?"}], "top": 3}).encode() for number in range(8)]
        found = {}
        threads = [
            threading.Thread(target=lambda body=body: found.update({body: _post(port, body)})) for body in bodies
        ]
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(asked) < number or not batches:
                time.sleep(0.01)
        time.sleep(0.2)
        go.set()
        for thread in threads:
            thread.join()
        assert batches == [1, 7]
        # Each is told its own answer, the one that it gets alone.
        for body, (status, told) in found.items():
            alone = json.loads(_post(port, body)[1])["answers"][0]
            answer = json.loads(told)["answers"][0]
            assert status == 200
            assert answer["query_prompt"] == json.loads(body)["queries"][0]["prompt"]
            ids, scores = zip(*((row["example_id"], row["score"]) for row in answer["examples"]), strict=True)
            assert ids == tuple(row["example_id"] for row in alone["examples"])
            assert scores == pytest.approx([row["score"] for row in alone["examples"]], rel=1e-5)


def test_a_fault_in_one_request_is_its_own():
    def answer(requests):
        if 3 in requests:
            raise ValueError("three")
        return [10 * request for request in requests]

    async def ask():
        batcher = Batcher(answer, lambda _: 1, 10)
        return await asyncio.gather(*(batcher.ask(number) for number in range(5)), return_exceptions=True)

    found = asyncio.run(ask())
    assert [str(one) for one in found] == ["0", "10", "20", "three", "40"]


def test_batches_have_a_largest_size():
    batches = []

    async def ask():
        batcher = Batcher(lambda requests: (batches.append(list(requests)), requests)[1], lambda size: size, 4)
        return await asyncio.gather(*(batcher.ask(size) for size in (9, 1, 3, 1, 4)))

    assert asyncio.run(ask()) == [9, 1, 3, 1, 4]
    assert batches == [[9], [1, 3], [1], [4]]


def test_the_example_of_the_docs_prints_the_rows_found(answerer, capsys):
    text = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    with serving(make_app(answerer)) as port:
        exec(compile(code.replace(":8000/", f":{port}/"), "serve.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [sign, str(rank)] for sign in ("helpful", "harmful") for rank in range(1, 6)
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_says_what_it_serves_and_stops_at_a_signal(folder, tmp_path, number):
    files = {"encoder": "encoder", "corpus": "corpus.parquet", "embeddings": "embeddings.parquet"}
    named = [word for option, file in files.items() for word in (f"--{option}", str(folder / file))]
    command = [sys.executable, "-m", "workflow_scripts.serve", *named, "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        said = [server.stderr.readline() for _ in range(3)]
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said[2]).group(1))
        assert f"{folder / 'corpus.parquet'}, 57 rows, embeddings of 16 numbers" in said[1]
        assert _post(port)[0] == 200
        # What it has copied has no name any more, so nothing can stay behind.
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        server.send_signal(number)
        rest = server.stderr.read()
    assert (server.returncode, rest) == (0, "Stopped.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_has_no_room_for_the_copies_is_a_message(folder, tmp_path):
    files = {"encoder": "encoder", "corpus": "corpus.parquet", "embeddings": "embeddings.parquet"}
    named = [word for option, file in files.items() for word in (f"--{option}", str(folder / file))]
    command = ["bash", "-c", 'ulimit -f 1 && exec "$@"', "-", sys.executable, "-m", "workflow_scripts.serve"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [*command, *named, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: File too large"), ended.stderr
    assert f"Temporary files are written to {tmp_path}; TMPDIR names another folder." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_neither_torch_nor_transformers_is_loaded_for_stored_embeddings(folder):
    code = (
        "import sys; from pathlib import Path\n"
        "from workflow_scripts.serve import answers, app, server\n"
        "from workflow_scripts.search.embedded import embedded_corpus\n"
        "folder = Path(sys.argv[1])\n"
        "files = folder / 'corpus.parquet', folder / 'embeddings.parquet'\n"
        "with embedded_corpus(str(folder / 'encoder'), *files, without_torch=True): pass\n"
        "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--encoder and --corpus are needed, or --config"),
        (
            ["--config", "config.yaml", "--encoder", "e"],
            "--config names encoder, corpus, embeddings and --prompt-words",
        ),
        (["--config", "config.yaml", "--prompt-words", "9"], "--config names encoder, corpus, embeddings and"),
        (["--encoder", "e", "--corpus", "c", "--prompt-words", "0"], "--prompt-words must be at least 1"),
        (["--encoder", "e", "--corpus", "c", "--port", "70000"], "--port must be from 0 to 65535"),
        (["--encoder", "e", "--corpus", "c", "--max-rejected-share", "2"], "--max-rejected-share must be from 0 to 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(capsys, words, said):
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "", "0", "0x0", "::", "0::0"])
def test_every_address_that_is_open_to_all_needs_a_name(host):
    with pytest.raises(SystemExit, match=r"^error: --host \S+ needs --name, the host name by which others"):
        main(["--encoder", "e", "--corpus", "c", "--port", "0", "--host", host])


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="can't be listened on"):
        main(["--encoder", "e", "--corpus", "c", "--port", str(taken.getsockname()[1])])


def test_a_missing_library_is_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "workflow_scripts.serve.app", None)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "workflow_scripts.serve.app")
    with pytest.raises(SystemExit, match=r"error: fastapi is not installed.*envs/requirements-serve\.lock"):
        main(["--encoder", "e", "--corpus", "c", "--port", "0"])


def test_a_config_names_encoder_corpus_and_embeddings_of_its_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ROOT / "config.yaml"
    with pytest.raises(StudyError, match=r"encoder isn't there: run the study first, make run CONFIG=.*config\.yaml"):
        _of_study(config)
    results = tmp_path / "results/mini"
    for name in ("encoder", "corpora", "embeddings/trained"):
        (results / name).mkdir(parents=True)
    (results / "corpora/pool.parquet").touch()
    named = ["results/mini/encoder", "results/mini/corpora/pool.parquet"]
    assert _of_study(config) == (*named, None, 256)
    (results / "embeddings/trained/pool.parquet").touch()
    assert _of_study(config) == (*named, Path("results/mini/embeddings/trained/pool.parquet"), 256)
    text = config.read_text(encoding="utf-8")
    assert text.count("\nencoder:\n") == 1
    (tmp_path / "words.yaml").write_text(text.replace("\nencoder:\n", "\nencoder:\n  prompt_words: 40\n"))
    assert _of_study(tmp_path / "words.yaml")[3] == 40
