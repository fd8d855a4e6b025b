"""Load models and tokenizers by folder or hub id, and save them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import huggingface_hub

# Of the HTTP library that the hub's client uses, which differs between its versions.
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open

import workflow_scripts.models.transformers_scan  # noqa: F401  # before transformers is imported
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_folder
from workflow_scripts.core.hub import HUB_ERRORS, hub_trouble, patiently, short_reason
from workflow_scripts.core.progress import say

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py"]
# The same weights once more, for other programs than transformers.
UNUSED_FILES = ["original/*", "metal/*", "consolidated*"]
# Or transformers asks a public service to convert weights of the hub that aren't safetensors, and waits for it.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

# Of a tokenizer whose files are missing, a single piece (T5's space) is left at most.
FEWEST_WORDS = 2
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ADAPTER = "adapter_config.json"
# What the libraries raise over files that they can't read, over a package that a model needs and isn't installed, or,
# where a model's code lies elsewhere, over the hub.
LOADING_ERRORS = (OSError, ValueError, ImportError, HTTPError, SafetensorError)


CONVERT = (
    "Weights are read from safetensors only, because other files can run code. Name a model or a `revision` that has "
    "them, or convert weights that you trust: `AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)`, "
    "for an encoder `AutoModel`, and the same for `AutoTokenizer`; then name that folder."
)


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

    folder = model_folder(model, revision, weights=False)
    require_no_adapter(folder, model)
    tokenizer = load_pretrained(AutoTokenizer, folder, revision, trust_remote_code)
    require_words(tokenizer, model)
    return tokenizer


def load_config(model: str | Path, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """Load the config of a hub id or folder; raises `StudyError` if it can't be had."""
    from transformers import AutoConfig

    return load_pretrained(AutoConfig, model_folder(model, revision, weights=False), revision, trust_remote_code)


def position_table(config: PretrainedConfig, trust_remote_code: bool) -> int | None:
    """Return for how many tokens a causal LM has embeddings of positions; None if it computes positions.

    Parameters
    ----------
    config: the LM's; only its layers are made, without weights.
    trust_remote_code: whether code that comes with the model may run.
    """
    import torch

    from workflow_scripts.models.transformers_import import AutoModelForCausalLM

    limit: int = config.max_position_embeddings
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    for name, module in lm.named_modules():
        # `wpe`, `embed_positions`, `position_embeddings`, ...; OPT has two rows before the first position.
        is_of_positions = "pos" in name.rpartition(".")[2] or name.endswith("wpe")
        if is_of_positions and isinstance(module, torch.nn.Embedding) and module.num_embeddings >= limit:
            return limit
    return None


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


