import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, Qwen2Config, Qwen2ForCausalLM

from workflow_scripts.core.parquet import read_table
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.targets.run_cache import FinishedRuns

ROOT = Path(__file__).parents[3]
WITHOUT = ("snakemake", "deepspeed", "datasets", "bm25s", "sentence_transformers")


@pytest.fixture(autouse=True)
def benchmarks_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def arguments(tmp_path):
    from gpu.data import wordpiece_tokenizer, words

    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer(400)
    tokenizer.eos_token = "[SEP]"
    shape = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    lm = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=2, num_key_value_heads=1))
    bert = BertModel(BertConfig(**shape, num_attention_heads=2, max_position_embeddings=64))
    for name, model in (("lm", lm), ("bert", bert)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    random = np.random.default_rng(0)
    known = words(300)

    def text(least, most):
        return " ".join(random.choice(known, random.integers(least, most)))

    rows = [{"inputs": text(4, 12), "targets": text(1, 5)} for _ in range(400)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--language-model", tmp_path / "lm", "--encoder", tmp_path / "bert", "--corpus", tmp_path / "corpus.jsonl"),
        *("--results", tmp_path / "results", "--learning-rate", "1e-3", "--tiny"),
    ]


def test_the_study_runs_where_only_the_libraries_of_the_models_are_installed(arguments, tmp_path, capsys):
    import gpu_study

    code = (
        f"import sys\nfor name in {WITHOUT!r}: sys.modules[name] = None\nimport gpu_study\nsys.exit(gpu_study.main())"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert "bm25s is not installed" in ended.stderr
    table = read_table(tmp_path / "results" / "evaluation" / "lds.parquet").to_pylist()
    encoders = {f"{kind}_{view}" for kind in ("untrained", "airrep") for view in ("joint", "split")}
    assert {row["method"] for row in table} == {*encoders, "tfidf", "logra_16"}
    assert all(row["ci_low"] <= row["ci_high"] and row["ceiling"] > 0 for row in table)
    for row in table:
        assert f"{row['method']:<18} {row['pooling']:<10} {row['lds']:>6.3f}" in ended.stdout

    # Where bm25s is, the same command adds its row and recomputes nothing else.
    before = (tmp_path / "results" / "seconds.json").read_text()
    assert gpu_study.main([str(word) for word in arguments]) == 0
    assert "bm25" in capsys.readouterr().out
    after = json.loads((tmp_path / "results" / "seconds.json").read_text())
    assert after.keys() - json.loads(before).keys() == {"scores bm25"}


def test_a_study_whose_time_ends_goes_on_with_the_run_that_it_was_stopped_in(arguments, monkeypatch, tmp_path, capsys):
    import gpu_study

    arguments = [str(word) for word in arguments]
    assert gpu_study.main([*arguments, "--prepare"]) == 0
    assert not (tmp_path / "results" / "targets").exists()
    add, added = FinishedRuns.add, []

    def add_and_stop(self, run, table):
        add(self, run, table)
        added.append(run)
        if len(added) == 3:
            raise gpu_study.OutOfTime

    monkeypatch.setattr(FinishedRuns, "add", add_and_stop)
    assert gpu_study.main(arguments) == 3
    assert "the time ended during `losses heldout`" in capsys.readouterr().out

    finetune, begun = Finetuner.finetune, []

    def finetune_and_stop(self, examples, *seed):
        if "heldout" not in seed:
            raise gpu_study.OutOfTime
        begun.append(seed)
        return finetune(self, examples, *seed)

    monkeypatch.setattr(Finetuner, "finetune", finetune_and_stop)
    assert gpu_study.main(arguments) == 3
    # Four subsets with two seeds, less the three runs that were done.
    assert len(begun) == 5
    assert "tfidf" in capsys.readouterr().out


def test_results_of_other_settings_are_refused(arguments):
    import gpu_study

    arguments = [str(word) for word in arguments]
    gpu_study.main([*arguments, "--prepare"])
    with pytest.raises(SystemExit, match=r"settings\.json says sizes: .* name another --results folder"):
        gpu_study.main([word for word in arguments if word != "--tiny"])
