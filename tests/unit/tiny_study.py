"""A study of 120 rows, made by the code that is tested."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.encoder.init_encoder import init_encoder
from workflow_scripts.language_model.pretrain_base_lm import pretrain_base_lm
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus
from workflow_scripts.study.sections import Corpus, Encoder, EncoderTraining, Finetuning
from workflow_scripts.targets.finetune_shard import finetune_shard

ROWS = 120
SAMPLING = {
    "seed": 1,
    "pool": "train",
    "pool_examples": 40,
    "validation_examples": 8,
    "evaluated_examples": 6,
    "subset_examples": 6,
}
FINETUNING = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "batch_examples": 4,
    "epochs": 2,
    "precision": "float32",
    "step_tokens": 16384,
    "evaluation_tokens": 16384,
}


TRAINING = EncoderTraining(
    steps=8,
    learning_rate=3e-3,
    warmup_steps=2,
    subsets_per_step=3,
    examples_per_step=4,
    learned_scale=True,
    validation_folds=1,
    validate_every=2,
    chunk_tokens=16384,
)
ENCODER = Encoder(dimension=16, max_tokens=64, hidden=32, layers=1, vocabulary=300)


def training_values(**changes: object) -> dict[str, object]:
    """Return the values of `train_encoder` besides paths: eight steps, with `changes` to `TRAINING`."""
    return {"training": TRAINING.model_copy(update=changes), "prompt_words": 256, "max_tokens": 64, "seed": 1}


def encoder_values(**changes: object) -> dict[str, object]:
    """Return the values of `init_encoder` besides paths, with `changes` to `ENCODER`."""
    return {"settings": ENCODER.model_copy(update=changes), "seed": 1}


@dataclass(frozen=True)
class TinyStudy:
    """A corpus of 120 rows, its tokens, an LM and an untrained encoder, as files."""

    folder: Path
    corpus: Path
    language_model: Path
    tokens: Path
    untrained: Path

    def block(self, losses: Path, **changes: object) -> Path:
        """Fine-tune a block of two folds x three subsets to the file `losses`, with `changes` to its spec."""
        spec = {
            "language_model": self.language_model,
            "model": "builtin:tiny",
            "revision": None,
            "trust_remote_code": False,
            "sampling": SAMPLING,
            "folds": [0, 2],
            "indexes": [0, 3],
            "seeds": 1,
        }
        finetuning = Finetuning(**changes.pop("finetuning", FINETUNING))
        tokens = {name: changes.pop(name, self.tokens) for name in ("train_tokens", "test_tokens")}
        finetune_shard(**tokens, losses=losses, finetuning=finetuning, **{**spec, **changes})
        return losses


def make_tiny_study(folder: Path) -> TinyStudy:
    """Make the files of the study in `folder`."""
    made = TinyStudy(
        folder,
        corpus=folder / "train.parquet",
        language_model=folder / "language_model",
        tokens=folder / "tokens.parquet",
        untrained=folder / "encoder_untrained",
    )
    source = Corpus(source="builtin:mini", limit=ROWS).model_dump(exclude={"without"})
    prepare_corpus(made.corpus, folder / "rejected.parquet", **source)
    pretrain_base_lm(
        made.corpus,
        made.language_model,
        vocabulary=300,
        hidden=32,
        layers=2,
        architecture="qwen2",
        steps=5,
        batch_tokens=512,
        learning_rate=1e-3,
        max_tokens=64,
        seed=1,
    )
    tokenize_corpus(
        made.corpus,
        made.tokens,
        folder / "tokens.rejected.parquet",
        language_model=made.language_model,
        model="builtin:tiny",
        revision=None,
        trust_remote_code=False,
        max_tokens=64,
        chat_template=False,
    )
    init_encoder(made.corpus, made.untrained, **encoder_values())
    return made
