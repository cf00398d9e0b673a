"""Labels of words, of texts (any number) and of images, on a model with a head for them."""

from __future__ import annotations

import contextlib
import inspect
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3pet.errors import TaskError, shown
from s3pet.files.kinds import TEXT, several
from s3pet.objectives.columns import IGNORED, Bound, read_list, read_text
from s3pet.objectives.heads import ModelLoss


class TextLabels(ModelLoss):
    """Labels of texts that a tokenizer reads, and their names, in the order of the model's outputs."""

    def __init__(
        self, tokenizer: Any, names: Sequence[str], max_length: int, head: Sequence[str] | None, **padding: int
    ):
        super().__init__(padding={"input_ids": getattr(tokenizer, "pad_token_id", 0) or 0, **padding}, head=head)
        self.tokenizer, self.names, self.max_length = tokenizer, named(names), max_length
        self.check_options(max_length=2)

    encode = Bound.encode  # rows are texts, not the model's inputs


class TokenClassification(TextLabels):
    """A tag for each word: its first token carries the label.

        from s3pet.tasks.plain import RowTask, word_accuracy
        rows = [{"tokens": ["Ada", "wrote"], "tags": ["PER", "O"]}, …]
        task = RowTask("names", rows[:900], rows[900:], metrics={"accuracy": word_accuracy}, label="tags")
        retrain(model, task, structure, objective=TokenClassification(tokenizer, names=("O", "PER")), test=False)

    ``tuned.predict`` takes lists of words, too.
    A prediction is a list with one name a word (a number without ``names``); None for words that were cut off.

    Args:
        tokenizer: a fast one, of the model. names: of the tags, in the order of the model's outputs; needed if tags are
            texts. tokens, tags: columns. max_length: tokens of an input; longer ones are cut.
    """

    decisive = ("names", "tokens", "tags", "max_length")

    def __init__(
        self, tokenizer: Any, *, names: Sequence[str] = (), tokens: str = "tokens", tags: str = "tags",
        max_length: int = 128, head: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(tokenizer, names, max_length, head, words=-1)
        TEXT.check(TaskError, tokens=tokens, tags=tags)
        self.tokens, self.tags = tokens, tags
        if not getattr(tokenizer, "is_fast", False):
            raise TaskError(f"{type(tokenizer).__name__} does not say which word a token is of; load a fast tokenizer")

    def _read(self, where: str, row: Any, length: int | None) -> dict[str, Any]:
        tokens, tags = self.tokens, self.tags
        row = row if isinstance(row, Mapping) or read_list(row) is None else {tokens: row}
        words = read_list(row.get(tokens)) if isinstance(row, Mapping) else None
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            value = reprlib.repr(row.get(tokens) if isinstance(row, Mapping) else row)
            raise TaskError(f"{where}: column {tokens!r} must be a list of words; got {value}")
        options = {"truncation": length is not None, "max_length": length, "verbose": False}
        try:
            inputs = self.tokenizer(words, is_split_into_words=True, **options)
        except (AssertionError, ValueError) as error:  # RoBERTa's wants a space before each word
            raise TaskError(f"{type(self.tokenizer).__name__} cannot read lists of words: {error}") from error
        of_token = [-1 if word is None else word for word in inputs.word_ids()]
        first = [w if w != before else -1 for before, w in zip([-1, *of_token], of_token, strict=False)]
        entry = {**inputs, "words": first, "n_words": len(words)}
        if row.get(tags) is not None:
            own = read_list(row[tags])
            if own is None or len(own) != len(words):
                count = f"the tags {row[tags]!r}" if own is None else f"{len(own)} tags"
                raise TaskError(f"{where} has {len(words)} words and {count}; give one tag a word, in a list")
            numbers = [self._class(f"{where}: tag {k}", tag) for k, tag in enumerate(own, 1)]
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
        return [[self._named("a tag", tag) for tag in read_list(row) or ()] for row in values]


class MultiLabel(TextLabels):
    """Any number of labels for each text: the binary cross-entropy of every label.

        from s3pet.tasks.plain import RowTask, f1_micro
        rows = [{"text": "so funny, so sad", "labels": ["fun", "sad"]}, {"text": "it rained", "labels": []}, …]
        task = RowTask("moods", rows[:900], rows[900:], metrics={"f1": f1_micro}, label="labels")
        retrain(model, task, structure, objective=MultiLabel(tokenizer, names=("fun", "sad")), test=False)

    ``tuned.predict`` takes plain texts, too. A prediction is the list of names whose probability is above one half.

    Args:
        tokenizer, names: of the model; one name for each of its outputs, in their order. text, target: columns; text
            may be two, such as ``("premise", "hypothesis")``, and targets are lists of names or numbers, or vectors of
            True and False (or 1.0 and 0.0), one for each name. max_length: tokens of an input; longer ones are cut, of
            two texts the longer one first.
    """

    decisive = ("names", "text", "target", "max_length")

    def __init__(
        self, tokenizer: Any, *, names: Sequence[str], text: str | Sequence[str] = "text", target: str = "labels",
        max_length: int = 128, head: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(tokenizer, names, max_length, head)
        TEXT.check(TaskError, target=target)
        several(TEXT).check(TaskError, text=[text] if isinstance(text, str) else text)
        self.text, self.target = (text,) if isinstance(text, str) else tuple(text), target
        if len(self.text) not in (1, 2):
            raise TaskError(f"text= names one column or two, which a model can tell apart; got {self.text}")

    def _read(self, where: str, row: Any, length: int | None) -> dict[str, Any]:
        plain = [row] if isinstance(row, str) else read_list(row) or ()
        row = dict(zip(self.text, plain, strict=True)) if len(plain) == len(self.text) else row
        texts = [read_text(where, row, column) for column in self.text]
        entry = dict(self.tokenizer(*texts, truncation=length is not None, max_length=length, verbose=False))
        if row.get(self.target) is not None:
            chosen = self._chosen(f"{where}: column {self.target!r}", row[self.target])
            entry["labels"] = [float(k in chosen) for k in range(len(self.names))]
        return entry

    def _chosen(self, where: str, value: Any) -> set[int]:
        """Numbers of the labels in a list of names or numbers, or in a vector."""
        labels = read_list(value)
        if labels is None:
            how = "; split a text first: row['labels'].split(',')" if isinstance(value, str) else ""
            what = "must be a list of names or numbers, which may be empty"
            raise TaskError(f"{where} {what}; got {reprlib.repr(value)}{how}")
        if len(labels) == len(self.names) and all(isinstance(v, bool | float) and v in (0, 1) for v in labels):
            return {k for k, is_on in enumerate(labels) if is_on}
        chosen = {self._class(f"{where}: label {k}", label) for k, label in enumerate(labels, 1)}
        if len(chosen) < len(labels):
            how = "a vector must have one True or False for each name"
            raise TaskError(f"{where} is {reprlib.repr(labels)}, in which labels come twice; {how}")
        return chosen

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits = self.output(model, batch, targets=False).logits
        if "labels" not in batch:
            raise TaskError(f"rows need a column {self.target!r} to be learned; pass target=, the name of yours")
        return F.binary_cross_entropy_with_logits(logits.float(), batch["labels"])

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        logits = self.output(model, batch, targets=False).logits
        return [[name for name, on in zip(self.names, row, strict=True) if on] for row in (logits > 0).tolist()]

    def labels(self, values: Sequence[Any]) -> list[Any]:
        """Label sets as predictions have them: names in the order of the model's outputs."""
        chosen = [self._chosen("the label of a row", row) for row in values]
        return [[name for k, name in enumerate(self.names) if k in row] for row in chosen]


class ImageClassification(ModelLoss):
    """The class of an image.

        from s3pet.tasks.plain import RowTask, exact_match
        parts = datasets.load_dataset("imagefolder", data_dir="pets")  # columns image and label
        task = RowTask("pets", parts["train"], parts["validation"], metrics={"accuracy": exact_match})
        retrain(model, task, structure, objective=ImageClassification(processor), test=False)

    Images are prepared batch by batch. A prediction is the class number, or its name if there are ``names``.

    Args:
        processor: an image processor of transformers, or a function of a list of images that returns ``pixel_values``,
            [batch, channels, height, width]. names: of the classes, in the order of the model's outputs; needed if
            labels are texts. image, label: columns; images are those of PIL, arrays or tensors, of any number of
            channels; they get as many as the model reads (RGB).
    """

    decisive = ("names", "image", "label")

    def __init__(
        self, processor: Any, *, names: Sequence[str] = (), image: str = "image", label: str = "label",
        head: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(head=head)
        TEXT.check(TaskError, image=image, label=label)
        self.processor, self.names, self.image, self.label = processor, named(names), image, label

    def encode(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        encoded, image, label = list[dict[str, Any]](), self.image, self.label
        n_channels = getattr(getattr(self.model, "config", None), "num_channels", 3)
        for where, row in self.numbered(rows):
            value = row.get(image) if isinstance(row, Mapping) else row
            entry = {"image": read_image(f"{where}: column {image!r}", value, n_channels)}
            if row.get(label) is not None:
                entry["labels"] = self._class(f"{where}: column {label!r}", row[label])
            encoded.append(entry)
        return encoded

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images = [row["image"] for row in rows]
        is_function = inspect.isroutine(self.processor)
        try:
            pixels = self.processor(images) if is_function else self.processor(images=images, return_tensors="pt")
            pixels = torch.as_tensor(pixels["pixel_values"] if isinstance(pixels, Mapping) else pixels)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            kinds = sorted({type(image).__name__ for image in images})
            raise TaskError(f"the image processor cannot read these images ({', '.join(kinds)}): {error}") from error
        rest = super().collate([{name: v for name, v in row.items() if name != "image"} for row in rows])
        return {"pixel_values": pixels, **rest}

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        classes = super().predict(model, batch)
        return [self.names[number] for number in classes] if self.names else classes

    def labels(self, values: Sequence[Any]) -> list[Any]:
        """Labels as predictions have them: names, if there are any."""
        return [self._named("a label", value) for value in values]


def named(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as a tuple; a TaskError if two are the same, or for one text instead of several names."""
    if not several(TEXT, 0).holds(names):
        raise TaskError(f"names= must be distinct names, such as ('no', 'yes'); got {shown(names)}")
    return tuple(names)


def read_image(where: str, image: Any, n_channels: int) -> Any:
    """An image with so many channels, of PIL or an array [height, width, channels]; TaskError if it is none."""
    from PIL.Image import fromarray

    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if hasattr(image, "convert"):
        return image.convert(modes[n_channels]) if n_channels in modes else image
    if isinstance(image, Mapping) and "bytes" in image:
        how = "dataset.cast_column('image', datasets.Image()) decodes them"
        raise TaskError(f"{where} holds the bytes of an image file; {how}")
    if isinstance(image, list):
        with contextlib.suppress(ValueError, TypeError):
            image = torch.tensor(image)
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) not in (2, 3) or (len(shape) == 3 and not {shape[0], shape[-1]} & {1, 3, 4}) or 0 in shape:
        kind = f"an array of shape {shape}" if shape else reprlib.repr(image)
        how = "an image of PIL (PIL.Image.open(path)), or pixels [height, width, channels]"
        raise TaskError(f"{where} must hold an image; got {kind}. Pass {how}")
    pixels = torch.as_tensor(image)
    if pixels.is_floating_point() and not bool(pixels.isfinite().all()):
        raise TaskError(f"{where} has pixels that are NaN or infinite")
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels if pixels.shape[-1] in (1, 3, 4) else pixels.movedim(0, -1)
    if pixels.dtype == torch.uint8:
        picture = fromarray((pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).cpu().numpy())
        return picture.convert(modes[n_channels]) if n_channels in modes else picture
    return (pixels.expand(-1, -1, n_channels) if pixels.shape[-1] == 1 else pixels).cpu().numpy()
