"""Bad inputs, and the message that each one gives: what docs/errors.md is made of.

`python tests/faults/bad_input.py` writes that page.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pyarrow as pa
import yaml
from pydantic import BaseModel

from workflow_scripts.lib.config import Study, load_study
from workflow_scripts.lib.config_sections import Corpus
from workflow_scripts.lib.errors import StudyError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
SMOKE = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class BadInput:
    """A bad input: `try_it` runs in a folder of its own and must raise `StudyError`."""

    section: str
    what: str
    try_it: Callable[[], object]

    def message(self) -> str:
        """Return what the user sees, with the working folder left out."""
        with (
            tempfile.TemporaryDirectory() as folder,
            working_in(Path(folder)),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            try:
                self.try_it()
            except StudyError as error:
                message = str(error).replace(os.path.realpath(folder), "...").replace(folder, "...")
                # The hub's address differs between sites.
                return re.sub(r"https://[^\s']+", "https://...", message)
        raise AssertionError(f"{self.what}: nothing was said")


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in `folder` for the time of the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def section_of(name: str, cases: dict[str, Callable[[], object]]) -> list[BadInput]:
    """Return the bad inputs of a section of the page."""
    return [BadInput(name, what, try_it) for what, try_it in cases.items()]


# The config


def with_value(key: str, value: object) -> dict[str, Any]:
    """Return the smoke study with one value changed, by its dotted key."""
    values = copy.deepcopy(SMOKE)
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return values


def config_with(key: str, value: object) -> Callable[[], object]:
    return lambda: load_study(with_value(key, value), origin="configs/mine.yaml")


def config_without(key: str) -> Callable[[], object]:
    def try_it() -> None:
        values = copy.deepcopy(SMOKE)
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        del section[last]
        load_study(values, origin="configs/mine.yaml")

    return try_it


# Of sections by name, the one of the smoke study that stands for all.
NAMED = {"corpora": "train", "evaluations": "heldout"}


def keys_of(model: type[BaseModel] = Study, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of the config that holds a value, dotted, and the type of the value."""
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        section = next(
            (part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel)), None
        )
        if section is None:
            yield key, kind
        else:
            yield from keys_of(section, f"{key}.{NAMED[key]}." if key in NAMED else f"{key}.")


