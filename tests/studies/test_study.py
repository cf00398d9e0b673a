"""Studies: a grid declared in a file, run row by row, resumed, shown and drawn."""

import json

import pandas as pd
import pytest
import torch
import yaml
from tiny import tiny_t5
from toy import toy_rows, toy_tokenizer

import s3pet
from s3pet.cli import main
from s3pet.errors import DivergedError, StudyError
from s3pet.records import recorded
from s3pet.studies import jobs
from s3pet.studies.comparison import row_key
from s3pet.studies.report import agreement_table, drop_table, random_baselines, summarize
from s3pet.studies.statistics import variance_components
from s3pet.studies.study import Study
from s3pet.transfer import agreement
from s3pet.tuning import Recipe

OBJECTIVE = {"max_length": 40, "loss": "lm"}
DECLARED = {
    "backbone": "${TOY}/model",
    "tasks": {"one": {"path": "${TOY}/task1", "label_words": ["no", "yes"]}, "two": "${TOY}/task2"},
    "budgets": [300],
    "seeds": 2,
    "objective": OBJECTIVE,
    "retrain": {"steps": 4, "batch_size": 8, "evaluations": 1},
    "lr": {"pet": [1e-3, 3e-3], "full": [5e-4], "wide": [2e-3, 6e-3]},
    "search": {"steps": 3, "batch_size": 8},
    "searches": {"ours": {"budget": 300, "warmup": 0}},
    "structures": {
        "full": {"kind": "reference"},
        "lnfit": {"kind": "manual"},
        "wide": {"kind": "rules", "rules": [{"pet": "lora", "roles": ["attn.[qv]"], "ranks": [2]}]},
        "random": {"kind": "random", "seeds": 3, "repeats": 2},
        "top": {"kind": "heuristic", "where": "top"},
        "fisher": {"kind": "sensitivity", "score": "fisher", "batches": 1},
        "searched": {"kind": "searched", "search": "ours"},
        "carried": {"kind": "transfer", "search": "ours"},
        "mean": {"kind": "average", "search": "ours", "over": "seeds"},
        "others": {"kind": "average", "search": "ours", "over": "others"},
    },
}
FEW = {"lnfit": {"kind": "manual"}, "random": {"kind": "random"}}
SEEDED = {"random", "fisher", "searched", "carried", "others"}  # kinds with a structure for every seed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("study"))


def write_toys(root):
    """A backbone and two tasks."""
    tiny_t5().save_pretrained(root / "model")
    toy_tokenizer().save_pretrained(root / "model")
    for task, shift in (("task1", 0), ("task2", 10)):
        write_task(root / task, shift)
    return root


def write_task(folder, shift):
    folder.mkdir(exist_ok=True)
    for split, n, seed in (("train", 80, 1), ("validation", 20, 2), ("test", 20, 3)):
        lines = "".join(json.dumps(row) + "\n" for row in toy_rows(n, seed + shift))
        (folder / f"{split}.jsonl").write_text(lines)
    (folder / "task.json").write_text(json.dumps({"label_words": ["no", "yes"]}))


