"""What is mutated: saved things of every kind, how each is opened, and what can never be true of what was opened.

Only public functions are used, so that the same harness measures any version of the library.
"""

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from tiny import tiny_t5
from toy import short_task, toy_tokenizer

import s3pet
from s3pet.studies.comparison import read_rows
from s3pet.studies.study import Study

SEARCH = {"budget": 300, "steps": 20, "batch_size": 4, "progress": False}
STUDY = """backbone: pocket-t5
tasks: {one: {path: pocket/sentiment, n_train: 40}, two: pocket/number}
budgets: ["0.05%", "0.2%"]
seeds: 3
objective: {max_length: 64}
retrain: {steps: 30, batch_size: 8}
lr: {pet: [1.0e-3, 3.0e-3], full: [5.0e-4]}
searches: {ours: {budget: "0.05%", steps: 30}}
structures:
  full: {kind: reference}
  random: {kind: random, seeds: 5}
  searched: {kind: searched, search: ours}
"""
_MADE = {}


def model_and_space():
    """Tiny T5 and its space, once per process."""
    if not _MADE:
        _MADE["model"] = tiny_t5()
        _MADE["space"] = s3pet.make_space(_MADE["model"], "mixed")
    return _MADE["model"], _MADE["space"]


class Cut(Exception):
    """Ends a search from a callback, as a kill would."""


def make_all(folder):
    """Save one thing of each kind below a folder."""
    model, space = model_and_space()
    task = short_task()

    def cut(searcher):
        if searcher.step == 12:
            raise Cut

    s3pet.search(model, task, space, out=folder / "run", **SEARCH)
    with suppress(Cut):
        s3pet.search(model, task, space, out=folder / "checkpoint", callbacks=[cut], **SEARCH)
    structure = s3pet.random_structure(space, 600, seed=1)
    structure.to_json(folder / "structure" / "structure.json")
    s3pet.retrain(model, task, structure, steps=2, batch_size=4, out=folder / "tuned")
    lora = s3pet.retrain(model, task, s3pet.manual_structure(space, "lora_qv"), steps=2, batch_size=4)
    s3pet.to_peft(lora, folder / "peft")
    rows = folder / "rows" / "rows.jsonl"
    rows.parent.mkdir()
    s3pet.compare(model, task, {"a": structure, "head": "head"}, seeds=(0, 1), out=rows, progress=False, steps=1)
    (folder / "study").mkdir()
    (folder / "study" / "study.yaml").write_text(STUDY, encoding="utf-8")
    records = [{"sentence1": f"w{k} w{3 * k % 40}", "label": k % 2} for k in range(40)]
    (task_folder := folder / "task").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records[:24])
    (task_folder / "train.jsonl").write_text(lines, encoding="utf-8")
    pd.DataFrame(records[24:32]).to_csv(task_folder / "validation.csv", index=False)
    pd.DataFrame(records[32:]).to_parquet(task_folder / "test.parquet", index=False)
    about = {"template": "say : {sentence1}", "label_words": ["yes", "no"], "label_names": ["bad", "good"]}
    (task_folder / "task.json").write_text(json.dumps(about | {"metric": "accuracy"}), encoding="utf-8")
    bench = Path(__file__).resolve().parents[2] / "data" / "bench" / "minilm"
    shutil.copytree(bench, folder / "bench", ignore=shutil.ignore_patterns("searches"))
    theirs = [{"encoder.block.0.layer.0.SelfAttention.q": {"parallel": {"Lora": {"lora_r": 1}}}}]
    (folder / "s3delta").mkdir()
    (folder / "s3delta" / "structure.json").write_text(json.dumps(theirs), encoding="utf-8")


# --- opening: a plain value that says what was read ------------------------------------------------------------------


def frame(table):
    return table.astype(str).to_csv(index=False)


def open_run(path):
    run = s3pet.load_run(path)
    value = [run.config, run.metrics, *(frame(table) for table in (run.gates, run.history, run.trajectory))]
    return value, run


