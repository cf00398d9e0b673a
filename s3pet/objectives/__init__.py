"""Ready objectives for ``search`` and ``retrain``: the model's own loss and head, tags, label sets, texts, images.

    objective=ModelLoss()                     # rows are the model's inputs: question answering, multiple choice
    objective=TokenClassification(tokenizer, names=("O", "PER"))  # AutoModelForTokenClassification
    objective=MultiLabel(tokenizer, names=("fun", "sad"))         # AutoModelForSequenceClassification
    objective=Generation(tokenizer)                               # T5, BART, or a decoder: writes the target text
    objective=ImageClassification(processor)                      # AutoModelForImageClassification

Each is an object of the kind that :mod:`s3pet.own` describes, and goes with a :class:`s3pet.tasks.plain.RowTask`. The
head that the model brings is trained; its parameters are reported beside the budget, never as part of it.
"""

from s3pet.objectives.generation import Generation
from s3pet.objectives.heads import ModelLoss
from s3pet.objectives.labels import ImageClassification, MultiLabel, TokenClassification

__all__ = ["Generation", "ImageClassification", "ModelLoss", "MultiLabel", "TokenClassification"]