def declare(path, **changes):
    content = {**DECLARED, **changes}
    if "wide" not in content["structures"]:  # rates of a structure that is not declared would be an error
        content["lr"] = {name: rates for name, rates in content["lr"].items() if name != "wide"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def counted(monkeypatch, name):
    """Calls of a function of `jobs`, as they are made."""
    calls, real = [], getattr(jobs, name)

    def count(*arguments, **options):
        calls.append(options)
        return real(*arguments, **options)

    monkeypatch.setattr(jobs, name, count)
    return calls


@pytest.fixture(scope="module")
def finished(root):
    """A study of every kind of structure, run by two processes."""
    path = declare(root / "grid.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY", str(root))
        study = Study.load(path)
        study.run(jobs=2)
    return study


def test_every_declared_row_is_there_once(finished):
    table = finished.table()
    again = table["entry"].eq("random") & table["seed"].ne(table["index"])
    pairs = table[again].groupby("task")[["index", "seed"]].apply(lambda rows: sorted(map(tuple, rows.values)))
    assert pairs.tolist() == [[(0, 1), (1, 2), (2, 3)]] * 2  # each once more
    table = table[~again]
    first = table[table["seed"] == 0]
    assert table["key"].is_unique
    assert first.groupby(["task", "structure"])["lr"].apply(sorted).map(tuple).to_dict() == {
        (task, name): {"full": (5e-4,), "wide": (2e-3, 6e-3)}.get(name, (1e-3, 3e-3))
        for task in ("one", "two")
        for name in (
            "full", "lnfit", "wide", "random 300", "top 300", "fisher 300", "searched 300",
            f"carried 300 from {'two' if task == 'one' else 'one'}", "mean 300 over seeds", "others 300 over others",
        )
    }  # fmt: skip
    assert table.groupby("structure")["seed"].max()["random 300"] == 2
    saved = pd.read_parquet(finished.path / "rows.parquet")
    pd.testing.assert_frame_equal(saved, finished.chosen(repeats=True))
    assert (table.loc[table["kind"].eq("searched"), "search_rows"] == 3 * 16).all()
    assert table["budget"].dropna().eq(300).all() and table.loc[table["budget"].notna(), "n_params"].le(300).all()
    assert saved["structure"].unique().tolist()[:4] == ["full", "lnfit", "wide", "random 300"]  # as declared


def test_every_structure_runs_at_the_rate_that_validation_chose_for_it(finished):
    table, chosen = finished.table(), finished.chosen()
    for (task, name, index), rows in table.groupby(["task", "structure", "index"]):
        first = rows[rows["seed"] == (index if name.split()[0] in SEEDED else 0)].sort_values("lr")
        assert len(first) == (1 if name == "full" else 2), name
        best = first.loc[first["validation"].idxmax(), "lr"]
        kept = chosen[chosen["task"].eq(task) & chosen["structure"].eq(name) & chosen["index"].eq(index)]
        assert kept["lr"].eq(best).all() and len(kept) == (1 if name.split()[0] in SEEDED else 2), name
    assert len(chosen) == 2 * (9 * 2 + 3)
    assert not chosen.duplicated(["task", "structure", "index", "seed"]).any() and not chosen["repeat"].any()
    whole = finished.chosen(repeats=True)
    assert len(whole) == len(chosen) + 2 * 3 and whole["repeat"].sum() == 2 * 3
    assert whole[whole["entry"].eq("random")].groupby(["task", "index"])["lr"].nunique().eq(1).all()


def test_a_row_is_what_the_library_gives(finished, root):
    model, tokenizer = s3pet.load_backbone(root / "model")
    task = s3pet.load_task(root / "task2", tokenizer)
    space = s3pet.make_space(model)
    rows = finished.chosen().query("task == 'two' and seed == 1").set_index("structure")
    settings = {**DECLARED["search"], **DECLARED["searches"]["ours"], "objective": OBJECTIVE}
    result = s3pet.search(model, task, space, seed=1, progress=False, **settings)

    def same(row, structure, seed=1):
        options = {**DECLARED["retrain"], "objective": OBJECTIVE, "seed": seed, "lr": row["lr"]}
        tuned = s3pet.retrain(model, task, structure, **options)
        assert (tuned.metrics["test"], tuned.metrics["validation"]) == (row["score"], row["validation"])
        assert structure.n_params == row["n_params"]

    same(rows.loc["searched 300"], result.structure())
    same(rows.loc["lnfit"], s3pet.manual_structure(space, "lnfit"))
    drawn = s3pet.random_structure(space, 300, seed=1)
    same(rows.loc["random 300"], drawn)
    query = "task == 'two' and entry == 'random' and index == 1 and repeat"
    again = finished.chosen(repeats=True).query(query).iloc[0]
    same(again, drawn, seed=2)  # the same structure, another retraining
    assert again["lr"] == rows.loc["random 300", "lr"]
    options = {"score": "fisher", "batches": 1, "batch_size": 8, "seed": 1, "objective": OBJECTIVE}
    same(rows.loc["fisher 300"], jobs.sensitive_structure(model, task, space, 300, **options))
    both = [s3pet.load_run(finished.folder("two", "ours", seed)) for seed in (0, 1)]
    same(rows.loc["mean 300 over seeds"], s3pet.average_gates(both).structure())
    assert rows.loc["mean 300 over seeds", "search_rows"] == 2 * 3 * 16
    other = s3pet.load_run(finished.folder("one", "ours", 1)).structure(300)
    assert rows.loc["carried 300 from one", "n_params"] == other.n_params
    folder = finished.folder("two", "ours", 1)
    assert not (folder / "checkpoint").exists() and s3pet.load_run(folder).structure().names == result.structure().names


def test_the_objective_reaches_searches_retrainings_and_baselines(finished, root, monkeypatch):
    monkeypatch.setenv("TOY", str(root))
    objective = {"precision": "bfloat16"}
    study = Study.load(declare(root / "objective.yaml", objective=objective, seeds=1))
    calls = {name: counted(monkeypatch, name) for name in ("retrain", "sensitive_structure", "search_structure")}
    study.run(tasks=["one"], structures=["searched", "fisher"])
    for name, options in calls.items():
        assert options and all(each["objective"] == objective for each in options), name
    noted = json.loads((study.path / "facts.json").read_text())["objective"]
    assert noted == {"max_length": 128, "pooling": None, "loss": "choice", "precision": "bfloat16"}


def test_a_study_goes_on_where_it_was_cut_off_and_may_grow(root, monkeypatch):
    monkeypatch.setenv("TOY", str(root))
    study = Study.load(declare(root / "cut.yaml", structures=FEW))
    real, done = jobs.retrain, []

    def breaks(*args, **options):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **options)

    monkeypatch.setattr(jobs, "retrain", breaks)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    assert len(study.table()) == 5
    rows = study.path / "rows.jsonl"
    rows.write_text(rows.read_text()[:-20])  # the machine went down while a row was written
    monkeypatch.setattr(jobs, "retrain", lambda *a, **k: done.append(1) or real(*a, **k))
    with pytest.warns(UserWarning, match="last line is unfinished"):
        whole = study.run()
    assert len(done) - 1 == len(whole) == 2 * (2 + 1) + 2 * 2 * 2  # tasks × (rates of seed 0 + the other), × seeds
    grown = Study.load(declare(root / "cut.yaml", structures=FEW | {"full": {"kind": "reference"}}))
    assert len(grown.run(tasks=["o*"], structures=["full"])) == len(whole) + 2
    renamed = Study.load(declare(root / "cut.yaml", structures={"norms": {"kind": "manual", "name": "lnfit"}}))
    before = len(done)
    assert set(renamed.run().loc[:, "entry"]) >= {"lnfit"} and len(done) == before
    assert set(renamed.chosen()["structure"]) == {"norms"}  # rows have the names of now
    changed = Study.load(declare(root / "cut.yaml", structures=FEW, retrain={"steps": 5, "batch_size": 8}))
    assert len(changed.chosen()) == 0  # rows of another recipe are not mixed in
    longer = Study.load(declare(root / "cut.yaml", structures=FEW, recipes={"two": {"steps": 6}}))
    assert set(longer.chosen()["task"]) == {"one"}
    row = longer.run(tasks=["two"], structures=["lnfit"]).query("task == 'two'").iloc[-1]
    assert row["passes"] == 6


