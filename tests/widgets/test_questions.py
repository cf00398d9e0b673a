"""A prediction: asked, answered, revealed and scored; text in a saved notebook."""

import pytest

from s3pet.errors import PlotError
from s3pet.widgets import ask
from s3pet.widgets.questions import Question


@pytest.fixture(autouse=True)
def fresh_score(monkeypatch):
    monkeypatch.setattr(Question, "asked", {})


def test_a_choice_is_scored_and_a_repeated_question_counts_once():
    first, second = ask("Which?", ["LoRA", "BitFit"]), ask("How many?")
    assert repr(first.reveal("LoRA", "It is wide.")) == "Answer: LoRA. It is wide."
    first.choice.value, second.choice.value = "BitFit", "1,351"
    assert repr(first.reveal("LoRA")) == "Answer: LoRA. You said BitFit: not so. Your score: 0 of 1."
    assert repr(second.reveal(1300)) == "Answer: 1300. You said 1,351: right. Your score: 1 of 2."
    assert not second.reveal(1100).is_right and second.reveal(1100, tolerance=0.3).is_right
    again = ask("Which?", ("LoRA", "BitFit"))
    again.choice.value = "LoRA"
    assert again.reveal("LoRA").score == (2, 2)
    second.choice.value = "many"
    assert second.reveal(3).is_right is False


def test_a_saved_page_keeps_the_question_as_text():
    data = ask("Which?", ["LoRA", "BitFit"])._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert data["text/markdown"] == "**Your prediction**: Which?\n\n◯ LoRA · ◯ BitFit" == data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in data
    number = ask("How many?")._repr_mimebundle_()
    assert "a number: ____" in (number[0] if isinstance(number, tuple) else number)["text/markdown"]


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
