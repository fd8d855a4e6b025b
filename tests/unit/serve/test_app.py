"""The API: its answers are those of `attribute`, and nothing that is sent brings it down or makes it say too much."""

import csv
import io
import json
import math
import string

import pytest

pytest.importorskip("fastapi")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_corpus import PROMPT, RESPONSE, ROWS, answering, make_app, make_corpus
from starlette.testclient import TestClient

from workflow_scripts.corpora.same_text import first_of_same
from workflow_scripts.search.attribution import attribute
from workflow_scripts.search.inputs import prepared_corpus, read_queries
from workflow_scripts.search.query import Query
from workflow_scripts.serve import limits
from workflow_scripts.serve.schemas import Answers

QUERY = {"prompt": PROMPT, "response": RESPONSE}
QUERY_COLUMNS = ["query", "query_file", "query_prompt", "query_response", "query_contrast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(folder):
    with answering(folder) as answerer:
        yield TestClient(make_app(answerer), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def _asked(client, *queries, **options):
    answer = client.post("/api/attribute", json={"queries": queries or [QUERY], **options})
    assert answer.status_code == 200, answer.text
    return answer.json()["answers"]


def _expected(folder, queries, **options):
    embeddings = folder / "embeddings.parquet"
    found = attribute(str(folder / "encoder"), folder / "corpus.parquet", queries, embeddings=embeddings, **options)
    return found.to_pylist()


def _flat(answers):
    """Return answers as rows of `attribute`."""
    own = ("sign", "same", "prompt_characters", "response_characters")
    return [
        {name: answer[name] for name in QUERY_COLUMNS} | {name: row[name] for name in row if name not in own}
        for answer in answers
        for row in answer["examples"]
    ]


def _same_but_for_rounding(found, expected):
    found, expected = ([dict(row) for row in rows] for rows in (found, expected))
    scores = [[row.pop("score") for row in rows] for rows in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    for row in expected:
        row["prompt"], row["response"] = (row[name][: limits.SHOWN_CHARACTERS] for name in ("prompt", "response"))
    assert found == expected


@pytest.mark.parametrize("sign", ["helpful", "harmful"])
@pytest.mark.parametrize("contrast", [None, "The root is surely 9."])
def test_answers_are_those_of_attribute(client, folder, sign, contrast):
    queries = [Query(PROMPT, RESPONSE, 1, contrast=contrast), Query("And the root?", "", 2)]
    asked = [{**QUERY, "contrast": contrast}, {"prompt": "And the root?"}]
    found = _flat(_asked(client, *asked, sign=sign, top=8))
    _same_but_for_rounding(found, _expected(folder, queries, sign=sign, top=8))
    least = found[3]["score"] + (-1e-6 if sign == "helpful" else 1e-6)
    of_first = _flat(_asked(client, asked[0], sign=sign, top=8, min_score=least))
    _same_but_for_rounding(of_first, _expected(folder, queries[:1], sign=sign, top=8, min_score=least))
    assert len(of_first) == 4


def test_both_signs_are_the_two_lists(client):
    (both,), (helpful,), (harmful,) = (_asked(client, sign=sign, top=5) for sign in ("both", "helpful", "harmful"))
    assert both["examples"] == helpful["examples"] + harmful["examples"]


def test_only_rows_with_the_label_are_found(client):
    (every,) = _asked(client, sign="helpful", top=100)
    for labels in (["root"], ["root", "(no label)"]):
        (found,) = _asked(client, sign="helpful", top=100, label=labels)
        kept = [row for row in every["examples"] if (row["label"] or "(no label)") in labels]
        assert [row["example_id"] for row in found["examples"]] == [row["example_id"] for row in kept]
        assert [row["rank"] for row in found["examples"]] == list(range(1, len(kept) + 1))
    answer = client.post("/api/attribute", json={"queries": [QUERY], "label": ["no such"]})
    assert answer.status_code == 422
    assert "no row of the corpus has the label 'no such'" in answer.json()["detail"]


def test_rows_that_say_the_same_are_folded_and_none_is_lost(client):
    (every,) = _asked(client, sign="helpful", top=100)
    (folded,) = _asked(client, sign="helpful", top=100, fold=True)
    firsts = first_of_same((row["prompt"], row["response"]) for row in every["examples"])
    groups = {}
    for place, first in enumerate(firsts):
        groups.setdefault(first, []).append(every["examples"][place]["example_id"])
    assert [[row["example_id"], *(same["example_id"] for same in row["same"])] for row in folded["examples"]] == list(
        groups.values()
    )
    assert len(groups) < len(firsts)
    # Fewer groups are the first of them, with those of their rows that were looked at.
    (few,) = _asked(client, sign="helpful", top=3, fold=True)
    assert [row["example_id"] for row in few["examples"]] == [row["example_id"] for row in folded["examples"][:3]]


def test_a_file_is_answered_as_attribute_does(client, folder, tmp_path):
    text = f'prompt,response\n"{PROMPT}",{RESPONSE}\n,x\nAnd the root?,9\n'
    answer = client.post("/api/file", params={"name": "my queries.csv", "top": 4, "sign": "helpful"}, content=text)
    assert answer.json()["left_out"] == [{"query": 2, "reason": "'prompt' is empty"}]
    (tmp_path / "my queries.csv").write_text(text)
    (tmp_path / "read").mkdir()
    corpus = prepared_corpus(str(tmp_path / "my queries.csv"), tmp_path / "read", max_rejected_share=0.5)
    expected = _expected(folder, read_queries(corpus), sign="helpful", top=4)
    assert {row["query"] for row in expected} == {1, 3}
    _same_but_for_rounding(_flat(answer.json()["answers"]), expected)


def test_csv_has_the_rows_of_json(client):
    told = _asked(client, top=100, fold=True)
    answer = client.post("/api/attribute", json={"queries": [QUERY], "top": 100, "fold": True, "format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    examples = told[0]["examples"]
    assert [(row["sign"], int(row["source_row"]), row["prompt"]) for row in rows] == [
        (row["sign"], row["source_row"], row["prompt"]) for row in examples
    ]
    assert [len(row["same_rows"].split()) for row in rows] == [len(row["same"]) for row in examples]


def test_long_texts_are_cut_and_their_length_told(client):
    (answer,) = _asked(client, top=100, sign="helpful")
    lengths = {row["response_characters"]: len(row["response"]) for row in answer["examples"]}
    assert lengths[100_000] == limits.SHOWN_CHARACTERS


def test_what_is_served_is_told(client):
    about = client.get("/api/about").json()
    assert about["rows"] == len(ROWS)
    assert {label["label"]: label["rows"] for label in about["labels"]} == {"sum": 24, "root": 24, None: 9}
    assert "surely" in about["common_words"]
    assert "9" not in about["common_words"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"queries": []}, "at least 1 item"),
        ({"queries": [QUERY] * 101, "top": 1}, "at most 100 items"),
        ({"queries": [{"prompt": ""}]}, "at least 1 character"),
        ({"queries": [{"prompt": "a" * 20_001}]}, "at most 20000 characters"),
        ({"queries": [QUERY], "top": 101}, "less than or equal to 100"),
        ({"queries": [QUERY] * 100, "top": 100}, "100 queries x 2 signs x top 100 are more than 2,000 examples"),
        ({"queries": [{"prompt": "a", "contrast": "b"}]}, "a contrast needs a response"),
        ({"queries": [QUERY], "filter": 1}, "Extra inputs are not permitted"),
        ({"queries": [{"prompt": "\ud800"}]}, "valid string"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(client, body, words):
    answer = client.post("/api/attribute", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert words in answer.text
    assert "aaaa" not in answer.text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 5000, "[" * 100_000])
def test_numbers_that_are_none_are_refused(client, value):
    body = f'{{"queries": [{{"prompt": "a"}}], "min_score": {value}}}'
    assert (
        400
        <= client.post("/api/attribute", content=body, headers={"content-type": "application/json"}).status_code
        < 500
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.jsonl", b"", "q.jsonl"),
        ("q.jsonl", b"\xff\xfe{", "q.jsonl has no query: row 1"),
        ("q.jsonl", b'{"prompt": "a", "response": "b"}\n' * 101, "more than 100 rows"),
        ("q.json", b"[" * 100_000, "q.json"),
        ("q.csv", b"prompt,response\n" + b"a" * 30_000 + b",b\n", "a text has more than 20,000 characters"),
        ("*.csv", b"a", "*.csv has no query"),
        ("queries.csv", b"", "queries.csv"),
        ("q.parquet", b"PAR1", "must end in .jsonl, .json or .csv"),
        ("../../etc/passwd.csv", b"", "neither a slash nor control characters"),
        ("a/b.csv", b"", "neither a slash nor control characters"),
        ("a\nb.csv", b"", "neither a slash nor control characters"),
        ("a" * 252 + ".csv", b"", "at most 255 characters"),
    ],
)
def test_files_that_are_none_are_refused_without_saying_where_they_lay(client, name, content, words):
    answer = client.post("/api/file", params={"name": name}, content=content)
    assert answer.status_code == 422
    assert words in answer.text
    assert "/tmp" not in answer.text


@pytest.mark.parametrize(
    "name", ["queries (1).csv", "\u8cea" * 251 + ".csv", "a*[b]?.csv", "..csv", ".csv", "a\\b~.csv"]
)
def test_a_file_may_have_any_name(client, name):
    answer = client.post("/api/file", params={"name": name, "top": 1}, content="prompt,response\nAnd the root?,9\n")
    assert answer.status_code == 200, answer.text
    assert [one["query_file"] for one in answer.json()["answers"]] == [name]
    rows = b'{"prompt": "a", "response": "b"}\n' * 101
    many = client.post("/api/file", params={"name": f"{name[:200]}.jsonl"}, content=rows)
    assert f"{name[:200]}.jsonl has more than 100 rows" in many.json()["detail"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::1", "a:b:c"]
)
def test_other_names_are_refused(client, host):
    for path in ("/", "/api/about", "/openapi.json"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 400
        assert "encoder" not in answer.text


@pytest.mark.parametrize("host", ["localhost:9999", "LOCALHOST", "[::1]:8000", "127.0.0.1"])
def test_names_of_this_machine_are_served(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


def test_pages_of_other_sites_may_not_ask(client):
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        answer = client.post("/api/attribute", json={"queries": [QUERY]}, headers={"origin": origin})
        assert answer.status_code == 403
    assert client.post("/api/attribute", json={"queries": [QUERY]}, headers={"origin": "http://localhost:1"}).is_success
    answer = client.options(
        "/api/attribute", headers={"origin": "http://localhost", "access-control-request-method": "POST"}
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "BREW", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/api/about", "/api/attribute", "/api/file", "/docs", "/nowhere"])
def test_other_methods_are_refused(client, method, path):
    assert client.request(method, path).status_code in (404, 405)


def test_every_answer_has_the_headers_of_a_page_that_runs_nothing_else(client):
    answers = [client.get("/"), client.get("/docs"), client.get("/nowhere"), client.get("/", headers={"host": "evil"})]
    for answer in answers:
        assert all(answer.headers[name] == value for name, value in limits.HEADERS.items())
        assert "unsafe" not in answer.headers["content-security-policy"]


SCHEMA_TYPES = {"string", "integer", "number", "boolean", "null"}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=50),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
LETTERS = st.one_of(st.characters(), st.sampled_from(string.punctuation + "\0\u202e\ud800\U0001f469"))


def _values(schema, parts):
    """Return a strategy for values of a JSON schema, now and then of another."""
    if "$ref" in schema:
        schema = parts[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        valid = st.one_of(*(_values(one, parts) for one in schema["anyOf"]))
    elif "enum" in schema:
        valid = st.sampled_from(schema["enum"])
    elif schema.get("type") == "array":
        valid = st.lists(_values(schema["items"], parts), max_size=4)
    elif schema.get("type") == "object":
        wanted = {name: _values(one, parts) for name, one in schema["properties"].items()}
        required = {name: wanted.pop(name) for name in schema.get("required", [])}
        valid = st.fixed_dictionaries(required, optional=wanted)
    elif schema["type"] == "string" and schema.get("maxLength") == 255:
        valid = st.builds(str.__add__, st.text(LETTERS, max_size=250), st.sampled_from([".jsonl", ".json", ".csv"]))
    else:
        assert schema["type"] in SCHEMA_TYPES
        valid = {
            "string": st.text(LETTERS, max_size=min(schema.get("maxLength", 60), 60)),
            "integer": st.integers(schema.get("minimum", -3), schema.get("maximum", 3)),
            "number": st.floats(),
            "boolean": st.booleans(),
            "null": st.none(),
        }[schema["type"]]
    return st.one_of(valid, valid, valid, valid, valid, valid, ODD)


@pytest.fixture(scope="module")
def api(client):
    return client.get("/openapi.json").json()


def test_the_schema_names_every_call(api):
    assert {path: list(methods) for path, methods in api["paths"].items()} == {
        "/api/about": ["get"],
        "/api/attribute": ["post"],
        "/api/file": ["post"],
    }


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_of_or_beside_the_schema_is_an_error_of_the_server(client, api, data):
    parts = api["components"]["schemas"]
    call = api["paths"]["/api/attribute"]["post"]
    schema = call["requestBody"]["content"]["application/json"]["schema"]
    body = data.draw(_values(schema, parts))
    kind = data.draw(st.sampled_from(["application/json"] * 8 + ["text/plain", "application/xml", ""]))
    answer = client.post("/api/attribute", content=json.dumps(body), headers={"content-type": kind})
    assert answer.status_code < 500, body
    assert "Traceback" not in answer.text
    if answer.status_code == 200 and "json" in answer.headers["content-type"]:
        told = Answers.model_validate(answer.json())
        assert all(math.isfinite(row.score) for one in told.answers for row in one.examples)
    assert client.get("/api/about").status_code == 200


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_file_is_an_error_of_the_server(client, api, data):
    parameters = api["paths"]["/api/file"]["post"]["parameters"]
    asked = {one["name"]: data.draw(_values(one["schema"], {})) for one in parameters if data.draw(st.booleans())}
    asked = {
        name: [str(one) for one in (value if isinstance(value, list) else [value])] for name, value in asked.items()
    }
    asked = {name: [one.encode(errors="replace").decode() for one in values] for name, values in asked.items()}
    asked.setdefault("name", [data.draw(st.sampled_from(["a.jsonl", "a.json", "a.csv"]))])
    rows = st.lists(st.dictionaries(st.sampled_from(["prompt", "response", "messages", "x"]), ODD), max_size=3)
    lines = rows.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    body = data.draw(st.one_of(st.binary(max_size=200), lines))
    answer = client.post("/api/file", params=asked, content=body)
    assert answer.status_code < 500, (asked, body)
    assert "Traceback" not in answer.text
    assert "/tmp" not in answer.text
