"""Studies: a grid declared in a file, run row by row, resumed, shown and drawn."""

import json

import joblib
import pandas as pd
import pytest
import torch
import yaml
from tiny import tiny_t5
from toy import toy_rows, toy_tokenizer

import s3pet
from s3pet.studies import jobs
from s3pet.cli import main
from s3pet.errors import StudyError
from s3pet.studies.halving import alternatives, successive_halving
from s3pet.studies.report import agreement_table, drop_table, random_baselines, summarize
from s3pet.studies.study import Study
from s3pet.transfer import agreement
from s3pet.studies.variance import variance_components

DECLARED = {
    "backbone": "${TOY}/model",
    "tasks": {"one": {"path": "${TOY}/task1", "label_words": ["no", "yes"]}, "two": "${TOY}/task2"},
    "budgets": [300],
    "seeds": 2,
    "retrain": {"steps": 4, "batch_size": 8, "evaluations": 1},
    "lr": {"pet": [1e-3, 3e-3], "full": [5e-4], "wide": [2e-3, 6e-3]},
    "search": {"steps": 3, "batch_size": 8},
    "searches": {"ours": {"budget": 300}},
    "structures": {
        "full": {"kind": "reference"},
        "lnfit": {"kind": "manual"},
        "wide": {"kind": "rules", "rules": [{"pet": "lora", "roles": ["attn.[qv]"], "ranks": [2]}]},
        "random": {"kind": "random", "seeds": 3, "repeats": 2},
        "top": {"kind": "heuristic", "where": "top"},
        "fisher": {"kind": "sensitivity", "score": "fisher", "batches": 1},
        "searched": {"kind": "searched", "search": "ours"},
        "cheap": {"kind": "searched", "search": "ours", "per_param": True},
        "halved": {"kind": "searched", "search": "ours", "halving": {"structures": 3, "steps": [1, 2]}},
        "drawn": {"kind": "random", "halving": {"structures": 2, "steps": [1]}},
        "carried": {"kind": "transfer", "search": "ours"},
        "mean": {"kind": "average", "search": "ours", "over": "seeds"},
        "others": {"kind": "average", "search": "ours", "over": "others"},
        "pair": {"kind": "average", "search": "ours", "over": "seeds", "of": 2},
    },
}


SEEDED = {
    "random",
    "fisher",
    "searched",
    "cheap",
    "halved",
    "drawn",
    "carried",
    "others",
    "pair",
}  # a structure of its own for every seed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    tiny_t5().save_pretrained(root / "model")
    toy_tokenizer().save_pretrained(root / "model")
    for task, shift in (("task1", 0), ("task2", 10)):
        (root / task).mkdir()
        for split, n, seed in (("train", 80, 1), ("validation", 20, 2), ("test", 20, 3)):
            lines = "".join(json.dumps(row) + "\n" for row in toy_rows(n, seed + shift))
            (root / task / f"{split}.jsonl").write_text(lines)
        (root / task / "task.json").write_text(json.dumps({"label_words": ["no", "yes"]}))
    return root


def declare(path, **changes):
    given = {**DECLARED, **changes}
    if "wide" not in given["structures"]:  # rates of a structure that is not declared would be an error
        given["lr"] = {name: rates for name, rates in given["lr"].items() if name != "wide"}
    path.write_text(yaml.safe_dump(given))
    return path


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
    assert (
        table[again].groupby("task")[["index", "seed"]].apply(lambda rows: sorted(map(tuple, rows.values))).tolist()
        == [[(0, 1), (1, 2), (2, 3)]] * 2
    )  # each once more
    table = table[~again]
    first = table[table["seed"] == 0]
    assert table["key"].is_unique
    assert first.groupby(["task", "structure"])["lr"].apply(sorted).map(tuple).to_dict() == {
        (task, name): {"full": (5e-4,), "wide": (2e-3, 6e-3)}.get(name, (1e-3, 3e-3))
        for task in ("one", "two")
        for name in (
            "full", "lnfit", "wide", "random 300", "top 300", "fisher 300", "searched 300", "cheap 300",
            "halved 300", "drawn 300",
            f"carried 300 from {'two' if task == 'one' else 'one'}", "mean 300 over seeds", "others 300 over others",
            "pair 300 over 2 seeds",
        )
    }  # fmt: skip
    assert table.groupby("structure")["seed"].max()["random 300"] == 2
    assert (finished.path / "study.parquet").is_file()
    made = pd.read_parquet(finished.path / "study.parquet")
    assert sorted(made["key"]) == sorted(finished.table()["key"])
    searched, halved = made["kind"].eq("searched"), made["entry"].isin(["halved", "drawn"])
    assert (made.loc[searched & ~halved, "search_rows"] == 3 * 16).all()
    trained = (
        made[halved].groupby("entry")["search_rows"].unique().map(set).to_dict()
    )  # batches of 8: 3 · 1 + 2 · 2, 2 · 1
    assert trained == {"halved": {3 * 16 + 7 * 8}, "drawn": {2 * 8}}
    assert made["budget"].dropna().eq(300).all() and made.loc[made["budget"].notna(), "n_params"].le(300).all()


