"""Asking a trained encoder: the right examples, every format, and files that don't belong together."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from workflow_scripts.attribute import Query, as_text, attribute, main, prepared_corpus
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.corpora.templates import encoder_text
from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer
from workflow_scripts.encoder.loading import load_encoder

ROWS = [
    {"prompt": f"What is the {thing} of {number}?", "response": f"It is {number + 1}."}
    for number in range(15)
    for thing in ("sum", "root")
]
QUERIES = [Query("What is the sum of 3?", "It is 4."), Query("Name a root.", "")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attribute")
    texts = [encoder_text(row["prompt"], row["response"], 256, "joint") for row in ROWS]
    small_encoder(wordpiece_tokenizer(texts, 200), "joint", 16, 64, 32, 1, seed=1).save(folder / "encoder")
    small_encoder(wordpiece_tokenizer(texts, 200), "joint", 16, 64, 32, 1, seed=2).save(folder / "other_encoder")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "corpus").mkdir()
    prepared_corpus(str(folder / "rows.jsonl"), folder / "corpus").rename(folder / "corpus.parquet")
    return folder


def _answers(result, number):
    """Return what was found for the query `number`, as rows."""
    return [row for row in result.to_pylist() if row["query_prompt"] == QUERIES[number].prompt]


def _ask(folder, embeddings=None, top=4, sign="helpful", encoder="encoder", corpus="corpus.parquet"):
    return attribute(str(folder / encoder), folder / corpus, QUERIES, embeddings=embeddings, top=top, sign=sign)


def _scores(folder):
    model = load_encoder(folder / "encoder", 64)
    texts = [encoder_text(row["prompt"], row["response"], 256, "joint") for row in ROWS]
    asked = [encoder_text(query.prompt, query.response, 256, "joint") for query in QUERIES]
    vectors, tests = (model.encode(model.tokenize(some), 1000) for some in (texts, asked))
    return tests @ vectors.astype(np.float16).astype(np.float32).T


@pytest.mark.parametrize(("sign", "direction"), [("helpful", -1), ("harmful", 1)])
def test_the_best_examples_are_those_of_the_inner_products(folder, sign, direction):
    expected = _scores(folder)
    result = _ask(folder, sign=sign)
    for query, scores in enumerate(expected):
        rows = _answers(result, query)
        best = np.argsort(direction * scores, kind="stable")[:4]
        assert [row["rank"] for row in rows] == [1, 2, 3, 4]
        np.testing.assert_allclose([row["score"] for row in rows], scores[best], rtol=1e-4)
        assert all(row["prompt"] == ROWS[row["example_id"]]["prompt"] for row in rows)


def test_embeddings_are_made_once_and_read_again(folder, tmp_path):
    embeddings = tmp_path / "embeddings.parquet"
    made = _ask(folder, embeddings)
    before = embeddings.stat().st_mtime_ns
    again = _ask(folder, embeddings)
    assert again.drop_columns("score").equals(made.drop_columns("score"))
    np.testing.assert_allclose(again["score"].to_numpy(), made["score"].to_numpy(), rtol=1e-4)
    assert made.equals(_ask(folder))
    assert embeddings.stat().st_mtime_ns == before


def test_embeddings_of_another_encoder_or_corpus_are_refused(folder, tmp_path):
    embeddings = tmp_path / "embeddings.parquet"
    _ask(folder, embeddings)
    with pytest.raises(StudyError, match="made by another encoder"):
        _ask(folder, embeddings, encoder="other_encoder")
    (tmp_path / "short.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (tmp_path / "new").mkdir()
    with pytest.raises(StudyError, match="made from another corpus"):
        _ask(folder, embeddings, corpus=prepared_corpus(str(tmp_path / "short.jsonl"), tmp_path / "new"))
    with pytest.raises(StudyError, match="holds no embeddings"):
        _ask(folder, folder / "corpus.parquet")


def test_some_rows_of_a_prepared_corpus_are_read_as_a_corpus_of_their_own(folder, tmp_path, capsys):
    some = pq.read_table(folder / "corpus.parquet").slice(1).to_pandas()
    some.to_parquet(tmp_path / "some.parquet")
    (tmp_path / "read").mkdir()
    read = prepared_corpus(str(tmp_path / "some.parquet"), tmp_path / "read")
    assert read != tmp_path / "some.parquet"
    found = pq.read_table(read)
    assert found["example_id"].to_pylist() == list(range(len(some)))
    assert found["prompt"].to_pylist() == some["prompt"].tolist()
    assert "is read as one of your own" in capsys.readouterr().err
    assert prepared_corpus(str(folder / "corpus.parquet"), tmp_path / "read") == folder / "corpus.parquet"


def test_a_disk_that_has_no_room_for_temporary_files_is_a_message(folder, tmp_path):
    command = ["bash", "-c", 'ulimit -f 1 && exec "$@"', "-", sys.executable, "-m", "workflow_scripts.attribute"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [*command, *_command(folder, "--query", "a")], stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    assert ended.returncode == 1
    assert "error: File too large" in ended.stderr
    assert f"Temporary files are written to {tmp_path}; TMPDIR names another folder." in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("queries", [1, 40])
def test_queries_are_cut_as_the_corpus_was_or_refused(folder, tmp_path, queries):
    long = [{"prompt": f"{number} and " + "root sum " * 20, "response": f"It is {number}."} for number in range(5)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    (tmp_path / "read").mkdir()
    files = str(folder / "encoder"), prepared_corpus(str(tmp_path / "long.jsonl"), tmp_path / "read")
    asked = [Query(long[3]["prompt"], long[3]["response"], number) for number in range(1, queries + 1)]
    options = {"embeddings": tmp_path / "embeddings.parquet", "top": 5, "sign": "helpful"}
    made = attribute(*files, asked, **options, prompt_words=4)
    again = attribute(*files, asked, **options, prompt_words=4)
    np.testing.assert_allclose(again["score"].to_numpy(), made["score"].to_numpy(), rtol=1e-4)
    # The same row as query is the row's own embedding.
    stored = pq.read_table(options["embeddings"])["embedding"].to_pylist()[3]
    own = next(row["score"] for row in made.to_pylist() if row["example_id"] == 3)
    assert own == pytest.approx(np.dot(stored, stored), rel=1e-2)
    with pytest.raises(StudyError, match=r"from the first 4 words of each prompt, .* Write --prompt-words 4\."):
        attribute(*files, asked, **options)
    # As a file of an earlier version, which doesn't say it.
    file = options["embeddings"]
    write_table(file, read_table(file), encoder=read_metadata(file)["encoder"])
    with pytest.raises(StudyError, match=r"with --prompt-words 256\. Give --prompt-words the encoder\.prompt_words"):
        attribute(*files, asked, **options)


def test_an_encoder_without_a_projection_was_not_trained(folder, tmp_path):
    model = load_encoder(folder / "encoder", 64)
    model.transformer.save_pretrained(tmp_path / "bert")
    model.tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(StudyError, match="has no projection"):
        _ask(tmp_path, encoder="bert", corpus=folder / "corpus.parquet")


def test_the_published_layout_gives_the_same_examples(folder, tmp_path):
    ours, published = folder / "encoder", tmp_path / "published"
    published.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (published / name).write_bytes((ours / name).read_bytes())
    bert = {f"bert.{name}": tensor for name, tensor in load_file(ours / "model.safetensors").items()}
    linear = load_file(ours / "2_Dense/model.safetensors")
    projector = {name.replace("linear.", "projector."): tensor for name, tensor in linear.items()}
    save_file(bert | projector, published / "model.safetensors", metadata={"format": "pt"})
    corpus = folder / "corpus.parquet"
    assert _ask(tmp_path, encoder="published", corpus=corpus).equals(_ask(folder))

    half = {name: tensor.to(torch.bfloat16) for name, tensor in (bert | projector).items()}
    save_file(half, published / "model.safetensors", metadata={"format": "pt"})
    in_half = load_encoder(published, 64)
    assert in_half.projections[0].weight.dtype == torch.float32

    del bert["bert.embeddings.word_embeddings.weight"]
    save_file(bert | projector, published / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudyError, match=r"1 weights are missing, e\.g\. embeddings\.word_embeddings\.weight"):
        load_encoder(published, 64)


def test_a_hub_name_out_of_reach_says_so(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match="'some/encoder' can't be loaded"):
        attribute("some/encoder", folder / "corpus.parquet", QUERIES, embeddings=None, top=1, sign="helpful")


def _command(folder, *more):
    return ["--encoder", str(folder / "encoder"), "--corpus", str(folder / "rows.jsonl"), *more]


def test_a_question_is_answered_on_the_screen(folder, capsys):
    main(_command(folder, "--query", QUERIES[0].prompt, "--response", QUERIES[0].response, "--top", "2"))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["query", "rank", "score", "row"]
    asked, *lines = lines
    assert asked == f"    1: {QUERIES[0].prompt} -> {QUERIES[0].response}"
    expected = _answers(_ask(folder, top=2), 0)
    assert [int(line.split()[3]) for line in lines] == [row["example_id"] + 1 for row in expected]


def test_a_file_of_questions_is_answered_as_json_and_parquet(folder, tmp_path, capsys):
    (tmp_path / "queries.csv").write_text("prompt,response\nWhat is the sum of 3?,It is 4.\nName a root.,Two.\n")
    command = _command(folder, "--queries", str(tmp_path / "queries.csv"), "--top", "3")
    main([*command, "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    main([*command, "--format", "parquet", "--output", str(tmp_path / "found.parquet")])
    assert pq.read_table(tmp_path / "found.parquet").to_pylist() == rows
    assert [(row["query"], row["rank"]) for row in rows] == [(query, rank) for query in (1, 2) for rank in (1, 2, 3)]
    assert {row["query_prompt"] for row in rows} == {"What is the sum of 3?", "Name a root."}


def _asked(folder, queries, capsys, *more):
    main(_command(folder, "--queries", str(queries), "--top", "2", "--format", "json", *more))
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def _write_queries(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_refused_query_moves_no_other(folder, tmp_path, capsys):
    rows = [{"prompt": f"What is the root of {number}?", "response": f"It is {number}."} for number in range(40)]
    good, _ = _asked(folder, _write_queries(tmp_path / "queries.jsonl", rows), capsys)
    rows[5]["response"] = ""
    bad, said = _asked(folder, _write_queries(tmp_path / "queries.jsonl", rows), capsys)
    good = [row for row in good if row["query"] != 6]
    # How many queries there are decides in which order a matrix product adds.
    assert [row.pop("score") for row in bad] == pytest.approx([row.pop("score") for row in good])
    assert bad == good
    assert all(row["query_prompt"] == rows[row["query"] - 1]["prompt"] for row in bad)
    assert "row 6 of queries.jsonl is left out: 'response' is empty" in said


def test_examples_are_named_by_their_rows_in_the_source(folder, tmp_path, capsys):
    rows = [{}, *ROWS]
    (tmp_path / "encoder").symlink_to(folder / "encoder")
    _write_queries(tmp_path / "rows.jsonl", rows)
    found, said = _asked(tmp_path, _write_queries(tmp_path / "queries.jsonl", ROWS[:3]), capsys)
    assert all(row["prompt"] == rows[row["source_row"] - 1]["prompt"] for row in found)
    assert "row 1 of rows.jsonl is left out: the row is an empty object" in said


def test_a_file_with_bad_rows_says_what_this_command_can_do(folder, tmp_path, capsys):
    rows = [{"ask": ROWS[0]["prompt"], "reply": ROWS[0]["response"]}, {"ask": "Why?", "reply": ""}]
    queries = _write_queries(tmp_path / "queries.jsonl", rows)
    with pytest.raises(SystemExit) as error:
        _asked(folder, queries, capsys)
    message = str(error.value)
    assert "e.g. queries.jsonl, row 1: no known column: the row has ['ask', 'reply']" in message
    assert "--query-columns" in message
    assert "--max-rejected-share" in message
    assert ".failed.parquet" not in message
    columns = ["--query-columns", "prompt=ask,response=reply"]
    with pytest.raises(SystemExit, match="1 of 2 rows can't be used"):
        _asked(folder, queries, capsys, *columns)
    found, _ = _asked(folder, queries, capsys, *columns, "--max-rejected-share", "0.5")
    assert {row["query"] for row in found} == {1}
    with pytest.raises(SystemExit):
        main(_command(folder, "--queries", str(queries), "--columns", "ask"))
    assert "'ask' is not one of prompt, response, messages, label" in capsys.readouterr().err


def test_texts_of_a_corpus_cannot_steer_the_terminal(folder):
    result = _ask(folder, top=1)
    evil = result.set_column(result.column_names.index("prompt"), "prompt", [["\x1b[2J\na\u202eb"] * len(result)])
    assert "[2J a b -> It is" in as_text(evil)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--query", "a", "--corpus", "no.jsonl"], "there is no file no.jsonl"),
        (["--query", "a", "--encoder", "./nowhere"], "the model './nowhere' can't be loaded"),
    ],
)
def test_errors_are_one_message(folder, more, words):
    with pytest.raises(SystemExit, match=f"error: .*{words}"):
        main(_command(folder, *more))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--query", "a", "--top", "0"], "--top must be at least 1"),
        (["--query", "a", "--format", "parquet"], "--format parquet needs --output FILE"),
        (["--query", "a", "--output", "nowhere/a.json"], "there is no folder nowhere; make it, or name another one"),
        (["--queries", "a", "--response", "b"], "--response belongs to --query"),
        (["--queries", "a", "--contrast", "b"], "--contrast belongs to --query and --response"),
        (["--query", "a", "--by", "label", "--min-score", "1"], "--min-score chooses examples, and --by counts all"),
        ([], "one of the arguments --query --queries is required"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(folder, capsys, more, words):
    with pytest.raises(SystemExit):
        main(_command(folder, *more))
    assert words in capsys.readouterr().err


def _told(folder, capsys, *more):
    main(_command(folder, *more, "--embeddings", str(folder / "told.parquet"), "--format", "json"))
    return json.loads(capsys.readouterr().out)


def test_a_contrast_scores_the_difference_of_two_answers(folder, capsys):
    asked = ["--query", "What is the sum of 3?", "--top", "40"]
    one, other = (
        {row["example_id"]: row["score"] for row in _told(folder, capsys, *asked, "--response", text)}
        for text in ("It is 4.", "It is 9.")
    )
    found = _told(folder, capsys, *asked, "--response", "It is 4.", "--contrast", "It is 9.")
    assert {row["query_contrast"] for row in found} == {"It is 9."}
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    for row in found:
        assert row["score"] == pytest.approx(one[row["example_id"]] - other[row["example_id"]], abs=1e-4)
    main(_command(folder, *asked, "--response", "It is 4.", "--contrast", "It is 9."))
    assert "What is the sum of 3? -> It is 4., not It is 9." in capsys.readouterr().out


def test_only_scores_above_a_minimum_are_shown(folder, capsys):
    asked = ["--query", QUERIES[0].prompt, "--response", QUERIES[0].response, "--top", "40"]
    for sign in ("helpful", "harmful"):
        every = _told(folder, capsys, *asked, "--sign", sign)
        limit = every[6]["score"]
        found = _told(folder, capsys, *asked, "--sign", sign, f"--min-score={limit}")
        assert found == every[: len(found)]
        assert 6 <= len(found) <= 8
    main(_command(folder, *asked, "--min-score", "1e9"))
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "no example has a sufficient score (--min-score) for 1 queries: 1" in said.err


def test_labels_are_ranked_by_the_mean_score_of_their_rows(folder, tmp_path, capsys):
    (tmp_path / "encoder").symlink_to(folder / "encoder")
    labels = [["sums", "roots", None][number % 3] for number in range(len(ROWS))]
    rows = [{**row, "label": label} for row, label in zip(ROWS, labels, strict=True)]
    _write_queries(tmp_path / "rows.jsonl", [{key: value for key, value in row.items() if value} for row in rows])
    scores = _scores(folder)[0]
    asked = ["--query", QUERIES[0].prompt, "--response", QUERIES[0].response, "--by", "label"]
    found = _told(tmp_path, capsys, *asked)
    means = {label: scores[[one == label for one in labels]].mean() for label in set(labels)}
    assert [row["label"] for row in found] == sorted(means, key=means.get, reverse=True)
    for row in found:
        assert row["examples"] == 10
        assert row["mean_score"] == pytest.approx(means[row["label"]], rel=1e-4)
        assert row["score"] == pytest.approx(scores[row["example_id"]], rel=1e-3)
        assert row["prompt"] == rows[row["source_row"] - 1]["prompt"]
    main(_command(tmp_path, *asked))
    assert "(no label)" in capsys.readouterr().out


def test_stored_embeddings_are_searched_without_torch_and_with_the_same_answer(folder, tmp_path, monkeypatch):
    embeddings = tmp_path / "embeddings.parquet"
    made = _ask(folder, embeddings)

    def fail(folder):
        raise AssertionError("torch was loaded")

    monkeypatch.setattr("workflow_scripts.search.embedded._load", fail)
    light = _ask(folder, embeddings)
    assert light.drop_columns("score").equals(made.drop_columns("score"))
    np.testing.assert_allclose(light["score"].to_numpy(), made["score"].to_numpy(), rtol=1e-4)
    # More than a few queries, embeddings that aren't what the light encoder gives, and none at all are torch's.
    with pytest.raises(AssertionError, match="torch was loaded"):
        attribute(
            str(folder / "encoder"),
            folder / "corpus.parquet",
            QUERIES * 20,
            embeddings=embeddings,
            top=1,
            sign="helpful",
        )
    with pytest.raises(AssertionError, match="torch was loaded"):
        _ask(folder)
    monkeypatch.setattr("workflow_scripts.search.light_encoder._gelu", lambda values: values)
    with pytest.raises(AssertionError, match="torch was loaded"):
        _ask(folder, embeddings)


def test_neither_torch_nor_transformers_is_imported_for_stored_embeddings(folder, tmp_path):
    embeddings = tmp_path / "embeddings.parquet"
    _ask(folder, embeddings)
    corpus = ["--corpus", str(folder / "corpus.parquet"), "--embeddings", str(embeddings)]
    words = ["--encoder", str(folder / "encoder"), *corpus, "--query", "What is the sum of 3?"]
    code = (
        "import sys; from workflow_scripts.attribute import main; main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