def ids_beyond(tokenizer: PreTrainedTokenizerBase, embeddings: int, model: str | Path) -> dict[int, str]:
    """Return the added tokens of a tokenizer that have no embedding, by their ids; few texts hold one.

    Raises
    ------
    StudyError: words of its own vocabulary have none, so it belongs to another model.
    """
    added = tokenizer.get_added_vocab()
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    if words := sorted(number for number, token in beyond.items() if token not in added):
        raise StudyError(
            f"{model}: the tokenizer's {beyond[words[0]]!r} has the id {words[0]}, and the model has embeddings for "
            f"{embeddings} ids, from 0: they come from two models. Use a complete copy of one."
        )
    return beyond


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
        if not isinstance(error, LOADING_ERRORS) and type(error) is not Exception:
            raise
        raise cant_be_loaded(model, error) from error


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

    folder = model_folder(model, revision)
    require_no_adapter(folder, model)
    require_safetensors(folder)
    _require_plain_weights(folder, model)
    options |= {"dtype": torch.float32, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    verbosity = logging.get_verbosity()
    # Of weights that don't fit it prints a table and takes random ones; what is refused is decided here.
    logging.set_verbosity_error()
    try:
        loaded, found = load_pretrained(loader, folder, revision, trust_remote_code, **options)
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


def require_safetensors(model: str | Path) -> None:
    """Raise `StudyError` if `model` is a folder whose weights aren't safetensors."""
    folder = Path(model)
    if not (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack"))
    raise StudyError(f"{model} has no weights in safetensors{f', but {others[0]}' if others else ''}. {CONVERT}")


def _require_plain_weights(folder: Path, model: str | Path) -> None:
    """Raise `StudyError` if the weights are quantized: they can be neither trained nor read in float32."""
    config = folder / "config.json"
    with suppress(OSError, ValueError):
        if quantized := json.loads(config.read_text(encoding="utf-8")).get("quantization_config"):
            method = quantized.get("quant_method", "quantized")
            raise StudyError(f"{model}: its weights are quantized ({method}). Name the model that they were made from.")


def model_folder(model: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the folder of a model: `model` itself, or where the hub's files lie on this machine.

    Without `weights`, those of the hub aren't downloaded, and those of a folder aren't looked at.

    Raises
    ------
    StudyError: there is no such folder, and the hub doesn't give it; or a file in it isn't whole.
    """
    folder = Path(model) if Path(model).is_dir() else _downloaded(str(model), revision, weights)
    require_whole_files(folder, weights)
    return folder


def _downloaded(model: str, revision: str | None, weights: bool) -> Path:
    unused = UNUSED_FILES if weights else [*UNUSED_FILES, "*.safetensors"]

    def download() -> str:
        # Looked up here, because it imports the whole client, which takes longer than some stages that read a folder.
        return huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=MODEL_FILES, ignore_patterns=unused
        )

    try:
        return Path(patiently(download))
    except HUB_ERRORS as error:
        raise cant_be_loaded(model, error) from error


def require_whole_files(folder: Path, weights: bool = True) -> None:
    """Raise `StudyError` if a file of a model is but a pointer of git-lfs, or weights are cut off."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in filter_repo_objects(names, allow_patterns=MODEL_FILES, ignore_patterns=UNUSED_FILES):
        if not name.endswith(".safetensors"):
            _require_no_pointer(folder / name)
        elif weights:
            # NumPy's: torch takes seconds to load, and only the header is looked at.
            with open_weights(folder / name, "np"):
                pass


def _require_no_pointer(file: Path) -> None:
    with open(file, "rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise StudyError(
                f"{file} is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its folder, or download "
                "the model with `hf download`."
            )


@contextmanager
def open_weights(file: Path, library: str = "pt") -> Iterator[safe_open]:
    """Open a safetensors file for torch, or for NumPy (`np`); raises `StudyError` if it is a pointer, or damaged."""
    _require_no_pointer(file)
    try:
        tensors = safe_open(file, library)
    except SafetensorError as error:
        raise StudyError(
            f"{file} can't be read as safetensors: {short_reason(error)} It was cut off while it was copied or "
            "downloaded, or is damaged. Use a complete copy of it."
        ) from None
    with tensors:
        yield tensors


def require_no_adapter(folder: Path, model: str | Path) -> None:
    """Raise `StudyError` if a LoRA adapter lies in a model's folder, alone or beside whole weights."""
    if not (folder / ADAPTER).is_file():
        return
    base = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    merge = (
        f"merge it into its base{f' {base!r}' if base else ''} (peft: `merge_and_unload()`, then `save_pretrained` of "
        "model and tokenizer) and name the folder that this makes"
    )
    if any(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")):
        raise StudyError(
            f"{model}: an adapter ({ADAPTER}) lies beside whole weights, and only one of both can be meant. Move "
            f"adapter_* elsewhere to read the weights without it; or {merge}."
        )
    raise StudyError(f"{model} is an adapter ({ADAPTER}), e.g. of LoRA, not a whole model: {merge}.")


def cant_be_loaded(model: str | Path, error: Exception) -> StudyError:
    """Return what the user is told where a library can't load a model."""
    not_local = "" if Path(model).is_dir() else "There is no local folder of that name."
    said = hub_trouble(error, str(model), "model", not_local) or (
        f"{short_reason(error)} {not_local} Write a local folder with config.json and *.safetensors, or the id of such "
        "a model on the hub."
    ).replace("  ", " ")
    return StudyError(f"the model {str(model)!r} can't be loaded: {said}")


def save_folder(folder: Path, *parts: Any) -> None:
    """Write models and tokenizers (`save_pretrained`) to `folder`, which appears only once it is complete."""
    with atomic_folder(folder) as temporary:
        for part in parts:
            part.save_pretrained(temporary)
