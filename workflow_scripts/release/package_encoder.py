"""Package the trained encoder and its model card in one folder, ready to share."""

import json
import shutil
import sys
from pathlib import Path

import yaml

from workflow_scripts.core.files import atomic_folder
from workflow_scripts.core.model_contents import SPLIT_FOLDERS
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.stage import run_stage
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.published_format import save_published
from workflow_scripts.release.model_card import model_card
from workflow_scripts.study.config import load_study


def package_encoder(
    encoder: Path, config: Path, provenance: Path, lds: Path | None, release: Path, *, layout: str
) -> None:
    """Write a folder with the encoder and its model card, `README.md`.

    Parameters
    ----------
    encoder: folder of the trained encoder.
    config: `config.resolved.yaml` of the study.
    provenance: `provenance.json` of the study.
    lds: table of the evaluation; None where there is no LDS.
    release: folder to write.
    layout: `sentence_transformers`, a copy of `encoder` byte by byte, or `published`, the one of the paper's authors.

    Raises
    ------
    StudyError: the published layout can't hold this encoder.
    """
    text = config.read_text(encoding="utf-8")
    card = model_card(
        load_study(yaml.safe_load(text), origin=str(config)),
        text,
        json.loads(provenance.read_text(encoding="utf-8")),
        read_table(lds).to_pylist() if lds else [],
        "split" if (encoder / SPLIT_FOLDERS[0]).is_dir() else "joint",
        layout,
    )
    with atomic_folder(release) as temporary:
        if layout == "published":
            save_published(load_encoder(encoder, sys.maxsize), temporary)
        else:
            shutil.copytree(encoder, temporary, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        (temporary / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    run_stage(package_encoder)
