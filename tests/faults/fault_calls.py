"""The table of calls: every public name with arguments that work, and the kind of each argument.

A kind is a word of ``fault_arguments.bad_values``. Arguments whose name says their kind are not repeated in each call.
"""

import inspect
import json
from itertools import count
from types import SimpleNamespace

from fault_kinds import SEARCH, STUDY
from rows import rows
from tiny import tiny_bert, tiny_t5
from toy import short_task, toy_tokenizer

import s3pet
from s3pet import objectives, plots, studies, tasks, transfer, utility, widgets
from s3pet.export import list_structures, load_structure, push_to_hub, save_folder, save_structure
from s3pet.gates import shifted_sigmoid, solve_shift
from s3pet.objectives.texts import ObjectiveSettings
from s3pet.searcher import Settings
from s3pet.space import Rule
from s3pet.structure import select_mask, select_structure
from s3pet.studies import statistics, validation
from s3pet.studies.adalora import retrain_adalora
from s3pet.studies.selectors import (
    covered_structure,
    depth_structure,
    sampled_structure,
    sensitive_structure,
    sensitivity,
    useful_structure,
)
from s3pet.tasks.plain import exact_match
from s3pet.trainer import Recipe

# fmt: off
KIND_OF = {
    **{name: name for name in ("model", "task", "space", "structure", "budget", "seeds", "objective", "tokenizer")},
    **{name: name for name in ("callbacks", "rules", "example", "source", "candidates", "result", "results", "tuned")},
    **{name: name for name in ("seed", "gates", "utility", "figure", "layers", "proposals", "structures", "table")},
    **{"checkpoints": "path", "out": "path", "path": "path", "overwrite": "flag", "test": "flag", "ax": "axes"},
    "title": "title",
    **{"by": "name", "value": "column", "vmin": "limit", "vmax": "limit", "alt": "text", "base": "text"},
    **dict.fromkeys(("draws", "n", "k", "rows", "batches", "batch_size", "steps", "evaluations", "jobs"), "count"),
    "settings": "name",
    **dict.fromkeys(("top", "highlight", "lr_warmup", "warmup"), "whole"),
    **dict.fromkeys(("lr", "alpha_lr", "vector_lr", "temperature"), "positive"),
}
ALIASES = {  # how else a message may name an argument
    "gates": "gate table|table|DataFrame|search|panels|searches", "table": "DataFrame",
    "utility": "utility table|column", "source": "task|file|rows?|split|column|labels?|space|search",
    "rules": "rule|space|PET module|role|site", "metrics": "metric", "k": "keep",
    "candidates": "candidate|structure|DataFrame|table", "proposals": "structure", "records": "record",
    "example": "could not be run", "seeds": "seed|runs?|does not exist",
    "results": "result|search|searches|DataFrame|table", "frequency": "table|DataFrame", "shares": "tables?|DataFrame",
    "p": "column", "objective": "loss|max_length|pooling|class_weights|setting",
    "settings": "objective|loss|max_length|pooling|class_weights", "path": "folder|file|holds no|is not",
    "name": "structure|task|backbone|folder|style", "value": "column|budget", "label_words": "words",
    "label_names": "names|words", "one": "search|DataFrame|table", "other": "search|DataFrame|table",
    "runs": "run|search|holds no|does not exist", "inert": "candidate", "names": "candidate",
    "examples": "predictions|rows?", "structure": "table|DataFrame|structures", "model": "backbone|Linear",
    "methods": "method|structure", "result": "search|DataFrame|table", "baseline": "structure",
    "text_columns": "text column|columns?", "probs": "alpha|probabilities",
    "space": "table|DataFrame|PET module|structure made for",
    "costs": "alpha", "label_column": "column", "by": "column", "tasks": "task", "structures": "structure",
    "within": "column", "key": "structure", "path_or_name": "no folder of a bench", "callbacks": "callback",
    "alpha": "α", "pairs": "table|DataFrame", "score": "column", "predictions": "labels", "labels": "predictions",
}

FREE = {"check", "groups", "grid", "space", "test"}  # arguments of a few calls that any value goes with, or inner ones


