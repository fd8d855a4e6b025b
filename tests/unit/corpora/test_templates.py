"""The texts that an encoder reads of an example."""

from workflow_scripts.corpora.templates import encoder_text


def test_the_prompt_is_cut_in_words_and_the_response_is_not():
    assert encoder_text("a  b\nc d", "x y z", 3, "joint") == ("Question: a  b\nc\nAnswer: x y z",)
    assert encoder_text("a b c", "x", 3, "joint") == ("Question: a b c\nAnswer: x",)
    assert encoder_text("a  b\nc d", "x y z", 3, "split") == ("a  b\nc", "x y z")
