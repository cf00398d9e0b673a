"""A bench: what is refused, what is looked up, how well unknown structures are predicted, and what noise allows."""

import hashlib
import importlib.util
import json
import math
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_t5

from s3pet.errors import RunError, StructureMismatchError, StudyError
from s3pet.space import make_space
from s3pet.structure import manual_structure, random_structure
from s3pet.studies import bench_files
from s3pet.studies.bench import Bench
from s3pet.studies.bench_files import structure_hash
from s3pet.studies.statistics import summary, variance_components
from s3pet.studies.surrogate import MODELS, Surrogate, families, features, held_out, lora_layers, presence

BENCHES = Path(__file__).resolve().parents[2] / "data" / "bench"
RATES, TASKS, BUDGET = [1e-3, 3e-3], ["a", "b"], 600


@pytest.fixture(scope="module")
def space():
    return make_space(tiny_t5(), "mixed")


def encoder_loras(structure):
    """Number of encoder layers with a LoRA, counted one by one."""
    return len({c.layer for c in structure if c.pet == "lora" and c.stack == "encoder" and c.layer is not None})


def truth(structure):
    """The planted mean score: every LoRA in the encoder helps, and so does every layer that has one."""
    return 0.5 + 0.1 * encoder_loras(structure) + 0.01 * sum(c.role == "attn.q" for c in structure)


@pytest.fixture(scope="module")
def trained(space):
    """Sixty structures; every third is repeated twice, at the rate that validation chose."""
    return [random_structure(space, BUDGET + 5 * (seed % 3), seed=seed) for seed in range(60)]


@pytest.fixture(scope="module")
def tables(space, trained):
    rng, rows = np.random.default_rng(0), []
    for task in TASKS:
        for number, structure in enumerate(trained):
            best = RATES[number % 2]
            for lr, seed in [(RATES[0], 0), (RATES[1], 0), *([(best, 1), (best, 2)] if number % 3 == 0 else [])]:
                score = truth(structure) + 0.02 * rng.normal() if lr == best else 0.95  # test must not be looked at
                validation = (0.8 if lr == best else 0.7) + 0.001 * seed
                row = {"task": task, "structure": structure_hash(structure.names), "kind": "random", "lr": lr}
                row |= {"origin": f"seed {number}", "budget": BUDGET, "n_params": structure.n_params, "seed": seed}
                row |= {"validation": validation, "score": score, "validation_loss": 0.5, "best_step": 9}
                rows.append(row | {"diverged": False})
    structures = {
        "structure": [structure_hash(s.names) for s in trained],
        "n_params": [s.n_params for s in trained],
        "candidates": [list(s.names) for s in trained],
    }
    config = {"format": "s3pet-bench", "version": 1, "name": "tiny", "model": space.model_id, "model_hash": "0"}
    config |= {"backbone_params": space.backbone_params, "space": [asdict(c) for c in space], "rates": RATES}
    config |= {"tasks": {task: {"fingerprint": "f", "metric": "accuracy"} for task in TASKS}, "objective": {}}
    return {**config, "recipe": {"steps": 10}, "versions": {}}, pd.DataFrame(structures), pd.DataFrame(rows)


def written(folder, config, structures, rows, solo=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(config), encoding="utf-8")
    structures.to_parquet(folder / "structures.parquet")
    rows.to_parquet(folder / "rows.parquet")
    if solo is not None:
        solo.to_parquet(folder / "solo.parquet")
    return folder


@pytest.fixture(scope="module")
def bench(tables, tmp_path_factory):
    return Bench.load(written(tmp_path_factory.mktemp("bench"), *tables))


# --- the files --------------------------------------------------------------------------------------------------------


