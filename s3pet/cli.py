"""The command line: ``python -m s3pet search | retrain | compare | study | space | demo``.

Each command is one call of the library with its arguments spelt out; what it writes, the library reads back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import s3pet
from s3pet.errors import S3PetError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of the library are printed in one line, without a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except S3PetError as error:
        print(f"s3pet: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    from s3pet.settings import Settings
    from s3pet.structure import MANUAL
    from s3pet.tuning import REFERENCES, Recipe

    parser = argparse.ArgumentParser(prog="s3pet", description="Which PET modules where, found by search.")
    parser.add_argument("--version", action="version", version=f"s3pet {s3pet.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    made = commands.add_parser("search", help="search a structure and save the run")
    _add_common(made)
    made.add_argument("--budget", required=True, help='2048, 0.0001, "0.01%%" or "1.39‱"')
    made.add_argument("--out", required=True, type=Path, help="run folder to make (or go on with)")
    made.add_argument("--overwrite", action="store_true", help="replace a finished run")
    _add_fields(made, Settings)
    made.set_defaults(run=_search)

    made = commands.add_parser("retrain", help="train a structure from fresh and evaluate it")
    _add_common(made)
    made.add_argument(
        "structure", help=f"structure.json, a run folder, or one of {', '.join([*MANUAL, 'all', *REFERENCES])}"
    )
    made.add_argument("--budget", help="cut a run's search at this budget instead")
    made.add_argument("--out", type=Path, help="folder to save the tuned model to")
    _add_fields(made, Recipe)
    made.set_defaults(run=_retrain)

    made = commands.add_parser("compare", help="retrain a run's structure beside random and manual ones")
    _add_common(made)
    made.add_argument("runs", nargs="+", type=Path, help="run folders, one per search seed")
    made.add_argument("--random", type=int, default=5, help="random structures of the same budget")
    made.add_argument("--manual", nargs="*", default=["bitfit", "lnfit", "lora_qv"], help="manual structures")
    made.add_argument("--references", nargs="*", default=["full", "head"], help="full, head, zero-shot")
    made.add_argument("--seeds", type=int, default=1, help="retraining seeds")
    made.add_argument("--out", type=Path, help="JSON-lines file of rows; finished rows are not computed again")
    _add_fields(made, Recipe, skip=("seed",))
    made.set_defaults(run=_compare)

    made = commands.add_parser("study", help="run, show or draw a grid of runs declared in a file")
    made.add_argument("action", choices=("run", "show", "figures"))
    made.add_argument("file", type=Path, help="YAML, see s3pet.studies.study; rows, table and figures go beside it")
    made.add_argument("--jobs", type=int, default=1, help="processes")
    made.add_argument("--markdown", action="store_true", help="show tables as Markdown")
    made.add_argument("--baseline", help="show: compare with this structure instead of random ones")
    made.add_argument("--tasks", nargs="+", default=["*"], help="only these (patterns of names)")
    made.add_argument("--structures", nargs="+", default=["*"], help="only these (patterns of names)")
    made.set_defaults(run=_study)

    made = commands.add_parser("space", help="print the candidates of a backbone")
    made.add_argument("--model", default="pocket-t5")
    made.add_argument("--space", default="mixed")
    made.set_defaults(run=_space)

    made = commands.add_parser("demo", help="the whole path on the embedded backbone, in minutes")
    made.add_argument("--out", type=Path, default=Path("runs/demo"))
    made.add_argument("--task", default="pocket/sentiment")
    made.set_defaults(run=lambda a: _demo(a.task, a.out))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="pocket-t5", help="embedded name, local folder, or hub id")
    parser.add_argument("--task", required=True, help="pocket/…, glue/…, superglue/…, or a folder of jsonl/csv")
    parser.add_argument("--space", default="mixed", help="mixed or lora")
    parser.add_argument("--n-train", type=int, help="use only so many training rows")
    parser.add_argument("--task-seed", type=int, default=0, help="of the splits cut from train")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_fields(parser: argparse.ArgumentParser, settings: Any, skip: tuple[str, ...] = ()) -> None:
    """One option per field of a settings dataclass, so that the command line can never lag behind the library."""
    kinds = {"int": int, "float": float, "str": str}
    for field in fields(settings):
        if field.name not in skip:
            kind = kinds[str(field.type).split(" |")[0]]
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=f"default {field.default}"
            )


def _load(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    model, tokenizer = s3pet.load_backbone(arguments.model)
    task = s3pet.load_task(arguments.task, tokenizer, n_train=arguments.n_train, seed=arguments.task_seed)
    return model, task, s3pet.make_space(model, arguments.space)


def _options(arguments: argparse.Namespace, settings: Any) -> dict[str, Any]:
    return {f.name: getattr(arguments, f.name) for f in fields(settings) if hasattr(arguments, f.name)}


def _search(arguments: argparse.Namespace) -> None:
    from s3pet.settings import Settings

    model, task, space = _load(arguments)
    options = {**_options(arguments, Settings), "out": arguments.out, "overwrite": arguments.overwrite}
    result = s3pet.search(model, task, space, budget=arguments.budget, progress=not arguments.quiet, **options)
    _figures(result)
    print(s3pet.describe(result))
    print(f"{result.structure()}\nsaved in {arguments.out}")


def _structure(given: str, space: Any, model: Any, budget: str | None) -> Any:
    from s3pet.structure import MANUAL
    from s3pet.tuning import REFERENCES

    if given in REFERENCES:
        return given
    if given in MANUAL or given == "all":
        return s3pet.manual_structure(model if given == "adapter" else space, given)
    path = Path(given)
    if path.is_dir():
        return s3pet.load_run(path).structure(budget)
    if not path.is_file():
        known = ", ".join([*MANUAL, "all", *REFERENCES])
        raise s3pet.errors.RunError(f"{given!r} is no structure file, no run folder, and none of {known}")
    return s3pet.Structure.from_json(path, model)


def _retrain(arguments: argparse.Namespace) -> None:
    from s3pet.tuning import Recipe

    model, task, space = _load(arguments)
    structure = _structure(arguments.structure, space, model, arguments.budget)
    options = {**_options(arguments, Recipe), "out": arguments.out, "progress": not arguments.quiet}
    tuned = s3pet.retrain(model, task, structure, **options)
    shown = ("metric", "validation", "test", "n_params", "head_params", "best_step")
    print("\n".join(f"{name:<12} {tuned.metrics[name]}" for name in shown), f"{'cost':<12} {tuned.cost}", sep="\n")


def _compare(arguments: argparse.Namespace) -> None:
    from s3pet.tuning import Recipe

    model, task, space = _load(arguments)
    runs = [s3pet.load_run(path) for path in arguments.runs]
    structures: dict[str, Any] = {"searched": [run.structure() for run in runs]}
    count = range(arguments.random)
    structures["random"] = [s3pet.random_structure(space, runs[0].budget, seed=seed) for seed in count]
    structures |= {name: _structure(name, space, model, None) for name in arguments.manual + arguments.references}
    structures = {name: entries for name, entries in structures.items() if entries}
    options = {**_options(arguments, Recipe), "out": arguments.out, "progress": not arguments.quiet}
    table = s3pet.compare(model, task, structures, seeds=range(arguments.seeds), **options)
    print_summary(table)


def _study(arguments: argparse.Namespace) -> None:
    from s3pet.studies.report import show, write_figures
    from s3pet.studies.study import Study

    study = Study.load(arguments.file)
    if arguments.action == "run":
        study.run(jobs=arguments.jobs, tasks=arguments.tasks, structures=arguments.structures)
    study = study.only(tasks=arguments.tasks, structures=arguments.structures)
    if arguments.action == "figures":
        print("\n".join(map(str, write_figures(study))))
    else:
        print(show(study, baseline=arguments.baseline, markdown=arguments.markdown))


def _space(arguments: argparse.Namespace) -> None:
    model, _ = s3pet.load_backbone(arguments.model)
    space = s3pet.make_space(model, arguments.space, keep_inert=True)
    print(space.table().drop(columns=["d_in", "d_out"]).to_string())
    print(space)


def _figures(result: Any) -> None:
    assert result.path is not None
    s3pet.save_figure(s3pet.plot_gates(result), result.path / "figures" / "gates")


def _demo(task_name: str, out: Path) -> None:
    """Search at 0.05 % of the pocket backbone and compare; the whole path once through."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    task = s3pet.load_task(task_name, tokenizer)
    space = s3pet.make_space(model, "mixed")
    print(f"{task_name} on {space.model_id} ({space.backbone_params:,} parameters), {space}")
    result = s3pet.search(model, task, space, budget="0.05%", steps=200, batch_size=16, out=out, overwrite=True)
    _figures(result)
    structures: dict[str, Any] = {"searched": result.structure()}
    structures["random"] = [s3pet.random_structure(space, result.budget, seed=seed) for seed in range(5)]
    structures |= {name: s3pet.manual_structure(space, name) for name in ("bitfit", "lnfit", "lora_qv", "all")}
    structures |= {"full": "full", "zero-shot": "zero-shot"}
    table = s3pet.compare(model, task, structures, steps=300, batch_size=16, evaluations=5)
    table.to_csv(out / "comparison.csv", index=False)
    s3pet.save_figure(s3pet.plots.plot_comparison(table), out / "figures" / "comparison")
    s3pet.save_figure(s3pet.plot_structure(result.structure()), out / "figures" / "structure")
    print_summary(table)
    print(s3pet.describe(result))
    print(f"structure, gate table and figures are in {out}")


def print_summary(table: Any) -> None:
    """Print a comparison as people read it: best first, with the spread over runs."""
    from s3pet.studies.statistics import summary

    shown = ["task", "structure", "kind", "n_params", "head_params", "score", "spread", "runs", "seconds"]
    found = summary(table)[shown]
    found["n_params"] = found["n_params"].map("{:,.0f}".format)
    formats = {"score": "{:.3f}".format, "spread": "{:.3f}".format, "seconds": "{:.1f}".format}
    metric = table["metric"].iloc[0]
    print(f"\ntest {metric} (mean and standard deviation over runs)")
    print(found.to_string(index=False, formatters=formats, na_rep="–"))
