"""Which rows of a list say the same."""

import pytest

from workflow_scripts.corpora.same_text import COMPARED_CHARACTERS, first_of_same

LONG = "the quick brown fox jumps over the lazy dog while all of the others sleep under a wide and starry summer sky"


def test_the_same_answer_in_other_words_of_the_question_is_the_same():
    rows = [
        ("Which herb do you link to loaf?", "People there say sage."),
        ("For pudding, give the aroma.", "people there say: SAGE"),
        ("Which herb do you link to loaf?", "People there say mint."),
        ("Tell me the flavour of loaf.", "People there say sage!"),
    ]
    assert first_of_same(rows) == [0, 0, 2, 0]


def test_a_short_answer_says_nothing_of_two_questions():
    rows = [("Is this review positive? The film lost me.", "No."), ("Is a whale a fish, in your opinion?", "No.")]
    assert first_of_same(rows) == [0, 1]
    assert first_of_same([*rows, rows[0]]) == [0, 1, 0]


def test_nearly_the_same_words_are_the_same_from_a_similarity_on():
    words = LONG.split()
    one_less = (" ".join(words[:-1]), "")
    other_half = (" ".join([*words[:11], *reversed(words[11:])]), "")
    assert first_of_same([(LONG, ""), one_less, other_half]) == [0, 0, 2]


def test_another_answer_to_the_same_question_is_never_the_same():
    assert first_of_same([(LONG, "Yes, it is."), (LONG, "No, it is not."), (LONG, "yes it is")]) == [0, 1, 0]
    assert first_of_same([(LONG, "A"), (LONG, "B"), (LONG, "A")]) == [0, 1, 0]
    assert first_of_same([("When?", f"{LONG} in 1871."), ("When?", f"{LONG} in 1925.")]) == [0, 1]


def test_rows_of_a_few_words_are_the_same_if_all_of_them_are():
    assert first_of_same([("Why?", ""), ("why", ""), ("", ""), ("", "Why?")]) == [0, 0, 2, 3]
    assert first_of_same([]) == []


def test_of_long_prompts_the_beginning_is_compared_and_of_answers_all():
    text = "word " * COMPARED_CHARACTERS
    assert first_of_same([(text + "one", "so it is"), (text + "another", "So it is!")]) == [0, 0]
    assert first_of_same([("", text + "one"), ("", text + "another"), ("", text.upper() + " One.")]) == [0, 1, 0]


@pytest.mark.parametrize(
    "answers",
    [
        ("I would use C++ for that.", "I would use C# for that.", "I would use C for that."),
        ("The answer is -5.", "The answer is 5."),
        ("x < y holds", "x > y holds"),
        ("It is 1.5 of them", "It is 1/5 of them"),
        ("👍", "👎"),
        ("-5", "5"),
    ],
)
def test_signs_tell_answers_apart(answers):
    rows = [("What is it?", answer) for answer in answers]
    assert first_of_same(rows) == list(range(len(answers)))
    assert first_of_same([rows[0], ("What is it?", f" “{answers[0].upper()}” ")]) == [0, 0]


def test_vowel_signs_and_tones_tell_answers_apart():
    days = ("कब आना है?", "सोमवार का दिन अच्छा है")
    gifts = ("कब आना है?", "सोमवार का दान अच्छा है")
    assert first_of_same([days, gifts, days]) == [0, 1, 0]
