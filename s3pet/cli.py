"""The command line: ``python -m s3pet search | retrain | export | map | compare | study | space | estimate | structures
| demo``.

Options for settings are made from the library's own records, so that command line and library cannot differ. Rules of a
space are JSON: ``--space '[{"pet": "lora", "ranks": [1, 2, 4, 8]}]'`` searches the rank of each LoRA.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

import s3pet
from s3pet.backbones import backbone_shapes
from s3pet.errors import BackboneError, RunError, S3PetError, SearchError, SpaceError
from s3pet.files.kinds import whole
from s3pet.files.reading import reading
from s3pet.files.states import changed_settings
from s3pet.objectives.processes import is_first, launched, refuse_processes
from s3pet.objectives.texts import ObjectiveSettings
from s3pet.result import read_config, space_hash
from s3pet.searcher import Settings, make_settings
from s3pet.structure import MANUAL, parse_budget
from s3pet.studies import demonstration
from s3pet.studies.costs import FLOATING
from s3pet.studies.report import show, write_figures
from s3pet.studies.statistics import summary
from s3pet.studies.study import Study
from s3pet.tuning import REFERENCES, Recipe

TASK: dict[str, dict[str, Any]] = {  # options of load_task
    "text_columns": {"nargs": "+", "help": "columns with the texts; default: found by their usual names"},
    "label_column": {"help": "column with the labels; default: label"},
    "label_names": {"nargs": "+", "help": "names of the classes"},
    "label_words": {"nargs": "+", "help": "what a text-to-text backbone writes, one word a class"},
    "template": {"help": "text-to-text input with columns in braces"},
    "metric": {"help": "accuracy, f1, f1_macro, matthews, pearson or spearman"},
    "regression": {"action": "store_true", "default": None, "help": "labels are numbers, not classes"},
    "n_train": {"type": int, "help": "use only this many training rows"},
    "n_validation": {"type": int, "help": "use only this many validation rows"},
}
BACKBONE: dict[str, dict[str, Any]] = {  # options of load_backbone
    "device": {"help": "cpu, cuda, cuda:1, or auto: a GPU if there is one; default: cpu, of several processes auto"},
    "dtype": {"help": "type of the weights: float32, bfloat16, float16, float64; default: float32"},
    "attn_implementation": {"help": "sdpa, eager or what else transformers has; default: its own choice"},
    "device_map": {"help": "layers on several devices: auto, or JSON, module → device"},
}
DEMO_BUDGET = "0.05%"
DEMO: dict[str, Any] = {"batch_size": 16}  # settings of its search
DEMO_FILES = ("checkpoint", "figures", "comparison.jsonl", "comparison.csv")  # beside those of a finished search
NAMES = (*MANUAL, "all", *REFERENCES)  # structures that need no file


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; errors of the library are printed in one line, without a traceback."""
    args = _make_parser().parse_args(argv)
    try:
        if args.run not in (_search, _retrain):
            refuse_processes(f"python -m s3pet {args.run.__name__[1:]}")
        args.run(args)
    except S3PetError as error:
        print(f"s3pet: {_as_options(str(error), args)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("s3pet: interrupted; what is saved stays, and the same command continues from there", file=sys.stderr)
        return 130
    return 0


def _as_options(message: str, args: argparse.Namespace) -> str:
    """Arguments in a message of the library as this command takes them: ``label_column=…`` is ``--label-column …``."""
    names = "|".join(["overwrite", *(name for name in TASK if hasattr(args, name))])
    message = re.sub(rf"load_task\(…, ((?:{names})=[^()]*(?:\(…\))?)\)", r"\1", message)

    def option(match: re.Match) -> str:
        value = {"True": "", "(…)": "…"}.get(match[2] or "", match[2] or "")
        return f"--{match[1].replace('_', '-')} {value}".rstrip() + ("" if match[2] else " ")

    return re.sub(rf"(?<![^\s(])({names})=(True|\(…\))?", option, message)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s3pet", description="Search which PET modules to put where in a model.")
    parser.add_argument("--version", action="version", version=f"s3pet {s3pet.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add_task(command: argparse.ArgumentParser) -> None:
        for name, how in TASK.items():
            command.add_argument(f"--{name.replace('_', '-')}", **how)

    def add_backbone(command: argparse.ArgumentParser, options: Sequence[str] = tuple(BACKBONE)) -> None:
        command.add_argument("--model", default="pocket-t5", help="embedded backbone, local folder, or hub id")
        for name, how in ((name, BACKBONE[name]) for name in options):
            command.add_argument(f"--{name.replace('_', '-')}", **how)

    def add(run: Callable[[argparse.Namespace], None], record: Any = None, skip: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(run.__name__[1:], help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        command.set_defaults(run=run)
        if record or run in (_space, _estimate):
            add_backbone(command, ("dtype",) if run is _estimate else tuple(BACKBONE))
            rules = """mixed, lora, or rules as JSON: '[{"pet": "lora", "ranks": [1, 2, 4, 8]}, {"pet": "bitfit"}]'"""
            command.add_argument("--space", default="mixed", help=rules)
        if record:
            command.add_argument(
                "--task", required=True, help="pocket/…, glue/…, superglue/…, a folder or a file of rows"
            )
            command.add_argument("--task-seed", type=int, default=0, help="seed of the splits that are cut from train")
            add_task(command)
            command.add_argument("--quiet", action="store_true", help="no progress bars")
        records = (record, ObjectiveSettings) if record else ()
        for field in (field for each in records for field in fields(each) if field.name != skip):
            name, option = str(field.type).partition(" ")[0], f"--{field.name.replace('_', '-')}"
            how: dict[str, Any] = {"type": {"int": int, "float": float}.get(name, str)}
            how = {"action": argparse.BooleanOptionalAction} if name == "bool" else how
            text = f"default: {'automatic' if field.default is None else field.default}"
            command.add_argument(option, default=argparse.SUPPRESS, help=text, **how)
        return command

    command = add(_search, Settings)
    command.add_argument("--budget", required=True, help='trainable parameters: 2048, 0.0001, "0.01%%" or "1.39‱"')
    command.add_argument("--out", required=True, type=_path, help="run folder; an unfinished run in it is continued")
    command.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    command.add_argument("--settings", choices=("default", "paper"), default="default", help="what the defaults are")
    command = add(_retrain, Recipe)
    command.add_argument("structure", help=f"a file, a run folder, a name of `s3pet structures`, or {', '.join(NAMES)}")
    command.add_argument("--budget", help="of a run folder: select the structure at this budget instead")
    command.add_argument("--out", type=_path, help="folder for the tuned model")
    command = add(_export)
    command.add_argument("kind", choices=("merge", "peft"), help="a plain model, or an adapter of PEFT")
    command.add_argument("tuned", type=_path, help="folder of a tuned model")
    command.add_argument("out", type=_path, help="folder to write")
    add_backbone(command)
    command.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    command = add(_map)
    command.add_argument("runs", nargs="+", type=Path, help="run folders, or folders with runs; several: the mean")
    command.add_argument("out", type=Path, help="file to write, .html")
    command.add_argument("--value", default="", help="what the colour shows at first: prob, alpha, margin, frequency")
    command = add(_compare, Recipe, skip="seed")
    command.add_argument("runs", nargs="+", type=_path, help="run folders, one per search seed")
    command.add_argument("--random", type=int, default=5, help="number of random structures of the same budget")
    command.add_argument("--manual", nargs="*", default=["bitfit", "lnfit", "lora_qv"], help="manual structures")
    command.add_argument("--references", nargs="*", default=["full", "head"], help="full, head, zero-shot")
    command.add_argument("--seeds", type=int, default=1, help="number of retraining seeds")
    command.add_argument("--out", type=_path, help="JSON-lines file; rows that are in it are not computed again")
    command = add(_study)
    command.add_argument("action", choices=("run", "show", "figures"))
    command.add_argument("file", type=_path, help="YAML, see s3pet.studies.study; results are written beside it")
    command.add_argument("--jobs", type=int, help="runs at a time; default: 1, with a scheduler one for each worker")
    command.add_argument("--scheduler", help="run: on the workers of this Dask scheduler, tcp://host:port")
    command.add_argument("--markdown", action="store_true", help="show tables as Markdown")
    command.add_argument("--baseline", help="show: compare with this structure instead of random ones")
    command.add_argument("--tasks", nargs="+", default=["*"], help="only tasks that match these patterns")
    command.add_argument("--structures", nargs="+", default=["*"], help="only structures that match these patterns")
    add(_space)
    command = add(_estimate)
    for name, default in (("batch-size", 32), ("tokens", 128), ("target-tokens", 1), ("devices", 1)):
        command.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    command.add_argument("--order", default="first", help="of the hypergradient: first or unrolled")
    command.add_argument("--step-seconds", type=float, help="of a plain forward and backward pass, if it is known")
    command = add(_structures)
    command.add_argument("source", nargs="?", help="a folder, or owner/name on the hub; default: those of s3pet")
    command = add(_demo)
    command.add_argument("--out", type=_path, default=Path("runs/demo"), help="folder; a demo in it is continued")
    command.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    command.add_argument("--task", default="pocket/sentiment")
    add_task(command)
    return parser


def _path(text: str) -> Path:
    """A path; the empty one would be the folder at hand."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path; the folder at hand is '.'")
    return Path(text)


def _settings(args: argparse.Namespace, record: Any) -> dict[str, Any]:
    """Return the settings that were set on the command line; for the others the defaults of the library hold."""
    names, inner = ({field.name for field in fields(kind)} for kind in (record, ObjectiveSettings))
    used = {name: value for name, value in vars(args).items() if name in names | {"settings"}}
    objective = {name: value for name, value in vars(args).items() if name in inner}
    return used | {"objective": objective, "progress": not args.quiet}


def _load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    model, tokenizer = _load_backbone(args)
    return model, _load_task(args, tokenizer, seed=args.task_seed), s3pet.make_space(model, _rules(args.space))


def _load_backbone(args: argparse.Namespace) -> Any:
    options = {name: getattr(args, name) for name in BACKBONE if getattr(args, name) is not None}
    if options.get("device_map", "").lstrip().startswith("{"):
        options["device_map"] = _json(options["device_map"], "--device-map", "module → device", BackboneError)
    elif launched() and "device_map" not in options:
        options.setdefault("device", "auto")
    return s3pet.load_backbone(args.model, **options)


def _load_task(args: argparse.Namespace, tokenizer: Any, seed: int = 0) -> Any:
    return s3pet.load_task(args.task, tokenizer, seed=seed, **{name: getattr(args, name) for name in TASK})


def _rules(text: str) -> Any:
    """The name of a space, or its rules from JSON."""
    return _json(text, "--space", "a list of rules", SpaceError) if text.lstrip().startswith("[") else text


def _json(text: str, option: str, expected: str, error_class: type[S3PetError]) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise error_class(f"{option} {text} is not JSON ({error}); expected {expected}") from error


def _load_structure(name: str, space: Any, model: Any, budget: str | None = None) -> Any:
    if name in NAMES:
        return name if name in REFERENCES else s3pet.manual_structure(model if name == "adapter" else space, name)
    if Path(name).is_dir():
        return s3pet.load_run(name).structure(budget)
    if not Path(name).is_file():
        if name in (known := [*s3pet.list_structures()["name"]]):
            return s3pet.load_structure(name, model)
        raise RunError(f"{name!r} is no structure file, no run folder, and none of {', '.join([*NAMES, *known])}")
    return s3pet.Structure.from_json(name, model)


def _entries(runs: Sequence[Any], space: Any, model: Any, n_random: int, names: Sequence[str]) -> dict[str, Any]:
    random = [s3pet.random_structure(space, runs[0].budget, seed=seed) for seed in range(n_random)]
    searched = [run.structure() for run in runs]
    return {"searched": searched, "random": random} | {name: _load_structure(name, space, model) for name in names}


def _search(args: argparse.Namespace) -> None:
    """Search a structure and save the run."""
    settings = _settings(args, Settings)
    result = _whole(s3pet.search(*_load(args), budget=args.budget, out=args.out, overwrite=args.overwrite, **settings))
    if not is_first():
        return
    s3pet.save_figure(s3pet.plot_gates(result), args.out / "figures" / "gates")
    print(f"{s3pet.describe(result)}\n{result.structure()}\nThe run is saved in {args.out}.")


def _whole(result: Any) -> Any:
    """A search that was not interrupted; one that was is unfinished, and nothing is made of it."""
    if result.metrics["stopped"] == "interrupted":
        raise KeyboardInterrupt
    return result


def _retrain(args: argparse.Namespace) -> None:
    """Train a structure from fresh modules and evaluate it."""
    model, task, space = _load(args)
    structure = _load_structure(args.structure, space, model, args.budget)
    tuned = s3pet.retrain(model, task, structure, out=args.out, **_settings(args, Recipe))
    if not is_first():
        return
    shown = ("metric", "validation", "test", "n_params", "head_params", "best_step")
    print(*(f"{name:<12} {tuned.metrics[name]}" for name in shown), f"{'cost':<12} {tuned.cost}", sep="\n")


def _structures(args: argparse.Namespace) -> None:
    """List the structures of a registry with their scores."""
    columns = ["name", "model", "task", "metric", "n_params", "score", "error", "retrainings", "method"]
    print(s3pet.list_structures(args.source)[columns].to_string(index=False, float_format="{:.4f}".format, na_rep="–"))


def _export(args: argparse.Namespace) -> None:
    """Write a tuned model as a plain model or as an adapter of PEFT."""
    tuned = s3pet.load_tuned(args.tuned, _load_backbone(args).model)
    if args.kind == "peft":
        s3pet.to_peft(tuned, args.out, overwrite=args.overwrite)
    else:
        merged = s3pet.merge(tuned)
        merged.save(args.out, overwrite=args.overwrite)
        print(f"The logits differ by at most {merged.difference:.2g}.")
    print(f"It is saved in {args.out}.")


def _map(args: argparse.Namespace) -> None:
    """Write the interactive map of a run, or of the mean of several, as one web page."""
    path = s3pet.widgets.save_html(args.runs, args.out, value=args.value)
    print(f"It is saved in {path}: {path.stat().st_size / 1024:,.0f} KB, to be opened in any browser.")


def _compare(args: argparse.Namespace) -> None:
    """Retrain the structures of runs beside random and manual structures."""
    model, task, space = _load(args)
    runs = [s3pet.load_run(path) for path in args.runs]
    structures = _entries(runs, space, model, args.random, [*args.manual, *args.references])
    table = s3pet.compare(model, task, structures, seeds=range(args.seeds), out=args.out, **_settings(args, Recipe))
    _print_summary(table)


def _study(args: argparse.Namespace) -> None:
    """Run, show or draw a grid of runs that is declared in a file."""
    study = Study.load(args.file)
    if args.action == "run":
        study.run(jobs=args.jobs, scheduler=args.scheduler, tasks=args.tasks, structures=args.structures)
    study = study.only(tasks=args.tasks, structures=args.structures)
    if args.action == "figures":
        print(*write_figures(study), sep="\n")
    else:
        print(show(study, baseline=args.baseline, markdown=args.markdown))


def _space(args: argparse.Namespace) -> None:
    """Print the candidates of a backbone."""
    space = s3pet.make_space(_load_backbone(args).model, _rules(args.space), keep_inert=True)
    print(space.table().drop(columns=["d_in", "d_out"]).to_string(), space, sep="\n")


def _estimate(args: argparse.Namespace) -> None:
    """Print what a step of a search costs: parameters, bytes, passes; from the model's config alone."""
    model = backbone_shapes(args.model)
    options = {name: getattr(args, name) for name in ("tokens", "target_tokens", "devices", "order", "step_seconds")}
    whole(1).check(SearchError, batch_size=args.batch_size)
    kind = getattr(torch, args.dtype or "float32", None)
    options |= {"batch": args.batch_size, "dtype": kind if FLOATING.holds(kind) else args.dtype}
    print(s3pet.estimate(model, s3pet.make_space(model, _rules(args.space)), **options))


def _demo(args: argparse.Namespace) -> None:
    """Search a structure on the embedded backbone and compare it with others, in minutes."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    task = _load_task(args, tokenizer)
    space, out = s3pet.make_space(model, "mixed"), args.out
    others = sorted(path.name for path in out.glob("[!.]*")) if out.is_dir() else []
    if finished := "config.json" in others:
        with reading(out / "config.json", hint="It is no run; choose another folder: --out"):
            read_config(out / "config.json")
    if not finished and (others := [name for name in others if name not in DEMO_FILES]):
        raise RunError(f"{out} holds {', '.join(others[:3])}, which no demo wrote; choose another folder: --out")
    print(f"Searching for {task.name} on {space.model_id} ({space.backbone_params:,} parameters) in {space}.")
    if finished and not args.overwrite:
        result = s3pet.load_run(out)
        wanted = asdict(make_settings(**DEMO)) | {"model": space.model_id, "task": task.name, "stopped": None}
        wanted |= {"task_hash": task.fingerprint, "space_hash": space_hash(space)}
        wanted["budget"] = parse_budget(space, DEMO_BUDGET).n_params
        saved = result.config | result.metrics
        if changes := ", ".join(changed_settings({name: saved.get(name) for name in wanted}, wanted)):
            raise RunError(f"{out} holds another search ({changes}); choose another folder, or pass --overwrite")
        state = "The demo in {} is complete" if "comparison.csv" in others else "The search in {} is finished"
        print(f"{state.format(out)}: it is opened, and only what is missing is computed. --overwrite starts over.")
    else:
        if finished:
            (out / "comparison.jsonl").unlink(missing_ok=True)
        how = {**DEMO, "budget": DEMO_BUDGET, "out": out, "overwrite": args.overwrite}
        result = _whole(s3pet.search(model, task, space, **how))
    s3pet.save_figure(s3pet.plot_gates(result), out / "figures" / "gates")
    utility = demonstration.measured_utility(task)
    if utility is not None:
        s3pet.save_figure(s3pet.plots.plot_faithfulness(result, utility)[0], out / "figures" / "utility")
    print(f"Training its structures at {', '.join(demonstration.BUDGETS)} and controls that need no search:")
    table = demonstration.compare_budgets(model, task, space, result, out / "comparison.jsonl")
    table.to_csv(out / "comparison.csv", index=False)
    s3pet.save_figure(s3pet.plots.plot_budget_curve(table, metric=task.metric), out / "figures" / "budgets")
    print(f"\nThe search: {s3pet.describe(result, top=1)}\n\nWhat was found:")
    print(demonstration.findings(result, table, utility))
    print(f"\nThe structure, the gate table, comparison.csv and the figures are in {out}.")


def _print_summary(table: Any) -> None:
    """Print the mean test score of each structure, the best first."""
    columns = ["task", "structure", "kind", "n_params", "head_params", "score", "spread", "runs", "seconds"]
    print(f"\nTest {table['metric'].iloc[0]}: mean and standard deviation (spread) over the runs.")
    columns += ["diverged"] * bool(table["diverged"].any())
    rows = summary(table)[columns].astype({"n_params": int})
    print(rows.to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