def kinds_of(annotation: Any) -> set[Any]:
    """Return the plain types that a key's type is made of."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {Literal}
    return {get_origin(annotation) or annotation}.union(*(kinds_of(part) for part in parts))


def wrong_value(annotation: Any) -> object:
    """Return a value that is of no use for a key of this type, and that people do write."""
    kinds = kinds_of(annotation)
    if {list, dict, tuple} & kinds:
        return 7
    if Literal in kinds:
        return "perhaps"
    if bool in kinds:
        return "sometimes"
    return "many" if {int, float} & kinds else 7


def each_without_the_other() -> None:
    values = with_value("corpora.pool", {"source": "mine.jsonl", "without": ["tests"]})
    values["corpora"]["tests"] = {"source": "mine.jsonl", "without": ["pool"]}
    load_study(values, origin="configs/mine.yaml")


CONFIG = section_of(
    "The config",
    {
        "a misspelt key": config_with("targets.fold", 3),
        "an unknown key": config_with("encoder.colour", "blue"),
        "a missing key": config_without("targets.folds"),
        "a missing section": config_without("evaluations"),
        "an empty file": lambda: load_study({}, origin="configs/mine.yaml"),
        "a number below the smallest": config_with("targets.folds", 0),
        "a share above 1": config_with("finetuning.max_diverged_share", 5),
        "a number with a thousands separator": config_with("encoder_training.steps", "2,000"),
        "`run` that leads out of the results folder": config_with("run", "../../etc"),
        "`run` with a command in it": config_with("run", "$(touch pwned)"),
        "a corpus name with a line break": config_with("corpora.a\nb", {"source": "x.jsonl"}),
        "a path with braces": config_with("corpora.pool.source", "data/{corpus}.jsonl"),
        "a path with a line break": config_with("corpora.pool.source", "a\nb.jsonl"),
        "an evaluation set named `train`": config_with("evaluations.train", SMOKE["evaluations"]["heldout"]),
        "a corpus that isn't there": config_with("targets.corpus", "other"),
        "corpora that leave each other out": each_without_the_other,
        "an empty part": config_with("corpora.pool.part", [0.5, 0.5]),
        "a subset larger than its pool": config_with("targets.subset_examples", 500),
        "subsets of the whole pool": config_with("targets.subset_examples", 100),
        "more judged examples than there are": config_with("targets.evaluated_examples", 500),
        "no fold left to train on": config_with("encoder_training.validation_folds", 4),
        "too few subsets for an LDS": config_with("evaluations.heldout.subsets", 2),
        "one seed, which gives no noise ceiling": config_with("evaluations.heldout.seeds", 1),
        "a hidden size that heads don't divide": config_with("language_model.pretraining.hidden", 100),
        "an unknown method": config_with("scoring.methods", ["airrep", "magic"]),
        "no method": config_with("scoring.methods", []),
        "DeepSpeed's keys without DeepSpeed": config_with("finetuning.zero_stage", 2),
    },
)
WRONG_KINDS = section_of(
    "A value of the wrong kind, key by key",
    {f"`{key}: {json.dumps(wrong_value(kind))}`": config_with(key, wrong_value(kind)) for key, kind in keys_of()},
)


# A corpus


def prepared(name: str, content: bytes | None = None, **settings: object) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.prepare_corpus import prepare_corpus

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


SAME = json.dumps({"prompt": "Why?", "response": "Because."}).encode() + b"\n"
CORPORA = section_of(
    "A corpus",
    {
        "a file that isn't there": prepared("data/mine.jsonl"),
        "a pattern that matches nothing": prepared("data/*.jsonl"),
        "a folder": folder_as_source,
        "a file of an unknown kind": prepared("mine.docx", b""),
        "an unknown builtin": prepared("builtin:maxi"),
        "an empty file": prepared("mine.jsonl", b""),
        "a CSV file with a header alone": prepared("mine.csv", b"prompt,response\n"),
        "a CSV file with a quote that never closes": prepared("mine.csv", b'prompt,response\n"a,b\nc,d\n'),
        "a JSON file that ends early": prepared("mine.json", b'[{"prompt": "a", "response": "b"}'),
        "a Parquet file that isn't one": prepared("mine.parquet", b"PAR1 not PAR1"),
        "a gzip file that ends early": prepared("mine.jsonl.gz", gzip.compress(rows(999), mtime=0)[:500]),
        "rows of an unknown shape": prepared("mine.jsonl", b'{"text": "only text"}\n'),
        "more bad rows than allowed": prepared("mine.jsonl", rows(9) + b"{}\nnull\n"),
        "a mapped column that isn't there": prepared("mine.jsonl", rows(3), columns={"label": "tasks"}),
        "one row, and a part without it": prepared("mine.jsonl", rows(1), part=(0.5, 0.51)),
        "identical rows, which share one place": prepared("mine.jsonl", 100 * SAME, part=(0.5, 0.51)),
    },
)


# Sizes: what sample_subsets says, before anything is fine-tuned


def sampled(examples: int, tests: int = 50, same: bool = False, **sizes: object) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.lib.tables import write_table
        from workflow_scripts.sample_subsets import sample_subsets

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


def beyond_the_window() -> None:
    tokenized(max_tokens=1, eos_token="b")()
    sampled(0, test_tokens="tests.parquet", train_tokens="tokens.parquet")()


def leaked() -> None:
    from workflow_scripts.check_leaks import check_leaks
    from workflow_scripts.lib.tables import write_table

    prepared("mine.jsonl", 3 * SAME)()
    corpus, validation = Path("pool.parquet"), Path("heldout.validation.parquet")
    ids = pa.array([[0, 1]], pa.list_(pa.int32()))
    write_table(validation, pa.table({"fold": pa.array([0], pa.int32()), "example_ids": ids}))
    check_leaks(corpus, [corpus], [validation], Path("leaks.parquet"), near_duplicate=0.9)


def labelled(train: list[str | None], test: list[str | None]) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.check_labels import check_labels
        from workflow_scripts.lib.tables import write_table

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


# Models


def tiny_tokenizer(**special: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained("lm")


def tokenized(chat_template: bool = False, max_tokens: int = 64, **special: str) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.tokenize_corpus import tokenize_corpus

        tiny_tokenizer(**special)
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


def missing_model() -> None:
    from workflow_scripts.lib.models import load_tokenizer

    load_tokenizer("models/mine")


def small_bert() -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("bert")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained("bert")


def foreign_projection() -> None:
    import torch
    from safetensors.torch import save_file

    from workflow_scripts.lib.encoder import load_encoder

    small_bert()
    Path("bert/2_Dense").mkdir()
    save_file({"linear.weight": torch.zeros(4, 32), "linear.bias": torch.zeros(4)}, "bert/2_Dense/model.safetensors")
    load_encoder("bert", 64)


def without_weight(folder: str, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")
    del weights[name]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})


def half_copied_encoder() -> None:
    from workflow_scripts.lib.encoder import load_encoder

    small_bert()
    without_weight("bert", "encoder.layer.0.attention.self.query.weight")
    load_encoder("bert", 64)


def small_lm() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=8, num_key_value_heads=1, **sizes)).save_pretrained("lm")


def half_copied_lm() -> None:
    from workflow_scripts.lib.language_model import load_language_model

    small_lm()
    without_weight("lm", "model.layers.0.mlp.up_proj.weight")
    load_language_model("lm")


def lm_of_another_size() -> None:
    from workflow_scripts.lib.language_model import load_language_model

    small_lm()
    config = json.loads(Path("lm/config.json").read_text())
    Path("lm/config.json").write_text(json.dumps(config | {"intermediate_size": 12}))
    load_language_model("lm")


def pickled_weights() -> None:
    import torch

    from workflow_scripts.lib.language_model import load_language_model

    tiny_tokenizer(eos_token="b")
    Path("lm/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    torch.save({}, "lm/pytorch_model.bin")
    load_language_model("lm")


MODELS = section_of(
    "Models",
    {
        "a model that isn't there": missing_model,
        "a tokenizer without an end-of-text token": tokenized(),
        "a chat template asked of a tokenizer without one": tokenized(chat_template=True, eos_token="b"),
        "weights in a pickle file": pickled_weights,
        "a LM of which a part is missing": half_copied_lm,
        "weights of another size than the LM's config.json says": lm_of_another_size,
        "an encoder of which a part is missing": half_copied_encoder,
        "a projection made for another hidden size": foreign_projection,
    },
)


# Results


def constant_losses() -> None:
    from workflow_scripts.lib.lds import linear_datamodeling_score

    linear_datamodeling_score(np.zeros((2, 5)), np.ones((2, 5)))


def damaged_file() -> None:
    from workflow_scripts.lib.tables import read_table, write_table

    path = Path("targets.parquet")
    write_table(path, pa.table({"loss": np.arange(1000.0)}))
    whole = bytearray(path.read_bytes())
    whole[100] ^= 1
    path.write_bytes(whole)
    read_table(path)


RESULTS = section_of(
    "Results",
    {
        "losses that are the same for every subset": constant_losses,
        "a file of the results with a flipped bit": damaged_file,
    },
)
ALL = [*CONFIG, *CORPORA, *SIZES, *MODELS, *RESULTS, *WRONG_KINDS]

HEAD = """# Bad input, and what is said about it

Each of these was tried, and the message is what came. None shows a traceback, and all are told before anything is \
fine-tuned, but for those under "Results". `...` stands for a folder. What to do about messages in general: \
[troubleshooting.md](troubleshooting.md).

This page is made by `python tests/faults/bad_input.py`; a test fails where it is stale.
"""


def page(messages: list[str]) -> str:
    """Return the page, from the message of each of `ALL`."""
    lines, section = [HEAD], None
    for one, message in zip(ALL, messages, strict=True):
        if one.section != section:
            section = one.section
            lines.append(f"\n## {section}\n\n| input | message |\n|---|---|\n")
        shown = "<br>".join(f"`` {line.strip()} ``" for line in message.splitlines() if line.strip())
        lines.append(f"| {one.what} | {shown.replace('|', chr(92) + '|')} |\n")
    return "".join(lines)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    PAGE.write_text(page([one.message() for one in ALL]), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