def test_a_bench_is_read(bench, space, trained):
    assert bench.space.candidates == space.candidates and bench.space.backbone_params == space.backbone_params
    assert list(bench.tasks) == TASKS and bench.rates == tuple(RATES) and bench.recipe == {"steps": 10}
    assert len(bench.structures) == 60 and len(bench.rows) == 2 * (60 * 2 + 20 * 2) and bench.solo is None
    assert repr(bench) == f"Bench('tiny': {space.model_id}, 60 structures, 320 trainings, tasks a, b)"
    again = bench.structure(structure_hash(trained[7].names))
    assert again.names == trained[7].names and again.n_params == trained[7].n_params


def test_the_hash_is_that_of_the_sorted_names():
    digest = hashlib.sha256(b"a\nb").hexdigest()
    assert structure_hash(["b", "a"]) == structure_hash(["a", "b"]) == digest[:16]


def test_a_bench_is_found_by_its_name(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_files, "embedded_path", lambda: tmp_path / "pocket")
    written(tmp_path / "bench" / "tiny", *tables)
    assert Bench.load("tiny").name == "tiny"
    with pytest.raises(RunError, match=r"tinny is no folder of a bench, and none of .*: nearest: 'tiny'"):
        Bench.load("tinny")


def with_cell(table, column, value, row=0):
    table = table.copy()
    table[column] = table[column].astype(object)
    table.at[row, column] = value
    return table.astype({column: "float64"}) if isinstance(value, float) else table


