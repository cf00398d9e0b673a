"""What a search costs beside its frozen backbone: time of a pass and of a step, memory, import.

    python tests/benchmarks/speed.py [t5-choice t5-lm minilm llama memory import padding] [--rounds 9] [--threads 1 2]

``plain`` is one forward and one backward pass of the very same loss on the stock model: weights frozen, gradients
wanted at the input embeddings, the same batch, dropout on. A *pass* is what the weight step does with all candidates
attached (loss, gradients of α and w); a *step* is the whole of ``Searcher.advance``. Every round times each case once,
one after the other; a ratio is the median over rounds of the case's time over that round's ``plain``. Random weights of
real sizes, 8 rows of 64 tokens, labels drawn by chance: nothing here is learnt. Memory is the peak of a process of its
own (Linux) above what it held before; the ratio counts the backbone's weights in, ``activations`` does not.

glibc is told to keep freed memory (``MALLOC_TRIM_THRESHOLD_``): whether it gives it back between two passes, to fetch
it again page by page, is chance that moves ratios by several percent either way; ``--allocator default`` lets it be.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, shared
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' toy task
from toy import WORDS, toy_tokenizer

import s3pet
from s3pet import bilevel
from s3pet.batches import Stream
from s3pet.cost import Cost
from s3pet.searcher import Searcher
from s3pet.settings import Settings
from s3pet.structure import parse_budget

ROWS, TOKENS = 8, 64
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
BUDGET = "0.02%"
SETTINGS = {"t5-choice": "choice", "t5-lm": "lm", "minilm": "choice", "llama": "choice"}
AIMS = {
    "pass mixed": 1.10,
    "pass lora": 1.05,
    "step first": 2.2,
    "step unrolled": 3.4,
    "memory": 1.3,
    "ten times": 1.1,
}


def make_model(setting: str) -> Any:
    """A model of random weights: T5-small's, MiniLM-L6's, or a Llama of T5-small's width."""
    torch.manual_seed(0)
    if setting.startswith("t5"):
        model: Any = T5ForConditionalGeneration(
            T5Config(d_model=512, d_ff=2048, d_kv=64, num_layers=6, num_heads=8, decoder_start_token_id=0)
        )
    elif setting == "minilm":
        model = BertModel(
            BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=1376)
        )
    return model.requires_grad_(False)


def make_task() -> s3pet.Task:
    """Rows of 63 words, so 64 tokens, and a label by chance."""
    words = torch.randint(len(WORDS), (256, TOKENS - 1), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"sentence1": " ".join(WORDS[w] for w in row), "label": index % 2} for index, row in enumerate(words)]
    data = {"train": rows[:128], "validation": rows[128:192], "test": rows[192:]}
    return s3pet.load_task(data, toy_tokenizer(), label_words=("no", "yes"))


def make_spaces(model: Any) -> dict[str, s3pet.Space]:
    """The two spaces, a tenth of the mixed one, and LoRA in ten sizes."""
    mixed, lora = s3pet.make_space(model, "mixed"), s3pet.make_space(model, "lora")
    tenth = dataclasses.replace(mixed, candidates=mixed.candidates[::10])
    sizes = s3pet.make_space(model, [s3pet.Rule("lora", ranks=tuple(range(1, 11)))])
    return {"mixed": mixed, "lora": lora, "tenth": tenth, "sizes": sizes}


def make_searcher(model: Any, setting: str, space: s3pet.Space, order: str = "first") -> Searcher:
    """A search of many steps, not begun."""
    options = Settings(steps=100_000, order=order, batch_size=ROWS, loss=SETTINGS[setting])
    return Searcher(model, make_task(), space, parse_budget(space, BUDGET), options)


def make_plain(searcher: Searcher) -> Callable[[], None]:
    """One forward and backward pass of the searcher's loss, no supernet."""
    objective = searcher.objective
    batch = objective.collate(searcher.train(0))
    modules = objective.model.modules()
    embeddings = [m for m in modules if isinstance(m, torch.nn.Embedding) and m.num_embeddings > 10_000]

    def run() -> None:
        handles = [m.register_forward_hook(lambda _, __, output: output.requires_grad_()) for m in embeddings]
        objective.loss(batch).backward()
        for handle in handles:
            handle.remove()

    return run


def make_pass(searcher: Searcher) -> Callable[[], None]:
    """The weight step's forward and backward pass, without its update."""
    loss = searcher._closure(searcher.objective.collate(searcher.train(0)), phase=0)
    return lambda: bilevel.gradients(loss, searcher.alpha, searcher.weights) and None


def make_cases(model: Any, setting: str) -> dict[str, tuple[Any, Callable[[], None]]]:
    """Each case: what is attached while it runs, and what is timed."""
    spaces = make_spaces(model)
    searchers = {name: make_searcher(model, setting, space) for name, space in spaces.items()}
    unrolled = make_searcher(model, setting, spaces["mixed"], "unrolled")
    cases = {
        "plain": (nullcontext(), make_plain(searchers["mixed"])),
        "pass mixed": (searchers["mixed"].supernet, make_pass(searchers["mixed"])),
        "pass lora": (searchers["lora"].supernet, make_pass(searchers["lora"])),
        "step first": (searchers["mixed"].supernet, searchers["mixed"].advance),
        "step unrolled": (unrolled.supernet, unrolled.advance),
    }
    if setting == "t5-choice":
        for name, label in (("tenth", "step tenth"), ("lora", "step lora"), ("sizes", "step sizes")):
            cases[label] = (searchers[name].supernet, searchers[name].advance)
    return cases