def test_every_structure_runs_at_the_rate_that_validation_chose_for_it(finished):
    table, chosen = finished.table(), finished.chosen()
    for (task, name, index), rows in table.groupby(["task", "structure", "index"]):
        first = rows[rows["seed"] == (index if name.split()[0] in SEEDED else 0)].sort_values("lr")
        assert len(first) == (1 if name == "full" else 2), name
        best = first.loc[first["validation"].idxmax(), "lr"]
        kept = chosen[chosen["task"].eq(task) & chosen["structure"].eq(name) & chosen["index"].eq(index)]
        assert kept["lr"].eq(best).all() and len(kept) == (1 if name.split()[0] in SEEDED else 2), name
    assert len(chosen) == 2 * (13 * 2 + 3)
    assert not chosen.duplicated(["task", "structure", "index", "seed"]).any()
    whole = finished.chosen(repeats=True)
    assert len(whole) == len(chosen) + 2 * 3
    assert whole[whole["entry"].eq("random")].groupby(["task", "index"])["lr"].nunique().eq(1).all()


def test_a_row_is_what_the_library_gives(finished, root):
    model, tokenizer = s3pet.load_backbone(root / "model")
    task = s3pet.load_task(root / "task2", tokenizer)
    space = s3pet.make_space(model)
    rows = finished.chosen().query("task == 'two' and seed == 1").set_index("structure")
    again = (
        finished.chosen(repeats=True).query("task == 'two' and entry == 'random' and index == 1 and seed == 2").iloc[0]
    )
    result = s3pet.search(model, task, space, budget=300, steps=3, batch_size=8, seed=1, progress=False)
    for name, structure in (
        ("searched 300", result.structure()),
        ("random 300", s3pet.random_structure(space, 300, seed=1)),
        ("lnfit", s3pet.manual_structure(space, "lnfit")),
    ):
        tuned = s3pet.retrain(model, task, structure, seed=1, lr=rows.loc[name, "lr"], **DECLARED["retrain"])
        assert tuned.metrics["test"] == rows.loc[name, "score"]
        assert tuned.metrics["validation"] == rows.loc[name, "validation"]
        assert structure.n_params == rows.loc[name, "n_params"]
    structure = s3pet.random_structure(space, 300, seed=1)  # the same structure, another retraining
    tuned = s3pet.retrain(model, task, structure, seed=2, lr=again["lr"], **DECLARED["retrain"])
    assert tuned.metrics["test"] == again["score"] and again["lr"] == rows.loc["random 300", "lr"]
    for name, several in (
        ("halved 300", alternatives(result, 3)),
        ("drawn 300", [s3pet.random_structure(space, 300, seed=seed) for seed in (1, 1001)]),
    ):
        steps = [1, 2] if name == "halved 300" else [1]
        best = successive_halving(model, task, several, steps=steps, seed=1, lr=rows.loc[name, "lr"], batch_size=8)
        tuned = s3pet.retrain(model, task, best.structure, seed=1, lr=rows.loc[name, "lr"], **DECLARED["retrain"])
        assert tuned.metrics["test"] == rows.loc[name, "score"]
    pair = [s3pet.load_run(finished.folder("two", "ours", seed)) for seed in (2, 3)]
    tuned = s3pet.retrain(
        model,
        task,
        s3pet.average_gates(pair).structure(),
        seed=1,
        lr=rows.loc["pair 300 over 2 seeds", "lr"],
        **DECLARED["retrain"],
    )
    assert tuned.metrics["test"] == rows.loc["pair 300 over 2 seeds", "score"]
    assert rows.loc["pair 300 over 2 seeds", "search_rows"] == 2 * 3 * 16
    other = s3pet.load_run(finished.folder("one", "ours", 1)).structure(300)
    assert rows.loc["carried 300 from one", "n_params"] == other.n_params
    folder = finished.folder("two", "ours", 1)
    assert not (folder / "checkpoint").exists() and s3pet.load_run(folder).structure().names == result.structure().names


