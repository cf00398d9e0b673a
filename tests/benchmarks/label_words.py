"""What many label words cost: ``loss="choice"`` and predictions for 77 words, over the language-model loss of one.

    python tests/benchmarks/label_words.py [pocket-t5 t5 llama bart] [--rounds 7]

All models have random weights but ``pocket-t5``; the words are 77 phrases of two to five tokens that share beginnings,
as the intents of a help desk do, on the pocket's model 77 pairs of its own words. Every round times each of the four
in turn, on the same batch; the table has the median of the ratios within a round. A *pass* is forward and backward with
gradients wanted at the embeddings, a *prediction* the forward pass alone, each over the same of the ``"lm"`` loss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from speed import machine
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import s3pet
from s3pet.objectives import make_objective

RESULTS = Path(__file__).resolve().parent / "results"
N_WORDS, ROWS, TOKENS = 77, 8, 48
SPECIAL = ["<pad>", "</s>", "<unk>"]
SUBJECTS = ["card", "card payment", "cash", "transfer", "top up", "refund", "exchange"]
MATTERS = [
    *("arrival", "fee charged", "not working", "wrong amount", "pending", "limit", "declined", "by phone", "status"),
    *("wrong exchange rate", "not received"),
]


def intents() -> list[str]:
    """Return 77 phrases."""
    return [f"{subject} {matter}" for subject, matter in itertools.product(SUBJECTS, MATTERS)]


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each of these words, which ends every text with </s>."""
    table = {word: number for number, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def setting(name: str):
    """Return a model, its tokenizer, 77 label words, and words for the texts."""
    if name == "pocket-t5":
        model, tokenizer = s3pet.load_backbone(name)
        known = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha()]
        return model, tokenizer, [f"{a} {b}" for a, b in itertools.product(known[:9], known[9:18])][:N_WORDS], known
    known = sorted({word for intent in intents() for word in intent.split()}) + [f"w{k}" for k in range(7900)]
    size = {"vocab_size": 8000, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    torch.manual_seed(0)
    if name == "t5":
        config = T5Config(**size, d_model=256, d_ff=1024, d_kv=64, num_layers=4, num_heads=4, decoder_start_token_id=0)
        model = T5ForConditionalGeneration(config)
    elif name == "bart":
        layers = {f"{stack}_layers": 4 for stack in ("encoder", "decoder")}
        sides = {f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")}
        widths = {f"{stack}_ffn_dim": 1024 for stack in ("encoder", "decoder")}
        config = BartConfig(**size, d_model=256, decoder_start_token_id=1, **layers, **sides, **widths)
        model = BartForConditionalGeneration(config)
    else:
        layers = {"num_hidden_layers": 4, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**size, hidden_size=256, intermediate_size=1024, **layers))
    return model.eval(), word_tokenizer(known), intents(), known


def measure(name: str, rounds: int) -> dict:
    """Return the median ratios of one setting, and what they are of, in ms."""
    model, tokenizer, words, known = setting(name)
    draw = torch.Generator().manual_seed(0)
    texts = [
        " ".join(known[k] for k in torch.randint(len(known), (TOKENS,), generator=draw)) for _ in range(N_WORDS * 2)
    ]
    rows = [{"text": text, "label": words[k % N_WORDS]} for k, text in enumerate(texts)]
    task = s3pet.load_task({"train": rows, "test": rows}, tokenizer, label_words=words, label_names=words)
    objectives = {loss: make_objective(model, task, {"loss": loss}) for loss in ("lm", "choice")}
    batch = objectives["lm"].collate(objectives["lm"].encode(task.test[:ROWS]))
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)

    def run(kind: str, loss: str) -> float:
        start = time.perf_counter()
        if kind == "pass":
            torch.autograd.grad(objectives[loss].loss(batch), model.get_input_embeddings().weight)
        else:
            with torch.no_grad():
                objectives[loss].loss(batch)
        return 1000 * (time.perf_counter() - start)

    kinds = ("pass", "prediction")
    times = [{pair: run(*pair) for pair in itertools.product(kinds, objectives)} for _ in range(rounds + 1)][1:]
    ratio = {kind: statistics.median(t[kind, "choice"] / t[kind, "lm"] for t in times) for kind in kinds}
    lm = {f"lm {kind} ms": round(statistics.median(t[kind, "lm"] for t in times), 1) for kind in kinds}
    return {"setting": name, **{kind: round(value, 2) for kind, value in ratio.items()}, **lm}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["pocket-t5", "t5", "llama", "bart"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "label_words.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, arguments.rounds) for name in arguments.settings]
    print(pd.DataFrame(rows).to_string(index=False))
    record = {"made": time.strftime("%Y-%m-%d"), "machine": machine(), "rounds": arguments.rounds, "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
