"""Bad configs: wrong values that people write, and every key with a value of the wrong kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from bad_case import section_of
from pydantic import BaseModel

from workflow_scripts.study.config import Study, load_study
from workflow_scripts.study.config_files import read_config

SMOKE = yaml.safe_load((Path(__file__).parents[2] / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
SMOKE["curation"] = {"helpful": {"evaluation": "heldout", "size": 10}}


def with_value(key: str, value: object) -> dict[str, Any]:
    """Return the smoke study with one value changed, by its dotted key."""
    values = copy.deepcopy(SMOKE)
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return values


def config_with(key: str, value: object) -> Callable[[], object]:
    return lambda: load_study(with_value(key, value), origin="configs/mine.yaml")


def config_without(key: str) -> Callable[[], object]:
    def try_it() -> None:
        values = copy.deepcopy(SMOKE)
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        del section[last]
        load_study(values, origin="configs/mine.yaml")

    return try_it


def curated_by_gradients() -> None:
    values = with_value("scoring.methods", ["airrep", "ekfac"])
    values["curation"]["helpful"] |= {"method": "ekfac", "rule": "mean_score"}
    load_study(values, origin="configs/mine.yaml")


def curated_by_a_blend(blend: str, rule: str) -> Callable[[], None]:
    def load() -> None:
        values = with_value("scoring", {"methods": ["airrep", "tfidf", "ekfac"], "blends": [blend]})
        values["encoder_training"] |= {"validation_folds": 1}
        values["curation"]["helpful"] |= {"method": blend, "rule": rule}
        load_study(values, origin="configs/mine.yaml")

    return load


def detected_by_gradients() -> None:
    values = with_value("scoring.methods", ["airrep", "ekfac"])
    values["experiments"] = {"detection": {"evaluation": "heldout", "methods": ["ekfac"]}}
    load_study(values, origin="configs/mine.yaml")


def chosen_without_targets(**choice: object) -> Callable[[], None]:
    def load() -> None:
        values = with_value("scoring", {"methods": ["airrep", "tfidf"], **choice})
        del values["targets"]
        values["encoder"] = {"model": "results/other/encoder"}
        load_study(values, origin="configs/mine.yaml")

    return load


def two_subsets_choose(key: str, value: object) -> Callable[[], None]:
    def load() -> None:
        values = with_value(f"scoring.{key}", value)
        values["targets"]["subsets_per_fold"] = 2
        load_study(values, origin="configs/mine.yaml")

    return load


def surrogate_without_share() -> None:
    surrogate = {"method": "bm25", "folds": 2, "subsets_per_fold": 8}
    load_study(with_value("targets.surrogate", surrogate), origin="configs/mine.yaml")


# Of sections by name, the one of the smoke study that stands for all.
NAMED = {"corpora": "train", "evaluations": "heldout", "curation": "helpful"}


def keys_of(model: type[BaseModel] = Study, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of the config that holds a value, dotted, and the type of the value."""
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        section = next(
            (part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel)), None
        )
        if section is None:
            yield key, kind
        else:
            yield from keys_of(section, f"{key}.{NAMED[key]}." if key in NAMED else f"{key}.")


