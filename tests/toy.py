"""A toy task with one planted useful site, small enough for every test."""

import functools
import random

import torch
from tiny import tiny_t5
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from s3pet import Rule, load_task, make_space

WORDS = [f"w{index}" for index in range(40)]


@functools.cache
def toy_tokenizer():
    """A word-level tokenizer whose ids fit tiny models (vocabulary of 64)."""
    special = ["<pad>", "</s>", "<unk>", "yes", "no"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)])
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
    data = {name: toy_rows(n, seed * 10 + k) for k, (name, n) in enumerate([("train", 400), ("validation", 100), ("test", 100)])}
    return load_task(data, toy_tokenizer(), label_words=("no", "yes"))


def planted_t5():
    """A T5 in which one site alone can solve the task.

    The backbone is random, but the decoder's feed-forward output of layer 1 is cut off except through its candidates:
    only a bias or LoRA on the last norms can reach the logits. Returns (model, space, address of the useful site).
    """
    model = tiny_t5()
    torch.manual_seed(0)
    space = make_space(model, [Rule("lora")])
    return model, space
