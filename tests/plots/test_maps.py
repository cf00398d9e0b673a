"""Maps: the data in the artists, never pixels."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import SPACES, by_gid, centres, legend_texts, make_gates, make_structure, overlaps

from s3pet import plots
from s3pet.errors import PlotError, RunError, S3PetError

pytestmark = pytest.mark.filterwarnings("error")


def squares(ax, gid: str) -> int:
    return sum(len(collection.get_paths()) for collection in by_gid(ax, gid))


def stack_labels(ax):
    return [label for axes in ax.child_axes for label in axes.get_xticklabels()]


@pytest.mark.parametrize("name", SPACES)
def test_every_candidate_is_drawn_and_the_other_places_are_hatched(name):
    n_encoder, n_decoder, bert = SPACES[name]
    gates = make_gates(n_encoder, n_decoder, bert=bert)
    ax = plots.plot_gates(SimpleNamespace(gates=gates), title=name)
    (mesh,) = by_gid(ax, "gates")
    np.testing.assert_allclose(np.sort(mesh.get_array()), np.sort(gates["prob"]))
    (absent,) = by_gid(ax, "absent")
    grid = plots.make_grid(gates)
    assert absent.get_hatch() and len(absent.get_paths()) == len(grid.rows) * len(grid.columns) - len(gates)
    assert not centres(ax, "absent") & centres(ax, "gates")
    assert squares(ax, "chosen") == gates["chosen"].sum()
    (marks,) = by_gid(ax, "inert")
    assert len(marks.get_offsets()) == n_encoder + n_decoder == gates["inert"].sum()
    assert len(by_gid(ax, "stack-separator")) == (n_decoder > 0)
    assert [label.get_text() for label in stack_labels(ax)] == ["encoder", "decoder"][: 1 + (n_decoder > 0)]
    used = gates.loc[gates["chosen"], "n_params"].sum()
    assert f"chosen: {gates['chosen'].sum()} of {len(gates)}, {used:,} parameters" in legend_texts(ax)
    assert ax.get_title() == name


def test_a_cell_has_the_colour_and_place_of_its_candidate():
    gates = make_gates()
    ax = plots.plot_gates(gates)
    (mesh,) = by_gid(ax, "gates")
    grid = plots.make_grid(gates)
    row = gates[(gates["site"] == "decoder.2.ffn.in") & (gates["pet"] == "bitfit")].iloc[0]
    x, y = grid.columns["decoder", "2"], grid.rows["ffn.in", "bitfit"]
    at = [i for i, path in enumerate(mesh.get_paths()) if path.contains_point((x, y))]
    assert len(at) == 1 and mesh.get_array()[at[0]] == row["prob"]
    labels = dict(zip(ax.get_yticks(), [label.get_text() for label in ax.get_yticklabels()], strict=True))
    assert labels[y] == "in  BitFit"


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("width", [None, 6.9])
def test_no_texts_overlap(name, width):
    n_encoder, n_decoder, bert = SPACES[name]
    ax = plt.subplots(figsize=(width, 4.2), layout="constrained")[1] if width else None
    ax = plots.plot_gates(make_gates(n_encoder, n_decoder, bert=bert), ax=ax, title="a title")
    ax.figure.draw_without_rendering()
    texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), *stack_labels(ax), ax.title, ax.xaxis.label]
    assert not overlaps([*texts, *ax.get_legend().get_texts()])
    assert all(label.get_fontsize() >= 6 for label in ax.get_yticklabels())


def test_colour_limits_are_shared_between_panels():
    one, two = make_gates(seed=0), make_gates(seed=1)
    low, high = plots.value_limits(one, two)
    _, axes = plt.subplots(1, 2)
    for gates, ax in zip((one, two), axes, strict=True):
        assert plots.plot_gates(gates, ax=ax, cbar=False, vmin=low, vmax=high) is ax
    assert {by_gid(ax, "gates")[0].get_clim() for ax in axes} == {(low, high)}
    assert len(axes[0].figure.axes) == 2  # no colour bar


def test_margins_diverge_around_zero_and_other_columns_work():
    gates = make_gates().assign(frequency=0.25)
    (mesh,) = by_gid(plots.plot_gates(gates, value="margin"), "gates")
    low, high = mesh.get_clim()
    assert low == -high and mesh.get_cmap().name.startswith("PuOr")
    for value in ("alpha", "n_params", "frequency"):
        (mesh,) = by_gid(plots.plot_gates(gates, value=value), "gates")
        np.testing.assert_allclose(mesh.get_array().sum(), gates[value].sum())
    assert mesh.get_clim() == (0.0, 1.0) and mesh.get_cmap().name == "cividis"


def test_the_colour_bar_marks_the_cut_and_the_uniform_start():
    gates = make_gates()
    ax = plots.plot_gates(gates)
    bar = ax.figure.axes[-1]
    cut = gates["prob"].iloc[0] - gates["margin"].iloc[0]
    start = np.average(gates["prob"], weights=gates["n_params"])
    marks = {line.get_gid(): line.get_ydata()[0] for line in bar.lines if line.get_color() == "black"}
    assert marks == pytest.approx({"cut": cut, "uniform start": start})
    assert f"cut {cut:.3g}" in legend_texts(ax) and f"uniform start {start:.3g}" in legend_texts(ax)


def test_a_table_before_any_choice_draws_without_outlines():
    gates = make_gates().drop(columns=["chosen", "margin", "inert", "n_params"]).assign(alpha=0.0)
    ax = plots.plot_gates(gates, value="alpha")
    assert squares(ax, "chosen") == 0 and not by_gid(ax, "inert")


def test_missing_values_are_masked_not_zero():
    gates = make_gates()
    gates.loc[0, "prob"] = np.nan
    (mesh,) = by_gid(plots.plot_gates(gates), "gates")
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gates: gates.rename(columns={"prob": "probs"}), r"no column 'prob' \(nearest: 'probs'"),
        (lambda gates: gates.iloc[:0], "is empty"),
        (lambda gates: gates.assign(prob="high"), "Column 'prob' holds 'high'; expected a finite number"),
        (lambda gates: pd.concat([gates.assign(seed=0), gates.assign(seed=1)]), "mixes 2 values of 'seed'"),
        (lambda gates: {"prob": 1}, "got dict"),
    ],
)
def test_bad_tables_raise_before_any_figure(change, message):
    with pytest.raises(PlotError, match=message) as caught:
        plots.plot_gates(change(make_gates()))
    assert isinstance(caught.value, S3PetError) and isinstance(caught.value, ValueError)
    assert not plt.get_fignums()


# --------------------------------------------------------------------------------------------- structures


def test_shares_of_a_structure_and_their_places():
    gates = make_gates()
    structure = make_structure(gates, budget=4000)
    ax = plots.plot_structure(structure, space=gates)
    (mesh,) = by_gid(ax, "gates")
    assert mesh.get_array().sum() == pytest.approx(100)
    assert np.ma.getmaskarray(mesh.get_array()).sum() == (~gates["chosen"]).sum(), "not chosen is not 0"
    assert centres(ax, "chosen") == centres(plots.plot_gates(gates), "chosen")
    assert by_gid(ax, "absent")[0].get_hatch() and not centres(ax, "absent") & centres(ax, "gates")
    assert any(text.endswith(f"{structure.n_params:,} parameters of a budget of 4,000") for text in legend_texts(ax))
    rows = gates[gates["chosen"] & (gates["role"] == "ffn") & (gates["pet"] == "lowrank_adapter")]
    share = f"{100 * rows['n_params'].sum() / structure.n_params:.0f} %"
    y = plots.make_grid(gates).rows["ffn", "lowrank_adapter"]
    assert share in [text.get_text() for text in ax.texts if text.get_position()[1] == y]


def test_a_structure_without_a_space_has_only_rows_in_use_and_no_hatching():
    gates = make_gates()
    chosen = gates[gates["chosen"]]
    ax = plots.plot_structure(make_structure(gates))
    assert len(ax.get_yticks()) == len(chosen[["role", "pet"]].drop_duplicates()) + 4
    assert squares(ax, "absent") == 0 and squares(ax, "chosen") == len(chosen)


@pytest.mark.parametrize("change", [lambda gates: gates[gates["stack"] == "encoder"], lambda gates: gates.drop(30)])
def test_a_structure_outside_its_space_raises(change):
    gates = make_gates().assign(chosen=lambda table: table.index == 30)
    gates.loc[len(gates) - 1, "chosen"] = True
    with pytest.raises(PlotError, match=r"The structure uses .*, which the space does not have"):
        plots.plot_structure(make_structure(gates), space=change(gates))


def test_a_long_legend_does_not_squeeze_the_map_of_a_structure():
    gates = make_gates()
    with plots.figure_style("paper") as look:
        widths = []
        for budget in (None, 1_234_567):
            ax = plt.subplots(figsize=(look.column, 3), layout="constrained")[1]
            plots.plot_structure(make_structure(gates, budget), space=gates, ax=ax)
            ax.figure.draw_without_rendering()
            widths.append(ax.get_position().width)
            assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1 + 1
        assert widths[1] > 0.9 * widths[0] > 0.4


# ------------------------------------------------------------------------------------ differences, panels


def test_a_difference_shows_the_sign_and_who_chose():
    one, other = make_gates(seed=0), make_gates(seed=1)
    ax = plots.plot_difference(one, other, names=("A", "B"))
    (mesh,) = by_gid(ax, "gates")
    low, high = mesh.get_clim()
    assert low == -high and np.abs(mesh.get_array()).max() == pytest.approx(high)
    np.testing.assert_allclose(mesh.get_array().sum(), (one["prob"] - other["prob"]).sum())
    both, alone = one["chosen"] & other["chosen"], one["chosen"] & ~other["chosen"]
    assert squares(ax, "chosen") == both.sum() and f"chosen by A only: {alone.sum()}" in legend_texts(ax)
    (marks,) = by_gid(ax, "only_one")
    row = one[alone].iloc[0]
    grid = plots.make_grid(one)
    column = "final" if row["layer"] is pd.NA else str(row["layer"])
    place = (grid.columns[row["stack"], column], grid.rows[row["role"], row["pet"]])
    assert place in set(zip(*marks.get_data(), strict=True)) and len(marks.get_xdata()) == alone.sum()
    assert ax.figure.axes[-1].get_ylabel() == "gate probability: A − B"
    fixed = plots.plot_difference(one, other, limit=2.0)
    assert by_gid(fixed, "gates")[0].get_clim() == (-2.0, 2.0)
    with pytest.raises(RunError):
        plots.plot_difference(one, other.iloc[1:])


def test_panels_share_grid_scale_and_colour_bar():
    tables = {f"seed {seed}": make_gates(seed=seed).iloc[seed:] for seed in range(4)}  # the first lacks no row
    axes = plots.plot_gate_panels(tables, columns=2)
    assert [ax.get_title() for ax in axes] == list(tables)
    limits = {by_gid(ax, "gates")[0].get_clim() for ax in axes}
    assert limits == {plots.value_limits(*tables.values())}
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    assert len(axes[0].figure.axes) == 5  # four panels, one colour bar
    assert axes[0].get_yticklabels() and not axes[1].get_yticklabels()
    assert {text.get_text() for text in axes[0].figure.legends[0].get_texts()} >= {"chosen", "no candidate here"}
    with pytest.raises(PlotError, match=r"got \{\}"):
        plots.plot_gate_panels({})


@pytest.mark.parametrize("layers", [(4, 4), (24, 24), (6, 0)])
def test_panels_fit_the_page_and_their_texts_do_not_overlap(layers):
    with plots.figure_style("paper") as style:
        axes = plots.plot_gate_panels({f"{seed}": make_gates(*layers, bert=layers == (6, 0)) for seed in range(3)})
    figure = axes[0].figure
    assert figure.get_size_inches()[0] <= style.page + 0.01
    figure.draw_without_rendering()
    texts = [ax.get_xticklabels() + ax.get_yticklabels() + stack_labels(ax) + [ax.title] for ax in axes]
    assert not overlaps(itertools.chain(*texts))