class Call:
    """A function with arguments that work, and the kind of each of them; functions among the arguments are called."""

    def __init__(self, name, function, good=None, /, more=(), **kinds):
        self.name, self.function, self.good = name, function, good or {}
        parameters = inspect.signature(function).parameters
        self.defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        self.kinds = {n: KIND_OF.get(n) for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD,
            p.VAR_POSITIONAL)}
        self.kinds |= {n: KIND_OF[n] for n in more}
        self.defaults |= dict.fromkeys({"patience", "metric", *(["lr", "dropout"] if "vector_lr" in more else [])})
        self.kinds = {n: kind for n, kind in (self.kinds | kinds).items() if kind != "any"}
        lacking = [n for n, kind in self.kinds.items() if kind is None]
        assert not lacking, f"{name}: no kind of {lacking}"
        self.says = {n: ALIASES.get(n, "") for n in self.kinds}

    def with_(self, argument=None, value=None):
        def run():
            given = {n: v() if isinstance(v, New) else v for n, v in self.good.items()}
            given |= {argument: value} if argument else {}
            parameters = inspect.signature(self.function).parameters
            plain = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and n in given]
            rest = {n: v for n, v in given.items() if n not in plain}
            if plain == [*parameters][: len(plain)]:
                return self.function(*(given[n] for n in plain), **rest)
            return self.function(**given)

        return run


class New:
    """A path that is not there yet."""

    def __init__(self, folder, suffix=""):
        self.folder, self.suffix, self.numbers = folder, suffix, count()

    def __call__(self):
        return self.folder / "new" / f"{id(self)}-{next(self.numbers)}{self.suffix}"


def good_objects(folder):
    """What works: small objects, made once."""
    import matplotlib.pyplot as plt

    g = SimpleNamespace(folder=folder, tokenizer=toy_tokenizer(), task=short_task(), model=tiny_t5())
    g.space = s3pet.make_space(g.model, "mixed")
    g.structure = s3pet.random_structure(g.space, 600, seed=1)
    g.elsewhere = s3pet.random_structure(s3pet.make_space(tiny_bert(), "mixed"), 600, seed=1)
    few = SEARCH | {"steps": 2}
    g.result = s3pet.search(g.model, g.task, g.space, out=folder / "runs" / "one", **few)
    g.second = s3pet.search(g.model, g.task, g.space, seed=1, out=folder / "runs" / "two", **few)
    g.tuned = s3pet.retrain(g.model, g.task, s3pet.manual_structure(g.space, "lora_qv"), steps=1, batch_size=4)
    g.tuned.save(folder / "tuned")
    s3pet.to_peft(g.tuned, folder / "peft")
    g.structure.to_json(folder / "structure.json")
    g.model.save_pretrained(folder / "backbone")
    g.tokenizer.save_pretrained(folder / "backbone")
    g.rows = [{"sentence1": f"w{k} w{3 * k % 40} w1", "label": k % 2} for k in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in g.rows))
    theirs = [{"encoder.block.0.layer.0.SelfAttention.q": {"parallel": {"Lora": {"lora_r": 1}}}}]
    (folder / "theirs.json").write_text(json.dumps(theirs))
    gates = [f"|encoder.block.{k}.layer.0.SelfAttention.q |parallel |Lora |{64 / 2**20:.9f} |0.1 |0.6 |" for k in (0,
        1)]
    (folder / "theirs.txt").write_text("\n".join(gates))
    (folder / "study.yaml").write_text(STUDY)
    g.study = studies.Study.load(folder / "study.yaml")
    plain = [{"text": row["sentence1"], "label": row["label"]} for row in g.rows]
    g.row_task = tasks.RowTask("plain", plain[:20], plain[20:30], plain[30:], metrics={"exact": exact_match})
    g.own_objective = objectives.ModelLoss  # a class, not an object
    g.scores = [rows("searched", [0.8, 0.9], kind="searched"), rows("full", [0.9, 0.95], kind="reference")]
    import pandas as pd

    g.scores = pd.concat([*g.scores, rows("random", [0.7, 0.75], kind="random")], ignore_index=True)
    g.summary = statistics.summary(g.scores, baseline="random")
    g.over = pd.concat([g.summary, statistics.over_tasks(g.scores, baseline="random")], ignore_index=True)
    from gate_tables import make_utility

    g.utility = make_utility(g.result.gates)
    g.pairs = transfer.agreement([g.result, g.second], draws=3)
    g.carried = pd.DataFrame([{"source": a, "target": b, "score": 0.5} for a in "xy" for b in "xy"])
    g.names = [*g.space.names]
    g.figure, g.axes = plt.subplots()
    g.bench = studies.Bench.load("minilm")
    g.bench_task, g.key = next(iter(g.bench.tasks)), g.bench.rows["structure"].iloc[0]
    return g


