"""Time and memory of a search beside its frozen backbone, and the time of importing s3pet.

    python tests/benchmarks/speed.py [t5-choice t5-lm t5-base minilm llama memory import padding] [--threads 1 2]

``plain`` is one forward and one backward pass of the same loss on the stock model: weights frozen, gradients wanted at
the input embeddings, the same batch, dropout on. A *pass* is what the weight step does with all candidates attached
(loss, gradients of α and w); a *step* is the whole of ``Searcher.advance``, without a warm-up. Every round times each
case once, one after the other. A ratio is the median over rounds of the case's time over that round's ``plain``. The
models have real sizes and random weights (``t5-base`` is slow and runs only if it is named), the batches 8 rows of 64
tokens with random labels, so nothing is learned.

Memory is the peak resident size of a process of its own, above what it held before (Linux only). The ratio includes the
weights of the backbone, ``activations`` does not.

glibc is told to keep freed memory (``MALLOC_TRIM_THRESHOLD_``). By default it gives some of it back between two passes
and fetches it again page by page, which moves ratios by several percent at random; ``--allocator default`` shows that.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import RESULTS, shared_folder
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
from s3pet.objectives import ObjectiveSettings, Stream
from s3pet.searcher import Searcher, Settings
from s3pet.space import Space
from s3pet.structure import parse_budget
from s3pet.tasks import Task

ROWS, TOKENS = 8, 64
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
BUDGET = "0.02%"
LOSSES = {"t5-choice": "choice", "t5-lm": "lm", "t5-base": "choice", "minilm": "choice", "llama": "choice"}
T5_SIZES = {  # d_model, d_ff, layers per stack, heads
    "t5-choice": (512, 2048, 6, 8),
    "t5-lm": (512, 2048, 6, 8),
    "t5-base": (768, 3072, 12, 12),
}
AIMS = {
    "pass mixed": 1.10,
    "pass lora": 1.05,
    "step first": 2.2,
    "step unrolled": 3.4,
    "memory": 1.3,
    "ten times": 1.1,
}


def make_model(setting: str) -> Any:
    """Make a frozen model of random weights: T5 (small or base), MiniLM-L6, or a Llama of T5-small's width."""
    torch.manual_seed(0)
    if setting in T5_SIZES:
        d_model, d_ff, layers, heads = T5_SIZES[setting]
        model: Any = T5ForConditionalGeneration(
            T5Config(d_model=d_model, d_ff=d_ff, d_kv=64, num_layers=layers, num_heads=heads, decoder_start_token_id=0)
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


def make_task() -> Task:
    """Make rows of 63 words, which are 64 tokens, with random labels."""
    words = torch.randint(len(WORDS), (256, TOKENS - 1), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"sentence1": " ".join(WORDS[w] for w in row), "label": index % 2} for index, row in enumerate(words)]
    data = {"train": rows[:128], "validation": rows[128:192], "test": rows[192:]}
    return s3pet.load_task(data, toy_tokenizer(), label_words=("no", "yes"))


def make_spaces(model: Any) -> dict[str, Space]:
    """Make the mixed space, the LoRA space, a tenth of the mixed one, and LoRA in ten sizes."""
    mixed, lora = s3pet.make_space(model, "mixed"), s3pet.make_space(model, "lora")
    tenth = dataclasses.replace(mixed, candidates=mixed.candidates[::10])
    sizes = s3pet.make_space(model, [s3pet.space.Rule("lora", ranks=tuple(range(1, 11)))])
    return {"mixed": mixed, "lora": lora, "tenth": tenth, "sizes": sizes}


def make_searcher(model: Any, setting: str, space: Space, order: str = "first") -> Searcher:
    """Make a search of many steps, before its first step."""
    settings = Settings(steps=100_000, order=order, batch_size=ROWS, warmup=0)
    objective = ObjectiveSettings(loss=LOSSES[setting])
    return Searcher(model, make_task(), space, parse_budget(space, BUDGET), settings, objective)


def make_plain(searcher: Searcher) -> Callable[[], None]:
    """Return one forward and backward pass of the searcher's loss, without a supernet."""
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
    """Return the forward and backward pass of the weight step, without its update."""
    loss = searcher._loss_on(searcher.objective.collate(searcher.train(0)), phase=0)
    return lambda: bilevel.gradients(loss, searcher.alpha, searcher.weights) and None


def make_cases(model: Any, setting: str) -> dict[str, tuple[Any, Callable[[], None]]]:
    """Return the cases by name: what is attached while the case runs, and the function to time."""
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
    """Time all cases; returns one row per case: milliseconds (median) and ratio to plain."""
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