WRONG = {  # what is changed in (config, structures, rows) → what is said
    "format": (lambda c, s, r: ({**c, "format": "x"}, s, r), "format 'x', version 1"),
    "newer": (lambda c, s, r: ({**c, "version": 2}, s, r), "version 2"),
    "field": (lambda c, s, r: ({k: v for k, v in c.items() if k != "recipe"}, s, r), "bench.json has no recipe"),
    "column": (lambda c, s, r: (c, s, r.drop(columns="lr")), "rows.parquet has no column lr"),
    "space": (lambda c, s, r: ({**c, "space": [{**c["space"][0], "n_params": 1}, *c["space"][1:]]}, s, r), "needs"),
    "hash": (lambda c, s, r: (c, with_cell(s, "structure", "0" * 16), r), "its hash is not"),
    "candidate": (lambda c, s, r: (c, with_cell(s, "candidates", ["nowhere:lora:1"]), r), "not in the space"),
    "cost": (lambda c, s, r: (c, with_cell(s, "n_params", 1.0), r), "says 1.0 parameters; its candidates have"),
    "row cost": (lambda c, s, r: (c, s, with_cell(r, "n_params", 1.0)), "1 rows have another cost"),
    "task": (lambda c, s, r: (c, s, with_cell(r, "task", "z")), "task or structure that is not declared"),
    "unknown": (lambda c, s, r: (c, s[1:], r), "task or structure that is not declared"),
    "nan": (lambda c, s, r: (c, s, with_cell(r, "score", np.nan)), "score is not a number"),
    "twice": (lambda c, s, r: (c, s, pd.concat([r, r[5:6]], ignore_index=True)), "the same training twice"),
    "rate": (lambda c, s, r: (c, s, with_cell(r, "lr", 0.5)), "a learning rate that is not one of rates"),
    "missing rate": (lambda c, s, r: (c, s, r[1:]), "not all rates of seed 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_contradicts_itself_is_refused(case, tables, tmp_path):
    change, message = WRONG[case]
    written(tmp_path, *change(*tables))
    with pytest.raises(StudyError, match=message) as caught:
        Bench.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["bench.json", "rows.parquet", "structures.parquet"])
def test_a_missing_or_damaged_file_is_named(name, tables, tmp_path):
    written(tmp_path, *tables)
    (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=rf"{name} cannot be read"):
        Bench.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        Bench.load(tmp_path)


# --- looking up -------------------------------------------------------------------------------------------------------


def test_a_record_is_the_mean_at_the_rate_of_validation(bench, trained):
    for number in (0, 1, 3):
        key, best = structure_hash(trained[number].names), RATES[number % 2]
        runs = [r for r in bench.rows.to_dict("records") if (r["task"], r["structure"], r["lr"]) == ("b", key, best)]
        scores = [r["score"] for r in runs]
        record = bench.lookup(trained[number], "b")
        assert record == bench.lookup(key, "b")
        assert (record.lr, record.retrainings, len(record.rows)) == (best, len(runs), len(runs) + 1)
        assert record.score == pytest.approx(sum(scores) / len(scores))
        assert record.validation == pytest.approx(0.8 + 0.001 * (len(scores) - 1) / 2)
        if len(runs) > 1:
            assert record.error_from == "repeats"
            assert record.error == pytest.approx(np.std(scores, ddof=1) / math.sqrt(3))
        else:
            assert record.error_from == "noise" and record.error == bench.noise("b").within > 0


def test_what_was_not_trained_is_refused_with_the_nearest(bench, space, trained):
    other = random_structure(space, BUDGET, seed=1000)
    near = max(trained, key=other.jaccard)
    what = rf"{structure_hash(near.names)} \(Jaccard {other.jaccard(near):.2f}\)\. bench\.predict\(structure, 'a'\)"
    with pytest.raises(StudyError, match=what):
        bench.lookup(other, "a")
    with pytest.raises(StudyError, match="no structure 'nothing'"):
        bench.lookup("nothing", "a")
    with pytest.raises(StudyError, match="no task 'c'; "):
        bench.lookup(trained[0], "c")


def test_structures_of_other_backbones_and_spaces_are_refused(bench, space, trained):
    elsewhere = replace(trained[0], model_id="another")
    lora = manual_structure(tiny_t5(gated=True), "lora_all")
    for ask in (bench.lookup, bench.predict):
        with pytest.raises(StructureMismatchError, match=r"made for 'another'.*retarget"):
            ask(elsewhere, "a")
        with pytest.raises(StructureMismatchError, match="candidates that are not in its space"):
            ask(lora, "a")
    assert bench.lookup(elsewhere.retarget(bench.space), "a").score == bench.lookup(trained[0], "a").score


def test_diverged_trainings_decide_nothing(tables, tmp_path, trained):
    config, structures, rows = tables
    keys = [structure_hash(trained[number].names) for number in (0, 1)]
    every, best = (rows["structure"].eq(key) & rows["task"].eq("a") for key in keys)
    rows = rows.assign(diverged=every | (best & rows["lr"].eq(RATES[1])))
    rows["score"] = rows["score"].mask(rows["diverged"])
    bench = Bench.load(written(tmp_path, config, structures, rows))
    with pytest.raises(StudyError, match="diverged at every learning rate"):
        bench.lookup(trained[0], "a")
    judged = bench.judge({"mine": [trained[0], trained[1]]}, "a")
    assert judged["diverged"].tolist() == judged["score"].isna().tolist() == [True, False]
    assert summary(judged)["diverged"].tolist() == [1] and judged["source"].eq("table").all()
    assert keys[0] not in set(bench.choose("a")["structure"]) and bench.lookup(trained[0], "b").retrainings == 3
    assert bench.lookup(trained[1], "a").lr == RATES[0]


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_that_of_an_analysis_of_variance(tables, tmp_path):
    config, structures, rows = tables
    repeated = rows.groupby(["task", "structure"])["seed"].transform("max").gt(0)
    noise = Bench.load(written(tmp_path, config, structures, rows[repeated])).noise("a")
    table = rows[repeated & rows["task"].eq("a") & rows["validation"].ge(0.8)]  # each structure three times
    table = table.assign(index=table["structure"].factorize()[0], structure="all")
    (row,) = variance_components(table, by=("task",), draws=9).to_dict("records")
    assert (noise.between, noise.within, noise.r2) == pytest.approx((row["between"], row["within"], row["icc"]))
    assert (noise.structures, noise.repeated) == (20, 20)


def test_the_ceiling_is_what_the_means_reach(bench, trained):
    noise = bench.noise("a")
    assert noise.within == pytest.approx(0.02, rel=0.3) and (noise.structures, noise.repeated) == (60, 20)
    assert noise.r2_low < noise.r2 < noise.r2_high
    means = np.array([truth(structure) for structure in trained])
    rng = np.random.default_rng(0)
    ones = means + 0.02 * rng.normal(size=(500, len(means)))
    assert noise.r2 == pytest.approx(np.mean([np.corrcoef(means, one)[0, 1] ** 2 for one in ones]), abs=0.05)
    normal = rng.normal(size=20_000)  # for normal scores, the rank correlation follows from r²
    noisy = normal + rng.normal(size=20_000) * math.sqrt(1 / noise.r2 - 1)
    rank = pd.Series(normal).corr(pd.Series(noisy), method="spearman")
    assert noise.spearman == pytest.approx(rank, abs=0.01)


def test_without_repeats_there_is_no_ceiling(tables, tmp_path, trained):
    config, structures, rows = tables
    bench = Bench.load(written(tmp_path, config, structures, rows[rows["seed"].eq(0)]))
    noise, record = bench.noise("a"), bench.lookup(trained[0], "a")
    assert math.isnan(noise.r2) and math.isnan(noise.within) and (noise.structures, noise.repeated) == (60, 0)
    assert math.isnan(record.error) and record.error_from == "noise"


# --- the surrogate ----------------------------------------------------------------------------------------------------


def test_features_are_counted_one_by_one(space, trained):
    utility = np.random.default_rng(0).normal(size=len(space))
    solo = space.table().assign(utility=utility)
    table = features(space, presence(space, [s.names for s in trained]), solo)
    worth = dict(zip(space.names, utility, strict=True))
    for row, structure in zip(table.to_dict("records"), trained, strict=True):
        assert row["encoder layers with a lora"] == encoder_loras(structure)
        assert row["n_params"] == structure.n_params
        biases = [c for c in structure if c.stack == "decoder" and c.role.startswith("ffn.") and c.pet == "bitfit"]
        biases = [c for c in biases if c.role != "ffn.norm"]
        assert row["decoder ffn linear bitfit count"] == len(biases)
        assert row["decoder ffn linear bitfit n_params"] == sum(c.n_params for c in biases)
        layer = [c for c in structure if (c.stack, c.layer) == ("encoder", 1)]
        assert row["encoder 1 n_params"] == sum(c.n_params for c in layer)
        assert row["encoder 1 lora"] == any(c.pet == "lora" for c in layer)
        assert row["encoder 1 solo sum"] == pytest.approx(sum(worth[c.name] for c in layer))
        assert {name for name in space.names if row[f"has {name}"]} == set(structure.names)
    assert list(lora_layers(space, presence(space, [()]))) == [
        "encoder layers with a lora",
        "decoder layers with a lora",
    ]


def test_families_hold_near_copies_and_descendants(space):
    names = space.names
    sets = [names[:6], names[1:7], names[20:26], names[40:46], names[60:66]]
    family = families(presence(space, sets), [None, None, None, 2, None])
    pairs = {(i, j) for i, j in combinations(range(5), 2) if family[i] == family[j]}
    assert pairs == {(0, 1), (2, 3)}


def test_near_copies_do_not_leak(space):
    """Scores are noise, but copies share them: whoever sees a copy predicts well, and nobody may."""
    rng, sets, scores, parents = np.random.default_rng(0), [], [], []
    for number in range(25):
        names = [*random_structure(space, 1500, seed=number).names]
        score, first = rng.normal(), len(sets)
        for dropped in range(4):
            sets.append([name for i, name in enumerate(names) if i != dropped or not dropped])
            scores.append(score + 0.01 * rng.normal())
            parents.append(None if not dropped else first)
    has, y = presence(space, sets), np.array(scores)
    family = families(has, [None] * len(sets))
    assert list(family) == list(families(has, parents)) and len(set(family)) == 25
    x = features(space, has).to_numpy()
    leaking, _, _ = held_out(MODELS["random forest"], x, y, np.random.default_rng(1).permutation(len(y)))
    honest = Surrogate(space, has, y, family).quality()
    assert 1 - ((y - leaking) ** 2).mean() / y.var() > 0.4
    assert honest["r2"] < 0.1


def test_unknown_structures_are_predicted_within_their_errors(bench, space, trained):
    others = [random_structure(space, BUDGET + 5, seed=seed) for seed in range(2000, 2060)]
    has, surrogate = presence(space, [structure.names for structure in others]), bench.surrogate("a")
    means, rng = np.array([truth(structure) for structure in others]), np.random.default_rng(5)
    scores, errors = surrogate.predict(has)
    assert np.corrcoef(scores, means)[0, 1] > 0.9
    within = np.abs(scores - means - 0.02 * rng.normal(size=60)) < 1.96 * errors
    assert 0.85 <= within.mean() <= 1
    assert errors.mean() < 0.75 * means.std()  # and the errors are not just large
    usual = surrogate.distance(has) <= surrogate.limit
    assert usual.mean() > 2 / 3
    prediction = bench.predict(others[usual.argmax()], "a")
    assert prediction.warning is None
    assert tuple(prediction) == pytest.approx((scores[usual.argmax()], errors[usual.argmax()]))


def test_extrapolation_is_refused_or_marked(bench, space, trained):
    large = random_structure(space, 2 * BUDGET, seed=0)
    low, high = min(s.n_params for s in trained), max(s.n_params for s in trained)
    for structure, reason in (
        (large, rf"it has {large.n_params:,} parameters, those of the table {low:,} to {high:,}"),
        (manual_structure(space, "lnfit"), r"\d+% of its parameters are at other places"),
    ):
        with pytest.raises(StudyError, match=rf"{reason}.*extrapolate=True"):
            bench.predict(structure, "a")
        prediction = bench.predict(structure, "a", extrapolate=True)
        assert "is unlike the structures of bench 'tiny'" in prediction.warning and prediction.error > 0
    assert bench.predict(trained[0], "a").warning is None


def test_the_distance_is_the_share_of_parameters_elsewhere(bench, space, trained):
    def shares(structure):
        spread = {}
        for c in structure:
            kind = "norm" if c.role.endswith("norm") else "linear" if "." in c.role else "output"
            place = (c.stack, c.role.split(".")[0], kind, c.pet)
            spread[place] = spread.get(place, 0) + c.n_params / structure.n_params
        return spread

    def apart(one, other):
        return sum(abs(one.get(k, 0) - other.get(k, 0)) for k in {*one, *other}) / 2

    all_shares = [shares(structure) for structure in trained]
    other = random_structure(space, BUDGET, seed=1234)
    found = bench.surrogate("a").distance(presence(space, [other.names]))[0]
    assert found == pytest.approx(min(apart(shares(other), own) for own in all_shares))
    nearest = [min(apart(a, b) for j, b in enumerate(all_shares) if i != j) for i, a in enumerate(all_shares)]
    assert bench.surrogate("a").limit == pytest.approx(np.quantile(nearest, 0.99))


def test_a_surrogate_says_what_it_needs(bench, space, trained):
    with pytest.raises(StudyError, match=r"model must be one of .*extra trees.* got 'tree'"):
        bench.predict(trained[0], "a", model="tree")
    has = presence(space, [space.names[:3]] * 4)
    with pytest.raises(StudyError, match="the 4 structures are one family"):
        Surrogate(space, has, np.arange(4.0), families(has, [None] * 4))


def test_parents_are_read_from_origins(tables, tmp_path, trained):
    config, structures, rows = tables
    one, other = (structure_hash(trained[number].names) for number in (4, 9))
    assert trained[4].jaccard(trained[9]) < 0.5
    rows = rows.assign(origin=rows["origin"].mask(rows["structure"].eq(other), f"mutation of {one}"))
    bench = Bench.load(written(tmp_path, config, structures, rows))
    family = dict(zip(bench.choose("a")["structure"].unique(), bench.surrogate("a").family, strict=True))
    assert family[one] == family[other]


def test_solo_utilities_are_used(tables, tmp_path, space):
    """A score that is nothing but the sum of solo utilities is predicted better with them."""
    config, structures, rows = tables
    utility = dict(zip(space.names, np.random.default_rng(3).gamma(0.3, size=len(space)), strict=True))
    score = structures.set_index("structure")["candidates"].map(lambda names: sum(utility[name] for name in names))
    rows = rows[rows["task"].eq("a")].assign(score=rows["structure"].map(score))
    solo = space.table().assign(utility=list(utility.values()), task="a")
    config = {**config, "tasks": {"a": config["tasks"]["a"]}}
    with_solo = Bench.load(written(tmp_path / "with", config, structures, rows, solo)).surrogate("a").quality()
    without = Bench.load(written(tmp_path / "without", config, structures, rows)).surrogate("a").quality()
    assert with_solo["r2"] > without["r2"] + 0.1
    with pytest.raises(StudyError, match=r"solo\.parquet has no column utility"):
        Bench.load(written(tmp_path / "wrong", config, structures, rows, solo.drop(columns="utility")))


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_says_how_far_scores_are_predicted(bench, trained):
    report = bench.report(models=["extra trees", "ridge"]).set_index(["task", "model"])
    assert list(report.index) == [(task, model) for task in TASKS for model in ("extra trees", "ridge")]
    row, surrogate = report.loc[("a", "extra trees")], bench.surrogate("a")
    scores = bench.choose("a").groupby("structure", sort=False)["score"].mean()
    error = scores.to_numpy() - surrogate.predicted
    assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert row["r2"] == pytest.approx(1 - (error**2).mean() / scores.var(ddof=0))
    ranks = [pd.Series(values).rank() for values in (scores.to_numpy(), surrogate.predicted)]
    assert row["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert row["ceiling_r2"] == bench.noise("a").r2 and row["ceiling_r2_low"] < row["ceiling_r2"]
    assert 0.6 < row["rule_r2"] < row["ceiling_r2_high"]  # the planted truth is nearly that rule
    assert 0.8 < row["coverage"] <= 1 and row["structures"] == 60 and row["families"] > 30


def test_methods_are_judged_by_table_or_surrogate(bench, space, trained):
    new = random_structure(space, BUDGET, seed=3001)
    methods = {"mine": [trained[0], structure_hash(trained[3].names)], "new": [new, trained[6]]}
    judged = bench.judge(methods, "a", extrapolate=True)
    assert judged["source"].tolist() == ["table", "table", "surrogate", "table"]
    assert judged["structure"].tolist() == ["mine", "mine", "new", "new"] and judged["seed"].tolist() == [0, 1, 0, 1]
    record, prediction = bench.lookup(trained[3], "a"), bench.predict(new, "a", extrapolate=True)
    assert judged.loc[1, ["score", "error"]].tolist() == [record.score, record.error]
    assert judged.loc[2, ["score", "error"]].tolist() == [*prediction]
    compared = summary(judged, baseline="new").set_index("structure")
    assert compared.loc["mine", "score"] == pytest.approx(judged["score"][:2].mean())
    with pytest.raises(StudyError, match="unlike"):
        bench.judge({"large": [random_structure(space, 2 * BUDGET)]}, "a")
    with pytest.raises(StudyError, match="method 'mine' must have a list of structures"):
        bench.judge({"mine": trained[0]}, "a")


@pytest.mark.slow
def test_the_readme_says_what_the_benches_say():
    spec = importlib.util.spec_from_file_location("tables", BENCHES / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (BENCHES / "README.md").read_text(encoding="utf-8")
    assert {block[2] for block in module.BLOCK.finditer(text)} == set(module.TABLES)
    assert module.filled(text) == text, "python data/bench/tables.py writes the tables anew"
