"""Push the packaged encoder to a private repository of the hub."""

import json
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.hub import HUB_ERRORS, hub_trouble, patiently, short_reason
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage

# What an encoder of another view or layout may have left there: loading would prefer it to the new files.
STALE = [
    *("prompt/*", "response/*", "1_Pooling/*", "2_Normalize/*", "2_Dense/*", "3_Dense/*"),
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "config.json"),
    *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
]


def push_encoder(release: Path, pushed: Path, *, hub: str) -> None:
    """Upload the packaged encoder, and record the commit.

    A repository that doesn't exist is created as a private one, because the card names the sources of the data. What
    an encoder of another view or layout may have left there (`STALE`) is deleted in the same commit; other files are
    kept.

    Parameters
    ----------
    release: folder that `package_encoder` wrote.
    pushed: JSON file to write, with the address of the commit.
    hub: id of the hub repository.

    Raises
    ------
    StudyError: the hub can't be reached, or refuses.
    """
    hub_api = HfApi()

    def upload() -> CommitInfo:
        return hub_api.upload_folder(
            repo_id=hub,
            folder_path=release,
            commit_message="Encoder",
            ignore_patterns=[".*"],
            delete_patterns=STALE,
        )

    try:
        patiently(lambda: hub_api.create_repo(hub, private=True, exist_ok=True))
        commit = patiently(upload)
    except HUB_ERRORS as error:
        raise StudyError(
            f"{hub!r} can't be pushed to: {hub_trouble(error, hub, 'model') or short_reason(error)} Log in with "
            "`hf auth login`, or set HF_TOKEN to a token that may write; or write `release: {hub: null}` to keep the "
            "encoder here."
        ) from None
    with atomic_path(pushed) as temporary:
        temporary.write_text(json.dumps({"hub": hub, "commit": commit.commit_url}) + "\n", encoding="utf-8")
    say(f"push_encoder: {commit.commit_url}")


if __name__ == "__main__":
    run_stage(push_encoder)