def peak_memory(setting: str, case: str) -> float:
    """Return the peak of three runs in MB, above what the process holds once the model and the searcher are made."""
    model = make_model(setting).train()
    order = "unrolled" if case == "unrolled" else "first"
    searcher = make_searcher(model, setting, make_spaces(model)["mixed"], order)
    attached, run = (nullcontext(), make_plain(searcher)) if case == "plain" else (searcher.supernet, searcher.advance)
    ctypes.CDLL(None).malloc_trim(0)  # else the runs would reuse what making the model has freed, unseen
    before = resident_size("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # making the model had a peak, too: start from the present size
    with attached:
        for _ in range(3):
            run()
    return resident_size("VmHWM") - before


def resident_size(field: str) -> float:
    """Return the resident size of this process in MB: ``VmRSS`` is the present one, ``VmHWM`` the peak.

    Not ``getrusage``: a process starts there with the peak of the one that launched it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def run_python(*arguments: str) -> float:
    """Run Python in a process of its own, with the default allocator; returns the number that it prints last."""
    default = {name: value for name, value in os.environ.items() if name not in KEEP}
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=default)
    return float(process.stdout.split()[-1])


def measure_memory() -> list[dict[str, Any]]:
    """Return one row per case: MB above the finished model, and ratios with and without the weights of the backbone."""
    rows: list[dict[str, Any]] = []
    for setting in ("t5-choice", "t5-lm"):
        peaks = {case: run_python(__file__, "--memory", f"{setting}:{case}") for case in ("plain", "first", "unrolled")}
        weights = sum(p.numel() * p.element_size() for p in make_model(setting).parameters()) / 1e6
        rows.append({"case": f"{setting} plain", "MB": round(peaks["plain"], 1)})
        for case in ("first", "unrolled"):
            row: dict[str, Any] = {"case": f"{setting} {case}", "MB": round(peaks[case], 1)}
            row["ratio"] = round((weights + peaks[case]) / (weights + peaks["plain"]), 3)
            rows.append(row | {"activations": round(peaks[case] / peaks["plain"], 3), "aim": AIMS["memory"]})
    return rows


def measure_padding() -> list[dict[str, Any]]:
    """Return words computed per word read in batches of 16, for six real tasks: shuffled, and as a search sees them."""
    if not (shared_folder() / "data").is_dir():
        return [{"case": f"skipped: no real data at {shared_folder()}; set S3PET_SHARED"}]
    rows = []
    for name in ("sst2", "mrpc", "cola", "rte", "stsb", "qnli"):
        task = s3pet.load_task(shared_folder() / "data" / name, None, n_train=2000, n_validation=200)
        encoded = [{"input_ids": example.source.split()} for example in task.train]  # words stand for tokens
        lengths = [len(row["input_ids"]) for row in encoded]
        stream = Stream(encoded, 16, 0)
        shuffled = [lengths[start : start + 16] for start in range(0, len(lengths), 16)]
        alike = [[len(row["input_ids"]) for row in stream(step)] for step in range(len(lengths) // 16)]
        rows.append({"case": name, "shuffled": padding(shuffled), "alike": padding(alike)})
    return rows


def padding(batches: list[list[int]]) -> float:
    """Return the padded size of batches of these lengths, over the sum of the lengths."""
    return round(sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches)), 2)


def measure_import() -> list[dict[str, Any]]:
    """Return milliseconds beyond importing torch and transformers: of the package, and of its modules for searching."""
    code = "import time, torch, transformers; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    rows = []
    for case, line in (("import s3pet", "import s3pet"), ("import search", "import s3pet; s3pet.search; s3pet.attach")):
        seconds = statistics.median(run_python("-c", code.format(line)) for _ in range(5))
        rows.append({"case": case, "ms": round(1000 * seconds, 1), "aim_ms": 500})
    return rows


OTHERS = {"memory": measure_memory, "import": measure_import, "padding": measure_padding}


def machine() -> dict[str, Any]:
    """Return processor, cores and versions."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*LOSSES, *OTHERS]
    parser.add_argument("settings", nargs="*", default=[name for name in names if name != "t5-base"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.settings) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    torch.set_num_threads(arguments.threads[0])
    if not arguments.memory and arguments.allocator == "keep" and not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})  # read when a process starts
    if arguments.memory:
        print(peak_memory(*arguments.memory.split(":")))
        return
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():  # keep the rows of the settings that are not measured now
        rows = [r for r in json.loads(arguments.out.read_text())["rows"] if r["setting"] not in arguments.settings]
    for setting in arguments.settings:
        if setting in OTHERS:
            rows += [{"setting": setting, **row} for row in OTHERS[setting]()]
            continue
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            rows += [{"threads": threads, **row} for row in measure(setting, arguments.rounds)]
    print(pd.DataFrame(rows).to_string(index=False, na_rep=""))
    record = {"made": time.strftime("%Y-%m-%d"), "machine": machine(), "rounds": arguments.rounds}
    record |= {"allocator": arguments.allocator, "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
