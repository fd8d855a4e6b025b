"""Encoders by folder or hub id: loading, and the folders that one consists of."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from workflow_scripts.core.errors import StudyError, lacks_memory
from workflow_scripts.core.files import file_hash
from workflow_scripts.core.model_contents import SPLIT_FOLDERS
from workflow_scripts.core.progress import say
from workflow_scripts.encoder.initialization import random_projections
from workflow_scripts.encoder.model import A_WORD, AttributionEncoder, position_limit
from workflow_scripts.encoder.published_format import PROJECTOR, WEIGHTS, is_published_layout, published_config
from workflow_scripts.encoder.sentence_modules import SentenceModules
from workflow_scripts.models.device import best_device
from workflow_scripts.models.loading import (
    ids_beyond,
    load_pretrained,
    load_tokenizer,
    load_weights,
    model_folder,
    open_weights,
)
from workflow_scripts.models.transformers_import import (
    AutoConfig,
    AutoModel,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from workflow_scripts.study.choices import View

KINDS = (
    "Name a model that gives a state for each token of a text, such as BERT, RoBERTa, XLM-RoBERTa, MPNet, DistilBERT, "
    "ALBERT, ELECTRA, DeBERTa or ModernBERT."
)
WORDS = "a few words, and some more"
# What transformers raises where a model takes other inputs, or gives other outputs, than these do.
UNREADABLE = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def load_encoder(
    model: str | Path,
    max_tokens: int,
    *,
    view: View = "joint",
    normalized: bool = False,
    dimension: int = 384,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    precision: str = "float32",
) -> AttributionEncoder:
    """Load an encoder from a folder or hub id, onto the job's GPU if it has one.

    A model that has projections keeps them, its view, whether they read means of length 1, and where texts are cut.
    For one without, random projections to `dimension` are made from `seed` (paper, section 3.2).

    Raises
    ------
    StudyError: the model can't be loaded, its weights aren't whole, or it does more to the mean over tokens than an
        attribution encoder does.
    """
    folder = model_folder(model, revision)
    parts = model_parts(folder)
    of_parts = [SentenceModules(part) for part in parts]
    modules, transformers = of_parts[0], [each.transformer for each in of_parts]
    if len({file_hash(*sorted(each.glob("*.safetensors"))) for each in transformers}) > 1:
        raise StudyError(
            f"{model}: {' and '.join(SPLIT_FOLDERS)} have different transformers. Use a complete copy of it."
        )
    projections = [projection for part in parts if (projection := stored_projection(part))]
    if projections:
        stored = modules.projection()
        normalized = stored is not None and stored[1]
        max_tokens = min(max_tokens, modules.max_tokens or max_tokens)
    elif modules.poolings not in ([], ["mean"]):
        say(f"{model}: its own pooling ({', '.join(modules.poolings)}) isn't used; encoders are trained on the mean.")
    published = is_published_layout(folder)
    if not published:
        _require_encoder(transformers[0], trust_remote_code)
    tokenizer = load_tokenizer(transformers[0], trust_remote_code=trust_remote_code)
    loader, options = AutoModel, {}
    if published:
        loader, options = BertModel, {"config": published_config(folder)}
    transformer = load_weights(loader, transformers[0], None, trust_remote_code, unused="pooler.", **options)
    transformer.pooler = None
    _require_embeddings(model, transformer, tokenizer)
    if not hasattr(transformer.config, "hidden_size"):
        raise StudyError(f"{model}: {type(transformer).__name__} reads more than texts. {KINDS}")
    if not projections:
        projections = random_projections(transformer.config.hidden_size, dimension, view, seed)
    if {projection.in_features for projection in projections} != {transformer.config.hidden_size}:
        raise StudyError(
            f"{model}: its projection reads vectors of {projections[0].in_features} numbers, and its transformer "
            f"outputs those of {transformer.config.hidden_size}: they come from two models. Use a complete copy of one."
        )
    encoder = _made(model, transformer, tokenizer, projections, max_tokens, normalized)
    encoder.to(best_device())
    if encoder.device.type == "cuda":
        # Other kernels than on the CPU, where it was made.
        encoder.use_packing(precision)
    return encoder


def _made(
    model: str | Path,
    transformer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    projections: Sequence[nn.Linear],
    max_tokens: int,
    normalized: bool,
) -> AttributionEncoder:
    """Return the encoder; raises `StudyError` where it doesn't read a text as plain transformers does."""
    kind = type(transformer).__name__
    try:
        limit = min(max_tokens, position_limit(transformer), tokenizer.model_max_length)
        inputs = tokenizer(WORDS, truncation=True, max_length=limit, return_tensors="pt")
        taken = inputs.keys() & inspect.signature(transformer.forward).parameters.keys()
        with torch.inference_mode():
            states = transformer(**{name: inputs[name] for name in taken}).last_hidden_state[0]
        encoder = AttributionEncoder(transformer, tokenizer, projections, max_tokens, normalized)
        read = [(inputs["input_ids"][0].numpy(),) * len(projections)]
        with torch.inference_mode():
            mean = encoder.means(read)[0, 0]
            encoder(read)
            encoder(encoder.tokenize([(A_WORD,) * len(projections)]))
    except UNREADABLE as error:
        if lacks_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StudyError(f"{model}: {kind} can't be read as an encoder ({reason}). {KINDS}") from error
    if (F.normalize(mean, dim=0) - F.normalize(states.mean(0), dim=0)).norm() > 1e-2:
        beside = sorted(taken - {"input_ids", "attention_mask"})
        raise StudyError(
            f"{model}: {kind} reads more than tokens ({', '.join(beside)}), and encoders read tokens alone. {KINDS}"
        )
    return encoder