def open_checkpoint(path):
    model, space = model_and_space()
    run = s3pet.search(model, short_task(), space, out=path, **SEARCH)
    return [frame(run.gates), frame(run.history), frame(run.trajectory)], run


def open_structure(path):
    structure = s3pet.Structure.from_json(path / "structure.json")
    candidates = [(c.name, c.path, c.stack, c.layer, c.role, c.n_params, c.d_in, c.d_out, c.inert) for c in structure]
    rest = [structure.model_id, structure.space, structure.budget, structure.origin, structure.layers, structure.probs]
    return [candidates, *rest], structure


def open_tuned(path):
    tuned = s3pet.load_tuned(path, model_and_space()[0], tokenizer=toy_tokenizer())
    tensors = {name: tensor.double().flatten().tolist() for name, tensor in tuned.tensors().items()}
    return [tensors, tuned.metrics, tuned.config, repr(tuned.structure)], tuned


def open_peft(path):
    adapter = s3pet.from_peft(path, model_and_space()[0])
    tensors = {name: tensor.double().flatten().tolist() for name, tensor in adapter.supernet.tensors().items()}
    return [tensors, adapter.structure.names], SimpleNamespace(tensors=tensors)


def open_rows(path):
    rows = read_rows(path / "rows.jsonl")
    return rows, rows


def open_study(path):
    study = Study.load(path / "study.yaml")
    return [repr(study), study.rows() and None, [study.settings(name, 0) for name in study.searches]], study


def open_task(path):
    task = s3pet.load_task(path, toy_tokenizer())
    return [task.fingerprint, task.name], task


def open_bench(path):
    bench = s3pet.studies.Bench.load(path)
    return [bench.config, frame(bench.rows), frame(bench.structures)], bench


def open_s3delta(path):
    structure = s3pet.from_s3delta(path / "structure.json", model_and_space()[0])
    return [structure.names], structure


# --- what cannot be true, computed here and not by the library -------------------------------------------------------

