"""Acceptance of the pocket suite: can a few parameters re-route the backbone's skills to each task?

Plain torch, without the toolkit, so that the backbone is judged by something else than what will use it. Per task and
seed: zero-shot, full fine-tuning, all PET candidates together, LoRA r=1 on self-attention q and v, BitFit, and random
structures of about 0.05 % of the backbone (a few LoRA modules, biases and norms within 672 parameters).

Example:
    python data/pocket/probe.py --tasks sentiment,topic --seeds 3 --out data/pocket/build_log.json
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
SCALE = 16.0
METHODS = ("zero_shot", "full", "all", "lora_qv", "bitfit", "random_672")


class Lora(torch.nn.Module):
    """A frozen linear layer plus ``scale * B A x`` of rank 1; B starts at zero."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = torch.nn.Parameter(torch.empty(1, linear.in_features))
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, 1))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)

    @property
    def weight(self) -> torch.Tensor:
        """T5's feed-forward block asks for the dtype of ``wo.weight``."""
        return self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both."""
        return self.linear(x) + SCALE * (x @ self.a.T) @ self.b.T


class Shift(torch.nn.Module):
    """A layer plus a trainable bias that starts at zero."""

    def __init__(self, layer: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.bias = torch.nn.Parameter(torch.zeros(width))

    @property
    def weight(self) -> torch.Tensor:
        """See :class:`Lora`."""
        return self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both."""
        return self.layer(x) + self.bias