def test_changed_data_or_another_backbone_give_other_rows(tmp_path, monkeypatch):
    for name, seed in (("model", 0), ("other", 1)):
        tiny_t5(seed=seed).save_pretrained(tmp_path / name)
        toy_tokenizer().save_pretrained(tmp_path / name)
    write_task(tmp_path / "task1", 0)
    write_task(tmp_path / "task2", 10)
    monkeypatch.setenv("TOY", str(tmp_path))
    few = {"lnfit": {"kind": "manual"}, "searched": {"kind": "searched", "search": "ours"}}
    study = Study.load(declare(tmp_path / "s.yaml", structures=few, seeds=1))
    searches, retrainings = counted(monkeypatch, "search_structure"), counted(monkeypatch, "retrain")
    study.run()
    assert (len(searches), len(retrainings)) == (2, 8)
    assert len(Study.load(study.path.with_suffix(".yaml")).chosen()) == 4  # from facts.json, without opening anything
    write_task(tmp_path / "task1", 5)
    clear_caches()
    with pytest.warns(UserWarning, match="seed0 is searched again: other settings .the rows of the task.$"):
        study.run()
    assert (len(searches), len(retrainings)) == (3, 12)  # of one task
    other = Study.load(declare(tmp_path / "s.yaml", structures=few, seeds=1, backbone="${TOY}/other"))
    assert len(other.chosen()) == 0  # it was never opened
    clear_caches()
    with pytest.warns(UserWarning, match="is searched again: other settings .the weights of the backbone"):
        other.run()
    assert (len(searches), len(retrainings)) == (5, 20)
    other.run()
    assert (len(searches), len(retrainings)) == (5, 20)
    smaller = Study.load(declare(tmp_path / "s.yaml", structures=few, seeds=1, backbone="${TOY}/other", space="lora"))
    with pytest.warns(UserWarning, match="is searched again: other settings .the candidates of the space"):
        smaller.run(tasks=["one"], structures=["searched"])
    settings = {"steps": 4, "batch_size": 8}
    longer = Study.load(declare(tmp_path / "s.yaml", structures=few, seeds=1, space="lora", search=settings))
    with pytest.warns(UserWarning, match="is searched again: other settings .steps 3 → 4, the weights"):
        longer.run(tasks=["one"], structures=["searched"])
    assert longer.chosen().query("entry == 'searched'")["search_rows"].eq(4 * 16).all()


