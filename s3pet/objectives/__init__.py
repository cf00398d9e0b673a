"""How a backbone learns a task: by texts and labels, by a ready objective, or by one of your own.

Without ``objective=``, a task of :func:`s3pet.load_task` is learned as :mod:`s3pet.objectives.texts` says. For tasks of
other rows there are ready objectives:

    objective=ModelLoss()                     # rows are the model's inputs: question answering, multiple choice
    objective=TokenClassification(tokenizer, names=("O", "PER"))  # AutoModelForTokenClassification
    objective=MultiLabel(tokenizer, names=("fun", "sad"))         # AutoModelForSequenceClassification
    objective=Generation(tokenizer)                               # T5, BART, or a decoder: writes the target text
    objective=ImageClassification(processor)                      # AutoModelForImageClassification

They go with a :class:`s3pet.tasks.RowTask` and the metrics of :mod:`s3pet.tasks.plain`: ``rouge_l`` or ``exact_match``
for Generation, ``word_accuracy`` for TokenClassification, ``f1_micro`` for MultiLabel, ``exact_match`` for the others.
``load_tuned(path, model)`` makes them again from their settings, but for image processors and functions. The head that
the model brings is trained, from the weights it has; its parameters are reported beside the budget, never as part of
it. One of your own is any object with four methods:

    class Mine:
        def encode(self, rows): ...           # rows of a task → encoded rows, one each
        def collate(self, rows): ...          # encoded rows → a mapping of tensors
        def loss(self, model, batch): ...     # → a scalar tensor
        def predict(self, model, batch): ...  # → one prediction a row, as the task's metrics read it

What needs scores of labels (populations, races, interventions, one-pass selectors) takes the objectives of
:mod:`s3pet.objectives.texts` only, and refuses these. The ways out of the library take both.
"""

from s3pet.objectives.generation import Generation
from s3pet.objectives.heads import ModelLoss
from s3pet.objectives.labels import ImageClassification, MultiLabel, TokenClassification
from s3pet.objectives.own import OwnObjective, objective_of
from s3pet.objectives.streams import Stream, derive
from s3pet.objectives.texts import Objective, ObjectiveSettings, make_objective

__all__ = [
    "Generation", "ImageClassification", "ModelLoss", "MultiLabel", "Objective", "ObjectiveSettings", "OwnObjective",
    "Stream", "TokenClassification", "derive", "make_objective", "objective_of",
]  # fmt: skip
