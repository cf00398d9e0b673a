"""Gate tables in words: every number is computed once more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from gate_tables import make_gates, make_utility
from scipy import stats

from s3pet.plots import candidate_facts, describe
from s3pet.utility import faithfulness


def test_describe_says_true_numbers():
    gates = make_gates()
    chosen = gates[gates["chosen"]]
    text = describe(gates)
    used = chosen["n_params"].sum()
    assert text.startswith(f"{len(gates)} candidates at {gates['site'].nunique()} sites")
    assert f"{len(chosen)} chosen with {used:,} parameters ({100 * used / gates['n_params'].sum():.3g} %)" in text
    lora = chosen.loc[chosen["pet"] == "lora", "n_params"].sum()
    assert f"LoRA {100 * lora / used:.0f} %" in text
    decoder = chosen[(chosen["stack"] == "decoder") & chosen["layer"].notna()]
    depth = np.average(decoder["layer"].astype(int), weights=decoder["n_params"])
    assert f"of 0 to 3, mean depth {depth:.1f}." in text
    best = gates.loc[gates["prob"].idxmax()]
    assert f"Most probable: {best['site']} {best['pet']} {best['prob']:.3g}" in text
    assert f"highest probability {gates['prob'].max():.3g}, cut {(gates['prob'] - gates['margin']).iloc[0]:.3g}" in text
    assert f"uniform start {np.average(gates['prob'], weights=gates['n_params']):.3g}" in text


def test_describe_says_how_far_the_loss_fell():
    gates = make_gates()
    text = describe(SimpleNamespace(gates=gates, loss_drop=0.314))
    assert text == describe(gates) + " The search's loss on held-out rows fell by 31 %."
    assert describe(SimpleNamespace(gates=gates, loss_drop=-0.02)).endswith("on held-out rows rose by 2 %.")
    assert describe(SimpleNamespace(gates=gates, loss_drop=float("nan"))) == describe(gates)


def test_describe_says_where_the_budget_goes():
    gates = make_gates(8, 0).assign(chosen=False)
    queries = (gates["role"] == "attn.q") & (gates["pet"] == "lora") & gates["layer"].isin([0, 3, 4, 5])
    norm = (gates["role"] == "final.norm") & (gates["pet"] == "lnfit")
    text = describe(gates.assign(chosen=(queries | norm).fillna(False)))
    share = 100 * 4 * 128 / (4 * 128 + 64)
    assert f"LoRA on encoder attention queries, layers 0 and 3-5 ({share:.0f} %)" in text
    assert f"LNFit on encoder final norm ({100 - share:.0f} %)." in text
    inside = (gates["prob"] * gates["n_params"])[queries | norm].sum() / (gates["prob"] * gates["n_params"]).sum()
    assert f"{100 * inside:.0f} % of the parameters that the gates expect lie on what was chosen." in text
    shorter = describe(gates.assign(chosen=(queries | norm).fillna(False)), top=1)
    assert f"; 1 other kind take the remaining {100 - share:.0f} %." in shorter


def test_describe_works_when_nothing_is_chosen():
    text = describe(make_gates().assign(chosen=False, margin=np.nan))
    assert "0 chosen with 0 parameters (0 %)" in text and "nan" not in text and "cut" not in text


def test_describe_says_how_faithful_the_gates_are():
    gates = make_gates()
    utility = make_utility(gates)
    text, n = describe(gates, utility=utility).removeprefix(describe(gates)), len(gates)
    found = faithfulness(gates, utility).set_index("scope")
    rho = stats.spearmanr(gates["prob"], utility["utility"])[0]
    assert text.startswith(f" Gates and solo utility on made-up, {n} candidates: rank correlation {rho:.2f} (95 % ")
    assert f"{found.loc['all', 'low']:.2f} to {found.loc['all', 'high']:.2f}; 95 % of shuffled gates" in text
    assert f"stay below {1.645 / np.sqrt(n - 1):.2f})" in text
    assert f"The ceiling that the errors of the utility set is {found.loc['all', 'ceiling']:.2f}." in text
    lora = gates["pet"] == "lora"
    within = stats.spearmanr(gates["prob"][lora], utility["utility"][lora])[0]
    assert f"Within PET modules {found.loc['within PET modules', 'spearman']:.2f} (LoRA {within:.2f}, LNFit " in text
    places = {name: values.rank(ascending=False, method="min") for name, values in (("gate", gates["prob"]),)}
    places["utility"] = utility["utility"].rank(ascending=False, method="min")
    difference = gates["prob"].rank() - utility["utility"].rank()
    for what, at in (("over", difference.idxmax()), ("under", difference.idxmin())):
        each = f"(gate {places['gate'][at]:.0f}, utility {places['utility'][at]:.0f})"
        start = f"Most {what}-valued, with places out of {n}: {gates['site'][at]} "
        assert start in text and text.split(start)[1].split(")")[0].endswith(each[:-1])
    assert "Left out" not in text and "nan" not in text
    partly = describe(gates, utility=utility.iloc[2:].assign(utility_error=np.nan, inert=False))
    assert partly.endswith("Left out: 2 candidates without a utility and 0 without a gate.")
    assert "errors of the utility set is unknown." in partly
    assert "rank correlation unknown" in describe(gates.assign(prob=0.5), utility=utility)


def test_facts_say_what_was_measured():
    gates = make_gates()
    utility = make_utility(gates)
    row = utility.iloc[2]
    place = 1 + (utility["utility"] > row["utility"]).sum()
    name = f"{row['site']}:{row['pet']}:1"
    facts = candidate_facts(gates, name, utility=utility)
    error = f"{row['utility']:+.4g} ± {row['utility_error']:.2g} nats"
    assert facts["solo utility"] == f"{error}, {place} of {len(utility)}"
    inert = utility[utility["inert"]].iloc[0]
    facts = candidate_facts(gates, f"{inert['site']}:{inert['pet']}", utility=utility)
    assert facts["solo utility"].startswith("no score changes, ")
    assert "±" not in candidate_facts(gates, name, utility=utility.assign(utility_error=np.nan))["solo utility"]
    for without in (None, utility.drop(index=2), utility.assign(utility=utility["utility"].mask(utility.index == 2))):
        assert "solo utility" not in candidate_facts(gates, name, utility=without)