def test_the_space_is_in_the_key_of_a_manual_structure():
    """Its LoRA has the ranks of the space; the keys of the default space are those of earlier versions."""
    facts = {"backbone": "b", "objective": {}, "tasks": {"one": {"declared": "t", "fingerprint": "f"}}}
    keys = {}
    for name, space in (("mixed", "mixed"), ("small", [{"pet": "lora", "ranks": [1]}]), ("large", [{"pet": "lora"}])):
        study = Study("model", {"one": "t"}, {"qv": {"kind": "manual", "name": "lora_qv"}}, seeds=1, space=space)
        keys[name] = study.key(study.rows()[0], {**facts, "space": name})
    assert len(set(keys.values())) == 3
    assert keys["mixed"] == study_key_of_the_default_space(facts)


def study_key_of_the_default_space(facts):
    """As version 0.1 wrote it."""
    structure = {"kind": "manual", "name": "lora_qv"}
    recipe = recorded(Recipe(seed=0, lr=None))
    return row_key(backbone="b", task="f", structure=structure, recipe=recipe, objective=facts["objective"])


def clear_caches():
    """Forget what this process has opened."""
    for opened in (jobs._load_model, jobs._load_task):
        opened.cache_clear()


@pytest.mark.parametrize("stopped", ["diverged", "interrupted"])
def test_a_search_that_did_not_end_is_made_again(root, monkeypatch, stopped):
    monkeypatch.setenv("TOY", str(root))
    few = {"searched": {"kind": "searched", "search": "ours"}, "lnfit": {"kind": "manual"}}
    study = Study.load(declare(root / f"{stopped}.yaml", structures=few, seeds=1))
    real = jobs.search_structure

    def ends_early(*arguments, **options):
        result = real(*arguments, **options)
        path = result.path / "metrics.json"
        (result.path / "files.json").unlink()  # its hashes
        path.write_text(json.dumps({**json.loads(path.read_text()), "stopped": stopped}))
        result.metrics["stopped"] = stopped
        if stopped == "diverged":
            error = DivergedError("the search diverged after step 1")
            error.result = result
            raise error
        return result

    monkeypatch.setattr(jobs, "search_structure", ends_early)
    if stopped == "diverged":  # the study goes on with what does not need it
        with pytest.warns(UserWarning, match="search 'ours' on 'one', seed 0: the search diverged"):
            study.run(tasks=["one"])
        assert set(study.table()["structure"]) == {"lnfit"}
    else:
        with pytest.raises(KeyboardInterrupt):
            study.run(tasks=["one"])
    monkeypatch.setattr(jobs, "search_structure", real)
    with pytest.warns(UserWarning, match=f"is searched again: it was {stopped}"):
        study.run(tasks=["one"])
    assert study.result("one", "ours", 0).metrics["stopped"] is None
    assert "searched 300" in set(study.chosen()["structure"])


