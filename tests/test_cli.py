"""The command line: its options are those of the library, its errors are one line, and it runs every command."""

import argparse
import json
import re
import runpy
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_batch, tiny_t5
from toy import toy_rows, toy_tokenizer
from tuned import structure_of, tuned_at_random

import s3pet
from s3pet import cli
from s3pet.cli import _as_options, main
from s3pet.errors import RunError
from s3pet.objectives import ObjectiveSettings
from s3pet.searcher import Searcher, Settings
from s3pet.studies import demonstration
from s3pet.tuning import Recipe

COMMANDS = ("search", "retrain", "export", "map", "compare", "study", "space", "estimate", "structures", "demo")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder and a task folder, as a user would have them."""
    root = tmp_path_factory.mktemp("cli")
    tiny_t5().save_pretrained(root / "model")
    toy_tokenizer().save_pretrained(root / "model")
    (root / "task").mkdir()
    for split, n, seed in (("train", 80, 1), ("validation", 20, 2), ("test", 20, 3)):
        lines = "".join(json.dumps(row) + "\n" for row in toy_rows(n, seed))
        (root / "task" / f"{split}.jsonl").write_text(lines)
    (root / "task" / "task.json").write_text(json.dumps({"label_words": ["no", "yes"]}))
    return root


@pytest.fixture
def common(folders):
    return ["--model", str(folders / "model"), "--task", str(folders / "task"), "--quiet"]


@pytest.fixture
def called(monkeypatch):
    """What the library's functions are called with; nothing is run."""
    calls = {}

    def record(name):
        def call(*args, **kwargs):
            calls[name] = SimpleNamespace(args=args, kwargs=kwargs)
            raise RunError(f"{name} was called")

        return call

    for name in ("search", "retrain", "compare"):
        monkeypatch.setattr(s3pet, name, record(name))
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_code:
        main([command, "--help"])
    assert exit_code.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: s3pet {command}")


