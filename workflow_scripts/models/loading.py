"""Models by name or folder: loading and saving."""

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
# Or transformers asks a public service to convert weights of the hub that aren't safetensors, and waits for it.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

# Of a tokenizer whose files are missing, a single piece (T5's space) is left at most.
FEWEST_WORDS = 2


CONVERT = (
    "Weights are read from safetensors alone, because other files can run code. Name a model or a `revision` that has "
    "them, or convert weights that you trust: `AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)`, "
    "for an encoder `AutoModel`, and the same for `AutoTokenizer`; then name that folder."
)


class Loader(Protocol):
    """A class that makes models or tokenizers from files, e.g. `transformers.AutoTokenizer`."""

    def from_pretrained(self, model: str, **options: object) -> Any: ...


def load_tokenizer(
    model: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub id or folder; raises `StudyError` if it can't be had, or knows no words."""
    # Imported here: it costs seconds, and most users of this module need no tokenizer.
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(AutoTokenizer, model, revision, trust_remote_code)
    require_words(tokenizer, model)
    return tokenizer


def require_words(tokenizer: PreTrainedTokenizerBase, model: str | Path) -> None:
    """Raise `StudyError` if a tokenizer knows special tokens alone.

    That is what transformers returns for many kinds of models where the files of the tokenizer are missing: every
    text becomes the same tokens, or none.
    """
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if len(words) < FEWEST_WORDS:
        raise StudyError(
            f"the tokenizer of {str(model)!r} has special tokens alone and can't tell words apart: its files are "
            "missing (tokenizer.json; or vocab.txt, vocab.json and merges.txt, *.model). Take a whole copy of the "
            "model; if it comes from the hub, run the same command again when this machine can reach the hub."
        )


def load_pretrained(
    loader: Loader, model: str | Path, revision: str | None, trust_remote_code: bool, **options: object
) -> Any:
    """Call `loader.from_pretrained`; raises `StudyError` with advice where it fails."""
    if trust_remote_code:
        say(f"trust_remote_code is on: Python code that comes with {str(model)!r} may run here. Did you read it?")
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
    """Load a model in float32 from safetensors; raises `StudyError` where its weights aren't whole.

    `unused` begins the names of weights that nobody reads, so they may be missing (empty: none).
    """
    import torch
    from transformers.utils import logging

    require_safetensors(model)
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
        raise StudyError(f"{model}: {len(missing)} weights are missing, e.g. {missing[0]}. Take a whole copy of it.")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise StudyError(
            f"{model}: {name} is stored with shape {list(stored)}, and config.json asks for {list(expected)}: they "
            "come from two models. Take a whole copy of one."
        )
    return loaded


def require_safetensors(model: str | Path) -> None:
    """Raise `StudyError` if `model` is a folder whose weights aren't safetensors."""
    folder = Path(model)
    if not (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack"))
    raise StudyError(f"{model} has no weights in safetensors{f', but {others[0]}' if others else ''}. {CONVERT}")


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model: `model` itself, or where the hub's files lie on this machine.

    Raises
    ------
    StudyError: there is no such folder, and the hub doesn't give it.
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
    """Write models and tokenizers (`save_pretrained`) to `folder`, which appears only when it is whole."""
    with atomic_folder(folder) as temporary:
        for part in parts:
            part.save_pretrained(temporary)