def table(g):
    """All calls."""
    new, m, recipe = New(g.folder), {"model": g.model, "task": g.task}, {"steps": 1, "batch_size": 4, "evaluations": 1}
    trained = ("steps", "batch_size", "lr", "vector_lr", "lr_warmup", "evaluations", "seed")
    parts = {"model": g.model, "task": g.task, "space": g.space}
    quick = {"out": new, "progress": False}
    yield Call("load_backbone", s3pet.load_backbone, {"name": g.folder / "backbone"}, name="file", device="device",
               dtype="dtype", attn_implementation="name", device_map="device_map", revision="text",
               local_files_only="flag")
    yield Call("load_task", s3pet.load_task, {"source": g.rows, "tokenizer": g.tokenizer}, path="path",
               n_train="count", n_validation="count", template="text", label_words="texts", label_names="texts",
               metric="name", metrics="words", text_columns="columns", label_column="column", regression="flag",
               name="text")
    yield Call("make_space", s3pet.make_space, {"model": g.model}, keep_inert="flag", cross_attention="flag")
    yield Call("Rule", Rule, {"pet": "lora"}, pet="text", roles="patterns", stacks="patterns",
               layers="layers or ranks", ranks="layers or ranks", exclude="patterns")
    yield Call("Budget", s3pet.Budget, {"n_params": 10, "total": 1000}, n_params="count", total="count")
    yield Call("Budget.parse", s3pet.Budget.parse, {"value": 600, "total": 10**6}, value="budget", total="count")
    yield Call("Structure", s3pet.Structure, {"candidates": g.structure.candidates, "model_id": "x"},
        candidates="own candidates", model_id="text",
               space="text", budget="count", origin="origin", probs="numbers", layers="mapping")
    yield Call("Structure.jaccard", g.structure.jaccard, {"other": g.structure}, other="own structure")
    yield Call("Structure.retarget", g.structure.retarget, {"space": g.space})
    yield Call("Structure.check", g.structure.check, {"model": g.model})
    yield Call("Structure.to_json", g.structure.to_json, {"path": new})
    yield Call("Structure.from_json", s3pet.Structure.from_json, {"path": g.folder / "structure.json"}, path="file")
    yield Call("Space.without", g.space.without, {"names": g.names[:1]}, names="names", reason="text")
    yield Call("random_structure", s3pet.random_structure, {"space": g.space, "budget": 600})
    yield Call("manual_structure", s3pet.manual_structure, {"space": g.space, "name": "bitfit"},
               space="space or model", name="name")
    yield Call("attach", lambda model, candidates, *, seed=0: s3pet.attach(model, candidates, seed=seed).detach(),
               {"model": g.model, "candidates": g.structure})
    yield Call("detach", s3pet.detach, {"model": g.model}, model="module")
    yield Call("search", s3pet.search, {**parts, "budget": 600, "steps": 1, "batch_size": 4, **quick}, progress="flag",
               more=("steps", "batch_size", "lr", "alpha_lr", "seed", "warmup"), order="name", gradient="name",
               dropout="flag")
    yield Call("load_run", s3pet.load_run, {"path": g.folder / "runs" / "one"}, path="file")
    yield Call("SearchResult.structure", g.result.structure, {})
    yield Call("SearchResult.gates_at", g.result.gates_at, {}, step="whole")
    yield Call("SearchResult.save", g.result.save, {"path": new})
    yield Call("retrain", s3pet.retrain, {**m, "structure": g.structure, **recipe, "out": new}, progress="flag",
               more=trained, dropout="flag", patience="count")
    yield Call("load_tuned", s3pet.load_tuned, {"path": g.folder / "tuned", "model": g.model,
               "tokenizer": g.tokenizer}, path="file", objective="own objective")
    yield Call("TunedModel.predict", g.tuned.predict, {"records": ["w1 w2"]}, records="records", proba="flag")
    yield Call("TunedModel.evaluate", g.tuned.evaluate, {"examples": g.task.test}, examples="examples")
    yield Call("TunedModel.save", g.tuned.save, {"path": new})
    yield Call("average_gates", s3pet.average_gates, {"results": [g.result, g.second]})
    yield Call("retarget_gates", s3pet.retarget_gates, {"result": g.result, "space": g.space})
    yield Call("compare", s3pet.compare, {**m, "structures": {"a": g.structure, "b": "head"}, **recipe, **quick},
               progress="flag", together="count", more=trained[:-1], task="text task")
    yield Call("merge", s3pet.merge, {"tuned": g.tuned})
    yield Call("Merged.save", s3pet.merge(g.tuned).save, {"path": new})
    yield Call("to_peft", s3pet.to_peft, {"tuned": g.tuned, "path": new})
    yield Call("from_peft", s3pet.from_peft, {"path": g.folder / "peft", "model": g.model}, path="file")
    yield Call("from_s3delta", s3pet.from_s3delta, {"path": g.folder / "theirs.txt", "model": g.model}, path="file")
    yield Call("save_folder", save_folder, {"tuned": g.tuned, "path": new})
    yield Call("push_to_hub", lambda tuned, repo_id, *, base=None, private=True: (
        None if repo_id == "a/b" and tuned is g.tuned and base is None and private is True
        else push_to_hub(tuned, repo_id, base=base, private=private)),
        {"tuned": g.tuned, "repo_id": "a/b"}, repo_id="text", private="flag")
    save_structure(g.tuned, g.folder / "registry", "one")
    place = {"source": "folder", "revision": "text", "local_files_only": "flag"}
    one = {"tuned": g.tuned, "path": new, "name": "one"}
    yield Call("save_structure", save_structure, one, name="name of an entry")
    yield Call("list_structures", list_structures, {"source": g.folder / "registry"}, **place)
    yield Call("load_structure", load_structure, {"name": "one", "source": g.folder / "registry"}, **place,
               name="name of an entry", model="fitting model")
    yield Call("save_figure", s3pet.save_figure, {"figure": g.axes, "path": new}, figure="axes or figure",
               formats="formats")
    yield from plot_calls(g)
    yield from method_calls(g, parts, recipe, trained)


