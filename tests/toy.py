"""A toy task with one planted useful site, small enough for every test."""

import functools
import random

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from s3pet import load_task

WORDS = [f"w{index}" for index in range(40)]


@functools.cache
def toy_tokenizer():
    """A word-level tokenizer whose ids fit tiny models (vocabulary of 64)."""
    special = ["<pad>", "</s>", "<unk>", "yes", "no"]
    inner = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *WORDS, "0", "1", "2"])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def toy_rows(n, seed):
    """Sentences of six words; the label says whether one of four words is among them."""
    draw = random.Random(seed)
    rows = []
    for index in range(n):
        words = draw.choices(WORDS[4:], k=6)
        if index % 2:
            words[draw.randrange(6)] = draw.choice(WORDS[:4])
        rows.append({"sentence1": " ".join(words), "label": index % 2})
    return rows


@functools.cache
def toy_task(seed=0):
    """400 / 100 / 100 rows."""
    data = {
        name: toy_rows(n, seed * 10 + k)
        for k, (name, n) in enumerate([("train", 400), ("validation", 100), ("test", 100)])
    }
    return load_task(data, toy_tokenizer(), label_words=("no", "yes"))


@functools.cache
def easy_task():
    """One of two words is in every sentence and is the answer: what a single rank-1 module can learn. 400/100/100."""
    draw = random.Random(7)
    rows = []
    for index in range(600):
        words = [*draw.choices(WORDS[4:], k=4), WORDS[index % 2]]
        draw.shuffle(words)
        rows.append({"sentence1": " ".join(words), "label": index % 2})
    data = {"train": rows[:400], "validation": rows[400:500], "test": rows[500:]}
    return load_task(data, toy_tokenizer(), label_words=("no", "yes"))


@functools.cache
def toy_regression():
    """A value from 0 to 2 in the label, one of three words in the text; 60 / 20 / 20 rows."""
    draw = random.Random(5)
    rows = [
        {"sentence1": " ".join(draw.choices(WORDS, k=5) + [WORDS[k % 3]]), "label": float(k % 3)} for k in range(100)
    ]
    data = {"train": rows[:60], "validation": rows[60:80], "test": rows[80:]}
    return load_task(data, toy_tokenizer(), metrics=["pearson"], regression=True, label_words=("0", "1", "2"))


@functools.cache
def short_task(n_labels=2, regression=False):
    """24 / 8 / 8 rows, for what is not about learning."""
    rows = [{"sentence1": f"w{k} w{3 * k % 40} w1", "label": k % n_labels} for k in range(40)]
    data = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    if regression:
        return load_task(data, toy_tokenizer(), regression=True, label_words=("0", "1", "2"))
    return load_task(
        data, toy_tokenizer(), label_words=WORDS[:n_labels], label_names=["bad", "good", "fair"][:n_labels]
    )


class Cut(Exception):
    """A process that dies."""


def cut_at(step):
    """A callback of a search that raises Cut at this step."""

    def cut(searcher):
        if searcher.step == step:
            raise Cut

    return cut
