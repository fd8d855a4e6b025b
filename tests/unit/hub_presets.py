"""The datasets that the presets read: ids, commits, files, columns and cards as on the hub, and few rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, object]

# The commits that presets name. Of the others none is known, and their presets read `main`.
COMMITS = {
    "Qwen/Qwen2.5-0.5B": "060db6499f32faf8b98477b0a26969ef7d8b9987",
    "Qwen/Qwen2.5-7B": "d149729398750b98c0af14eb82c78cfe92750796",
    "thenlper/gte-small": "17e1f347d17fe144873b1201da91788898c639cd",
    "datasets/tatsu-lab/alpaca": "dce01c9b08f87459cf36a430d809084718273017",
}
FLAN_TASKS = ("aeslc_10templates", "arc_easy_10templates", "sst2_10templates")
CARD_OF_SPLITS = """---
configs:
- config_name: default
  data_files:
{files}---
"""


def json_lines(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: Iterable[Row]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def card_of(*splits: str) -> bytes:
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    return CARD_OF_SPLITS.format(files=files).encode()


def flan_rows(task: str, start: int, stop: int) -> list[Row]:
    return [
        {"inputs": f"{task}: is {number} even?", "targets": "no" if number % 2 else "yes", "task": task}
        for number in range(start, stop)
    ]


def chat(number: int, topic: str) -> list[Row]:
    turns = (f"Tell me about {topic} {number}.", f"{topic} {number} is one.", "And more?", "There is no more.")
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def safe_rows(start: int, stop: int) -> list[Row]:
    return [
        {
            "prompt": f"May I do {number}?",
            "response_source": "Alpaca-7B",
            "severity_category": 2 * (number % 2),
            "safety_category": [number % 2, *[0] * 18],
            "response": f"Do {number} as you like.",
            "prompt_source": "PKU",
            "sha256": f"{number:064x}",
        }
        for number in range(start, stop)
    ]


def datasets() -> dict[str, dict[str, bytes]]:
    """Return the files of each dataset by its id."""
    flan = {"README.md": b"---\nlanguage:\n- en\ntask_categories:\n- other\n---\n", ".gitattributes": b"*.jsonl lfs\n"}
    for task in FLAN_TASKS:
        flan[f"train/{task}.jsonl"] = json_lines(flan_rows(task, 0, 20))
        flan[f"validation/{task}_validation.jsonl"] = json_lines(flan_rows(task, 20, 22))
        flan[f"test/{task}_test.jsonl"] = json_lines(flan_rows(task, 22, 24))
    alpaca = [
        {"instruction": f"Count to {number}.", "input": "", "output": f"{number}.", "text": f"Below: {number}."}
        for number in range(12)
    ]
    unseen = [
        {"dataset": "helpful_base", "instruction": f"Count from {number}.", "output": "1.", "generator": "davinci"}
        for number in range(8)
    ]
    tulu = [
        {"dataset": ("flan_v2", "cot")[number % 2], "id": f"cot_{number}", "messages": chat(number, "chess")}
        for number in range(30)
    ]
    tulu_card = card_of("train").removesuffix(b"---\n") + (
        b"dataset_info:\n  features:\n  - name: dataset\n    dtype: string\n  - name: id\n    dtype: string\n"
        b"  - name: messages\n    list:\n    - name: role\n      dtype: string\n    - name: content\n"
        b"      dtype: string\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 30\n---\n"
    )
    talks = [{"id": str(number), "data": [turn["content"] for turn in chat(number, "tea")]} for number in range(40)]
    return {
        "Muennighoff/flan": flan,
        "sunweiwei/airrep-test": {
            "README.md": b"---\n{}\n---\n",
            "flan/train.jsonl": json_lines(flan_rows(FLAN_TASKS[0], 100, 112)),
            "flan/test.jsonl": json_lines(flan_rows(FLAN_TASKS[1], 0, 4)),
            "flan/lds.jsonl": json_lines([{"train_subset": [1, 2], "test_loss": [0.1]}]),
            "safe/test.jsonl": json_lines([{"prompt": "a", "response": "b", "is_safe": True}]),
        },
        "tatsu-lab/alpaca": {
            "README.md": b"---\nlicense: cc-by-nc-4.0\npretty_name: Alpaca\n---\n",
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": parquet(alpaca),
        },
        "tatsu-lab/alpaca_eval": {
            "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
            "alpaca_eval.py": b"raise SystemExit('a loading script ran')\n",
            "alpaca_eval.json": json.dumps(unseen, indent=4).encode(),
            "alpaca_farm_human_annotations.json": b"[]",
        },
        "allenai/tulu-v1-sft-mixture": {
            "README.md": tulu_card,
            **{f"data/train-0000{k}-of-00003-2a3805711cdec9c3.parquet": parquet(tulu[k::3]) for k in range(3)},
        },
        "PKU-Alignment/PKU-SafeRLHF-QA": {
            "README.md": card_of("train", "test"),
            "data/train-00000-of-00001.parquet": parquet(safe_rows(0, 14)),
            "data/test-00000-of-00001.parquet": parquet(safe_rows(10, 16)),
        },
        "stingning/ultrachat": {
            "README.md": b"---\nlicense: mit\npretty_name: UltraChat\n---\n",
            **{f"train_{k}.jsonl": json_lines(talks[4 * k : 4 * k + 4]) for k in range(10)},
        },
    }