def plot_calls(g):
    """Figures, tables of figures and widgets."""
    of_gates, of_scores = {"gates": g.result}, {"table": g.scores}
    yield Call("plot_gates", s3pet.plot_gates, of_gates, cbar="flag")
    yield Call("plot_structure", s3pet.plot_structure, {"structure": g.structure}, structure="gates", space="gates")
    yield Call("describe", s3pet.describe, of_gates)
    yield Call("plots.plot_difference", plots.plot_difference, {"one": g.result, "other": g.second}, one="gates",
               other="gates", names="pair", limit="positive")
    yield Call("plots.plot_gate_panels", plots.plot_gate_panels, {"gates": {"a": g.result}}, gates="panels",
               columns="count")
    yield Call("plots.plot_two", plots.plot_two, {"gates": {"a": g.result, "b": g.second}, "one": "a", "other": "b"},
               gates="panels", one="name", other="name")
    yield Call("plots.plot_cut", plots.plot_cut, of_gates, budget="count", pets="words", candidate="name")
    yield Call("plots.plot_budget_bar", plots.plot_budget_bar, of_gates, budget="count")
    yield Call("plots.plot_profile", plots.plot_profile, of_gates, value="name")
    yield Call("plots.profile_shares", plots.profile_shares, of_gates, value="name")
    yield Call("plots.plot_trajectories", plots.plot_trajectories, {"result": g.result}, value="name")
    yield Call("plots.plot_search", plots.plot_search, {"result": g.result})
    yield Call("plots.search_diagnostics", plots.search_diagnostics, {"result": g.result})
    yield Call("plots.plot_polarisation", plots.plot_polarisation, {"results": {"a": g.result}}, results="panels")
    yield Call("plots.polarisation", plots.polarisation, {"result": g.result}, result="gates")
    yield Call("plots.plot_agreement", plots.plot_agreement, {"pairs": g.pairs}, pairs="table", value="name")
    yield Call("plots.plot_overlap", plots.plot_overlap, {"pairs": g.pairs}, pairs="table", value="name", by="column")
    yield Call("plots.plot_comparison", plots.plot_comparison, of_scores, metric="title")
    yield Call("plots.plot_budget_curve", plots.plot_budget_curve, of_scores, metric="title", full="text")
    yield Call("plots.plot_differences", plots.plot_differences, {"table": g.summary}, p="column", by="column",
               alpha="share", scale="positive")
    yield Call("plots.plot_ranking", plots.plot_ranking, {"table": g.over}, p="column", alpha="share",
               scale="positive")
    yield Call("plots.plot_repeats", plots.plot_repeats, of_scores, metric="title")
    yield Call("plots.plot_transfer", plots.plot_transfer, {"table": g.carried}, relative="flag")
    yield Call("plots.transfer_matrix", plots.transfer_matrix, {"table": g.carried})
    yield Call("plots.summarize_scores", plots.summarize_scores, of_scores, score="column")
    both = {"gates": g.result, "utility": g.utility}
    yield Call("plots.plot_faithfulness", plots.plot_faithfulness, both)
    yield Call("plots.plot_gates_against_utility", plots.plot_gates_against_utility, both, ranks="flag")
    yield Call("plots.plot_utility", plots.plot_utility, {"utility": g.utility})
    yield Call("plots.candidate_facts", plots.candidate_facts, {"gates": g.result, "candidate": g.names[0]},
               candidate="name", chosen_in="mapping")
    yield Call("plots.candidate_names", plots.candidate_names, of_gates)
    yield Call("plots.choice_table", plots.choice_table, {"gates": {"a": g.result}}, gates="panels")
    both = {"results": {"a": g.result, "b": g.second}}
    yield Call("plots.choice_frequency",
               lambda results, *, within=None: plots.choice_frequency(results, within=within), both, within="column")
    yield Call("plots.choice_shares",
               lambda results, *, within=None: plots.choice_shares(results, within=within), both, within="column")
    yield Call("plots.plot_frequency", plots.plot_frequency, {"frequency": plots.choice_frequency(**both, draws=5)},
               frequency="table")
    yield Call("plots.plot_shares", plots.plot_shares, {"shares": plots.choice_shares(**both, draws=5)}, shares="table")
    yield Call("plots.select_rows", plots.select_rows, of_gates, pets="words")
    yield Call("plots.gate_cells", plots.gate_cells, of_gates, how="name", grid="any", space="any")
    yield Call("plots.make_grid", plots.make_grid, {"candidates": g.result.gates}, candidates="table")
    yield Call("plots.figure_style", _styled, {"name": "paper"}, name="name", dark="flag")
    yield Call("plots.value_limits", lambda table, *, value="prob": plots.value_limits(table, value=value),
               {"table": g.result.gates})
    yield Call("plots.plot_gate_lab", plots.plot_gate_lab, {"alpha": [0.0, 1.0], "costs": [10, 20], "budget": 5},
               alpha="alpha", costs="costs", budget="positive", sample_temperature="positive", of="whole")
    yield Call("widgets.explore", widgets.explore, {"runs": g.folder / "runs"}, runs="runs")
    yield Call("widgets.compare", widgets.compare, {"runs": g.folder / "runs"}, runs="runs")
    yield Call("widgets.gate_map", widgets.gate_map, {"source": g.folder / "runs"}, source="gates", seeds="runs",
               space="any")
    yield Call("widgets.save_html", widgets.save_html, {"source": g.folder / "runs", "path": New(g.folder)},
               source="gates")
    yield Call("widgets.ask", widgets.ask, {"text": "Which?", "options": ["a", "b"]}, text="text", options="texts")
    yield Call("widgets.gate_lab", widgets.gate_lab, {}, candidates="pairs")
    yield Call("widgets.watch", lambda search: _watched(search), {"search": list}, search="function")


