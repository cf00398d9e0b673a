"""Predictions of the reader: a question before a result, the answer computed by the cells after it, and a score.

    question = ask("Which type of module comes first?", ["LoRA", "BitFit", "LNFit"])
    ...
    question.reveal(result.gates.sort_values("prob").pet.iloc[-1], "It reaches both streams.")

The question is shown as controls in a running notebook and as text in a saved one. The answer is a value that the
notebook computes, so that no code shows it before it is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import ipywidgets as W

from s3pet.errors import PlotError
from s3pet.files.kinds import TEXT, Kind, number, optional


class Question(W.VBox):
    """A question with a choice or a number as its answer; :func:`ask` makes one.

    Attributes:
        choice: the control. Set ``.value`` to answer from code. text, options: as :func:`ask` takes them.
    """

    asked: ClassVar[dict[str, Question]] = {}  # by text: running a cell again asks no second question

    def __init__(self, text: str, options: Sequence[str] | None = None):
        self.text, self.options = text, options and [*options]
        self.is_right: bool | None = None
        wide: dict[str, Any] = {"layout": {"width": "max-content"}}
        self.choice = (
            W.RadioButtons(options=self.options, value=None, **wide)
            if self.options
            else W.Text(placeholder="a number", continuous_update=False)
        )
        label = W.HTMLMath(value=f"<b>Your prediction</b>: {text}")
        super().__init__([label, self.choice])
        Question.asked[text] = self

    def reveal(self, answer: Any, why: str = "", *, tolerance: float = 0.1) -> Answer:
        """The answer, beside what the reader has said.

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
        said = self.choice.value or None
        self.is_right = None if said is None else self._matches(said, answer, tolerance)
        done = [question.is_right for question in Question.asked.values() if question.is_right is not None]
        shown = f"{answer:.4g}" if self.options is None else str(answer)
        return Answer(shown, said, self.is_right, why, (sum(done), len(done)))

    def _matches(self, said: str, answer: Any, tolerance: float) -> bool:
        if self.options is not None:
            return said == str(answer)
        try:
            return abs(float(said.replace(",", "")) - answer) <= tolerance * abs(answer)
        except ValueError:
            return False

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if isinstance(data, Mapping):
            choices = " · ".join(f"◯ {option}" for option in self.options or ["a number: ____"])
            text = f"**Your prediction**: {self.text}\n\n{choices}"
            data = {**data, "text/markdown": text, "text/plain": text}
        return (data, *bundle[1:]) if isinstance(bundle, tuple) else data


class Answer:
    """What :meth:`Question.reveal` shows: in a notebook as text with marks, elsewhere as plain text."""

    def __init__(self, answer: str, said: str | None, is_right: bool | None, why: str, score: tuple[int, int]):
        self.answer, self.said, self.is_right, self.why, self.score = answer, said, is_right, why, score

    def _repr_markdown_(self) -> str:
        parts = [f"**Answer**: {self.answer}.", self.why]
        if self.said is not None:
            parts.append(f"You said {self.said}: {'right' if self.is_right else 'not so'}.")
            parts.append(f"Your score: {self.score[0]} of {self.score[1]}.")
        return " ".join(part for part in parts if part)

    def __repr__(self) -> str:
        return self._repr_markdown_().replace("**", "")


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
