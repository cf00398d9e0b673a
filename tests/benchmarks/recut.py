"""How long from another value of a control to another picture, on the mixed space of T5-large (916 candidates)?

    python tests/benchmarks/recut.py

The space is made on the meta device, without weights; its gates are random. Wall clock and time of this process.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pandas as pd
import torch
from transformers import T5Config, T5ForConditionalGeneration

import s3pet
from s3pet.gates import shifted_sigmoid
from s3pet.result import SearchResult, gate_table
from s3pet.widgets import explore


def make_search(seed: int, n_steps: int = 21) -> SearchResult:
    """A search of T5-large whose alphas grew from 0 to random values."""
    with torch.device("meta"):
        config = T5Config(d_model=1024, d_ff=4096, d_kv=64, num_layers=24, num_heads=16, vocab_size=32128)
        model = T5ForConditionalGeneration(config)
    space = s3pet.make_space(model, "mixed", keep_inert=True)
    budget = s3pet.Budget.parse("1.389e-4", total=space.backbone_params).n_params
    final = torch.randn(len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    names, parts = [candidate.name for candidate in space], []
    for step in range(n_steps):
        alpha = final * step / (n_steps - 1)
        probs = shifted_sigmoid(alpha, space.costs, budget)
        parts.append(pd.DataFrame({"candidate": names, "step": step, "alpha": alpha, "prob": probs}))
    config = {"model": space.model_id, "backbone_params": space.backbone_params, "space": "mixed"}
    config |= {"task": "random", "seed": seed, "budget": budget, "steps": n_steps - 1}
    return SearchResult(space, config, gate_table(space, final, probs, budget), pd.DataFrame(), pd.concat(parts))


def measure(control, values) -> str:
    """Median and slowest of setting the control to each value."""
    wall, own = [], []
    for value in values:
        start = time.perf_counter(), time.process_time()
        control.value = value
        wall.append(1000 * (time.perf_counter() - start[0]))
        own.append(1000 * (time.process_time() - start[1]))
    median, slowest = statistics.median(wall), max(wall)
    return f"median {median:.0f} ms, slowest {slowest:.0f}, process {statistics.median(own):.0f}; n = {len(wall)}"


def main() -> None:
    """Print one line per control."""
    widget = explore([make_search(seed) for seed in range(3)])
    budgets = np.geomspace(widget.recut.cheapest, widget.recut.total, 101)
    print(f"{len(widget.recut.names)} candidates, {torch.get_num_threads()} threads")
    print("budget              ", measure(widget.budget, budgets))
    widget.later.click()
    print("budget, inspected   ", measure(widget.budget, budgets))
    print("step                ", measure(widget.step, widget.recut.steps * 3))
    print("layers              ", measure(widget.layers, [(i % 12, 23 - i % 7) for i in range(50)]))
    print("quantity (all anew) ", measure(widget.quantity, ["alpha", "prob"] * 6))
    widget.selectors["seed"].value = "average"
    print("budget, of averages ", measure(widget.budget, budgets))


if __name__ == "__main__":
    main()
