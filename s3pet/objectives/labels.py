"""Labels of words, of texts (any number) and of images, on a model with a head for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3pet.errors import TaskError
from s3pet.objectives.columns import IGNORED, read_text
from s3pet.objectives.heads import ModelLoss
from s3pet.tasks.plain import class_number


class _Labels(ModelLoss):
    """Labels that may have names, on a model with an output for each name."""

    names: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def heads(self, model: Any) -> Sequence[str]:
        count = getattr(getattr(model, "config", None), "num_labels", None)
        if self.names and count is not None and count != len(self.names):
            how = f"load it with num_labels={len(self.names)}"
            raise TaskError(f"the model's head has {count} outputs and there are {len(self.names)} names; {how}")
        return super().heads(model)

    def encode(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        return [self._encoded(n, row) for n, row in enumerate(rows, 1)]

    def _encoded(self, n: int, row: Any) -> dict[str, Any]:
        """Row n as columns of numbers; a TaskError if it is not of the right form."""
        raise NotImplementedError

    def _number(self, where: str, label: Any) -> int:
        return class_number(where, label, self.names)

    def _named(self, where: str, label: Any) -> Any:
        """The name of a label, or its number without names."""
        number = self._number(where, label)
        return self.names[number] if self.names else number


class TokenClassification(_Labels):
    """A tag for each word: its first token carries the label.

        rows = [{"tokens": ["Ada", "wrote"], "tags": ["PER", "O"]}, …]
        task = RowTask("names", rows[:900], rows[900:], metrics={"accuracy": word_accuracy}, label="tags")
        retrain(model, task, structure, objective=TokenClassification(tokenizer, names=("O", "PER")), test=False)

    A prediction is a list with one name a word (a number without ``names``); None for words that were cut off.

    Args:
        tokenizer: a fast one, of the model. names: of the tags, in the order of the model's outputs; needed if tags are
            texts. tokens, tags: columns. max_length: tokens of an input; longer ones are cut.
    """

    def __init__(
        self, tokenizer: Any, *, names: Sequence[str] = (), tokens: str = "tokens", tags: str = "tags",
        max_length: int = 128, head: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(padding={"input_ids": tokenizer.pad_token_id or 0, "words": -1}, head=head)
        self.tokenizer, self.names, self.columns, self.max_length = tokenizer, tuple(names), (tokens, tags), max_length
        if not getattr(tokenizer, "is_fast", False):
            raise TaskError(f"{type(tokenizer).__name__} does not say which word a token is of; load a fast tokenizer")

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"max_length": self.max_length}

    def _encoded(self, n: int, row: Any) -> dict[str, Any]:
        tokens, tags = self.columns
        words = row.get(tokens)
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words) or not words:
            raise TaskError(f"row {n}: column {tokens!r} must be a list of words; got {words!r}")
        inputs = self.tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=self.max_length)
        of_token = [-1 if word is None else word for word in inputs.word_ids()]
        first = [w if w != before else -1 for before, w in zip([-1, *of_token], of_token, strict=False)]
        entry = {**inputs, "words": first, "n_words": len(words)}
        if tags in row:
            if len(row[tags]) != len(words):
                raise TaskError(f"row {n} has {len(words)} words and {len(row[tags])} tags; give one tag a word")
            numbers = [self._number(f"row {n}: tag {k}", tag) for k, tag in enumerate(row[tags], 1)]
            entry["labels"] = [IGNORED if word < 0 else numbers[word] for word in first]
        return entry

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        classes, predictions = self.output(model, batch, targets=False).logits.argmax(-1).tolist(), []
        for row, places, n_words in zip(classes, batch["words"].tolist(), batch["n_words"].tolist(), strict=True):
            tag_of = {word: tag for word, tag in zip(places, row, strict=True) if word >= 0}
            tags = [tag_of.get(word) for word in range(n_words)]
            predictions.append([self.names[tag] if self.names and tag is not None else tag for tag in tags])
        return predictions

    def labels(self, values: Sequence[Any]) -> list[Any]:
        """Tags as predictions have them: names, if there are any."""
        return [[self._named("a tag", tag) for tag in row] for row in values]


class MultiLabel(_Labels):
    """Any number of labels for each text: the binary cross-entropy of every label.

        rows = [{"text": "so funny, so sad", "labels": ["fun", "sad"]}, {"text": "it rained", "labels": []}, …]
        task = RowTask("moods", rows[:900], rows[900:], metrics={"f1": f1_micro}, label="labels")
        retrain(model, task, structure, objective=MultiLabel(tokenizer, names=("fun", "sad")), test=False)

    A prediction is the list of names whose probability is above one half.

    Args:
        tokenizer, names: of the model; one name for each of its outputs, in their order. text, target: columns; text
            may be two, such as ``("premise", "hypothesis")``, and targets are lists of names or numbers, not vectors of
            0 and 1. max_length: tokens of an input; longer ones are cut.
    """

    def __init__(
        self, tokenizer: Any, *, names: Sequence[str], text: str | Sequence[str] = "text", target: str = "labels",
        max_length: int = 128, head: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(padding={"input_ids": tokenizer.pad_token_id or 0}, head=head)
        self.tokenizer, self.names, self.max_length = tokenizer, tuple(names), max_length
        self.text, self.target = (text,) if isinstance(text, str) else tuple(text), target

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"text": list(self.text), "max_length": self.max_length}

    def _encoded(self, n: int, row: Any) -> dict[str, Any]:
        texts = [read_text(n, row, column) for column in self.text]
        entry = dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
        if self.target in row:
            if not isinstance(row[self.target], list | tuple):
                what = f"column {self.target!r} must be a list of names or numbers, which may be empty"
                raise TaskError(f"row {n}: {what}; got {row[self.target]!r}")
            chosen = {self._number(f"row {n}: a label", label) for label in row[self.target]}
            entry["labels"] = [float(k in chosen) for k in range(len(self.names))]
        return entry

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits = self.output(model, batch, targets=False).logits
        return F.binary_cross_entropy_with_logits(logits.float(), batch["labels"])

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        logits = self.output(model, batch, targets=False).logits
        return [[name for name, on in zip(self.names, row, strict=True) if on] for row in (logits > 0).tolist()]

    def labels(self, values: Sequence[Any]) -> list[Any]:
        """Label sets as predictions have them: names in the order of the model's outputs."""
        chosen = [{self._number("a label", label) for label in row} for row in values]
        return [[name for k, name in enumerate(self.names) if k in row] for row in chosen]