def candidates(model: torch.nn.Module) -> list[tuple[str, str, int]]:
    """(kind, module name, parameters): LoRA and biases on self-attention and feed-forward linears, norms."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ("SelfAttention" in name or "DenseReluDense" in name):
            found.append(("lora", name, module.in_features + module.out_features))
            found.append(("bias", name, module.out_features))
        elif type(module).__name__.endswith("LayerNorm"):
            found.append(("norm", name, module.weight.numel()))
            found.append(("bias", name, module.weight.numel()))
    return found


def choose(model: torch.nn.Module, method: str, draw: random.Random) -> list[tuple[str, str, int]]:
    """The candidates that a method trains."""
    found = candidates(model)
    if method == "all":
        return found
    if method == "lora_qv":
        return [c for c in found if c[0] == "lora" and c[1].endswith(("SelfAttention.q", "SelfAttention.v"))]
    if method == "bitfit":
        return [c for c in found if c[0] == "bias"]
    if method == "random_672":
        draw.shuffle(found)
        chosen, left = [], 672
        for candidate in found:
            if candidate[2] <= left:
                chosen.append(candidate)
                left -= candidate[2]
        return chosen
    if "+" in method or "." in method:  # LoRA modules by the ends of their names, joined by +
        found = [c for c in found if c[0] == "lora"]
        return [next(c for c in found if c[1].endswith(end)) for end in method.split("+")]
    raise ValueError(f"unknown method {method!r}")


def insert(model: torch.nn.Module, chosen: list[tuple[str, str, int]]) -> None:
    """Freeze the model and insert the chosen modules, LoRA inside a bias."""
    model.requires_grad_(False)
    for kind, name, _ in sorted(chosen, key=lambda c: ("norm", "lora", "bias").index(c[0])):
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        layer = getattr(owner, last)
        if kind == "norm":
            layer.weight.requires_grad_(True)
        elif kind == "lora":
            setattr(owner, last, Lora(layer))
        else:
            setattr(owner, last, Shift(layer, layer.weight.shape[0]))


class Data:
    """A task's rows as token ids."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.spec = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        self.tokenizer = tokenizer
        self.words = torch.tensor(tokenizer.convert_tokens_to_ids(self.spec["label_words"]))
        self.splits = {}
        for split in ("train", "validation", "test"):
            with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
                self.splits[split] = [json.loads(line) for line in file]

    def batch(self, rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(model inputs with labels, class indices)."""
        sources = self.tokenizer(
            [self.spec["template"].format(**row) for row in rows], padding=True, return_tensors="pt"
        )
        gold = torch.tensor([row["label"] for row in rows])
        targets = torch.stack([self.words[gold], torch.full_like(gold, self.tokenizer.eos_token_id)], 1)
        return {"input_ids": sources["input_ids"], "attention_mask": sources["attention_mask"], "labels": targets}, gold


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Data, split: str) -> float:
    """Share of rows whose own label word is the likeliest of the task's label words (each is one token)."""
    model.eval()
    rows, right = data.splits[split], 0
    for start in range(0, len(rows), 250):
        inputs, gold = data.batch(rows[start : start + 250])
        inputs["labels"] = inputs["labels"][:, :1]
        guess = model(**inputs).logits[:, 0, data.words].argmax(-1)
        right += int((guess == gold).sum())
    return right / len(rows)


def adapt(model: torch.nn.Module, data: Data, lr: float, steps: int, batch: int, seed: int) -> tuple[float, float]:
    """Train what requires gradients; (validation, test) accuracy of the best checkpoint on validation."""
    draw = random.Random(f"{seed}-batches")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    best, kept = -1.0, None
    for step in range(1, steps + 1):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        optimizer.param_groups[0]["lr"] = lr * (1 - (step - 1) / steps)
        loss = model(**data.batch(draw.sample(data.splits["train"], batch))[0]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 6) == 0:
            found = accuracy(model, data, "validation")
            if found >= best:
                best, kept = found, [p.detach().clone() for p in weights]
    with torch.no_grad():
        for weight, value in zip(weights, kept or [], strict=True):
            weight.copy_(value)
    return best, accuracy(model, data, "test")


def run(base: torch.nn.Module, data: Data, method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One method on one task with one seed."""
    torch.manual_seed(seed)
    if method == "zero_shot":
        return {"parameters": 0, "test": accuracy(base, data, "test")}
    if method == "full":
        tried = []
        for lr in args.full_lrs:
            model = copy.deepcopy(base).requires_grad_(True)
            tried.append((*adapt(model, data, lr, args.steps, args.batch, seed), lr))
        validation, test, lr = max(tried)
        return {"parameters": sum(p.numel() for p in base.parameters()), "test": test, "lr": lr}
    model = copy.deepcopy(base)
    chosen = choose(model, method, random.Random(f"{seed}-{data.spec['name']}"))
    insert(model, chosen)
    _, test = adapt(model, data, args.lr, args.steps, args.batch, seed)
    return {"parameters": sum(c[2] for c in chosen), "test": test}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="holds tasks/ (and model/)")
    parser.add_argument("--model", type=Path, help="default: model/ in the folder")
    parser.add_argument("--tasks", help="comma-separated; default all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3, help="of PET modules")
    parser.add_argument("--full-lrs", type=lambda t: [float(x) for x in t.split(",")], default=[1e-3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a json file whose entry 'acceptance' is set")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = args.model or args.folder / "model"
    base = AutoModelForSeq2SeqLM.from_pretrained(where, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
    names = args.tasks.split(",") if args.tasks else sorted(p.name for p in (args.folder / "tasks").iterdir())
    table: dict[str, Any] = {}
    for name in names:
        data = Data(args.folder / "tasks" / name, tokenizer)
        for method in args.methods.split(","):
            start = time.perf_counter()
            runs = [run(base, data, method, seed, args) for seed in range(1 if method == "zero_shot" else args.seeds)]
            scores = [r["test"] for r in runs]
            entry = {
                "mean": round(statistics.mean(scores), 4),
                "std": round(statistics.pstdev(scores), 4),
                "scores": scores,
                "parameters": [r["parameters"] for r in runs],
                "seconds": round(time.perf_counter() - start, 1),
            }
            if method == "full":
                entry["lr"] = [r["lr"] for r in runs]
            table.setdefault(name, {})[method] = entry
            print(name, method, entry, flush=True)
            if args.out:
                record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
                recipe = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "full_lrs": args.full_lrs}
                record.setdefault("acceptance", {})["recipe"] = recipe
                record["acceptance"].setdefault("tasks", {}).setdefault(name, {})[method] = entry
                args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
