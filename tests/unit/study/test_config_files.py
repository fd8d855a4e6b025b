"""Values as a file and the command line have them; keys that stand twice are refused: YAML would take the last one."""

import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.config_files import read_config, refuse_repeated_keys, with_nulls
from workflow_scripts.study.curation_section import Curation

TWICE = """\
run: mine
corpora:
  pool: {source: a.jsonl, source: b.jsonl}
  tests: &tests {source: c.jsonl}
evaluations:
  - seeds: 1
    "seeds": 2
run: other
"""


def test_every_key_that_stands_twice_is_named_with_its_lines(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(TWICE)
    with pytest.raises(StudyError) as error:
        read_config(path)
    assert str(error.value).splitlines() == [
        f"{path} has 3 key(s) twice:",
        "  corpora.pool.source: in lines 3 and 3; keep one of them",
        "  evaluations[0].seeds: in lines 6 and 7; keep one of them",
        "  run: in lines 1 and 8; keep one of them",
    ]


def test_anchors_merges_and_json_are_read_as_ever(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a\n")
    assert read_config(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}}
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(StudyError, match="a: in lines 1 and 1"):
        refuse_repeated_keys([path])


def test_files_may_set_one_key_each_and_broken_ones_are_left_to_their_reader(tmp_path):
    for name, text in (("a.yaml", "run: a\n"), ("b.yaml", "run: b\n"), ("c.yaml", "run: [\n")):
        (tmp_path / name).write_text(text)
    refuse_repeated_keys([tmp_path / name for name in ("a.yaml", "b.yaml", "c.yaml", "none.yaml")])


def test_null_on_the_command_line_is_none_wherever_it_stands():
    values = {"track": "null", "evaluations": {"heldout": {"tests": "null", "sizes": ["1", "~", "nullable"]}}}
    assert with_nulls(values) == {
        "track": None,
        "evaluations": {"heldout": {"tests": None, "sizes": ["1", None, "nullable"]}},
    }


@pytest.mark.parametrize(("text", "size"), [("20", 20), ("0.5", 0.5), ("1.0", 1.0)])
def test_a_size_may_be_text_as_on_the_command_line(text, size):
    found = Curation(evaluation="heldout", size=text, quotas={"a": text})
    assert (found.size, type(found.size), found.quotas) == (size, type(size), {"a": size})