def _require_embeddings(model: str | Path, transformer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        embeddings = transformer.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):
        # Hashed characters, or no embeddings of words; whether it can be read at all is tried next.
        return
    if beyond := ids_beyond(tokenizer, embeddings, model):
        raise StudyError(
            f"{model}: the tokens {list(beyond.values())[:3]} were added to its tokenizer, and it has no embeddings "
            f"for them ({embeddings} ids). Use a complete copy of it, or one that was trained with these tokens."
        )


def _require_encoder(folder: Path, trust_remote_code: bool) -> None:
    """Raise `StudyError` if the config of a transformer says that it can't be read as an encoder."""
    config = load_pretrained(AutoConfig, folder, None, trust_remote_code)
    if config.is_encoder_decoder or any(hasattr(config, name) for name in ("num_decoder_layers", "decoder_layers")):
        raise StudyError(f"{folder}: {config.model_type} has an encoder and a decoder, and can't be read. {KINDS}")
    if getattr(config, "attention_type", None) == "block_sparse":
        raise StudyError(
            f"{folder}: block-sparse attention reads a text differently from batch to batch. Write `attention_type: "
            "original_full` in its config.json, or name another model."
        )


def load_trained_encoder(
    model: str | Path, max_tokens: int | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> AttributionEncoder:
    """Load an encoder that was trained for attribution.

    Parameters
    ----------
    model: folder or hub id.
    max_tokens: longest text in tokens; None for the limit of its tokenizer.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.

    Raises
    ------
    StudyError: the model can't be loaded, or has no projection of its own.
    """
    folder = model_folder(model, revision)
    if stored_projection(model_parts(folder)[0]) is None:
        raise StudyError(
            f"{model} has no projection (2_Dense/model.safetensors), so it wasn't trained for attribution. Name "
            "the `encoder` folder of a study's results, or a published AirRep encoder. To compare a model of "
            "sentence-transformers as it is, name it under scoring.sentence_encoders."
        )
    return load_encoder(folder, max_tokens or sys.maxsize, trust_remote_code=trust_remote_code)


def model_parts(folder: Path) -> list[Path]:
    """Return the model folders in an encoder's folder: itself, or `prompt` and `response` under the view `split`."""
    return [folder / part for part in SPLIT_FOLDERS if (folder / part).is_dir()] or [folder]


def stored_projection(folder: Path) -> nn.Linear | None:
    """Return the projection in a model folder, a float32 layer; None if there is none.

    It is the Dense module of sentence-transformers, or `projector` among the model's weights, as in the
    checkpoint that the paper's authors published.

    Raises
    ------
    StudyError: the folder's modules aren't those of an attribution encoder.
    """
    dense = SentenceModules(folder).projection()
    file, prefix = (dense[0], "linear.") if dense else (folder / WEIGHTS, PROJECTOR)
    if not file.exists():
        return None
    with open_weights(file) as tensors:
        names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
        weights = {name.removeprefix(prefix): tensors.get_tensor(name).float() for name in names}
    if not weights:
        return None
    outputs, inputs = weights["weight"].shape
    layer = nn.Linear(inputs, outputs, bias="bias" in weights)
    layer.load_state_dict(weights)
    return layer