LENGTHS = {  # PET module → number of parameters from widths and rank
    "lora": lambda i, o, r: r * (i + o),
    "bitfit": lambda i, o, r: o,
    "lnfit": lambda i, o, r: o,
    "lowrank_adapter": lambda i, d, r: r * (2 * d + 2 * max(1, d // 32)) + max(1, d // 32) + d,
    "adapter": lambda i, d, k: 2 * d * k + d + k,
}


def finite(value):
    return type(value) in (int, float) and math.isfinite(value)


def whole(value, least=0):
    return type(value) is int and least <= value < 2**62


def impossible_candidates(candidates):
    for c in candidates:
        if not all(isinstance(getattr(c, name), str) for name in ("site", "path", "stack", "role", "pet")):
            yield f"{c.site} is not named by texts"
        elif c.pet not in LENGTHS or not (whole(c.d_in, 1) and whole(c.d_out, 1)):
            yield f"{c.site} is {c.pet}"
        elif c.n_params != LENGTHS[c.pet](c.d_in, c.d_out, c.rank or 1) or (c.rank is not None and c.rank < 1):
            yield f"{c.name} costs {c.n_params}"
        if c.layer is not None and c.layer < 0:
            yield f"{c.site} is in layer {c.layer}"
    if len({c.name for c in candidates}) < len(candidates):
        yield "a candidate twice"


def impossible_run(run):
    yield from impossible_candidates(run.space.candidates)
    gates, trajectory = run.gates, run.trajectory
    for table in (gates, trajectory):
        if not all(map(math.isfinite, table["alpha"])) or not all(0 <= p <= 1 for p in table["prob"]):
            yield "alpha or prob"
    if gates["chosen"].dtype != bool:
        yield "chosen"
    if run.space.n_params and not 1 <= run.config["budget"] <= max(run.space.n_params, run.space.backbone_params):
        yield "budget"
    numbers = [run.config[name] for name in ("budget", "seed", "steps", "backbone_params") if name in run.config]
    if not all(map(whole, numbers)):
        yield "config"
    if not all(isinstance(run.config.get(name, ""), str) for name in ("model", "task", "space")):
        yield "names"
    if not run.history["step"].is_monotonic_increasing or not run.history["step"].is_unique:
        yield "history"
    if len(trajectory) % len(gates) or trajectory.duplicated(["candidate", "step"]).any():
        yield "trajectory"
    cost = run.metrics.get("cost")
    if not isinstance(cost, dict) or any(v is not None and (not finite(v) or v < 0) for v in cost.values()):
        yield "cost"


def impossible_structure(structure):
    yield from impossible_candidates(structure.candidates)
    if structure.budget is not None and not (whole(structure.budget, 1) and structure.n_params <= structure.budget):
        yield "budget"
    for c in structure:
        if structure.layers and c.layer is not None and not c.layer < structure.layers.get(c.stack, 0):
            yield f"layer {c.layer} of {structure.layers}"
    if not all(isinstance(text, str) and text for text in (structure.model_id, structure.space)):
        yield "names"


def impossible_tuned(tuned):
    for name, tensor in tuned.tensors().items():
        if not bool(tensor.isfinite().all()):
            yield name
    for name in ("validation", "test"):
        if not finite(tuned.metrics.get(name)) or not -1 <= tuned.metrics[name] <= 1:
            yield name
    if tuned.structure is None or tuned.metrics["n_params"] != tuned.structure.n_params:
        yield "n_params"
    if not whole(tuned.config["seed"]) or not whole(tuned.config["batch_size"], 1):
        yield "config"


def impossible_rows(rows):
    for row in rows.values():
        if not all(row.get(name) is None or finite(row[name]) for name in ("score", "validation", "seconds")):
            yield "score"
        if not whole(row.get("seed")) or not isinstance(row.get("structure"), str):
            yield "seed or structure"
        if not whole(row.get("n_params")) or type(row.get("diverged")) is not bool or (row.get("seconds") or 0) < 0:
            yield "n_params, diverged or seconds"


def impossible_study(study):
    for name in (*study.tasks, *study.searches):
        if not isinstance(name, str) or any(mark in name for mark in "/\\\0") or name.startswith("."):
            yield f"name {name!r}"
    if not whole(study.seeds, 1):
        yield "seeds"
    for rates in study.lr.values():
        if not all(finite(rate) and rate > 0 for rate in rates):
            yield f"lr {rates}"
    if not all(isinstance(budget, (int, float, str)) and not isinstance(budget, bool) for budget in study.budgets):
        yield "budgets"


def impossible_task(task):
    for example in (*task.train, *task.validation, *task.test):
        if not all(isinstance(text, str) for text in example.segments) or not any(example.segments):
            yield f"texts {example.segments}"
        if not finite(example.label) or (not task.regression and not 0 <= example.label < len(task.label_words)):
            yield f"label {example.label}"
    if not isinstance(task.template, str) or type(task.regression) is not bool or not isinstance(task.name, str):
        yield "options"


def impossible_peft(adapter):
    if not all(map(math.isfinite, (value for values in adapter.tensors.values() for value in values))):
        yield "weights"


def impossible_bench(bench):
    yield from impossible_candidates(bench.space.candidates)
    scored = bench.rows[~bench.rows["diverged"]]
    if not all(map(math.isfinite, scored["score"])) or not all(rate > 0 for rate in bench.rates):
        yield "scores or rates"


KINDS = {  # name → how it is opened, what cannot be true, whether a file of it is written by hand
    "run": (open_run, impossible_run, False),
    "checkpoint": (open_checkpoint, impossible_run, False),
    "structure": (open_structure, impossible_structure, False),
    "tuned": (open_tuned, impossible_tuned, False),
    "rows": (open_rows, impossible_rows, False),
    "study": (open_study, impossible_study, True),
    "task": (open_task, impossible_task, True),
    "peft": (open_peft, impossible_peft, True),
    "bench": (open_bench, impossible_bench, True),
    "s3delta": (open_s3delta, impossible_structure, True),
}