class ImageClassification(_Labels):
    """The class of an image.

        parts = datasets.load_dataset("imagefolder", data_dir="pets")  # columns image and label
        task = RowTask("pets", parts["train"], parts["validation"], metrics={"accuracy": exact_match})
        retrain(model, task, structure, objective=ImageClassification(processor), test=False)

    Images are prepared batch by batch. A prediction is the class number, or its name if there are ``names``.

    Args:
        processor: an image processor of transformers, or a function of a list of images that returns ``pixel_values``,
            [batch, channels, height, width]. names: of the classes, in the order of the model's outputs; needed if
            labels are texts. image, label: columns; images are those of PIL (made RGB), arrays or tensors.
    """

    def __init__(
        self, processor: Any, *, names: Sequence[str] = (), image: str = "image", label: str = "label",
        head: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(head=head)
        self.processor, self.names, self.columns = processor, tuple(names), (image, label)

    def _encoded(self, n: int, row: Any) -> dict[str, Any]:
        image, label = self.columns
        if row.get(image) is None or isinstance(row[image], str):
            raise TaskError(f"row {n}: column {image!r} must hold an image; got {row.get(image)!r}")
        entry = {"image": row[image]}
        if label in row:
            entry["labels"] = self._number(f"row {n}: column {label!r}", row[label])
        return entry

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images = [row["image"].convert("RGB") if hasattr(row["image"], "convert") else row["image"] for row in rows]
        is_function = inspect.isroutine(self.processor)
        pixels = self.processor(images) if is_function else self.processor(images=images, return_tensors="pt")
        pixels = pixels["pixel_values"] if isinstance(pixels, Mapping) else pixels
        rest = super().collate([{name: v for name, v in row.items() if name != "image"} for row in rows])
        return {"pixel_values": torch.as_tensor(pixels), **rest}

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        classes = super().predict(model, batch)
        return [self.names[number] for number in classes] if self.names else classes

    def labels(self, values: Sequence[Any]) -> list[Any]:
        """Labels as predictions have them: names, if there are any."""
        return [self._named("a label", value) for value in values]
