"""The tasks of GLUE and SuperGLUE as a table.

Prompts follow T5's style: the task's name, then the columns. Label words are in the order of the hub's label ids.
ReCoRD is not supported, because its answers are entities of each passage and not fixed labels.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB_NAMES = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}


@dataclass(frozen=True)
class Benchmark:
    """One task: its text columns, a label word per class (or the values of a regression), metrics (the main one first).

    ``template`` is the text-to-text input if it differs from ``task column: {column} …``, ``validation`` the name of
    the published validation split, and ``note`` what a reader of the scores must know.
    """

    fields: tuple[str, ...]
    label_words: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    template: str | None = None
    validation: str = "validation"
    note: str = ""


_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")

BENCHMARKS: dict[str, Benchmark] = {
    "glue/cola": Benchmark(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "glue/sst2": Benchmark(("sentence",), ("negative", "positive")),
    "glue/mrpc": Benchmark(_PAIR, ("different", "equivalent"), ("f1", "accuracy")),
    "glue/qqp": Benchmark(("question1", "question2"), ("different", "duplicate"), ("f1", "accuracy")),
    "glue/stsb": Benchmark(_PAIR, tuple(f"{k / 5:.1f}" for k in range(26)), ("pearson", "spearman")),
    "glue/mnli": Benchmark(
        _NLI, ("entailment", "neutral", "contradiction"), validation="validation_matched", note="scored on matched rows"
    ),
    "glue/qnli": Benchmark(("question", "sentence"), _ENTAILMENT),
    "glue/rte": Benchmark(_PAIR, _ENTAILMENT),
    "glue/wnli": Benchmark(_PAIR, ("not_entailment", "entailment")),
    "superglue/boolq": Benchmark(("question", "passage"), ("no", "yes")),
    "superglue/cb": Benchmark(
        _NLI,
        ("entailment", "contradiction", "neutral"),
        ("accuracy", "f1_macro"),
        note="SuperGLUE averages accuracy and macro-F1; accuracy is the main metric here, both are reported",
    ),
    "superglue/copa": Benchmark(("premise", "question", "choice1", "choice2"), ("choice1", "choice2")),
    "superglue/multirc": Benchmark(
        ("paragraph", "question", "answer"),
        ("no", "yes"),
        ("f1", "accuracy"),
        template="multirc question: {question} answer: {answer} paragraph: {paragraph}",
        note="f1 is over all answers (F1a); the exact match per question is not computed",
    ),
    "superglue/rte": Benchmark(_NLI, _ENTAILMENT),
    "superglue/wic": Benchmark(("word", "sentence1", "sentence2"), ("different", "same")),
    "superglue/wsc": Benchmark(
        ("text", "span1_text", "span2_text"), ("no", "yes"), template="wsc does {span2_text} mean {span1_text}: {text}"
    ),
}
