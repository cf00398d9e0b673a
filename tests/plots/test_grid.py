"""The layout of maps, and what their cells show."""

from __future__ import annotations

import pandas as pd
import pytest
from gate_tables import make_gates

from s3pet import plots
from s3pet.plots.maps import HEADER, place_of, roles_in_order


def test_grid_order_groups_and_stacks():
    grid = plots.make_grid(make_gates(4, 4))
    assert list(grid.headers) == ["attention", "FFN", "norms", "block adapters"]
    assert list(grid.rows)[:3] == [("attn.q", "lora"), ("attn.q", "bitfit"), ("attn.k", "lora")]
    assert len(grid.rows) == 22 and len(set(grid.rows.values())) == 22
    assert [name for _, name in grid.columns] == ["0", "1", "2", "3", "final"] * 2
    assert grid.columns["decoder", "0"] - grid.columns["encoder", "final"] > 1  # space for the separator


def test_grid_keeps_a_layer_without_candidates_and_takes_unknown_roles():
    gates = make_gates(4, 0, bert=True)
    gates = gates[gates["layer"].ne(2).fillna(True).astype(bool)]
    unknown = gates.iloc[[0]].assign(role="router", pet="prefix", site="encoder.0.router")
    grid = plots.make_grid(pd.concat([gates, unknown]))
    assert [name for _, name in grid.columns] == ["embed", "0", "1", "2", "3"]
    assert list(grid.headers)[-1] == "other" and ("router", "prefix") in grid.rows


@pytest.mark.parametrize(("how", "value"), [("max", 0.7), ("sum", 1.1)])
def test_a_cell_of_several_ranks_by_hand(how, value):
    ranks = [(1, 0.1, False, True), (4, 0.7, True, True), (8, 0.3, False, False)]
    rows = [("encoder", 0, "attn.q", "lora", *rank) for rank in ranks]
    rows += [("encoder", 1, "attn.q", "lora", 1, 0.2, False, True)]
    gates = pd.DataFrame(rows, columns=["stack", "layer", "role", "pet", "rank", "prob", "chosen", "inert"])
    cells = plots.gate_cells(gates, how=how).set_index("column")
    assert cells.loc["0", ["chosen", "inert", "n_candidates"]].tolist() == [True, False, 3]
    assert cells.loc["0", "value"] == pytest.approx(value)
    assert cells.loc["1", ["value", "chosen", "inert", "x", "y"]].tolist() == [0.2, False, True, 1.0, HEADER]


def test_layers_as_float_or_object_give_the_same_cells():
    gates = make_gates(2, 2)
    expected = plots.gate_cells(gates)
    for layer in (gates["layer"].astype("float64"), gates["layer"].astype(object).where(gates["layer"].notna(), None)):
        pd.testing.assert_frame_equal(plots.gate_cells(gates.assign(layer=layer)), expected)


def test_value_limits_are_shared_and_symmetric_for_margins():
    one, two = make_gates(seed=0), make_gates(seed=1)
    assert plots.value_limits(one, two) == (0, max(one["prob"].max(), two["prob"].max()))
    low, high = plots.value_limits(one, value="margin")
    assert low == -high and high == one["margin"].abs().max()
    low, high = plots.value_limits(one.assign(alpha=0.0), value="alpha")
    assert low < 0 < high
    assert plots.value_limits(one.assign(frequency=0.25), value="frequency") == (0, 1)


def test_roles_that_no_table_knows_stand_with_their_like():
    known = ["attn.q", "attn.qkv", "attn.o", "ffn.in", "ffn.gate_in", "ffn.out", "attn.norm", "ffn", "final.norm"]
    new = ["attn.pos_proj", "attn.post_norm", "mixer.in", "mixer", "ffn.inner_norm", "pooling.x"]
    ordered = roles_in_order([*new, *reversed(known)])
    assert [role for role in ordered if role in known] == [
        *("attn.q", "attn.qkv", "attn.o", "ffn.in", "ffn.gate_in", "ffn.out", "attn.norm", "final.norm", "ffn")
    ]
    assert ordered.index("attn.pos_proj") == ordered.index("attn.o") + 1 < ordered.index("mixer.in")
    assert {role: place_of(role) for role in new} == {
        "attn.pos_proj": ("attention", "pos_proj"), "attn.post_norm": ("norms", "attn post"),
        "mixer.in": ("mixer", "in"), "mixer": ("block adapters", "mixer"),
        "ffn.inner_norm": ("norms", "ffn inner"), "pooling.x": ("other", "pooling.x"),
    }  # fmt: skip
    groups = [place_of(role)[0] for role in ordered]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)  # each group once