def test_diverged_retrainings_are_rows_and_never_chosen(root, monkeypatch):
    monkeypatch.setenv("TOY", str(root))
    rates, real = {"pet": [1e-3, 1e30], "lnfit": [1e30]}, jobs.retrain

    def diverges(*arguments, **options):
        if options["lr"] > 1:
            raise DivergedError("training diverged at step 2")
        return real(*arguments, **options)

    monkeypatch.setattr(jobs, "retrain", diverges)
    study = Study.load(declare(root / "lost.yaml", structures=FEW, lr=rates, budgets=["1.5%"]))
    table = study.run(tasks=["one"])
    assert table.loc[table["lr"] > 1, "diverged"].all() and not table.loc[table["lr"] < 1, "diverged"].any()
    chosen = study.chosen()
    random, lost = chosen[chosen["entry"] == "random"], chosen[chosen["entry"] == "lnfit"]
    assert random["lr"].eq(1e-3).all() and len(random) == 2
    assert lost["diverged"].all() and lost["score"].isna().all()
    assert len(study.run(tasks=["one"])) == len(table)
    assert main(["study", "show", str(root / "lost.yaml"), "--tasks", "one"]) == 0


def test_part_of_a_study_is_looked_at_without_running_anything(finished, root, capsys):
    part = finished.only(tasks=["one"], structures=["random", "full", "s*"])
    rows = part.chosen()
    assert set(rows["task"]) == {"one"} and set(rows["structure"]) == {"full", "random 300", "searched 300"}
    whole = finished.chosen().query("task == 'one' and entry in ['full', 'random', 'searched']")
    pd.testing.assert_frame_equal(rows, whole.reset_index(drop=True))
    assert set(summarize(rows)["task"]) == {"one"}
    one_lacks = finished.only(structures=["lnfit", "top", "carried"])  # named after the task they are from
    summarized = summarize(one_lacks.chosen(), baseline="carried 300 from two")
    assert summarized.loc[summarized["difference"].notna(), "task"].eq("one").all()
    assert "mean of 2" in set(summarized["task"])
    assert main(["study", "show", str(root / "grid.yaml"), "--tasks", "one", "--structures", "full", "random"]) == 0
    printed = capsys.readouterr().out
    assert "8 of 8 runs" in printed and "searched 300" not in printed and "mean" not in printed.split("\n\n")[2]
    assert main(["study", "show", str(root / "grid.yaml"), "--tasks", "three"]) == 2
    assert "no task of this study is called three" in capsys.readouterr().err


