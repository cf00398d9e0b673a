"""GLUE and SuperGLUE as rows of a table: columns, prompt, label words, metric.

Prompts are in T5's style (task name, then field names); label words are natural ones. Metrics follow the benchmarks:
where a task has several, the first is the main one. ReCoRD has no fixed labels and is not supported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One task of a benchmark.

    Attributes:
        columns: text columns, in order.
        label_words: one per class; empty for regression.
        metrics: names, the main one first.
        prompt: text-to-text input, with the columns as fields; None builds "name column: …".
        validation: name of the published validation split.
    """

    columns: tuple[str, ...]
    label_words: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    prompt: str | None = None
    validation: str = "validation"


_NLI = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, Entry] = {
    "cola": Entry(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Entry(("sentence",), ("negative", "positive")),
    "mrpc": Entry(_PAIR, ("different", "equivalent"), ("f1", "accuracy")),
    "qqp": Entry(("question1", "question2"), ("different", "duplicate"), ("f1", "accuracy")),
    "stsb": Entry(_PAIR, (), ("pearson", "spearman")),
    "mnli": Entry(("premise", "hypothesis"), _NLI, validation="validation_matched"),
    "qnli": Entry(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Entry(_PAIR, ("entailment", "not_entailment")),
    "wnli": Entry(_PAIR, ("not_entailment", "entailment")),
}

SUPERGLUE: dict[str, Entry] = {
    "boolq": Entry(("question", "passage"), ("no", "yes")),
    "cb": Entry(("premise", "hypothesis"), ("entailment", "contradiction", "neutral"), ("accuracy", "f1_macro")),
    "copa": Entry(
        ("premise", "question", "choice1", "choice2"),
        ("choice1", "choice2"),
        prompt="copa premise: {premise} question: {question} choice1: {choice1} choice2: {choice2}",
    ),
    "multirc": Entry(
        ("paragraph", "question", "answer"),
        ("no", "yes"),
        ("f1", "accuracy"),  # F1 over all answers; the grouped exact match needs the question ids and is not computed
        prompt="multirc question: {question} answer: {answer} paragraph: {paragraph}",
    ),
    "rte": Entry(("premise", "hypothesis"), ("entailment", "not_entailment")),
    "wic": Entry(
        ("word", "sentence1", "sentence2"),
        ("different", "same"),
        prompt="wic word: {word} sentence1: {sentence1} sentence2: {sentence2}",
    ),
    "wsc": Entry(
        ("text", "span1_text", "span2_text"),
        ("no", "yes"),
        prompt="wsc does {span2_text} mean {span1_text}: {text}",
    ),
}

BENCHMARKS: dict[str, dict[str, Entry]] = {"glue": GLUE, "superglue": SUPERGLUE}
HUB_NAMES = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}
REGRESSION_RANGE = (0.0, 5.0, 0.2)  # lowest, highest, step of the values a text-to-text backbone may write for STS-B
