"""The builtin LM depends on its corpus and seed alone, and learns."""

from transformers import AutoTokenizer

from workflow_scripts.language_model.losses import evaluate, load_language_model
from workflow_scripts.language_model.pretrain_base_lm import pretrain_base_lm
from workflow_scripts.language_model.tokens import read_examples

SPEC = {
    "vocabulary": 300,
    "hidden": 32,
    "layers": 2,
    "architecture": "qwen2",
    "batch_tokens": 512,
    "learning_rate": 1e-3,
    "max_tokens": 64,
}


def test_the_same_values_make_the_same_files(tiny, tmp_path):
    pretrain_base_lm(tiny.corpus, tmp_path / "again", **SPEC, steps=5, seed=1)
    pretrain_base_lm(tiny.corpus, tmp_path / "other", **SPEC, steps=5, seed=2)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny.language_model / name).read_bytes()
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert weights != (tiny.language_model / "model.safetensors").read_bytes()


def test_more_steps_lower_the_loss(tiny, tmp_path):
    pretrain_base_lm(tiny.corpus, tmp_path / "longer", **SPEC, steps=60, seed=1)
    examples = list(read_examples(tiny.tokens).values())
    short, long = (
        evaluate(load_language_model(folder), examples, 10**5).mean()
        for folder in (tiny.language_model, tmp_path / "longer")
    )
    assert long < short - 0.5


def test_no_text_is_unknown_to_the_tokenizer(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny.language_model)
    text = "Łódź 東京 🙂\tx\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
