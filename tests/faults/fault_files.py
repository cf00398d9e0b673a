"""Commands with one bad option, and study files with one bad entry (see ``fault_arguments``)."""

import contextlib
import io
from functools import partial

import yaml
from fault_arguments import Case
from fault_calls import ALIASES, New
from fault_kinds import STUDY

from s3pet import studies
from s3pet.cli import main
from s3pet.errors import S3PetError

# fmt: off


def command(*argv):
    """Run a command; exit code 2 is an error of the library, with what was printed."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main([str(part) for part in argv])
        except SystemExit as end:
            code = end.code
    assert "Traceback" not in said.getvalue()
    if code == 2:
        raise S3PetError(said.getvalue())
    assert code == 0, code


def command_cases(g):
    """Commands with one bad option, a missing file, or a folder for a file."""
    f, new = g.folder, New(g.folder)
    at = ["--model", f / "backbone", "--quiet"]
    task = ["--task", f / "rows.jsonl"]
    search = ["search", *at, *task, "--budget", "600", "--steps", "1", "--batch-size", "4"]
    retrain = ["retrain", f / "structure.json", *at, *task, "--steps", "1", "--batch-size", "4"]
    compare = ["compare", f / "runs" / "one", *at, *task, "--steps", "1", "--batch-size", "4", "--random", "1"]
    study = ["study", "show", f / "study.yaml"]
    alone = ["--manual", "--references"]
    for start, options in (
        (search, SEARCHED | TRAINED | {"--task": FILES, "--model": FILES, "--space": RULES, "--out": OUTS}),
        (retrain, TRAINED | {"--task": FILES, "--model": FILES, "--space": RULES, "--patience": NUMBERS}),
        ([*compare, *alone], TRAINED | {"--random": ["x", "-1", "1.5"], "--seeds": ["x", "0", "-1"], "--seed": ["0"]}),
        (compare, {"--manual": ["nonsense"], "--references": ["nonsense"], "--out": [f]}),
        (study, {"--baseline": ["nonsense"], "--tasks": ["nonsense"], "--structures": ["nonsense"], "--jobs": ["x"]}),
        (["study", "run", f / "study.yaml"], {"--jobs": ["0", "-1"], "--tasks": ["nonsense"]}),
        (["space", "--model", f / "backbone"], {"--space": RULES}),
        (["space"], {"--model": FILES}),
        (["estimate", "--model", f / "backbone"], {"--space": RULES, "--batch-size": ["x", "0", "-1", "1.5"],
            "--tokens": ["x", "0"], "--devices": ["0"], "--dtype": ["nonsense", "int8"], "--order": ["nonsense"],
            "--step-seconds": ["x", "0", "nan"]}),
        (["estimate"], {"--model": FILES}),
        (["demo", "--task", f / "rows.jsonl"], {"--n-train": NUMBERS, "--out": [f / "rows.jsonl"]}),
    ):
        for option, values in options.items():
            for value in values:
                extra = ["--out", new()] if "search" in start[:1] and option != "--out" else []
                argv = [*start, *extra, option, f / "rows.jsonl" if value == "FILE" else value]
                says = "|".join(filter(None, [option.strip("-").replace("-", "_"), ALIASES.get(option.strip("-")),
                    OPTION]))
                yield Case(f"cli.{start[0]} {option}", option, str(value), partial(command, *argv), says)
    for name, value, *argv in (
        ("structure", "nowhere.json", "retrain", "nowhere.json", *at, *task),
        ("structure", f, "retrain", f, *at, *task),
        ("structure", f / "rows.jsonl", "retrain", f / "rows.jsonl", *at, *task),
        ("runs", "nowhere", "compare", "nowhere", *at, *task),
        ("runs", f / "rows.jsonl", "compare", f / "rows.jsonl", *at, *task),
        ("tuned", "nowhere", "export", "merge", "nowhere", new(), "--model", f / "backbone"),
        ("tuned", f / "rows.jsonl", "export", "merge", f / "rows.jsonl", new(), "--model", f / "backbone"),
        ("kind", "zip", "export", "zip", f / "tuned", new()),
        ("out", f / "rows.jsonl", "export", "merge", f / "tuned", f / "rows.jsonl", "--model", f / "backbone"),
        ("file", "nowhere.yaml", "study", "show", "nowhere.yaml"),
        ("file", f, "study", "show", f),
        ("file", f / "rows.jsonl", "study", "show", f / "rows.jsonl"),
        ("action", "draw", "study", "draw", f / "study.yaml"),
        ("command", "nonsense", "nonsense"),
    ):
        yield Case(f"cli.{argv[0]} {name}", name, str(value), partial(command, *argv), PLACE)


OPTION = "unrecognized|file|folder|rows?|backbone|space|task|alpha_lr|column|name|rule|PET module|cannot be|structure"
PLACE = "command|invalid choice|file|run folder|tuned|structure|holds no|cannot be|needs an ending|is not"
NUMBERS = ["x", "0", "-1", "1.5", "nan"]
FILES = ["nowhere", "", "FILE.txt"]
RULES = ["nonsense", "[", "[5]", "[{}]", '[{"pet": "nonsense"}]', "5", "{}", ""]
OUTS = ["FILE", ""]
TRAINED = {"--steps": NUMBERS, "--batch-size": NUMBERS, "--lr": ["x", "0", "-1", "nan", "inf"], "--seed": ["x", "-1",
    "1.5"]}
TRAINED |= {"--n-train": ["x", "0", "1.5"], "--metric": ["nonsense"], "--loss": ["nonsense"], "--max-length": ["1",
    "x"]}
TRAINED |= {"--label-column": ["nonsense"], "--text-columns": ["nonsense"], "--nonsense": ["1"]}
SEARCHED = {"--budget": ["0,1%", "lots", "0", "-1", "nan", "200%", ""], "--settings": ["nonsense"],
    "--order": ["nonsense"]}


# --- study files ------------------------------------------------------------------------------------------------------


def study_cases(g):
    """A study file with one entry changed; the path of the entry, and what it becomes."""
    for number, (path, values) in enumerate(ENTRIES.items()):
        for k, value in enumerate(values):
            declared = yaml.safe_load(STUDY)
            place, (*parents, last) = declared, path.split("/")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
            file = g.folder / f"study-{number}-{k}.yaml"
            file.write_text(yaml.safe_dump(declared))
            yield Case(f"study file.{path}", last, value, partial(studies.Study.load, file),
                parents[-1] if parents else "")


WHOLE, RATES = ["3", 2.5, True, 0, -1, None, [3]], ["1e-3", True, 0, -1, None, [], ["1e-3"], [True], [0], [1e-3, 1e-3]]
NAMES = [5, None, [], "nonsense"]
ENTRIES = {
    "seeds": WHOLE, "backbone": [5, None, [], ""], "tasks": [5, None, [], "one", {}], "structures": [5, None, [], {}],
    "budgets": [5, None, "0.05%", ["0,1%"], [True], [None], [[600]], [-1], ["lots"], ["0.05%", "0.05%"], []],
    "unknown": [5], "space": ["nonsense", 5, None, [], [5], [{"pet": "nonsense"}], [{"pet": "lora", "rank": 1}]],
    "tasks/one": [5, None, [], {}, {"path": 5}, {"n_train": 4}, ""], "tasks/..": ["pocket/number"],
    "tasks/.hidden": ["pocket/number"],
    "tasks/one/n_train": ["40", True, 2.5, -1, None], "tasks/one/unknown": [1], "tasks/one/label_words": ["ab", 5],
    "tasks/one/regression": ["no", 5], "tasks/one/metric": ["nonsense", 5], "tasks/one/seed": [-1, "0", 1.5],
    "objective/max_length": ["64", 1, True, None], "objective/unknown": [1], "objective": [5, None, [], "lm"],
    "objective/loss": NAMES, "retrain": [5, None, []], "retrain/seed": [1], "retrain/lr": [1e-3],
    "retrain/unknown": [1],
    "retrain/steps": WHOLE, "retrain/vector_lr": ["1", 0, True], "retrain/dropout": ["no", 1],
    "recipes": [5, None, {"three": {}}], "recipes/one": [5, None, {"seed": 1}, {"steps": "9"}, {"unknown": 1}],
    "lr": [5, None, 1e-3], "lr/pet": RATES, "lr/nonsense": [[1e-3]],
    "searches": [5, None, []], "searches/ours": [5, None, [], {}, {"steps": 30}], "searches/ours/steps": WHOLE,
    "searches/ours/budget": ["0,1%", None, True, -1, [600], "lots"], "searches/ours/seed": [1],
    "searches/ours/settings": NAMES, "searches/ours/unknown": [1], "searches/ours/order": NAMES,
    "search": [5, None, {"unknown": 1}, {"steps": "9"}, {"seed": 1}], "searches/..": [{"budget": 300}],
    "structures/random": [5, None, {}], "structures/random/kind": NAMES, "structures/random/seeds": WHOLE,
    "structures/random/repeats": WHOLE, "structures/random/unknown": [1], "structures/full/repeats": [2],
    "structures/random/budgets": [5, "0.05%", ["0,1%"], [], None, [True]], "structures/searched/search": NAMES,
    "structures/new": [
        {"kind": "manual", "name": "nonsense"}, {"kind": "manual", "name": 5}, {"kind": "reference",
            "name": "nonsense"},
        {"kind": "rules"}, {"kind": "rules", "rules": 5}, {"kind": "rules", "rules": [{"pet": "nonsense"}]},
        {"kind": "heuristic"}, {"kind": "heuristic", "where": "nonsense"}, {"kind": "sensitivity",
            "score": "nonsense"},
        {"kind": "sensitivity", "per_param": "no"}, {"kind": "sensitivity", "batches": 0},
        {"kind": "adalora", "alpha": "x"}, {"kind": "adalora", "init_rank": 0}, {"kind": "average", "search": "ours"},
        {"kind": "average", "search": "ours", "over": "tasks"}, {"kind": "transfer", "search": "ours", "sources": 5},
        {"kind": "transfer", "search": "ours", "sources": ["three"]}, {"kind": "transfer"},
    ],
}  # fmt: skip