def kinds_of(annotation: Any) -> set[Any]:
    """Return the plain types that a key's type is made of."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {Literal}
    return {get_origin(annotation) or annotation}.union(*(kinds_of(part) for part in parts))


def wrong_value(annotation: Any) -> object:
    """Return a value that is of no use for a key of this type, and that people do write."""
    kinds = kinds_of(annotation)
    if {list, dict, tuple} & kinds:
        return 7
    if Literal in kinds:
        return "perhaps"
    if bool in kinds:
        return "sometimes"
    return "many" if {int, float} & kinds else 7


def each_without_the_other() -> None:
    values = with_value("corpora.pool", {"source": "mine.jsonl", "without": ["tests"]})
    values["corpora"]["tests"] = {"source": "mine.jsonl", "without": ["pool"]}
    load_study(values, origin="configs/mine.yaml")


def key_twice() -> None:
    path = Path("configs/mine.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text("run: mine\nseed: 1\nseed: 2\n", encoding="utf-8")
    read_config(path)


def file_of(content: bytes) -> Callable[[], object]:
    def read() -> None:
        path = Path("configs/mine.yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        read_config(path)

    return read


CONFIG = section_of(
    "The config",
    {
        "a misspelt key": config_with("targets.fold", 3),
        "an unknown key": config_with("encoder.colour", "blue"),
        "a key that stands twice": key_twice,
        "a missing key": config_without("targets.folds"),
        "a missing section": config_without("evaluations"),
        "an empty file": file_of(b""),
        "a list": file_of(b"- run: mine\n"),
        "a bracket that nothing closes": file_of(b"run: mine\ntargets: {folds: 4\n"),
        "a file that isn't UTF-8": file_of("run: größe".encode("latin-1")),
        "no key of a study": lambda: load_study({}, origin="configs/mine.yaml"),
        "a number below the smallest": config_with("targets.folds", 0),
        "a share above 1": config_with("finetuning.max_diverged_share", 5),
        "a number with a thousands separator": config_with("encoder_training.steps", "2,000"),
        "`run` that leads out of the results folder": config_with("run", "../../etc"),
        "`run` with a command in it": config_with("run", "$(touch pwned)"),
        "a corpus name with a line break": config_with("corpora.a\nb", {"source": "x.jsonl"}),
        "a path with braces": config_with("corpora.pool.source", "data/{corpus}.jsonl"),
        "a path with a line break": config_with("corpora.pool.source", "a\nb.jsonl"),
        "an evaluation set named `train`": config_with("evaluations.train", SMOKE["evaluations"]["heldout"]),
        "a corpus that isn't there": config_with("targets.corpus", "other"),
        "corpora that leave each other out": each_without_the_other,
        "an empty part": config_with("corpora.pool.part", [0.5, 0.5]),
        "a subset larger than its pool": config_with("targets.subset_examples", 500),
        "subsets of the whole pool": config_with("targets.subset_examples", 100),
        "more evaluated examples than there are": config_with("targets.evaluated_examples", 500),
        "no fold left to train on": config_with("encoder_training.validation_folds", 4),
        "too few subsets for an LDS": config_with("evaluations.heldout.subsets", 2),
        "one seed, which gives no noise ceiling": config_with("evaluations.heldout.seeds", 1),
        "a hidden size that heads don't divide": config_with("language_model.pretraining.hidden", 100),
        "an unknown method": config_with("scoring.methods", ["airrep", "magic"]),
        "no method": config_with("scoring.methods", []),
        "a pooling that is chosen on folds that aren't there": chosen_without_targets(poolings={"tfidf": ["chosen"]}),
        "a blend that is weighed on folds that aren't there": chosen_without_targets(blends=["airrep+tfidf"]),
        "a blend that two subsets can't weigh": two_subsets_choose("blends", ["airrep+tfidf"]),
        "a blend of one method": config_with("scoring.blends", ["airrep"]),
        "a blend with a method that doesn't score": config_with("scoring.blends", ["airrep+logra"]),
        "predicted labels that no encoder learns from": surrogate_without_share,
        "learning from labels that nothing predicts": config_with("encoder_training.surrogate_share", 0.5),
        "a selection by an evaluation that isn't there": config_with("curation.helpful.evaluation", "other"),
        "a selection by a method that doesn't score": config_with("curation.helpful.method", "logra"),
        "a mean over gradients that aren't stored": curated_by_gradients,
        "a selection by a blend without top lists": curated_by_a_blend("airrep+ekfac", "min_rank"),
        "a mean over a blend": curated_by_a_blend("airrep+tfidf", "mean_score"),
        "copies of a row that is listed for review": config_with(
            "curation.helpful", {"evaluation": "heldout", "size": 10, "rule": "most_harmful", "near_duplicates": "once"}
        ),
        "a selection of the name of random rows": config_with(
            "curation.random_selection", {"evaluation": "heldout", "size": 10}
        ),
        "a corpus that the study itself writes": config_with(
            "corpora.pool.source", "results/smoke/corpora/pool.parquet"
        ),
        "an encoder that the study itself writes": config_with("encoder.model", "results/smoke/encoder"),
        "a reviewed list that the study itself writes": config_with(
            "curation.helpful",
            {
                "evaluation": "heldout",
                "size": 10,
                "rule": "most_harmful",
                "drop": "results/smoke/curation/helpful/review.jsonl",
            },
        ),
        "no pooling": config_with("scoring.poolings", {"tfidf": []}),
        "a sentence encoder of the name of other results": config_with(
            "scoring.sentence_encoders", {"gte-tests": "thenlper/gte-small"}
        ),
        "a number of processes of one encoder": config_with(
            "encoder_variants", {"long": {"encoder_training": {"processes": 4}}}
        ),
        "a pooling that two subsets can't choose": two_subsets_choose("poolings", {"tfidf": ["mean", "chosen"]}),
        "a selection by a rule that isn't there": config_with("curation.helpful.rule", "best"),
        "a selection without a size": config_with("curation.helpful.size", None),
        "a share above the whole": config_with("curation.helpful.size", 1.5),
        "no row at all": config_with("curation.helpful.size", 0),
        "quotas by a column that isn't one of the two": config_with("curation.helpful.quota_by", "topic"),
        "rows that are dropped without a review": config_with("curation.helpful.drop", "reviewed.jsonl"),
        "curated data where nothing is selected": config_with(
            "experiments.curated_data", {"evaluation": "heldout", "selections": ["best"]}
        ),
        "damage of an evaluation that isn't there": config_with("experiments.detection", {"evaluation": "other"}),
        "so many damaged rows that few are left": config_with(
            "experiments.detection", {"evaluation": "heldout", "share": 0.5}
        ),
        "a kind of damage that is listed twice": config_with(
            "experiments.detection", {"evaluation": "heldout", "damages": ["trigger", "trigger"]}
        ),
        "a number of left-out rows that is listed twice": config_with(
            "experiments.leave_out", {"evaluation": "heldout", "base_examples": 20, "groups": 3, "sizes": [1, 1]}
        ),
        "more single rows left out than there are": config_with(
            "experiments.leave_out", {"evaluation": "heldout", "base_examples": 20, "groups": 60}
        ),
        "detection by gradients that aren't stored": detected_by_gradients,
        "tests of a label by a rule without a mean": config_with("curation.helpful.tests", "same_label"),
        "DeepSpeed's keys without DeepSpeed": config_with("finetuning.zero_stage", 2),
    },
)
WRONG_KINDS = section_of(
    "A value of the wrong kind, key by key",
    {f"`{key}: {json.dumps(wrong_value(kind))}`": config_with(key, wrong_value(kind)) for key, kind in keys_of()},
)