def test_summary_and_figures_need_only_the_folder(finished, root, capsys, monkeypatch):
    monkeypatch.delenv("TOY", raising=False)
    rows, searches = finished.chosen(repeats=True), finished.path / "searches"
    summarized = summarize(rows)
    assert set(summarized["task"]) == {"one", "two", "mean of 2"}
    searched = summarized[summarized["structure"].eq("searched 300")].set_index("task")
    table = finished.chosen().query("seed < 2").groupby(["task", "structure"])["score"].mean()
    for task in ("one", "two"):
        gap = table[task, "searched 300"] - table[task, "random 300"]
        assert searched.loc[task, "difference"] == pytest.approx(gap)
    assert random_baselines(rows)["mean 300 over seeds"] == "random 300"
    pd.testing.assert_frame_equal(summarized, summarize(pd.read_parquet(finished.path / "rows.parquet")))
    assert main(["study", "show", str(root / "grid.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "48 of 48 runs" in printed
    parts = variance_components(rows, by=("structure",))
    assert parts["structure"].tolist() == ["random 300"] and parts["structures"].item() == 6
    text = " ".join(printed.split())
    assert f"together random 300 6 12 {parts['between'].item():.3f} {parts['within'].item():.3f}" in text
    one = finished.chosen().query("task == 'one' and structure == 'lnfit'")["score"]
    assert f"{one.mean():.3f} ± {one.std():.3f} (2)" in printed
    pairs = [agreement([finished.result(task, "ours", seed) for seed in range(2)]) for task in ("one", "two")]
    overlap, ranks = pd.concat(pairs)[["jaccard", "spearman"]].mean()
    (row,) = agreement_table(searches).to_dict("records")
    assert (row["searches"], row["overlap"], row["rank correlation"]) == (4, f"{overlap:.2f}", f"{ranks:.2f}")
    assert "Agreement of the searches" in printed
    drops = pd.Series([finished.result("two", "ours", seed).loss_drop for seed in range(2)])
    (row,) = drop_table(searches).to_dict("records")
    assert row["search"] == "ours" and row["two"] == f"{drops.mean():.3f} ± {drops.std():.3f} (2)"
    assert f"ours {row['one']} {row['two']}" in text
    assert [*drop_table(searches, tasks=["two"])] == ["search", "two"]
    assert main(["study", "show", str(root / "grid.yaml"), "--baseline", "lnfit"]) == 0
    assert "Differences to lnfit" in capsys.readouterr().out
    assert main(["study", "show", str(root / "grid.yaml"), "--baseline", "nothing"]) == 2
    assert "no structure of this study is called nothing" in capsys.readouterr().err
    assert main(["study", "show", str(root / "grid.yaml"), "--markdown"]) == 0
    assert "| structure | parameters | one | two | mean | kept |\n| --- |" in capsys.readouterr().out
    assert main(["study", "figures", str(root / "grid.yaml")]) == 0
    drawn = {path.stem for path in (finished.path / "figures").glob("*.png")}
    per_task = {f"{name}-{task}" for name in ("budget", "repeats") for task in ("one", "two")}
    assert drawn == {"differences", "ranking-300", "transfer-300", *per_task}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structures": {"x": {"kind": "magic"}}}, "kind 'magic'"),
        ({"structures": {"x": {"kind": "searched", "search": "theirs"}}}, "has search 'theirs'; expected one of ours"),
        ({"structures": {"x": {"kind": "manual", "rank": 3}}}, "it may have name"),
        ({"structures": {"x": "lnfit"}}, "structure 'x' must be a mapping of its options, got 'lnfit'"),
        ({"structures": {"x": {"kind": "random", "halving": {"structures": 8}}}}, r"has \['halving'\]"),
        ({"structures": {"x": {"kind": "searched", "search": "ours", "per_param": True}}}, r"has \['per_param'\]"),
        ({"structures": {"x": {"kind": "random", "seeds": [1, 2]}}}, r"has seeds \[1, 2\]; expected a whole number"),
        ({"structures": {"x": {"kind": "random", "repeats": [1, 2]}}}, "has repeats .* expected a whole number"),
        ({"structures": {"x": {"kind": "manual", "name": "lnfit", "repeats": 2}}}, "give seeds, not repeats"),
        ({"structures": {"x": {"kind": "average", "search": "ours", "over": "all"}}}, "'x' has over 'all'"),
        ({"structures": {"x": {"kind": "allocated"}}}, "kind 'allocated', not one of reference, manual"),
        ({"recipes": {"three": {}}}, "no task of this study is called three"),
        ({"recipes": {"two": {"colour": 1}}}, "retrain of two has the unknown options colour"),
        ({"lr": {"pot": [1e-3]}}, "no kind or structure of this study is called pot"),
        ({"lr": {"pet": 1e-3}}, "expected different numbers above 0"),
        ({"lr": [1e-3]}, "expected an object"),
        ({"lr": {"pet": ["fast"]}}, "expected different numbers above 0"),
        ({"lr": {"pet": ["1e-3"]}}, "expected different numbers above 0, such as .1.0e-3. .YAML reads 1e-3 as text"),
        ({"search": {"lr": "1e-3"}}, "search: lr must be a finite number, got '1e-3'"),
        ({"search": {"steps": 2.5}}, "search: steps must be a whole number.* got 2.5"),
        ({"search": {"sampling": "hard"}}, "search has the unknown options sampling; it may have steps, order"),
        ({"search": {"seed": 3}}, "unknown options seed"),
        ({"searches": {"ours": {"steps": 3}}}, "search 'ours' has no budget; it needs a budget"),
        ({"retrain": {"precision": "bfloat16"}}, "unknown options precision; these belong under objective:"),
        ({"retrain": {"lr": 1e-3}}, "unknown options lr"),
        ({"backbone": {"dtype": "bfloat16"}}, "backbone has no path"),
        ({"backbone": {"path": "pocket-t5", "type": "bfloat16"}}, "backbone has the unknown options type"),
        ({"backbone": 3}, "expected a name, or a mapping with path"),
        ({"retrain": {"steps": -1}}, "retrain: steps must be > 0"),
        ({"objective": {"pooling": "max"}}, "objective: pooling='max' is not one of"),
        ({"objective": {"length": 3}}, "objective has the unknown options length; it may have max_length"),
        ({"objective": [1]}, "objective is .1.; expected an object"),
        ({"seeds": "3"}, "seeds is '3'; expected a whole number from 1"),
        ({"colour": "blue"}, r"unknown \['colour'\]"),
    ],
)
def test_bad_declarations_are_refused(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message):
        Study.load(declare(tmp_path / "bad.yaml", **changes))


def test_unreadable_files_missing_variables_and_unknown_names(tmp_path, monkeypatch, capsys):
    with pytest.raises(StudyError, match="no study file"):
        Study.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(StudyError, match="missing"):
        Study.load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("tasks: {")
    assert main(["study", "show", str(tmp_path / "broken.yaml")]) == 2
    assert "is not YAML" in capsys.readouterr().err
    (tmp_path / "code.yaml").write_text("backbone: !!python/object/apply:os.getcwd []\ntasks: {}\nstructures: {}\n")
    with pytest.raises(StudyError, match="not YAML"):
        Study.load(tmp_path / "code.yaml")
    study = Study.load(declare(tmp_path / "good.yaml"))
    monkeypatch.delenv("TOY", raising=False)
    with pytest.raises(StudyError, match="TOY"):
        study.run(structures=["lnfit"])
    with pytest.raises(StudyError, match="no structure of this study is called nothing"):
        study.run(structures=["nothing"])
    with pytest.raises(StudyError, match="no structure is finished"):
        summarize(study.chosen())


def test_adalora_is_trained_once_for_each_seed(root, monkeypatch):
    monkeypatch.setenv("TOY", str(root))
    calls = counted(monkeypatch, "retrain_adalora")
    changes = {"tasks": {"one": DECLARED["tasks"]["one"]}, "structures": {"adalora": {"kind": "adalora", "alpha": 32}}}
    changes |= {"retrain": {"steps": 10, "batch_size": 8, "evaluations": 1}, "lr": {"pet": [3e-3]}}
    study = Study.load(declare(root / "adalora.yaml", **changes))
    table = study.run()
    assert [(options["seed"], options["lr"], options["alpha"]) for options in calls] == [(0, 3e-3, 32), (1, 3e-3, 32)]
    assert table["n_params"].between(1, 300).all() and (table["search_rows"] == 0).all() and len(study.chosen()) == 2


def test_the_backbone_of_a_study_has_options(root, monkeypatch):
    """Rows of another type of weights are other rows."""
    monkeypatch.setenv("TOY", str(root))
    few = {"base": {"kind": "manual", "name": "bitfit", "seeds": 1}}
    paths = [DECLARED["backbone"], {"path": DECLARED["backbone"], "dtype": "bfloat16"}]
    studies = [Study.load(declare(root / f"type{n}.yaml", structures=few, backbone=b)) for n, b in enumerate(paths)]
    tables = [study.run(tasks=["one"]) for study in studies]
    assert studies[0].facts["backbone"] != studies[1].facts["backbone"]
    assert len(tables[0]) == len(tables[1]) and not {*tables[0].key} & {*tables[1].key}
    model = jobs._open(studies[1], "one")[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.s3pet_id == DECLARED["backbone"]