def method_calls(g, parts, recipe, trained):
    """Settings, gates, studies, statistics, tasks and objectives."""
    names = dict.fromkeys(("order", "gradient"), "name")
    yield Call("Settings", Settings, {}, **names, dropout="flag")
    yield Call("Recipe", Recipe, {}, dropout="flag", patience="count")
    yield Call("ObjectiveSettings", ObjectiveSettings, {}, max_length="least 2", pooling="name", loss="name",
               precision="name", class_weights="name")
    probs, costs = g.result.probs, g.space.costs
    yield Call("gates.solve_shift", solve_shift, {"alpha": probs, "costs": costs, "budget": 600}, alpha="tensor",
               costs="tensor", budget="positive", check="any")
    yield Call("gates.shifted_sigmoid", shifted_sigmoid, {"alpha": probs, "costs": costs, "budget": 600},
               alpha="tensor", costs="tensor", budget="positive", gradient="name", check="any")
    yield Call("structure.select_mask", select_mask, {"probs": probs, "costs": costs, "budget": 600}, probs="tensor",
               costs="tensor", budget="cost", groups="any")
    yield Call("structure.select_structure", select_structure, {"space": g.space, "probs": probs, "budget": 600},
               probs="tensor", origin="origin")
    yield Call("Task.subsample", g.task.subsample, {}, n_train="count", n_validation="count", n_test="count")
    yield Call("Task.search_split", g.task.search_split, {})
    yield Call("Task.score", g.task.score, {"predictions": [0, 1], "labels": [0, 1]}, predictions="numbers",
               labels="numbers")
    yield Call("RowTask", tasks.RowTask, {"name": "x", "train": g.rows[:8], "validation": g.rows[8:12],
               "metrics": {"exact": exact_match}}, name="text", train="splits", validation="splits", test="any",
               metrics="metrics", label="text")
    of_tokens = {"tokenizer": g.tokenizer}
    yield Call("objectives.Generation", objectives.Generation, of_tokens, source="text", target="text",
               max_length="least 2", max_target="least 2")
    yield Call("objectives.MultiLabel", objectives.MultiLabel, of_tokens | {"names": ["a", "b"]}, names="words",
               text="patterns", target="text", max_length="least 2", head="names of parts")
    yield Call("objectives.TokenClassification", objectives.TokenClassification, of_tokens, names="words",
               tokens="text", tags="text", max_length="least 2", head="names of parts")
    yield Call("objectives.ModelLoss", objectives.ModelLoss, {}, prepare="function", padding="mapping",
        head="names of parts")
    yield Call("objectives.make_objective", objectives.make_objective, {"model": g.model, "task": g.task},
               settings="objective", task="text task")
    of_texts = {"task": "text task"}
    two = {"a": g.structure, "b": s3pet.manual_structure(g.space, "lnfit")}
    yield Call("studies.race", studies.race, {"model": g.model, "task": g.task, "proposals": two, **recipe,
        "steps": 4}, **of_texts,
               lrs="rates", rungs="rungs", more=(*trained[:2], *trained[3:-1]))
    yield Call("studies.proposals", studies.proposals, {"source": g.space, "budget": 600}, source="space")
    yield Call("studies.estimate", studies.estimate, {"model": g.model, "space": g.space, "batch": 2, "tokens": 8},
               space="space or structure", batch="count", tokens="count", target_tokens="count", dtype="dtype",
               devices="count", order="name", step_seconds="positive")
    yield Call("studies.probe_inert", studies.probe_inert, parts, **of_texts)
    few = {**parts, "space": s3pet.make_space(g.model, [{"pet": "lora", "roles": ["attn.q"], "layers": [0]}])}
    yield Call("studies.solo_utility", studies.solo_utility, {**few, "inert": [], "steps": 1, "lr_warmup": 0,
               "progress": False}, **of_texts, inert="names", progress="flag", more=("steps", "batch_size"))
    yield Call("studies.drop_utility", studies.drop_utility, {**few, "inert": [], "steps": 1, "lr_warmup": 0,
               "progress": False}, **of_texts, inert="names", progress="flag", more=("steps", "batch_size"))
    yield Call("selectors.sensitivity", sensitivity, {**parts, "batches": 1, "batch_size": 2}, **of_texts,
               score="name")
    yield Call("selectors.sensitive_structure", sensitive_structure, {**parts, "budget": 600, "batches": 1},
               **of_texts, score="name", per_param="flag", more=("batches", "batch_size"))
    yield Call("selectors.depth_structure", depth_structure, {"space": g.space, "budget": 600, "where": "top"},
               where="name")
    yield Call("selectors.covered_structure", covered_structure, {"space": g.space, "budget": 600}, stack="name")
    yield Call("selectors.sampled_structure", sampled_structure, {"result": g.result, "budget": 600})
    yield Call("selectors.useful_structure", useful_structure, {"space": g.space, "utility": g.utility, "budget": 600})
    yield Call("adalora.retrain_adalora", retrain_adalora, {"model": g.model, "task": g.task, "budget": 900,
               "steps": 20, "batch_size": 4, "evaluations": 1}, **of_texts, init_rank="count", alpha="positive",
               regularizer="not negative", progress="flag", more=trained)
    yield Call("transfer.agreement", transfer.agreement, {"results": [g.result, g.second], "draws": 2},
               within="column")
    yield Call("transfer.gate_difference", transfer.gate_difference, {"one": g.result, "other": g.second},
               one="gates", other="gates")
    both = {"gates": g.result, "utility": g.utility}
    yield Call("utility.faithfulness", utility.faithfulness, both)
    yield Call("utility.disagreement", utility.disagreement, both)
    scores = {"table": g.scores, "draws": 5}
    yield Call("statistics.summary", statistics.summary, scores, baseline="baseline")
    yield Call("statistics.over_tasks", statistics.over_tasks, scores, baseline="baseline")
    yield Call("statistics.variance_components", statistics.variance_components, scores, by="columns")
    yield Call("validation.choose_lr", validation.choose_lr, {"table": g.scores}, by="columns")
    yield Call("validation.best_of", validation.best_of, {"table": g.scores, "k": 1})
    yield Call("validation.keep_best", validation.keep_best, {"table": g.scores, "k": 1})
    at = {"structure": g.key, "task": g.bench_task}
    yield Call("Bench.load", studies.Bench.load, {"path_or_name": "minilm"}, path_or_name="file")
    yield Call("Bench.lookup", g.bench.lookup, at, structure="structure or key", task="name")
    yield Call("Bench.choose", g.bench.choose, {}, task="name")
    yield Call("Bench.noise", g.bench.noise, {"task": g.bench_task}, task="name")
    yield Call("Bench.structure", g.bench.structure, {"key": g.key}, key="name")
    yield Call("Bench.predict", g.bench.predict, at, structure="structure or key", task="name", extrapolate="flag",
               model="name")
    yield Call("Bench.judge", g.bench.judge, {"methods": {"a": [g.key]}, "task": g.bench_task}, methods="methods",
               task="name", extrapolate="flag")
    yield Call("Study.load", studies.Study.load, {"path": g.folder / "study.yaml"}, path="file")
    yield Call("Study.only", g.study.only, {}, tasks="names", structures="names")
    yield Call("Study.run", lambda jobs=None, scheduler=None, tasks=("*",), structures=("*",): None if (jobs, scheduler,
        tasks, structures) in ((None, None, ("*",), ("*",)),) and jobs is not True else g.study.run(jobs=jobs,
        scheduler=scheduler, tasks=tasks, structures=structures), {}, scheduler="name", tasks="names",
        structures="names")


def _styled(name="notebook", *, dark=False):
    with plots.figure_style(name, dark=dark):
        pass


def _watched(search):
    return widgets.watch(search) if search is not list else None