def test_a_study_goes_on_where_it_was_cut_off_and_may_grow(root, monkeypatch):
    monkeypatch.setenv("TOY", str(root))
    few = {"lnfit": {"kind": "manual"}, "random": {"kind": "random"}}
    study = Study.load(declare(root / "cut.yaml", structures=few))
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
    monkeypatch.setattr(jobs, "retrain", lambda *a, **k: done.append(1) or real(*a, **k))
    whole = study.run()
    assert len(done) == len(whole) == 2 * (2 + 1) + 2 * 2 * 2  # tasks × (rates of the first seed + the other), × seeds
    grown = Study.load(declare(root / "cut.yaml", structures=few | {"full": {"kind": "reference"}}))
    assert len(grown.run(tasks=["o*"], structures=["full"])) == len(whole) + 2
    assert len(done) == len(whole) + 2
    changed = Study.load(declare(root / "cut.yaml", structures=few, retrain={"steps": 5, "batch_size": 8}))
    assert len(changed.chosen()) == 0  # rows of another recipe are not mixed in
    longer = Study.load(declare(root / "cut.yaml", structures=few, recipes={"two": {"steps": 6}}))
    assert set(longer.chosen()["task"]) == {"one"}
    row = longer.run(tasks=["two"], structures=["lnfit"]).query("task == 'two'").iloc[-1]
    assert row["passes"] == 6


def test_a_search_with_other_settings_is_not_taken_for_this_one(finished, root, monkeypatch):
    monkeypatch.setenv("TOY", str(root))
    other = Study.load(declare(root / "grid.yaml", search={"steps": 4, "batch_size": 8}))
    with pytest.raises(StudyError, match=r"searched with \{'steps': 3\}"):
        other.run(structures=["searched"])
    declare(root / "grid.yaml")


def test_part_of_a_study_is_looked_at_without_running_anything(finished, root, capsys):
    part = finished.only(tasks=["one"], structures=["random", "full", "s*"])
    rows = part.chosen()
    assert set(rows["task"]) == {"one"} and set(rows["structure"]) == {"full", "random 300", "searched 300"}
    pd.testing.assert_frame_equal(
        rows.reset_index(drop=True),
        finished.chosen().query("task == 'one' and entry in ['full', 'random', 'searched']").reset_index(drop=True),
    )
    assert set(summarize(part)["task"]) == {"one"}
    one_lacks = finished.only(structures=["lnfit", "top", "carried"])  # carried structures are named after their task
    found = summarize(one_lacks, baseline="carried 300 from two")
    assert found.loc[found["difference"].notna(), "task"].eq("one").all() and "mean of 2" in set(found["task"])
    assert main(["study", "show", str(root / "grid.yaml"), "--tasks", "one", "--structures", "full", "random"]) == 0
    printed = capsys.readouterr().out
    assert "8 of 8 runs" in printed and "searched 300" not in printed and "mean" not in printed.split("\n\n")[2]
    assert main(["study", "show", str(root / "grid.yaml"), "--tasks", "three"]) == 2
    assert "no task of this study is called three" in capsys.readouterr().err


