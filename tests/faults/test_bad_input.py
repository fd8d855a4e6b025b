"""Every bad input ends in one clear message, and docs/errors.md shows it."""

import pytest
from bad_config import CONFIG, WRONG_KINDS, keys_of
from bad_input import ALL, PAGE, page


@pytest.fixture(scope="module")
def messages():
    return [one.message() for one in ALL]


def test_the_page_is_what_comes(messages):
    assert PAGE.read_text(encoding="utf-8") == page(messages), "run `python tests/faults/bad_input.py`"


def test_a_message_says_what_to_write_and_where(messages):
    for one, message in zip(ALL, messages, strict=True):
        assert "Traceback" not in message, one.what
        if one in CONFIG or one in WRONG_KINDS:
            assert message.startswith(("configs/mine.yaml has ", "configs/mine.yaml isn't YAML: ")), one.what


def test_every_key_of_the_config_is_tried(messages):
    keys = [key for key, _ in keys_of()]
    assert len(keys) == len(WRONG_KINDS) > 90
    for key, message in zip(keys, messages[-len(WRONG_KINDS) :], strict=True):
        assert f"\n  {key}" in message
        assert "wrong key(s)" in message
        assert "you wrote" in message, message
