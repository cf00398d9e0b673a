"""Gate tables in words: every number is computed once more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from gate_tables import make_gates

from s3pet.plots import describe


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
