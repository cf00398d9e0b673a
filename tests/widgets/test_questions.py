"""A prediction: asked, answered, revealed and scored; text in a saved notebook."""

import pytest

from s3pet.errors import PlotError
from s3pet.widgets import ask
from s3pet.widgets.questions import NO_NUMBER, TAKEN, Question


@pytest.fixture(autouse=True)
def fresh_score(monkeypatch):
    monkeypatch.setattr(Question, "asked", {})


def stored(widget):
    """What a saved notebook has of a widget."""
    data = widget._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == data["text/markdown"].replace("**", "") == repr(widget)
    return data["text/markdown"]


def test_a_choice_is_scored_and_a_repeated_question_counts_once():
    first, second = ask("Which?", ["LoRA", "BitFit"]), ask("How many?")
    assert repr(first.reveal("LoRA", "It is wide.")) == "Answer: LoRA. It is wide."
    first.choice.value, second.choice.value = "BitFit", "1,351"
    assert repr(first.reveal("LoRA")) == "Answer: LoRA. You said BitFit: not so. Your score: 0 of 1."
    assert repr(second.reveal(1300)) == "Answer: 1,300. You said 1,351: right. Your score: 1 of 2."
    assert second.is_right and second.reveal(1100, tolerance=0.3) and second.is_right
    assert [second.reveal(value).shown for value in (13519, 0.41234, 9)] == ["13,519", "0.4123", "9"]
    assert second.reveal(1100) and second.is_right is False
    again = ask("Which?", ("LoRA", "BitFit"))
    again.choice.value = "LoRA"
    assert again.reveal("LoRA").score == (1, 2)


def test_what_is_no_number_is_no_prediction():
    question = ask("How many?")
    answer = question.reveal(0.41)
    for said, is_right in (
        ("many", None),
        ("0.42", True),
        ("40 %", False),
        ("", None),
        ("≈ 0.4", True),
        ("nan", False),
    ):
        question.choice.value = said
        assert question.is_right is is_right and answer.score[1] == (is_right is not None)
        assert (NO_NUMBER in question.note.value) == (said == "many")


def test_the_reader_is_told_beside_the_question_and_may_choose_after_the_answer():
    question = ask("Which?", ["a < b", "b"])
    assert not question.note.value
    question.choice.value = "b"
    assert TAKEN in question.note.value
    answer = question.reveal("a < b", "Because.")
    assert "✗ The answer is a &lt; b." in question.note.value and "0 of 1" in repr(answer)
    question.choice.value = "a < b"
    assert "✓ right" in question.note.value and "1 of 1" in repr(answer)
    (text,) = answer.children
    assert "a &lt; b" in text.value and "Because." in text.value and "1 of 1" in text.value
    question.choice.value = None
    assert not question.note.value and repr(answer) == "Answer: a < b. Because."


def test_a_saved_page_keeps_question_and_answer_as_text():
    question = ask("Which?", ["LoRA", "BitFit"])
    assert stored(question) == "**Your prediction**: Which?\n\n◯ LoRA · ◯ BitFit"
    assert stored(question.reveal("LoRA", "It is wide.")) == "**Answer**: LoRA. It is wide."
    assert stored(ask("How many?")) == "**Your prediction**: How many?\n\na number: ____"


@pytest.mark.parametrize("arguments", [(3,), ("Which?", ["one"]), ("Which?", ["a", "a"]), ("Which?", "ab"),
                                       ("Which?", [1, 2]), ("Which?", [])])  # fmt: skip
def test_a_question_needs_answers(arguments):
    with pytest.raises(PlotError, match=r"(text|options) must be (a text|two or more different answers)"):
        ask(*arguments)


def test_an_answer_is_among_the_options():
    with pytest.raises(PlotError, match=r"among the options \['a', 'b'\]; got 'c'"):
        ask("Which?", ["a", "b"]).reveal("c")
    with pytest.raises(PlotError, match="answer"):
        ask("How many?").reveal("many")
    with pytest.raises(PlotError, match="tolerance"):
        ask("How many?").reveal(3, tolerance=-1)
