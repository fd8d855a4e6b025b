"""Bad models, and results that nobody can use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from bad_case import section_of
from bad_data import tiny_tokenizer, tokenized


def missing_model() -> None:
    from workflow_scripts.models.loading import load_tokenizer

    load_tokenizer("models/mine")


def small_bert() -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("bert")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained("bert")


def sentence_model(*, tanh: bool = False, cls: bool = False, inputs: int = 16) -> None:
    """Write a sentence-transformers model with a Dense module."""
    import torch
    from safetensors.torch import save_file

    small_bert()
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [
        {"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    activation = "torch.nn.modules.activation.Tanh" if tanh else "torch.nn.modules.linear.Identity"
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls},
        "2_Dense/config.json": {"activation_function": activation},
    }.items():
        Path("bert", name).parent.mkdir(exist_ok=True)
        Path("bert", name).write_text(json.dumps(content))
    weights = {"linear.weight": torch.zeros(4, inputs), "linear.bias": torch.zeros(4)}
    save_file(weights, "bert/2_Dense/model.safetensors")


def foreign_projection() -> None:
    from workflow_scripts.encoder.loading import load_encoder

    sentence_model(inputs=32)
    load_encoder("bert", 64)


def another_sentence_model(**kind: bool) -> Callable[[], None]:
    def try_it() -> None:
        from workflow_scripts.encoder.loading import load_trained_encoder

        sentence_model(**kind)
        load_trained_encoder("bert")

    return try_it


def sentence_model_without_its_list() -> None:
    sentence_model()
    Path("bert/modules.json").unlink()
    from workflow_scripts.encoder.loading import load_trained_encoder

    load_trained_encoder("bert")


def t5_as_encoder() -> None:
    from transformers import T5Config, T5EncoderModel

    from workflow_scripts.encoder.loading import load_encoder

    T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2)).save_pretrained("t5")
    load_encoder("t5", 64)


def block_sparse_attention() -> None:
    from transformers import BigBirdConfig, BigBirdModel

    from workflow_scripts.encoder.loading import load_encoder

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BigBirdModel(BigBirdConfig(vocab_size=80, **sizes)).save_pretrained("bird")
    load_encoder("bird", 64)


def characters_as_tokens() -> None:
    from transformers import CanineConfig, CanineModel, CanineTokenizer

    from workflow_scripts.encoder.loading import load_encoder

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    CanineModel(CanineConfig(**sizes, num_hash_functions=1, num_hash_buckets=8)).save_pretrained("canine")
    CanineTokenizer().save_pretrained("canine")
    load_encoder("canine", 64)


def without_weight(folder: str, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")
    del weights[name]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})


def half_copied_encoder() -> None:
    from workflow_scripts.encoder.loading import load_encoder

    small_bert()
    without_weight("bert", "encoder.layer.0.attention.self.query.weight")
    load_encoder("bert", 64)


def small_lm() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=8, num_key_value_heads=1, **sizes)).save_pretrained("lm")


def lm_that_reads_ahead() -> None:
    from transformers import BertConfig, BertLMHeadModel

    from workflow_scripts.language_model.losses import load_language_model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertLMHeadModel(BertConfig(vocab_size=80, **sizes)).save_pretrained("bert")
    load_language_model("bert")


def lm_without_tokenizer() -> None:
    from workflow_scripts.models.loading import load_tokenizer

    small_lm()
    load_tokenizer("lm")


def encoder_without_tokenizer() -> None:
    from workflow_scripts.encoder.loading import load_encoder

    small_bert()
    for file in Path("bert").glob("*token*"):
        file.unlink()
    load_encoder("bert", 64)


def half_copied_lm() -> None:
    from workflow_scripts.language_model.losses import load_language_model

    small_lm()
    without_weight("lm", "model.layers.0.mlp.up_proj.weight")
    load_language_model("lm")


def quantized_lm() -> None:
    from workflow_scripts.language_model.losses import load_language_model

    small_lm()
    config = json.loads(Path("lm/config.json").read_text())
    Path("lm/config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    load_language_model("lm")


def lm_with_code_that_imports_more() -> None:
    from workflow_scripts.models.loading import load_config

    Path("lm").mkdir()
    Path("lm/config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}))
    Path("lm/mine.py").write_text("import a_package_of_theirs\nclass Mine: pass\n")
    load_config("lm", None, True)


def more_tokens_than_positions() -> None:
    from transformers import GPT2Config

    from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus

    tiny_tokenizer(eos_token="b")
    GPT2Config(vocab_size=3, n_embd=16, n_layer=1, n_head=1, n_positions=32).save_pretrained("lm")
    paths = [Path("pool.parquet"), Path("tokens.parquet"), Path("rejected.parquet")]
    more = {"revision": None, "trust_remote_code": False, "chat_template": False}
    tokenize_corpus(*paths, model="lm", max_tokens=64, **more)


def lm_that_diverged() -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from workflow_scripts.language_model.losses import load_language_model

    small_lm()
    weights = load_file("lm/model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, "lm/model.safetensors", metadata={"format": "pt"})
    load_language_model("lm")


def lm_of_another_size() -> None:
    from workflow_scripts.language_model.losses import load_language_model

    small_lm()
    config = json.loads(Path("lm/config.json").read_text())
    Path("lm/config.json").write_text(json.dumps(config | {"intermediate_size": 12}))
    load_language_model("lm")


def pickled_weights() -> None:
    import torch

    from workflow_scripts.language_model.losses import load_language_model

    tiny_tokenizer(eos_token="b")
    Path("lm/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    torch.save({}, "lm/pytorch_model.bin")
    load_language_model("lm")


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def weights_that_are(content: bytes | None) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.language_model.losses import load_language_model

        small_lm()
        file = Path("lm/model.safetensors")
        file.write_bytes(file.read_bytes()[:-64] if content is None else content)
        load_language_model("lm")

    return try_it


def replaced_model() -> None:
    from unittest.mock import patch

    from workflow_scripts.core.model_contents import RECORDS_VARIABLE, resolved_content

    Path("lm").mkdir()
    with patch.dict("os.environ", {RECORDS_VARIABLE: "results/mine/models"}):
        for hidden_size in (16, 32):
            Path("lm/config.json").write_text(json.dumps({"hidden_size": hidden_size}))
            resolved_content("lm")


def adapter(beside_weights: bool) -> Callable[[], object]:
    def try_it() -> None:
        from workflow_scripts.language_model.losses import load_language_model

        small_lm()
        if not beside_weights:
            Path("lm/model.safetensors").unlink()
        Path("lm/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}))
        load_language_model("lm")

    return try_it


def tokenizer_of_another_lm() -> None:
    tokenized(eos_token="b", vocab_size=2)()


def end_without_embedding() -> None:
    tokenized(eos_token="<|end|>", vocab_size=3)()


def refused(status: int, headers: dict[str, str] | None = None, token: str = "") -> Callable[[], object]:
    """Return what asks for a model of a hub that answers every request so."""

    def try_it() -> None:
        from unittest.mock import patch

        from hub_errors import hub_error

        from workflow_scripts.models.loading import load_tokenizer

        with (
            patch.dict("os.environ", {"HF_TOKEN": token}),
            patch("time.sleep"),
            patch("huggingface_hub.snapshot_download", side_effect=hub_error(status, headers, token)),
        ):
            load_tokenizer("owner/lm")

    return try_it


MODELS = section_of(
    "Models",
    {
        "a model that isn't there": missing_model,
        "a model that the hub doesn't have, or doesn't show": refused(404, {"X-Error-Code": "RepoNotFound"}),
        "a gated model, without a login": refused(401, {"X-Error-Code": "GatedRepo"}),
        "a token that the hub rejects": refused(401, {"X-Error-Message": "Invalid credentials"}, "hf_anything"),
        "a hub that is busy for long": refused(429),
        "a tokenizer without an end-of-text token": tokenized(),
        "a chat template asked of a tokenizer without one": tokenized(chat_template=True, eos_token="b"),
        "an LM's folder without the files of its tokenizer": lm_without_tokenizer,
        "an encoder's folder without the files of its tokenizer": encoder_without_tokenizer,
        "weights in a pickle file": pickled_weights,
        "weights that git-lfs hasn't fetched": weights_that_are(LFS_POINTER),
        "weights that are cut off": weights_that_are(None),
        "a model's folder that was replaced while the study ran": replaced_model,
        "an adapter instead of an LM": adapter(beside_weights=False),
        "an adapter beside an LM": adapter(beside_weights=True),
        "a tokenizer of another LM": tokenizer_of_another_lm,
        "an end-of-text token that the LM doesn't have": end_without_embedding,
        "an LM of which a part is missing": half_copied_lm,
        "weights of another size than the LM's config.json says": lm_of_another_size,
        "a quantized LM": quantized_lm,
        "a model whose code imports what isn't installed": lm_with_code_that_imports_more,
        "more tokens than the LM has positions": more_tokens_than_positions,
        "an LM whose weights aren't numbers": lm_that_diverged,
        "an encoder as an LM": lm_that_reads_ahead,
        "an encoder of which a part is missing": half_copied_encoder,
        "a projection made for another hidden size": foreign_projection,
        "T5 as an encoder": t5_as_encoder,
        "BigBird with block-sparse attention as an encoder": block_sparse_attention,
        "an encoder that reads characters": characters_as_tokens,
        "a sentence-transformers model with tanh after its projection, taken for an encoder": another_sentence_model(
            tanh=True
        ),
        "a sentence-transformers model that reads the first token": another_sentence_model(cls=True),
        "an encoder without modules.json": sentence_model_without_its_list,
    },
)


# Results


def constant_losses() -> None:
    from workflow_scripts.evaluation.lds import linear_datamodeling_score

    linear_datamodeling_score(np.zeros((2, 5)), np.ones((2, 5)))


def damaged_file() -> None:
    from workflow_scripts.core.parquet import read_table, write_table

    path = Path("targets.parquet")
    write_table(path, pa.table({"loss": np.arange(1000.0)}))
    whole = bytearray(path.read_bytes())
    whole[100] ^= 1
    path.write_bytes(whole)
    read_table(path)


def results_of_another_config() -> None:
    from workflow_scripts.core.parquet import table_metadata, write_table
    from workflow_scripts.provenance.verify import Command, refuse_mixed_results
    from workflow_scripts.study.artifacts import Artifact

    path = Path("results/mine/corpora/train.parquet")
    with table_metadata(stage="prepare_corpus", spec="0123456789abcdef"):
        write_table(path, pa.table({"example_id": [0]}))
    refuse_mixed_results(
        [Artifact(path, "prepare_corpus", {"limit": 9}, {"corpus": path.stem})],
        Path("results/mine"),
        "configs/smoke.yaml",
        Command(),
    )


def blocks_of_two_models() -> None:
    from workflow_scripts.core.parquet import table_metadata, write_table
    from workflow_scripts.targets.collect_targets import collect_targets

    paths = [Path("targets/train") / f"f{block:04d}_s0000.parquet" for block in range(2)]
    for path, content in zip(paths, ("0123456789abcdef", "fedcba9876543210"), strict=True):
        with table_metadata(contents=json.dumps({"lm": content})):
            write_table(path, pa.table({"fold": [0]}), key="same")
    sizes = {"folds": 2, "subsets_per_fold": 1, "seeds": 1, "max_diverged_share": 0.0}
    collect_targets(paths, Path("targets/train.parquet"), **sizes)


RESULTS = section_of(
    "Results",
    {
        "losses that are the same for every subset": constant_losses,
        "a file of the results with a flipped bit": damaged_file,
        "results of another config, without `.snakemake`": results_of_another_config,
        "blocks that were fine-tuned from two LMs of one name": blocks_of_two_models,
    },
)
