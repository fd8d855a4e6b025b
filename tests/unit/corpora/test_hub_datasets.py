"""Datasets of the hub: the presets' on a hub that works, that fails, and that can't be reached."""

from __future__ import annotations

import json
from pathlib import Path

import hub_presets
import pytest
import yaml
from hub_presets import json_lines
from model_hub import Fault

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.corpora.readers import read_rows
from workflow_scripts.corpora.resolve_dataset import resolve_dataset
from workflow_scripts.provenance.resolve_config import resolve_config
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.sections import Corpus

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
NAME = "owner/data"
ROWS = [{"prompt": f"What is {number}?", "response": f"{number}."} for number in range(6)]


@pytest.fixture
def waited(monkeypatch):
    """The waits, which take no time."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def put(hub, name=NAME, **files):
    """Make files the newest commit; `train__jsonl` is `train.jsonl`."""
    return hub.commit_files(f"datasets/{name}", {key.replace("__", "."): data for key, data in files.items()})


def prompts(name=NAME, **options):
    return [row.cells["prompt"] for row in read_rows(name, **options)]


def prepared(folder, dataset=None, source=NAME, **settings):
    values = Corpus(source=source, **settings).model_dump(exclude={"without"})
    prepare_corpus(folder / "corpora/pool.parquet", folder / "corpora/pool.rejected.parquet", (), dataset, **values)
    return folder / "corpora/pool.parquet"


def resolved(folder, revision="main"):
    file = folder / "datasets/data.json"
    resolve_dataset(file, dataset=NAME, revision=revision)
    return json.loads(file.read_text())["commit"]


def studies_of_hub():
    """Return the plans of the presets that read the hub; of those with the same corpora, the first."""
    plans = {}
    for path in CONFIGS:
        plan = StudyPlan(load_study(yaml.safe_load(path.read_text(encoding="utf-8")), origin=path.name))
        if plan.hub_datasets:
            plans.setdefault(str(plan.study.corpora), pytest.param(plan, id=path.stem))
    return list(plans.values())


def read_preset(plan, folder):
    """Prepare all corpora of a study by its own settings; return prompts, labels and sources of each."""
    tables = {}
    for name, dataset in plan.hub_datasets.items():
        resolve_dataset(folder / f"datasets/{name}.json", dataset=dataset.name, revision=dataset.revision)

    def corpus(name):
        file = folder / f"corpora/{name}.parquet"
        if not file.exists():
            settings = plan.study.corpora[name]
            without = [corpus(other) for other in settings.without]
            dataset = plan.dataset(name)
            at = folder / f"datasets/{dataset.name.replace('/', '--')}@{dataset.revision}.json"
            values = settings.model_dump(mode="json", exclude={"without"})
            prepare_corpus(file, file.with_suffix(".rejected.parquet"), without, at, **values)
            tables[name] = read_table(file).to_pylist()
            assert read_table(file.with_suffix(".rejected.parquet")).num_rows == 0
        return file

    for name in plan.study.corpora:
        corpus(name)
    return tables


@pytest.mark.parametrize("plan", studies_of_hub())
def test_presets_read_their_data_online_through_faults_and_offline(hub, tmp_path, waited, offline, monkeypatch, plan):
    commits = {
        name: hub.commit_files(f"datasets/{name}", files, hub_presets.COMMITS.get(f"datasets/{name}"))
        for name, files in hub_presets.datasets().items()
    }
    for name in hub_presets.COMMITS:
        if name in hub.commits:
            hub.commit_files(name, {"README.md": b"A commit without data."})
    read = read_preset(plan, tmp_path / "online")
    for name, rows in read.items():
        settings = plan.study.corpora[name]
        files = {row["source_file"] for row in rows}
        assert read_metadata(tmp_path / f"online/corpora/{name}.parquet")["commit"] == commits[settings.source]
        assert all(row["prompt"] and row["response"] for row in rows)
        if settings.data_files:
            assert files == {settings.data_files}
        elif settings.source == "Muennighoff/flan":
            assert files == {f"train/{task}.jsonl" for task in hub_presets.FLAN_TASKS}
            assert {row["label"] for row in rows} == set(hub_presets.FLAN_TASKS)
        elif settings.source == "PKU-Alignment/PKU-SafeRLHF-QA":
            assert files == {f"data/{settings.split}-00000-of-00001.parquet"}
            assert {row["label"] for row in rows} == {"safe", "unsafe"}
    # Other studies read the same: one whose hub fails now and then, and one that has no network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "second cache"))
    hub.faults = [
        Fault("/revision/", 429, {"Retry-After": "7"}, times=2),
        Fault("/tree/", 503, times=1),
        Fault("/resolve/.*[lt]$", 500, times=2),
        Fault("/resolve/.*[lt]$", sent=100, times=2),
    ]
    assert read_preset(plan, tmp_path / "faulty") == read
    assert not any(fault.times for fault in hub.faults)
    assert 7 in waited
    offline()
    hub.requests.clear()
    assert read_preset(plan, tmp_path / "offline") == read
    assert hub.requests == []


def test_a_transfer_that_was_cut_goes_on_where_it_was(hub, waited, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50)
    data = json_lines(ROWS)
    commit = put(hub, train__jsonl=data)
    hub.faults = [Fault("jsonl$", sent=100, times=2)]
    assert len(prompts()) == 6
    assert hub.sent_bytes[f"/datasets/{NAME}/resolve/{commit}/train.jsonl"] == len(data)


def test_files_come_when_their_rows_are_due_and_once(hub, tmp_path):
    hub.commit_files("datasets/stingning/ultrachat", hub_presets.datasets()["stingning/ultrachat"])
    settings = {"source": "stingning/ultrachat", "response_turn": "first"}
    prepared(tmp_path / "few", limit=6, **settings)
    assert hub.downloads() == ["README.md", "train_0.jsonl", "train_1.jsonl"]
    hub.requests.clear()
    prepared(tmp_path / "half", part=(0.0, 0.5), **settings)
    assert hub.downloads() == [f"train_{k}.jsonl" for k in range(2, 10)]


def test_bad_lines_and_more_columns_are_rows_as_in_a_local_file(hub, tmp_path):
    lines = json_lines(ROWS[:2]) + b"{cut off\n" + json_lines([{**ROWS[2], "source": "web"}, *ROWS[3:]])
    put(hub, train__jsonl=lines)
    (tmp_path / "train.jsonl").write_bytes(lines)
    tables = []
    for folder, source in ((tmp_path / "hub", NAME), (tmp_path / "local", str(tmp_path / "train.jsonl"))):
        corpus = prepared(folder, source=source, max_rejected_share=0.5)
        tables.append((read_table(corpus).to_pylist(), read_table(corpus.with_suffix(".rejected.parquet")).to_pylist()))
    assert tables[0] == tables[1]
    assert [len(table) for table in tables[0]] == [6, 1]


def test_one_commit_for_all_corpora_of_a_study(hub, tmp_path, capsys):
    before = put(hub, train__jsonl=json_lines(ROWS[:3]))
    assert resolved(tmp_path) == before
    after = put(hub, train__jsonl=json_lines(ROWS[3:]))
    corpus = prepared(tmp_path, dataset=tmp_path / "datasets/data.json")
    assert read_table(corpus)["prompt"].to_pylist() == [row["prompt"] for row in ROWS[:3]]
    assert read_metadata(corpus)["commit"] == before
    # The file with the commit is lost: what was read before is kept, and the choice is told.
    (tmp_path / "datasets/data.json").unlink()
    capsys.readouterr()
    assert resolved(tmp_path) == before
    said = capsys.readouterr().err
    assert f"main is at {after} now, and this study keeps {before}, which {corpus} were read from" in said
    assert f"or write `revision: {after}`" in said
    # Another revision is the user's own word; and other studies start with the current commit.
    assert resolved(tmp_path, revision=after) == after
    assert resolved(tmp_path / "other") == after
    corpus.rename(tmp_path / "corpora/earlier.parquet")
    prepared(tmp_path)
    prepare = tmp_path / "other"
    corpus = prepared(prepare, dataset=prepare / "datasets/data.json")
    corpus.rename(tmp_path / "corpora/later.parquet")
    with pytest.raises(StudyError, match=f"read from several commits of {NAME}, main: .*Delete those"):
        resolved(tmp_path)


def test_the_provenance_names_the_commit(hub, tmp_path):
    commit = put(hub, train__jsonl=json_lines(ROWS))
    resolved(tmp_path)
    file = tmp_path / "provenance.json"
    resolve_config([], tmp_path / "c.yaml", file, datasets=[tmp_path / "datasets/data.json"], study={}, stages={})
    assert json.loads(file.read_text())["datasets"] == [{"dataset": NAME, "revision": "main", "commit": commit}]


def test_a_hub_out_of_reach_is_read_from_its_cache(hub, tmp_path, waited, offline, monkeypatch, capsys):
    commit = put(hub, train__jsonl=json_lines(ROWS[:4]), test__jsonl=json_lines(ROWS[4:]))
    assert len(prompts()) == 4
    hub.is_down = True
    assert len(prompts()) == 4
    assert f"the hub is out of reach: {NAME} is read from its cache, at commit {commit}" in capsys.readouterr().err
    with pytest.raises(StudyError, match=rf"{NAME} can't be read from the hub: the hub is busy \(503"):
        prompts(split="test")
    hub.is_down = False
    # A busy hub is waited for, so that an old commit in the cache isn't taken for the current one.
    put(hub, train__jsonl=json_lines(ROWS[:1]))
    hub.faults = [Fault("/revision/", 429, {"Retry-After": "3"}, times=2)]
    assert len(prompts()) == 1
    offline()
    assert len(prompts(revision=commit)) == 4
    with pytest.raises(StudyError, match="HF_HUB_OFFLINE is set, and the hub's cache"):
        prompts(split="test", revision=commit)
    with pytest.raises(StudyError, match="HF_HUB_OFFLINE is set, and the hub's cache"):
        prompts("owner/another")
    monkeypatch.undo()


def test_gated_and_private_data_is_read_after_a_login(hub, tmp_path, monkeypatch):
    put(hub, train__jsonl=json_lines(ROWS))
    hub.gated = {f"datasets/{NAME}": "hf_goodtoken"}
    login = tmp_path / "token"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(login))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(StudyError, match=rf"gated.* licence on .*/datasets/{NAME} .*`hf auth login`"):
        prompts()
    # As `hf auth login` leaves it.
    login.write_text("hf_goodtoken\n")
    assert len(prompts()) == 6
    login.write_text("hf_expiredtoken")
    with pytest.raises(StudyError, match="the hub rejects the token of `hf auth login`") as error:
        prompts()
    assert "hf_expiredtoken" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"train__jsonl": b""}, {"split": "test"}, "has no split: test; it has train. Write one of them"),
        ({"train__jsonl": b""}, {"config_name": "en"}, r"can't be read: .*'en' not found.*Check config_name"),
        ({"train__jsonl": b""}, {"data_files": "a/*.csv"}, r"has no file data_files: a/\*\.csv; it has train\.jsonl"),
        (
            {"train__jsonl": b""},
            {"data_files": "train.jsonl", "split": "x"},
            "names the files, and split: x",
        ),
        ({"train__jsonl": b""}, {"revision": "v9"}, "no such `revision`"),
        ({"README__md": b"x"}, {}, "can't be read: .*by data_files: none that can be read here"),
        ({"train__arrow": b""}, {}, r"train\.arrow is of a kind that isn't read here.*revision: refs/convert/parquet"),
        ({"train__tar": b""}, {}, r"train\.tar is of a kind that isn't read here"),
        ({"train__png": b""}, {}, r"train\.png is of a kind that isn't read here"),
        ({"train__zip": b""}, {}, r"can't be read: .*Check config_name and split"),
        ({"train__tsv": b""}, {}, r"train\.tsv is of a kind that isn't read here|asks to read the files with sep"),
        (
            {"README__md": b"---\nconfigs:\n- config_name: a\n  data_files: '*.csv'\n  sep: ';'\n---\n", "x__csv": b""},
            {},
            r"its card asks to read the files with sep: ';'.*JSON Lines",
        ),
        (
            {"data__py": b"", "rows__json": b"[]"},
            {},
            r"has a loading script \(data\.py\), which isn't run, .*data_files: rows\.json\. If its page has a Parquet",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_what_to_do(hub, files, options, words):
    put(hub, **files)
    with pytest.raises(StudyError, match=words):
        prompts(**options)


def test_a_dataset_that_is_not_there_is_no_local_file_either(hub):
    with pytest.raises(StudyError, match=r"no dataset of that name, or it is private.*There is no local file of that"):
        prompts("owner/missing")


def test_configs_and_files_are_chosen_as_the_library_does(hub):
    card = (
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/*.jsonl\n  - split: dev\n"
        "    path: [dev.jsonl]\n- config_name: de\n  data_files: de.jsonl\n---\n"
    )
    files = {"README.md": card.encode(), "en/b.jsonl": json_lines(ROWS[1:2]), "en/a.jsonl": json_lines(ROWS[:1])}
    files |= {"de.jsonl": json_lines(ROWS[2:3]), "dev.jsonl": json_lines(ROWS[3:4])}
    hub.commit_files(f"datasets/{NAME}", files)
    asked = [row["prompt"] for row in ROWS]
    assert prompts(config_name="en") == asked[:2]
    assert prompts(config_name="en", split="dev") == asked[3:4]
    assert prompts(config_name="de") == asked[2:3]
    assert prompts(data_files="en/*") == asked[:2]
    assert prompts("json", data_files=f"hf://datasets/{NAME}@main/de.jsonl") == asked[2:3]
    with pytest.raises(StudyError, match="Config name is missing"):
        prompts()


def test_the_log_says_which_column_labels_are_of_or_that_there_are_none(hub, tmp_path, capsys):
    put(hub, train__jsonl=json_lines({**row, "severity_category": 0} for row in ROWS), test__jsonl=json_lines(ROWS))
    prepared(tmp_path)
    assert f"{NAME}: labels: 6 of 'severity_category'" in capsys.readouterr().err
    prepared(tmp_path, split="test")
    assert f"{NAME}: labels: 6 rows have no label" in capsys.readouterr().err
    with pytest.raises(StudyError, match="label: is_safe: owner/data has no such column; it has 'prompt', 'response'"):
        prepared(tmp_path, columns={"label": "is_safe"})
