"""Build the pocket: tokenizer, two pre-trained T5s and downstream tasks, all from the grammar and one seed.

    python data/pocket/build.py                             # everything, about half an hour on two cores
    python data/pocket/build.py --backbones pocket-t5-deep  # one backbone
    python data/pocket/build.py --backbones                 # only the task files, seconds

Pre-training is T5's own recipe in small: three quarters supervised skills (seven properties, four or five prompts with
label words each), one quarter span corruption, so that the backbone knows the properties and a few parameters can
re-route them to a new prompt and new label words. Every skill's accuracy on held-out sentences is measured while
training and written to ``build_log.json``. Weights are kept in float16 to keep the repository small.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
import transformers
from grammar import SKILLS, TASKS, draw_values, sentence, skill_example, task_rows, vocabulary
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

HERE = Path(__file__).resolve().parent
SENTINELS = [f"<extra_id_{index}>" for index in range(20)]
SIZES = {"train": 2000, "validation": 400, "test": 500}
BACKBONES = {  # the second has another depth and width: does a structure of the one serve the other?
    "pocket-t5": ("model", {"num_layers": 4, "d_model": 128, "d_ff": 256, "d_kv": 32}),
    "pocket-t5-deep": ("model-deep", {"num_layers": 6, "d_model": 96, "d_ff": 192, "d_kv": 24}),
}
Pair = tuple[list[int], list[int]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; appends the end token."""
    words = ["<pad>", "</s>", "<unk>", *SENTINELS, *vocabulary()]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SENTINELS,
        model_max_length=128,
    )


def make_model(vocab_size: int, size: dict[str, int]) -> T5ForConditionalGeneration:
    """A T5 with four heads and random weights."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab_size,
            **size,
            num_heads=4,
            dropout_rate=0.1,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            feed_forward_proj="relu",
            decoder_start_token_id=0,
        )
    )


class Mixture:
    """Batches of the pre-training mixture, from one random stream."""

    def __init__(self, ids: dict[str, int], seed: int):
        self.ids, self.draw = ids, random.Random(seed)

    def skill(self, name: str) -> Pair:
        """One example of a skill."""
        source, word = skill_example(self.draw, name)
        return [*self.encode(source), 1], [self.ids[word], 1]

    def corrupted(self) -> Pair:
        """A sentence with spans of one to three words replaced by sentinels."""
        words = self.encode(sentence(draw_values(self.draw), self.draw))
        source: list[int] = []
        target: list[int] = []
        position, spans = 0, 0
        while position < len(words):
            if self.draw.random() < 0.12 and spans < len(SENTINELS):
                length = self.draw.choice((1, 2, 3))
                source.append(3 + spans)
                target += [3 + spans, *words[position : position + length]]
                position, spans = position + length, spans + 1
            else:
                source.append(words[position])
                position += 1
        return [*source, 1], [*target, 1]

    def batch(self, size: int) -> list[Pair]:
        """Three quarters skills, one quarter span corruption."""
        names = list(SKILLS)
        return [
            self.corrupted() if self.draw.random() < 0.25 else self.skill(self.draw.choice(names)) for _ in range(size)
        ]

    def encode(self, text: str) -> list[int]:
        """Token ids without the end token."""
        return [self.ids[word] for word in text.split()]


def collate(pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """Pad a list of (source, target) ids."""

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)

    source = pad([pair[0] for pair in pairs], 0)
    return {
        "input_ids": source,
        "attention_mask": (source != 0).long(),
        "labels": pad([pair[1] for pair in pairs], -100),
    }


@torch.no_grad()
def skill_accuracy(model: T5ForConditionalGeneration, tests: dict[str, dict[str, torch.Tensor]]) -> dict[str, float]:
    """Share of right label words per skill, on held-out sentences."""
    model.eval()
    shares = {}
    for name, batch in tests.items():
        picks = model(**batch).logits[:, 0].argmax(-1)
        shares[name] = round(float((picks == batch["labels"][:, 0]).float().mean()), 3)
    model.train()
    return shares


def pretrain(model: T5ForConditionalGeneration, ids: dict[str, int], steps: int, seed: int) -> list[dict]:
    """AdamW, lr 1e-3 with a short warm-up, constant, falling over the last 15 %; returns the log."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    mixture, held_out = Mixture(ids, seed + 1), Mixture(ids, seed + 99)
    tests = {name: collate([held_out.skill(name) for _ in range(256)]) for name in SKILLS}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    log: list[dict] = []
    start, smooth = time.perf_counter(), None
    model.train()
    for step in range(1, steps + 1):
        factor = min(1, step / 100) * min(1, max(0.05, (steps - step) / (0.15 * steps)))
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        loss = model(**collate(mixture.batch(64))).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 250 == 0 or step == steps:
            seconds = round(time.perf_counter() - start, 1)
            log.append({"step": step, "loss": round(smooth, 4), "seconds": seconds, **skill_accuracy(model, tests)})
            print(log[-1], flush=True)
    return log


def write_tasks(seed: int) -> None:
    """One folder per downstream task: three jsonl files and task.json."""
    for name, task in TASKS.items():
        folder = HERE / "tasks" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in task_rows(name, SIZES, seed).items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        record = {key: value for key, value in task.items() if key != "property"}
        record = {"name": name, **record, "metric": "accuracy", "text_columns": ["sentence1"]}
        (folder / "task.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def build_backbone(folder: str, size: dict[str, int], steps: int, seed: int) -> None:
    """Pre-train one backbone; its weights go to ``folder``, the log of its training beside them."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), size)
    log = pretrain(model, tokenizer.get_vocab(), steps, seed)
    model.half().save_pretrained(HERE / folder)
    tokenizer.save_pretrained(HERE / folder)
    config = HERE / folder / "config.json"  # float16 is how the weights are kept, not how they are to be used
    config.write_text(config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'))
    record = {
        "seed": seed,
        "steps": steps,
        "batch_size": 64,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "pretraining": log,
    }
    (HERE / folder / "build_log.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbones", nargs="*", choices=[*BACKBONES], default=[*BACKBONES])
    arguments = parser.parse_args()
    write_tasks(arguments.seed)
    for name in arguments.backbones:
        build_backbone(*BACKBONES[name], arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
