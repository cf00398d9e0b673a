"""Predictions of the reader: a question before a result, the answer computed by the cells after it, and a score.

    question = ask("Which type of module comes first?", ["LoRA", "BitFit", "LNFit"])
    ...
    question.reveal(result.gates.sort_values("prob").pet.iloc[-1], "It reaches both streams.")

The question is shown as controls in a running notebook and as text in a saved one. The answer is a value that the
notebook computes, so that no code shows it before it is known. A reader who has run all cells at once can still choose,
and sees at once whether that is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar

import ipywidgets as W

from s3pet.errors import PlotError
from s3pet.files.kinds import TEXT, Kind, number, optional

TAKEN = "Noted. The answer comes with the result."
NO_NUMBER = "Please type a number, such as 0.25 or 1,300."
BOX = {"border_left": "3px solid #8A8A8A", "padding": "2px 0 4px 12px", "margin": "2px 0"}  # question and answer


class _Told(W.VBox):
    """A widget with a text that stands for it in a saved notebook."""

    def markdown(self) -> str:
        """What a saved notebook shows."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return super()._repr_mimebundle_(**options) | {"text/markdown": self.markdown(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return self.markdown().replace("**", "")


class Question(_Told):
    """A question with a choice or a number as its answer; :func:`ask` makes one.

    Attributes:
        choice: the control. Set ``.value`` to answer from code. note: what the reader is told beside it.
        text, options: as :func:`ask` takes them.
        is_right: whether the prediction is right; None before the answer is known, and without a prediction.
    """

    asked: ClassVar[dict[str, Question]] = {}  # by text: running a cell again asks no second question

    def __init__(self, text: str, options: Sequence[str] | None = None):
        self.text, self.options = text, options and [*options]
        self.is_right: bool | None = None
        self._answer: Answer | None = None
        wide: dict[str, Any] = {"layout": {"width": "max-content"}}
        self.choice = (
            W.RadioButtons(options=self.options, value=None, **wide)
            if self.options
            else W.Text(placeholder="a number", continuous_update=False, layout={"width": "150px"})
        )
        self.choice.tooltip, self.note = text, W.HTML()
        label = W.HTMLMath(value=f"<b>Your prediction</b>: {text}")
        super().__init__([label, self.choice, self.note], layout=BOX)
        self.choice.observe(lambda change: self._follow(), "value")
        Question.asked[text] = self

    @property
    def said(self) -> str | None:
        """What the reader has chosen or typed, if that is an answer."""
        return (self.choice.value or None) if self.options or _number(self.choice.value) is not None else None

    def reveal(self, answer: Any, why: str = "", *, tolerance: float = 0.1) -> Answer:
        """The answer, beside what the reader has said or still says.

        Args:
            answer: one of the options, or a number. why: a sentence or two.
            tolerance: how far a number may be from the answer, as a share of it.

        Raises:
            PlotError: the answer is no option, or no number where one is asked for.
        """
        if self.options is None:
            number().check(PlotError, answer=answer)
        elif str(answer) not in self.options:
            raise PlotError(f"Expected an answer that is among the options {self.options}; got {answer!r:.80}.")
        number(0).check(PlotError, tolerance=tolerance)
        self._answer = Answer(self, answer, why, tolerance)
        self._follow()
        return self._answer

    def _follow(self) -> None:
        """After a choice, or when the answer is known."""
        told, self.is_right = "", None
        if self.said is not None:
            told = TAKEN
        elif self.choice.value:
            told = NO_NUMBER
        if self._answer is not None:
            self.is_right = None if self.said is None else self._answer.agrees_with(self.said)
            self._answer.update()
            if self.is_right is not None:
                told = "✓ right" if self.is_right else f"✗ The answer is {self._answer.shown}."
        self.note.value = f"<i>{escape(told)}</i>" if told else ""

    def markdown(self) -> str:
        choices = " · ".join(f"◯ {option}" for option in self.options) if self.options else "a number: ____"
        return f"**Your prediction**: {self.text}\n\n{choices}"


class Answer(_Told):
    """What :meth:`Question.reveal` shows: the answer, what the reader said, and the score so far."""

    def __init__(self, question: Question, answer: Any, why: str, tolerance: float):
        self.question, self.answer, self.why, self.tolerance = question, answer, why, tolerance
        self.shown = str(answer)
        if question.options is None:
            self.shown = f"{answer:,.0f}" if abs(answer) >= 1000 else f"{answer:.4g}"
        self._text = W.HTMLMath()
        super().__init__([self._text], layout=BOX)

    @property
    def score(self) -> tuple[int, int]:
        """Right predictions and all predictions of this session."""
        done = [each.is_right for each in Question.asked.values() if each.is_right is not None]
        return sum(done), len(done)

    def agrees_with(self, said: str) -> bool:
        """Whether a prediction is right, a number within the tolerance."""
        if self.question.options is not None:
            return said == str(self.answer)
        value = _number(said)
        return value is not None and abs(value - self.answer) <= self.tolerance * abs(self.answer)

    def update(self) -> None:
        """Show what the reader says now."""
        parts = [f"<b>Answer</b>: {escape(self.shown)}.", self.why, escape(self._verdict())]
        self._text.value = " ".join(part for part in parts if part)

    def _verdict(self) -> str:
        if self.question.is_right is None:
            return ""
        right, of = self.score
        verdict = "right" if self.question.is_right else "not so"
        return f"You said {self.question.said}: {verdict}. Your score: {right} of {of}."

    def markdown(self) -> str:
        return " ".join(part for part in (f"**Answer**: {self.shown}.", self.why, self._verdict()) if part)


def _number(said: str | None) -> float | None:
    """A number as people type it, such as 1,300 or 12 %."""
    try:
        return float((said or "").replace(",", "").strip(" %≈~"))
    except ValueError:
        return None


def ask(text: str, options: Sequence[str] | None = None) -> Question:
    """Ask the reader for a prediction; :meth:`Question.reveal` of what it returns tells the answer.

    Args:
        text: the question, plain or with $ for formulas. options: two or more different answers; None: a number.

    Raises:
        PlotError: something else.
    """
    TEXT.check(PlotError, text=text)
    optional(_OPTIONS).check(PlotError, options=options)
    return Question(text, options)


_OPTIONS = Kind(
    "two or more different answers, or None for a number",
    lambda v: isinstance(v, list | tuple) and all(TEXT.holds(o) and o for o in v) and len({*v}) == len(v) > 1,
)