def test_summary_and_figures(finished, root, capsys):
    found = summarize(finished)
    assert set(found["task"]) == {"one", "two", "mean of 2"}
    searched = found[found["structure"].eq("searched 300")].set_index("task")
    table = finished.chosen().query("seed < 2").groupby(["task", "structure"])["score"].mean()
    for task in ("one", "two"):
        gap = table[task, "searched 300"] - table[task, "random 300"]
        assert searched.loc[task, "difference"] == pytest.approx(gap)
    assert random_baselines(finished)["cheap 300"] == "random 300"
    assert main(["study", "show", str(root / "grid.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "64 of 64 runs" in printed
    parts = variance_components(finished.chosen(repeats=True), by=("structure",))
    assert parts["structure"].tolist() == ["random 300"] and parts["structures"].item() == 6
    text = " ".join(printed.split())
    assert f"together random 300 6 12 {parts['between'].item():.3f} {parts['within'].item():.3f}" in text
    one = finished.chosen().query("task == 'one' and structure == 'lnfit'")["score"]
    assert f"{one.mean():.3f} ± {one.std():.3f} (2)" in printed
    pairs = [agreement([finished.result(task, "ours", seed) for seed in range(4)]) for task in ("one", "two")]
    overlap, ranks = pd.concat(pairs)[["jaccard", "spearman"]].mean()
    (row,) = agreement_table(finished).to_dict("records")
    assert (row["searches"], row["overlap"], row["rank correlation"]) == (8, f"{overlap:.2f}", f"{ranks:.2f}")
    assert "Agreement of the searches" in printed
    drops = pd.Series([finished.result("two", "ours", seed).loss_drop for seed in range(4)])
    (row,) = drop_table(finished).to_dict("records")
    assert row["search"] == "ours" and row["two"] == f"{drops.mean():.3f} ± {drops.std():.3f} (4)"
    assert f"ours {row['one']} {row['two']}" in text
    assert main(["study", "show", str(root / "grid.yaml"), "--baseline", "lnfit"]) == 0
    assert "Differences to lnfit" in capsys.readouterr().out
    assert main(["study", "show", str(root / "grid.yaml"), "--baseline", "nothing"]) == 2
    assert "no structure 'nothing'" in capsys.readouterr().err
    assert main(["study", "show", str(root / "grid.yaml"), "--markdown"]) == 0
    assert "| structure | parameters | one | two | mean | kept |\n| --- |" in capsys.readouterr().out
    assert main(["study", "figures", str(root / "grid.yaml")]) == 0
    made = {path.stem for path in (finished.path / "figures").glob("*.png")}
    assert made == {
        "budget-one",
        "budget-two",
        "differences",
        "ranking-300",
        "transfer-300",
        "repeats-one",
        "repeats-two",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structures": {"x": {"kind": "magic"}}}, "kind 'magic'"),
        ({"structures": {"x": {"kind": "searched", "search": "theirs"}}}, "declared are ours"),
        ({"structures": {"x": {"kind": "manual", "rank": 3}}}, "it may have name"),
        ({"structures": {"x": {"kind": "random", "seeds": [1, 2]}}}, "for 1 budgets"),
        ({"structures": {"x": {"kind": "random", "repeats": [1, 2]}}}, "repeats .* for 1 budgets"),
        ({"structures": {"x": {"kind": "manual", "name": "lnfit", "repeats": 2}}}, "give seeds, not repeats"),
        ({"structures": {"x": {"kind": "random", "halving": 3}}}, "expected {structures: 8"),
        ({"structures": {"x": {"kind": "top", "halving": 3}}}, "kind 'top'"),
        ({"structures": {"x": {"kind": "average", "search": "ours", "over": "all"}}}, "'x' is over 'all'"),
        ({"structures": {"x": {"kind": "average", "search": "ours", "over": "seeds", "of": 0}}}, "'x' is of 0"),
        ({"structures": {"x": {"kind": "average", "search": "ours", "over": "others", "of": 2}}}, "with over: seeds"),
        ({"recipes": {"three": {}}}, "no task of this study is called three"),
        ({"lr": {"pot": [1e-3]}}, "no kind or structure of this study is called pot"),
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
    with pytest.raises(StudyError, match=r"nothing of .* is finished"):
        summarize(study)


def test_rows_run_on_a_dask_cluster(root, monkeypatch):
    """The same backend serves a cluster; here its scheduler and its worker are threads of this process."""
    distributed = pytest.importorskip("dask.distributed", reason="the optional extra s3pet[cluster] is not installed")
    monkeypatch.setattr("distributed.comm.inproc.get_ip", lambda: "127.0.0.1")  # it asks the network for its address
    monkeypatch.setenv("TOY", str(root))
    threads, few = torch.get_num_threads(), {"lnfit": {"kind": "manual"}}
    study, alone = (Study.load(declare(root / f"{name}.yaml", structures=few)) for name in ("dask", "alone"))
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        ours = study.run(jobs=2, tasks=["one"])
    torch.set_num_threads(threads)
    theirs = alone.run(tasks=["one"])
    columns = ["key", "lr", "validation", "score"]
    assert len(ours) == 3
    assert ours[columns].sort_values("key").values.tolist() == theirs[columns].sort_values("key").values.tolist()


def test_what_adalora_allocates_is_retrained_with_the_seed_of_each_row(root, monkeypatch):
    """Seed k of the structure is AdaLoRA's with seed k, also where it is repeated; the first training is its search."""
    monkeypatch.setenv("TOY", str(root))
    asked, real = [], jobs.retrain_adalora
    monkeypatch.setattr(jobs, "retrain_adalora", lambda *a, **o: asked.append((o["seed"], o["lr"])) or real(*a, **o))
    structures = {"adalora": {"kind": "adalora"}, "allocated": {"kind": "allocated", "repeats": 2}}
    changes = {"tasks": {"one": DECLARED["tasks"]["one"]}, "structures": structures, "lr": {"pet": [3e-3]}}
    changes |= {"retrain": {"steps": 10, "batch_size": 8, "evaluations": 1}}
    study = Study.load(declare(root / "allocated.yaml", **changes))
    table = study.run().set_index("entry").sort_values(["index", "seed"])
    assert sorted(asked) == [(seed, 3e-3) for seed in (0, 0, 0, 1, 1, 1)]
    rows = table.loc["allocated"]
    assert list(zip(rows["index"], rows["seed"], strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert (rows["n_params"].to_numpy() < table.loc["adalora", "n_params"].repeat(2).to_numpy()).all()
    assert (rows["search_rows"] == 80).all() and (table.loc["adalora", "search_rows"] == 0).all()
    assert len(study.chosen()) == 4