def measure(setting: str, rounds: int) -> list[dict[str, Any]]:
    """One row per case: milliseconds (median) and ratio to plain."""
    model = make_model(setting).train()
    cases = make_cases(model, setting)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 2):  # the first two warm up
        for name, (attached, run) in cases.items():
            with attached:
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    kept = {name: values[2:] for name, values in times.items()}

    def ratio(case: str, base: str) -> float:
        return round(statistics.median(a / b for a, b in zip(kept[case], kept[base], strict=True)), 3)

    rows: list[dict[str, Any]] = [
        {"setting": setting, "case": name, "ms": round(1000 * statistics.median(values), 1)}
        | ({} if name == "plain" else {"ratio": ratio(name, "plain"), "aim": AIMS.get(name)})
        for name, values in kept.items()
    ]
    if "step tenth" in kept:
        for case, base, label in (
            ("step first", "step tenth", "22 -> 220 candidates"),
            ("step sizes", "step lora", "72 -> 720 candidates (ranks 1 to 10)"),
        ):
            rows.append({"setting": setting, "case": label, "ratio": ratio(case, base), "aim": AIMS["ten times"]})
    return rows


def memory(setting: str, case: str) -> float:
    """MB above what the process holds with model and searcher built, at the peak of three runs (in a child)."""
    import psutil

    model = make_model(setting).train()
    order = "unrolled" if case == "unrolled" else "first"
    searcher = make_searcher(model, setting, make_spaces(model)["mixed"], order)
    attached, run = (nullcontext(), make_plain(searcher)) if case == "plain" else (searcher.supernet, searcher.advance)
    ctypes.CDLL(None).malloc_trim(0)  # what building the model has freed would hide what a pass takes
    before, cost = psutil.Process().memory_info().rss, Cost()
    with attached, cost.watch_memory(torch.device("cpu")):  # building the model had a peak too; this forgets it
        for _ in range(3):
            run()
    return (cost.peak_memory - before) / 1e6


def child(*arguments: str) -> float:
    """What this script, or a line of Python, prints in a process of its own."""
    default = {name: value for name, value in os.environ.items() if name not in KEEP}
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=default)
    return float(found.stdout.split()[-1])


def measure_memory() -> list[dict[str, Any]]:
    """One row per case: MB above the built model, and ratios with and without the backbone's weights."""
    return [row for setting in ("t5-choice", "t5-lm") for row in _memory_of(setting)]


def _memory_of(setting: str) -> list[dict[str, Any]]:
    peaks = {case: child(__file__, "--memory", f"{setting}:{case}") for case in ("plain", "first", "unrolled")}
    weights = sum(p.numel() * p.element_size() for p in make_model(setting).parameters()) / 1e6
    rows: list[dict[str, Any]] = [{"case": f"{setting} plain", "MB": round(peaks["plain"], 1)}]
    for case in ("first", "unrolled"):
        row: dict[str, Any] = {"case": f"{setting} {case}", "MB": round(peaks[case], 1)}
        row["ratio"] = round((weights + peaks[case]) / (weights + peaks["plain"]), 3)
        rows.append(row | {"activations": round(peaks[case] / peaks["plain"], 3), "aim": AIMS["memory"]})
    return rows


def measure_padding() -> list[dict[str, Any]]:
    """Words computed per word read, of six real tasks in batches of 16: the search's batches, and shuffled ones."""
    if not (shared() / "data").is_dir():
        return [{"case": f"skipped: no real data at {shared()}; set S3PET_SHARED"}]
    rows = []
    for name in ("sst2", "mrpc", "cola", "rte", "stsb", "qnli"):
        task = s3pet.load_task(shared() / "data" / name, None, n_train=2000, n_validation=200)
        encoded = [{"input_ids": example.source.split()} for example in task.train]  # words stand for tokens
        plain = [len(row["input_ids"]) for row in encoded]
        stream = Stream(encoded, 16, 0)
        alike = [[len(row["input_ids"]) for row in stream(step)] for step in range(len(plain) // 16)]
        mixed = [plain[start : start + 16] for start in range(0, len(plain), 16)]
        found = [sum(max(b) * len(b) for b in batches) / sum(map(sum, batches)) for batches in (mixed, alike)]
        rows.append({"case": name, "shuffled": round(found[0], 2), "alike": round(found[1], 2)})
    return rows


def measure_import() -> list[dict[str, Any]]:
    """Seconds beyond torch and transformers: the package, and its rooms for searching."""
    timed = "import time, torch, transformers; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    rows = []
    for case, line in (("import s3pet", "import s3pet"), ("import search", "import s3pet; s3pet.search; s3pet.attach")):
        seconds = statistics.median(child("-c", timed.format(line)) for _ in range(5))
        rows.append({"case": case, "ms": round(1000 * seconds, 1), "aim_ms": 500})
    return rows


OTHERS = {"memory": measure_memory, "import": measure_import, "padding": measure_padding}


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    from importlib.metadata import version

    found = {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count()}
    found["python"] = platform.python_version()
    return found | {name: version(name) for name in ("torch", "transformers")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[*SETTINGS, *OTHERS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads[0])
    if not arguments.memory and arguments.allocator == "keep" and not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})  # read at a process's start
    if arguments.memory:
        print(memory(*arguments.memory.split(":")))
        return
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():  # what is not measured now stays
        rows = [r for r in json.loads(arguments.out.read_text())["rows"] if r["setting"] not in arguments.settings]
    for setting in arguments.settings:
        if setting in OTHERS:
            rows += [{"setting": setting, **row} for row in OTHERS[setting]()]
            continue
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            rows += [{"threads": threads, **row} for row in measure(setting, arguments.rounds)]
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False, na_rep=""))
    record = {"made": time.strftime("%Y-%m-%d"), "machine": machine(), "rounds": arguments.rounds}
    record |= {"allocator": arguments.allocator, "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
