"""Load models and tokenizers by folder or hub id, and save them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_folder
from workflow_scripts.core.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py"]
# The same weights once more, for other programs than transformers.
UNUSED_FILES = ["original/*", "metal/*", "consolidated*"]
# Of a tokenizer whose files are missing, a single piece (T5's space) is left at most.
FEWEST_WORDS = 2


class Loader(Protocol):
    """A class that loads models or tokenizers from files, e.g. `transformers.AutoTokenizer`."""

    def from_pretrained(self, model: str, **options: object) -> Any: ...


def load_tokenizer(
    model: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Parameters
    ----------
    model: folder or hub id.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.

    Raises
    ------
    StudyError: the tokenizer can't be loaded, or has special tokens only.
    """
    # Imported here: it costs seconds, and most users of this module need no tokenizer.
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(AutoTokenizer, model, revision, trust_remote_code)
    require_words(tokenizer, model)
    return tokenizer


def require_words(tokenizer: PreTrainedTokenizerBase, model: str | Path) -> None:
    """Check that a tokenizer has more than special tokens.

    For many kinds of models, that is all that transformers returns if the files of the tokenizer are missing: every
    text then becomes the same tokens, or none.

    Parameters
    ----------
    tokenizer: the tokenizer.
    model: its name, for the message.

    Raises
    ------
    StudyError: it has special tokens only.
    """
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if len(words) < FEWEST_WORDS:
        raise StudyError(
            f"the tokenizer of {str(model)!r} has special tokens only and can't tell words apart: its files are "
            "missing (tokenizer.json; or vocab.txt, vocab.json and merges.txt, *.model). Use a complete copy of the "
            "model; if it comes from the hub, run the same command again when this machine can reach the hub."
        )


def load_pretrained(
    loader: Loader, model: str | Path, revision: str | None, trust_remote_code: bool, **options: object
) -> Any:
    """Return the result of `loader.from_pretrained`.

    Parameters
    ----------
    loader: a class of transformers.
    model: folder or hub id.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    options: further arguments of `from_pretrained`.

    Raises
    ------
    StudyError: it can't be loaded; the message says why and what to write instead.
    """
    if trust_remote_code:
        say(f"trust_remote_code is on: Python code that comes with {str(model)!r} may run here. Have you read it?")
    try:
        return loader.from_pretrained(str(model), revision=revision, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        # The library `tokenizers` raises plain exceptions, e.g. where a vocabulary is empty.
        if not isinstance(error, OSError | ValueError) and type(error) is not Exception:
            raise
        raise _cant_be_loaded(model, error) from error


def load_weights(
    loader: Loader,
    model: str | Path,
    revision: str | None,
    trust_remote_code: bool,
    unused: str = "",
    **options: object,
) -> PreTrainedModel:
    """Load a model in float32 from safetensors.

    Parameters
    ----------
    loader: a class of transformers.
    model: folder or hub id.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    unused: prefix of the names of weights that are not used, so that they may be missing; empty for none.
    options: further arguments of `from_pretrained`.

    Raises
    ------
    StudyError: the model can't be loaded, or weights are missing or have another shape than the config says.
    """
    import torch
    from transformers.utils import logging

    options |= {"dtype": torch.float32, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    verbosity = logging.get_verbosity()
    # Of weights that don't fit it prints a table and takes random ones; what is refused is decided here.
    logging.set_verbosity_error()
    try:
        loaded, found = load_pretrained(loader, model, revision, trust_remote_code, **options)
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(name for name in found["missing_keys"] if not (unused and name.startswith(unused))):
        raise StudyError(f"{model}: {len(missing)} weights are missing, e.g. {missing[0]}. Use a complete copy of it.")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise StudyError(
            f"{model}: {name} is stored with shape {list(stored)}, and config.json asks for {list(expected)}: they "
            "come from two models. Use a complete copy of one."
        )
    return loaded


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model: `model` itself, or the one in the hub's cache, downloaded if it isn't there yet.

    Parameters
    ----------
    model: folder or hub id.
    revision: commit, tag or branch on the hub; None for the default branch.

    Raises
    ------
    StudyError: there is no such folder, and the model can't be downloaded.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    # Of the HTTP library that the hub's client uses, which differs between its versions.
    from huggingface_hub.errors import HTTPError

    try:
        return Path(
            snapshot_download(str(model), revision=revision, allow_patterns=MODEL_FILES, ignore_patterns=UNUSED_FILES)
        )
    except (OSError, ValueError, HTTPError) as error:
        raise _cant_be_loaded(model, error) from error


def _cant_be_loaded(model: str | Path, error: Exception) -> StudyError:
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    reason = str(error).splitlines()[0]
    if token := os.environ.get("HF_TOKEN"):
        reason = reason.replace(token, "***")
    return StudyError(
        f"the model {str(model)!r} can't be loaded{offline}: {reason} Write a local "
        "folder with config.json and *.safetensors, or a hub id that this machine can reach."
    )


def save_folder(folder: Path, *parts: Any) -> None:
    """Write models and tokenizers (`save_pretrained`) to `folder`, which appears only once it is complete."""
    with atomic_folder(folder) as temporary:
        for part in parts:
            part.save_pretrained(temporary)
