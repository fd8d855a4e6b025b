"""The model card of a trained encoder: what it is, how to use it, how well it predicts, and what it is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.corpora.templates import TEMPLATE
from workflow_scripts.study.choices import View
from workflow_scripts.study.config import Study

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
USE = {
    "joint": """from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("{folder}")


def text(prompt, response):
    words = prompt.split(maxsplit={prompt_words})
    if len(words) > {prompt_words}:
        prompt = prompt[: len(prompt) - len(words[-1])].rstrip()
    return f{template}


answer = encoder.encode([text("Why is the sky blue?", "Because air scatters blue light most.")])
examples = encoder.encode([text("What colour is the sky?", "Blue."), text("What is the sum of 3 and 4?", "7.")])
scores = answer @ examples.T
""",
    "split": """import numpy as np
from sentence_transformers import SentenceTransformer

of_prompts, of_responses = SentenceTransformer("{folder}/prompt"), SentenceTransformer("{folder}/response")


def beginning(prompt):
    words = prompt.split(maxsplit={prompt_words})
    return prompt if len(words) <= {prompt_words} else prompt[: len(prompt) - len(words[-1])].rstrip()


def embed(prompts, responses):
    return np.hstack([of_prompts.encode([beginning(prompt) for prompt in prompts]), of_responses.encode(responses)])


answer = embed(["Why is the sky blue?"], ["Because air scatters blue light most."])
examples = embed(["What colour is the sky?", "What is the sum of 3 and 4?"], ["Blue.", "7."])
scores = answer @ examples.T
""",
}


def model_card(
    study: Study, config: str, provenance: Mapping[str, Any], lds: Sequence[Mapping[str, Any]], view: View, layout: str
) -> str:
    """Return the card in Markdown, with the header that the hub reads.

    Parameters
    ----------
    study: the study whose encoder it is.
    config: its values in force, as YAML text.
    provenance: content of `provenance.json`.
    lds: rows of `evaluation/lds.parquet`; empty if there is no LDS.
    view: whether the encoder reads prompt and response as one text or as two.
    layout: how the encoder is stored, `sentence_transformers` or `published`.
    """
    of_sentence_transformers = layout == "sentence_transformers"
    header = {
        "library_name": "sentence-transformers" if of_sentence_transformers else "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["airrep", "training-data-attribution"],
    }
    base = study.encoder.model
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        header["base_model"] = base
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False) + "---",
            "",
            f"# {study.run}: an encoder for training data attribution",
            "",
            "Inner products of its vectors predict how fine-tuning a language model on one example changes the loss of "
            "another: positive where it helps, negative where it harms. Scores compare examples for one answer; their "
            "size has no unit. The method is [AirRep](https://arxiv.org/abs/2505.18513); "
            + (
                f"the language model is `{study.language_model.model}`."
                if study.targets
                else f"the encoder is that of `{base}`, and this study only scored with it."
            ),
            "",
            "## Use",
            "",
            *(_use(study, view) if of_sentence_transformers else _use_of_published()),
            "",
            "## How well it predicts",
            "",
            *_metrics(lds),
            "",
            "## What it is made from",
            "",
            *_origin(study, provenance),
            "",
            "## Config",
            "",
            "```yaml",
            config.rstrip("\n"),
            "```",
            "",
        ]
    )


def _use(study: Study, view: View) -> list[str]:
    template = '"' + TEMPLATE.replace("\n", "\\n") + '"'
    code = USE[view].format(folder="path/of/this/folder", prompt_words=study.encoder.prompt_words, template=template)
    return ["```python", code + "```"]


def _use_of_published() -> list[str]:
    return [
        "The layout is that of the paper's authors: BERT under `bert.`, the projection as `projector`, bfloat16. Name "
        "this folder where an encoder is asked for (`encoder.model`, `--encoder`)."
    ]


def _metrics(lds: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lds:
        return ["This was not measured."]
    lines = [
        "LDS (rank correlation of predicted and measured losses over fine-tuned subsets, mean over tests) of this "
        "encoder (`airrep`) and of other methods:",
        "",
        "| evaluation | method | pooling | LDS | interval | noise ceiling | tests | subsets |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(lds, key=lambda row: (row["evaluation"], -row["lds"])):
        pooling = row["chosen"] or row["pooling"]
        lines.append(
            f"| {row['evaluation']} | {row['method']} | {pooling} | {row['lds']:.3f} | {row['ci_low']:.3f} to "
            f"{row['ci_high']:.3f} | {row['ceiling']:.3f} | {row['n_tests']:,} | {row['n_subsets']:,} |"
        )
    return lines


def _origin(study: Study, provenance: Mapping[str, Any]) -> list[str]:
    if study.targets is None:
        return [f"It was taken from `{study.encoder.model}`, whose makers know what it is made from."]
    roles = {study.targets.corpus: "training of the encoder"}
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return [
        "| corpus | source | hash | used for |",
        "|---|---|---|---|",
        *(
            f"| {name} | {study.corpora[name].source} | `{hash_}` | {roles.get(name, '')} |"
            for name, hash_ in provenance["data"].items()
        ),
        "",
        f"Made {provenance['created']} at commit `{provenance['git_commit']}` with {versions}.",
    ]
