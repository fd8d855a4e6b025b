"""Bad corpora: files that can't be read or used, and too few rows, tests or labels in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_case import section_of

from workflow_scripts.study.sections import Corpus


def prepared(name: str, content: bytes | None = None, **settings: object) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.corpora.prepare_corpus import prepare_corpus

        if content is not None:
            Path(name).write_bytes(content)
        values = Corpus(source=name, **settings).model_dump(exclude={"without"})
        prepare_corpus(Path("pool.parquet"), Path("pool.rejected.parquet"), **values)

    return try_it


def rows(number: int, **others: object) -> bytes:
    made = ({"prompt": f"What is {i}?", "response": f"{i}.", **others} for i in range(number))
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


def folder_as_source() -> None:
    Path("data").mkdir()
    prepared("data")()


def columns_of_one_name() -> None:
    column = pa.array(["a"])
    pq.write_table(pa.table([column, column, column], names=["prompt", "response", "response"]), "mine.parquet")
    prepared("mine.parquet")()


def broken_link() -> None:
    Path("more.jsonl").symlink_to("moved/more.jsonl")
    prepared("*.jsonl", None)()


def of_hub(files: list[str], card: str = "", source: str = "owner/data", **settings: object) -> Callable[[], object]:
    """Return what reads a dataset that has these files on the hub."""

    def try_it() -> None:
        from unittest.mock import Mock, patch

        from workflow_scripts.corpora import hub_files

        # Named by the commit.
        folder = Path("0" * 40)
        folder.mkdir()
        (folder / "README.md").write_text(card, encoding="utf-8")
        tree = [Mock(path=name) for name in ["README.md", *files]]
        with (
            patch.object(hub_files, "_card_folder", return_value=folder),
            patch.object(hub_files, "get_cached_repo_tree", return_value=tree),
        ):
            prepared(source, **settings)()

    return try_it


SEMICOLONS = "---\nconfigs:\n- config_name: default\n  data_files: '*.csv'\n  sep: ';'\n---\n"
SAME = json.dumps({"prompt": "Why?", "response": "Because."}).encode() + b"\n"
CORPORA = section_of(
    "A corpus",
    {
        "a file that isn't there": prepared("data/mine.jsonl"),
        "a pattern that matches nothing": prepared("data/*.jsonl"),
        "a folder": folder_as_source,
        "a dataset that isn't in the hub's cache, without a network": prepared("owner/data"),
        "a split that a dataset doesn't have": of_hub(["train.jsonl"], split="test"),
        "a config that a dataset doesn't have": of_hub(["train.jsonl"], config_name="en"),
        "a file that a dataset doesn't have": of_hub(["train.jsonl"], data_files="rows/*.jsonl"),
        "a file of a dataset, and a split too": of_hub(["a.jsonl"], data_files="a.jsonl", split="test"),
        "a dataset with a loading script": of_hub(["data.py", "rows.json"]),
        "a dataset of a kind that isn't read": of_hub(["train.arrow"]),
        "a dataset whose card asks for another way to read it": of_hub(["a.csv"], SEMICOLONS),
        "a format in the place of a dataset": prepared("json", data_files="rows.json"),
        "a file of an unknown kind": prepared("mine.docx", b""),
        "an unknown builtin": prepared("builtin:maxi"),
        "an empty file": prepared("mine.jsonl", b""),
        "a CSV file with a header alone": prepared("mine.csv", b"prompt,response\n"),
        "a CSV file with a quote that never closes": prepared("mine.csv", b'prompt,response\n"a,b\nc,d\n'),
        "a JSON file that ends early": prepared("mine.json", b'[{"prompt": "a", "response": "b"}'),
        "a Parquet file that isn't one": prepared("mine.parquet", b"PAR1 not PAR1"),
        "a Parquet file with two columns of one name": columns_of_one_name,
        "a pattern that matches a broken link": broken_link,
        "a gzip file that ends early": prepared("mine.jsonl.gz", gzip.compress(rows(999), mtime=0)[:500]),
        "rows of an unknown shape": prepared("mine.jsonl", b'{"text": "only text"}\n'),
        "more bad rows than allowed": prepared("mine.jsonl", rows(9) + b"{}\nnull\n"),
        "a mapped column that isn't there": prepared("mine.jsonl", rows(3), columns={"label": "tasks"}),
        "a choice that there isn't": prepared(
            "mine.jsonl", b'{"question": "Which?", "choices": ["this", "that"], "answer": 2}\n'
        ),
        "a chat whose answers are all masked": prepared(
            "mine.jsonl",
            b'{"messages": [{"role": "user", "content": "Hi!"}, '
            b'{"role": "assistant", "content": "Hm.", "weight": 0}]}\n',
        ),
        "one row, and a part without it": prepared("mine.jsonl", rows(1), part=(0.5, 0.51)),
        "identical rows, which share one place": prepared("mine.jsonl", 100 * SAME, part=(0.5, 0.51)),
    },
)


# Sizes: what sample_subsets says, before anything is fine-tuned


def sampled(examples: int, tests: int = 50, same: bool = False, **sizes: object) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.core.parquet import write_table
        from workflow_scripts.targets.sample_subsets import sample_subsets

        for name, count in (("train", examples), ("tests", tests)):
            ids = np.arange(count, dtype=np.int32)
            tokens = np.zeros_like(ids) if same else ids
            write_table(Path(f"{name}.parquet"), pa.table({"example_id": ids, "input_ids": list(tokens[:, None])}))
        sampling = {
            "seed": 1,
            "pool": "heldout",
            "pool_examples": None,
            "validation_examples": 20,
            "evaluated_examples": 20,
            "subset_examples": 100,
        }
        sample_subsets(
            Path(sizes.pop("train_tokens", "train.parquet")),
            Path(sizes.pop("test_tokens", "tests.parquet")),
            Path("subsets.parquet"),
            Path("validation.parquet"),
            sampling={**sampling, **sizes},
            folds=1,
            subsets_per_fold=3,
        )

    return try_it


def tiny_tokenizer(vocab_size: int | None = None, **special: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, "a"))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained("lm")
    if vocab_size:
        Path("lm/config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": vocab_size}))


def tokenized(
    chat_template: bool = False, max_tokens: int = 64, vocab_size: int | None = None, **special: str
) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus

        tiny_tokenizer(vocab_size, **special)
        prepared("mine.jsonl", rows(3))()
        tokenize_corpus(
            Path("pool.parquet"),
            Path("tokens.parquet"),
            Path("rejected.parquet"),
            model="lm",
            revision=None,
            trust_remote_code=False,
            max_tokens=max_tokens,
            chat_template=chat_template,
        )

    return try_it


def beyond_the_window() -> None:
    tokenized(max_tokens=1, eos_token="b")()
    sampled(0, test_tokens="tests.parquet", train_tokens="tokens.parquet")()


def leaked() -> None:
    from workflow_scripts.core.parquet import write_table
    from workflow_scripts.evaluation.check_leaks import check_leaks

    prepared("mine.jsonl", 3 * SAME)()
    corpus, validation = Path("pool.parquet"), Path("heldout.validation.parquet")
    ids = pa.array([[0, 1]], pa.list_(pa.int32()))
    write_table(validation, pa.table({"fold": pa.array([0], pa.int32()), "example_ids": ids}))
    check_leaks(corpus, [corpus], [validation], Path("leaks.parquet"), near_duplicate=0.9)


def labelled(train: list[str | None], test: list[str | None]) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.core.parquet import write_table
        from workflow_scripts.experiments.check_labels import check_labels

        for name, labels in (("pool", train), ("tests", test)):
            write_table(Path(f"{name}.parquet"), pa.table({"label": pa.array(labels, pa.string())}))
        check_labels(
            [Path("pool.parquet"), Path("tests.parquet")],
            Path("labels.parquet"),
            evaluations={"heldout": ["pool", "tests"]},
            classified=["heldout"],
        )

    return try_it


SIZES = section_of(
    "Sizes and labels",
    {
        "a corpus of 0 usable rows": sampled(0),
        "a corpus of 1 usable row": sampled(1),
        "too few rows for a subset": sampled(99),
        "no more rows than a subset has": sampled(100),
        "training examples that are all the same": sampled(200, same=True),
        "answers that all lie beyond the LM's window": beyond_the_window,
        "too few rows for pool and validation set": sampled(110, test_tokens="train.parquet"),
        "too few tests": sampled(200, tests=5),
        "all tests of a corpus that is the training corpus too": sampled(
            200, test_tokens="train.parquet", validation_examples=None
        ),
        "tests that the encoder is trained on": leaked,
        "one label only, where labels are to be told apart": labelled(["sums", "sums"], ["sums"]),
        "no label, where labels are to be told apart": labelled(["sums", "words"], [None]),
    },
)
