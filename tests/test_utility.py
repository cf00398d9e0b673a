"""Faithfulness: SciPy's correlations, ceilings by simulation, chance by shuffling."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gate_tables import make_gates, make_utility
from scipy import stats

from s3pet.errors import S3PetError, StudyError
from s3pet.utility import MEASURES, _compare, candidate_names, check_utility, disagreement, faithfulness

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def gates():
    return make_gates(4, 4)


@pytest.fixture
def utility(gates):
    return make_utility(gates)


def scopes(*args, **kwargs):
    return faithfulness(*args, **kwargs).set_index("scope")


def pair(utility, error, prob=None, **columns):
    """A gate table and a utility table of LoRA candidates with these numbers."""
    n = len(utility)
    table = pd.DataFrame({"site": [f"encoder.0.r{i}" for i in range(n)], "stack": "encoder", "layer": 0, "role": "r"})
    table = table.assign(**{"pet": "lora", "rank": 1, **columns})
    gates = table.assign(prob=np.linspace(0, 1, n) if prob is None else prob)
    return gates, table.assign(utility=utility, utility_error=error, inert=False, measure="solo", task="t")


def compare(utility, error, prob=None, groups=None):
    """The numbers of one scope, without tables: quick enough for simulations."""
    zeros = np.zeros(len(utility))
    numbers = _compare(utility if prob is None else prob, utility, zeros + error, zeros if groups is None else groups)
    return dict(zip(("n", *MEASURES), numbers, strict=True))


def pooled(one, other, groups):
    """Pearson's correlation of ranks that are centred within groups and divided by the group's size."""
    centred = []
    for values in (one, other):
        ranks = np.empty(len(values))
        for group in np.unique(groups):
            rows = groups == group
            ranks[rows] = (stats.rankdata(values[rows]) - (rows.sum() + 1) / 2) / rows.sum()
        centred.append(ranks)
    return centred[0] @ centred[1] / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1]))


# ------------------------------------------------------------------------------------------- correlations


@pytest.mark.parametrize("value", ["utility", "score_gain"])  # both with ties: the inert, rounded scores
def test_correlations_are_those_of_scipy(gates, utility, value):
    found, y = scopes(gates, utility, value=value), utility[value].to_numpy()
    assert utility[value].duplicated().any()
    assert found.loc["all", "spearman"] == pytest.approx(stats.spearmanr(gates["prob"], y)[0])
    for pet in gates["pet"].unique():
        rows = (gates["pet"] == pet).to_numpy()
        assert found.loc[pet, "spearman"] == pytest.approx(stats.spearmanr(gates["prob"][rows], y[rows])[0])
        assert found.loc[pet, "n"] == rows.sum()
    kinds = gates["pet"].to_numpy(str)
    assert found.loc["within PET modules", "spearman"] == pytest.approx(pooled(gates["prob"].to_numpy(), y, kinds))
    inside = gates["layer"].notna().to_numpy()
    layers = (gates["stack"] + "." + gates["layer"].astype("string"))[inside].to_numpy(str)
    within = pooled(gates["prob"].to_numpy()[inside], y[inside], layers)
    assert found.loc["within layers", ["n", "spearman"]].tolist() == pytest.approx([inside.sum(), within])
    means = pd.DataFrame({"prob": gates["prob"][inside], "y": y[inside]}).groupby(layers).mean()
    between = stats.spearmanr(means["prob"], means["y"])[0]
    assert found.loc["between layers", ["n", "spearman"]].tolist() == pytest.approx([8, between])


def test_gates_that_know_only_the_type_of_module_are_not_faithful_within_types(gates, utility):
    level = gates["pet"].map({"lora": 3.0, "bitfit": 1.0, "lnfit": 0.0, "lowrank_adapter": 2.0})
    luck = np.random.default_rng(1).normal(size=(2, len(gates)))
    found = scopes(gates.assign(prob=level + 0.1 * luck[0]), utility.assign(utility=level + 0.1 * luck[1]))
    assert found.loc["all", "spearman"] > 0.8
    assert abs(found.loc["within PET modules", "spearman"]) < found.loc["within PET modules", "spearman_chance_high"]


def test_the_interval_covers_the_true_correlation():
    rng, covered = np.random.default_rng(0), []
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # of normal variables with Pearson's correlation 0.6
    for _ in range(400):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=50).T
        row = compare(y, 0.1, x)
        covered.append(row["low"] < truth < row["high"])
    assert 0.92 < np.mean(covered) < 0.98


def test_chance_is_that_of_shuffled_gates(gates, utility):
    found, rng = scopes(gates, utility), np.random.default_rng(0)
    assert found.loc["all", "spearman_chance_high"] == pytest.approx(1.645 / np.sqrt(len(gates) - 1))
    y, kinds = utility["utility"].to_numpy(), gates["pet"].to_numpy(str)
    shuffled = [pooled(gates["prob"].sample(frac=1, random_state=rng).to_numpy(), y, kinds) for _ in range(1000)]
    assert found.loc["within PET modules", "spearman_chance_high"] == pytest.approx(
        np.quantile(shuffled, 0.95), abs=0.015
    )
    assert (found["spearman_chance"] == 0).all()


def test_constant_or_few_values_have_no_correlation(gates, utility):
    assert scopes(gates.assign(prob=0.5), utility).loc["all", "spearman":].isna().all()
    found = scopes(gates, utility.assign(utility=0.0))
    assert found.loc[:, "spearman":].isna().all(axis=None) and found.loc["all", "n"] == len(gates)
    found = scopes(*pair([0.0, 1.0], 0.1))
    assert found.loc["all", "n"] == 2 and found.loc[:, "spearman":].isna().all(axis=None)
    found = scopes(*pair([0.0, 1.0, 2.0, 4.0], 0.0, layer=pd.NA))
    assert found.loc["all", ["spearman", "low", "high"]].tolist() == [1, 1, 1]
    assert found.loc[["between layers", "within layers"], "n"].tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------ ceiling


def simulate(true, error, groups=None, draws=200, seed=0):
    """Means over measurements: the correlation of the true utility with the measured one, and the ceiling."""
    rng, truth, ceilings = np.random.default_rng(seed), [], []
    kinds = np.zeros(150) if groups is None else groups
    for _ in range(draws):
        u = true(rng)
        s = np.broadcast_to(error(u), u.shape)
        measured = u + s * rng.normal(size=len(u))
        truth.append(pooled(u, measured, kinds))
        ceilings.append(compare(measured, s, groups=groups)["ceiling"])
    return np.mean(truth), np.mean(ceilings)


@pytest.mark.parametrize("error", [0.1, 0.3, 1.0])
def test_the_ceiling_of_normal_utilities(error):
    truth, ceiling = simulate(lambda rng: rng.normal(size=150), lambda u: error)
    assert ceiling == pytest.approx(truth, abs=0.02)
    closed = 6 / np.pi * np.arcsin(1 / np.sqrt(1 + error**2) / 2)  # attenuation of normal variables
    assert ceiling == pytest.approx(closed, abs=0.02)


def test_the_ceiling_with_inert_candidates_and_unequal_errors():
    def true(rng):
        return np.where(np.arange(150) < 30, 0.0, rng.standard_t(3, size=150))

    truth, ceiling = simulate(true, lambda u: np.where(u == 0, 0.0, 0.3 + 0.2 * np.abs(u)))
    assert ceiling == pytest.approx(truth, abs=0.03) and ceiling < 0.95


def test_the_ceiling_within_types_does_not_count_differences_between_them():
    kinds = np.repeat(["lora", "bitfit", "lnfit"], 50)
    level = np.repeat([0.0, 10.0, 20.0], 50)
    truth, ceiling = simulate(lambda rng: level + rng.normal(size=150), lambda u: 0.7, kinds)
    assert ceiling == pytest.approx(truth, abs=0.02) and ceiling < 0.9
    measured = level + np.random.default_rng(0).normal(size=150)
    found = scopes(*pair(measured, 0.5, pet=kinds))
    assert found.loc["within PET modules", "ceiling"] == pytest.approx(compare(measured, 0.5, groups=kinds)["ceiling"])
    assert found.loc["all", "ceiling"] == pytest.approx(compare(measured, 0.5)["ceiling"])


def test_a_few_large_utilities_do_not_hide_that_the_rest_is_noise():
    def true(rng):
        return np.where(rng.uniform(size=150) < 0.2, rng.exponential(size=150), 0.0)

    truth, ceiling = simulate(true, lambda u: 0.1)
    classical = np.sqrt(1 - 0.1**2 / np.var(true(np.random.default_rng(0))))
    assert truth - 0.02 < ceiling < truth + 0.12 and classical > truth + 0.25


def test_ceilings_at_the_ends():
    u = np.random.default_rng(0).normal(size=100)
    assert scopes(*pair(u, 0.0)).loc["all", "ceiling"] == pytest.approx(1)
    assert scopes(*pair(np.repeat(u[:50], 2), 0.0)).loc["all", "ceiling"] == pytest.approx(1)  # with ties
    assert scopes(*pair(u, 5.0)).loc["all", "ceiling"] == 0
    assert np.isnan(scopes(*pair(u, np.where(u > 2, np.nan, 0.1))).loc["all", "ceiling"])
    gates, table = pair(np.where(u > 2, 0, u), np.where(u > 2, np.nan, 0.1))
    assert scopes(gates, table.assign(inert=u > 2)).loc["all", "ceiling"] > 0.9  # inert: exactly 0


def test_the_ceiling_between_layers_is_that_of_the_means():
    layer, rng = np.repeat(np.arange(40), 4), np.random.default_rng(0)
    measured = rng.normal(size=40)[layer] + rng.normal(size=160)
    error = rng.uniform(0.5, 1.5, size=160)
    means = measured.reshape(40, 4).mean(1), np.sqrt((error.reshape(40, 4) ** 2).sum(1)) / 4
    ceiling = scopes(*pair(measured, error, layer=layer)).loc["between layers", "ceiling"]
    assert ceiling == pytest.approx(compare(*means)["ceiling"]) and 0.8 < ceiling < 0.95


# --------------------------------------------------------------------------------- disagreement, joining


def test_disagreement_by_hand():
    gates, utility = pair([0.3, 0.0, 0.0, 0.9, 0.5], 0.1, prob=[0.1, 0.9, 0.2, 0.3, 0.4])
    table = disagreement(gates, utility)
    wanted = {"r1": (1, 0.125), "r2": (0.25, 0.125), "r4": (0.75, 0.75), "r0": (0, 0.5), "r3": (0.5, 1)}
    assert [site.rpartition(".")[2] for site in table["site"]] == [*wanted]
    np.testing.assert_allclose(table[["prob_rank", "utility_rank"]], [*wanted.values()])
    np.testing.assert_allclose(table["difference"], [a - b for a, b in wanted.values()])
    assert table.index[0] == "encoder.0.r1:lora:1"


def test_tables_are_joined_by_candidate_and_the_rest_is_reported(gates, utility):
    shuffled = utility.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(faithfulness(gates, shuffled), faithfulness(SimpleNamespace(gates=gates), utility))
    names = candidate_names(gates)
    part = faithfulness(gates.iloc[3:], utility.assign(utility=utility["utility"].where(gates.index != 7)).iloc[:-2])
    assert part.loc[0, "n"] == len(gates) - 6
    assert set(part.attrs["only_gates"]) == {names[7], *names[-2:]}
    assert set(part.attrs["only_utility"]) == set(names[:3])
    rows = [i for i in range(3, len(gates) - 2) if i != 7]
    wanted = stats.spearmanr(gates["prob"].iloc[rows], utility["utility"].iloc[rows])[0]
    assert part.loc[0, "spearman"] == pytest.approx(wanted)
    table = disagreement(gates.iloc[:3], utility)
    assert table.loc[names[1], "utility"] == utility["utility"][1] and len(table) == 3


def test_inert_for_the_task_is_not_inert_in_general(gates, utility):
    utility["inert"] |= utility["role"] == "attn.q"
    assert disagreement(gates, utility)["inert"].sum() == utility["inert"].sum() > gates["inert"].sum()


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda t: t.drop(columns=["utility_error", "measure"]), ["no column measure, utility_error; it has site"]),
        (lambda t: t.assign(task=["a", *["b"] * (len(t) - 1)]), [r"several values of 'task'.*\['task'\] == 'b'\]"]),
        (lambda t: t.assign(utility="high"), ["Column 'utility' holds 'high'; expected a number"]),
        (lambda t: t.assign(utility=np.inf, utility_error=-1.0), ["'utility' has values that", "'utility_error' .* 0"]),
        (lambda t: pd.concat([t, t.iloc[:2]]), ["2 candidates have several rows, such as encoder.0.attn.q:lora:1"]),
        (lambda t: t.assign(utility=np.nan), ["no candidate has a value"]),
        (lambda t: t.iloc[:0], [r"\(0 rows\): no candidate has a value"]),
        (lambda t: {"utility": 1}, ["one row per candidate.*got dict"]),
        (lambda t: t.assign(site="decoder.9." + t["site"]), ["no candidate has a gate and a utility: 156 gates"]),
    ],
)
def test_tables_that_are_none(gates, utility, change, messages):
    with pytest.raises(StudyError) as caught:
        faithfulness(gates, change(utility))
    assert isinstance(caught.value, S3PetError)
    for message in messages:
        assert caught.match(message)


def test_gates_that_are_none(gates, utility):
    with pytest.raises(StudyError, match="gate table has no column prob"):
        faithfulness(gates.drop(columns="prob"), utility)
    with pytest.raises(StudyError, match="a candidate has several gates"):
        faithfulness(pd.concat([gates, gates]), utility)
    with pytest.raises(StudyError, match="0 gates"):
        faithfulness(gates.iloc[:0], utility)


def test_the_callers_tables_are_not_changed(gates, utility):
    before = gates.copy(), utility.copy()
    utility_checked = check_utility(utility)
    faithfulness(gates, utility)
    pd.testing.assert_frame_equal(gates, before[0])
    pd.testing.assert_frame_equal(utility, before[1])
    assert utility_checked.index.tolist() == candidate_names(gates).tolist()