@pytest.mark.parametrize(
    ("command", "record", "skipped"),
    [("search", Settings, set()), ("retrain", Recipe, set()), ("compare", Recipe, {"seed"})],
)
def test_every_setting_is_an_option(command, record, skipped, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capsys.readouterr().out.replace("[", " ").replace("]", " ").split()
    names = {field.name for kind in (record, ObjectiveSettings) for field in fields(kind)}
    assert {f"--{name.replace('_', '-')}" for name in names - skipped} <= set(words)
    assert not {f"--{name}" for name in skipped} & set(words)


def test_only_options_that_were_used_are_passed_on(common, called, tmp_path):
    """So the defaults, and those of --settings paper, are the library's own."""
    run = [*common, "--budget", "300", "--out", str(tmp_path / "run")]
    main(["search", *run])
    kwargs = called["search"].kwargs
    assert (kwargs["settings"], kwargs["objective"], kwargs["budget"]) == ("default", {}, "300")
    assert (kwargs["out"], kwargs["overwrite"], kwargs["progress"]) == (tmp_path / "run", False, False)
    assert not {field.name for field in fields(Settings)} & set(kwargs)
    main(["search", *run, "--settings", "paper", "--steps", "7", "--alpha-lr", "0.5", "--max-length", "40",
          "--pooling", "mean", "--overwrite"])  # fmt: skip
    kwargs = called["search"].kwargs
    assert (kwargs["settings"], kwargs["steps"], kwargs["alpha_lr"], kwargs["overwrite"]) == ("paper", 7, 0.5, True)
    assert kwargs["objective"] == {"max_length": 40, "pooling": "mean"}
    assert {"lr", "warmup", "max_length", "pooling"}.isdisjoint(kwargs)
    main(["retrain", *common, "lnfit", "--lr", "0.01", "--loss", "lm"])
    kwargs = called["retrain"].kwargs
    assert (kwargs["lr"], kwargs["objective"]) == (0.01, {"loss": "lm"})
    assert {"steps", "seed", "settings", "loss"}.isdisjoint(kwargs)


@pytest.mark.parametrize(
    "wrong", [["--steps", "2.5"], ["--settings", "authors"], ["--start-budget", "2"], ["--step", "3"]]
)
def test_unknown_and_unreadable_options_are_refused(common, wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_code:
        main(["search", *common, "--budget", "300", "--out", str(tmp_path / "run"), *wrong])
    assert exit_code.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_search_retrain_and_compare(folders, common, capsys):
    run, quick = folders / "run", ["--steps", "6", "--batch-size", "8"]
    assert main(["search", *common, "--budget", "300", "--out", str(run), "--seed", "3", *quick]) == 0
    loaded = s3pet.load_run(run)
    assert (loaded.config["seed"], loaded.config["budget"]) == (3, 300)
    assert {path.name for path in (run / "figures").iterdir()} == {"gates.png", "gates.pdf"}
    model, tokenizer = s3pet.load_backbone(folders / "model")
    task = s3pet.load_task(folders / "task", tokenizer)
    space = s3pet.make_space(model)
    same = s3pet.search(model, task, space, budget=300, seed=3, steps=6, batch_size=8, progress=False)
    assert same.gates.alpha.tolist() == loaded.gates.alpha.tolist()
    capsys.readouterr()
    assert main(["search", *common, "--budget", "300", "--out", str(run), *quick]) == 2
    assert "--overwrite" in capsys.readouterr().err

    for structure in (str(run), str(run / "structure.json"), "lnfit", "full"):
        assert main(["retrain", *common, structure, *quick]) == 0
        assert "test" in capsys.readouterr().out
    assert main(["retrain", *common, str(run), "--budget", "100", "--out", str(folders / "tuned"), *quick]) == 0
    assert json.loads((folders / "tuned" / "structure.json").read_text())["budget"] == 100

    rows = folders / "rows.jsonl"
    arguments = ["compare", *common, str(run), "--random", "2", "--manual", "lnfit", "--references", "zero-shot"]
    assert main([*arguments, "--out", str(rows), *quick]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("Test accuracy", "searched", "random", "lnfit", "zero-shot"))
    assert len(rows.read_text().splitlines()) == 5


def test_errors_are_one_line(folders, common, capsys):
    out = ["--out", str(folders / "x"), "--steps", "2"]
    for arguments, message in [
        (["search", *common, "--budget", "abc", *out], "is not a number"),
        (["search", *common, "--budget", "0", *out], "must be positive"),
        (["search", *common, "--budget", "99999999", *out], "the backbone has only"),
        (["retrain", *common, "no/such.json"], "no structure file"),
        (["space", "--model", str(folders / "nothing")], "is not a folder"),
        (
            ["search", "--task", str(folders / "no"), "--budget", "300", *out],
            "neither a known name nor a folder or file",
        ),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("s3pet: ")
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["dance"])
    assert not (folders / "x").exists()


def test_a_table_of_the_user_needs_no_folder(folders, called, tmp_path, capsys):
    """Messages name the options as the command line has them."""
    rows = "".join(f"a text,{k},{'good' if k % 2 else 'bad'},{k / 4}\n" for k in range(40))
    (tmp_path / "all.csv").write_text("review,number,stars,grade\n" + rows)
    command = ["retrain", "lnfit", "--model", str(folders / "model"), "--task", str(tmp_path / "all.csv")]
    columns = ["--label-column", "stars", "--text-columns", "review", "number"]
    for options, message in (
        ([], "no column 'label'; columns are ['grade', 'number', 'review', 'stars']. Pass --label-column …\n"),
        (["--label-column", "stars"], "Pass --text-columns …\n"),
        (["--label-column", "grade", "--text-columns", "review"], "pass --regression, or --label-names … if they are"),
        ([*columns, "--label-words", "so", "so"], "words ('so', 'so')"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    chosen = ["--label-names", "bad", "good", "--label-words", "w3", "w4", "--template", "{review} w5 {number}"]
    main([*command, *columns, *chosen, "--metric", "f1", "--n-validation", "5"])
    task = called["retrain"].args[1]
    assert (task.columns, task.label_names, task.metric) == (("review", "number"), ("bad", "good"), "f1")
    assert (task.label_words, task.template) == (("w3", "w4"), "{review} w5 {number}")
    assert (len(task.train), len(task.validation), len(task.test)) == (31, 5, 4)
    main([*command, "--label-column", "grade", "--text-columns", "review", "--regression"])
    assert called["retrain"].args[1].regression


def test_paths_that_look_like_arguments_stay(tmp_path):
    args = argparse.Namespace(metric=None, label_words=None)
    message = "runs/metric=f1 holds one; pass overwrite=True or load_task(…, label_words=…)"
    assert _as_options(message, args) == "runs/metric=f1 holds one; pass --overwrite or --label-words …"


def test_the_space_is_printed(folders, capsys):
    assert main(["space", "--model", str(folders / "model")]) == 0
    printed = capsys.readouterr().out
    assert "encoder.0.attn.q" in printed
    assert "Space('mixed'" in printed


def test_the_demo_replaces_a_finished_run_only_when_told(called, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert called["search"].kwargs == {"budget": "0.05%", "batch_size": 16, "out": tmp_path, "overwrite": False}
    assert "pocket/sentiment" in capsys.readouterr().out
    assert main(["demo", "--out", str(tmp_path), "--overwrite", "--task", "pocket/number"]) == 2
    assert called["search"].kwargs["overwrite"] is True
    assert called["search"].args[1].name == "pocket/number"


def test_an_error_about_a_finished_run_names_the_option_of_the_command_line(folders, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    command = ["search", "--model", str(folders / "model"), "--task", str(folders / "task"), "--budget", "300"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "finished run" in error and "--overwrite" in error and "overwrite=True" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("name", ["config.json", "tuned.json", "notes.txt"])
def test_a_folder_that_holds_something_else_than_a_demo_is_refused(name, more, tmp_path, capsys):
    (tmp_path / name).write_text("{}")
    assert main(["demo", "--out", str(tmp_path), *more]) == 2
    said = capsys.readouterr().err
    assert name in said and "choose another folder: --out" in said
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "{}")]


@pytest.mark.slow
def test_the_demo(monkeypatch, tmp_path, capsys):
    """The whole path, with few steps."""
    load_task, out, record = s3pet.load_task, tmp_path / "demo", Searcher.record
    monkeypatch.setattr(s3pet, "load_task", lambda *args, **kwargs: load_task(*args, **kwargs).subsample(200, 40, 40))
    monkeypatch.setitem(cli.DEMO, "steps", 6)
    monkeypatch.setitem(demonstration.RECIPE, "steps", 2)
    monkeypatch.setitem(demonstration.RECIPE, "lr_warmup", 0)
    monkeypatch.setattr(demonstration, "RUNS", 2)

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Searcher, "record", lambda self: interrupt(self) if self.step == 4 else record(self))
    assert main(["demo", "--out", str(out)]) == 130
    assert "the same command continues" in capsys.readouterr().err and not (out / "config.json").exists()
    steps = []
    monkeypatch.setattr(Searcher, "record", lambda self: steps.append(self.step) or record(self))
    assert main(["demo", "--out", str(out)]) == 0
    assert steps == [4, 5, 6]
    printed = capsys.readouterr().out
    assert len(re.findall(r"^- 0\.\d+% \([\d,]+ parameters\): searched .*, covered .*, so|which", printed, re.M)) == 3
    assert f"are in {tmp_path / 'demo'}." in printed
    files = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"config.json", "gates.parquet", "structure.json", "comparison.csv", "figures"} <= files
    assert {path.stem for path in (tmp_path / "demo" / "figures").iterdir()} == {"gates", "budgets"}  # other rows
    monkeypatch.setattr(s3pet, "search", lambda *args, **kwargs: pytest.fail("the search was finished"))
    monkeypatch.setattr(
        "s3pet.studies.comparison.measure_together", lambda *args, **kwargs: pytest.fail("all rows are there")
    )
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert f"The demo in {out} is complete: it is opened" in capsys.readouterr().out
    assert main(["demo", "--out", str(out), "--task", "pocket/number"]) == 2
    assert "another search (task 'pocket/sentiment' → 'pocket/number', the rows of" in capsys.readouterr().err
    monkeypatch.setitem(cli.DEMO, "steps", 7)
    assert main(["demo", "--out", str(out)]) == 2
    assert "another search (steps 6 → 7)" in capsys.readouterr().err
    monkeypatch.setattr(s3pet, "search", lambda *args, **how: (_ for _ in ()).throw(RunError(f"{how['overwrite']}")))
    assert (out / "comparison.jsonl").exists() and main(["demo", "--out", str(out), "--overwrite"]) == 2
    assert "True" in capsys.readouterr().err and not (out / "comparison.jsonl").exists()


def test_python_m_s3pet(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["s3pet", "--version"])
    with pytest.raises(SystemExit) as exit_code:
        runpy.run_module("s3pet", run_name="__main__")
    assert exit_code.value.code == 0
    assert capsys.readouterr().out == f"s3pet {s3pet.__version__}\n"


def test_a_tuned_model_leaves_without_its_data(folders, tmp_path, capsys):
    model, tokenizer = s3pet.load_backbone(folders / "model")
    task = s3pet.load_task(folders / "task", tokenizer)
    tuned = tuned_at_random(model, structure_of(model, "lora", "lnfit"), task)
    tuned.save(tmp_path / "tuned")
    command = ["export", "merge", str(tmp_path / "tuned"), str(tmp_path / "out"), "--model", str(folders / "model")]
    assert main(command) == 0
    assert "The logits differ by at most" in capsys.readouterr().out
    plain, _ = s3pet.load_backbone(tmp_path / "out")
    batch = tiny_batch(model)
    torch.testing.assert_close(plain(**batch).logits, tuned.model(**batch).logits, rtol=0, atol=1e-3)
    assert main(command) == 2
    assert "holds a model; choose another folder or pass --overwrite" in capsys.readouterr().err
    assert main(["export", "peft", *command[2:]]) == 0
    assert {"adapter_config.json", "model.safetensors"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert s3pet.load_tuned(tmp_path / "tuned", model).predict(["w1 w2"]) == tuned.predict(["w1 w2"])


def test_structures_of_a_registry_are_listed_and_retrained(folders, common, capsys, tmp_path, called):
    assert main(["structures"]) == 0
    listed = capsys.readouterr().out
    assert "number-1351 pocket-t5    pocket/number accuracy      1280 0.9507 0.0093            3 searched" in listed
    assert main(["structures", str(tmp_path)]) == 2
    assert "index.json is not the index of a registry" in capsys.readouterr().err
    assert main(["retrain", "--task", "pocket/number", "number-1351"]) == 2
    assert called["retrain"].args[2] == s3pet.load_structure("number-1351")
    assert main(["retrain", *common, "number-1351"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert main(["retrain", *common, "number-9"]) == 2
    assert "'number-9' is no structure file, no run folder, and none of bitfit" in capsys.readouterr().err


def test_an_estimate_reads_the_config_only(folders, tmp_path, capsys):
    (tmp_path / "config.json").write_text((folders / "model" / "config.json").read_text())
    options = ["--space", "lora", "--batch-size", "5", "--tokens", "8", "--devices", "2", "--dtype", "bfloat16"]
    assert main(["estimate", "--model", str(tmp_path), *options, "--step-seconds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "(bfloat16, sdpa attention), 3 × 8 tokens on each of 2 devices" in shown
    assert f" {len(s3pet.make_space(tiny_t5(), 'lora'))}\n" in shown and shown.endswith(" 4 s\n")
