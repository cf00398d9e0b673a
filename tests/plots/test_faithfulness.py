"""Gates beside utility: the data in the artists, never pixels."""

from __future__ import annotations

import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import SPACES, by_gid, centres, legend_texts, make_gates, make_utility, overlaps
from scipy import stats

from s3pet import plots
from s3pet.errors import StudyError
from s3pet.plots.faithfulness import utility_scale
from s3pet.utility import disagreement, faithfulness

pytestmark = pytest.mark.filterwarnings("error")


def mesh(ax):
    (collection,) = by_gid(ax, "gates")
    return collection


def value_at(ax, gates, row):
    """The value of the cell where a row of a gate table lies."""
    grid = plots.make_grid(gates)
    layer = str(row["layer"]) if pd.notna(row["layer"]) else "final"
    place = grid.columns[row["stack"], layer], grid.rows[row["role"], row["pet"]]
    (at,) = [i for i, path in enumerate(mesh(ax).get_paths()) if path.contains_point(place)]
    return mesh(ax).get_array()[at]


def caption(owner):
    """The title of a legend, on one line."""
    return owner.get_title().get_text().replace("\n", " ")


def wanted_words(gates, utility):
    found = faithfulness(gates, utility).set_index("scope")
    rho, low, high, ceiling = found.loc["all", ["spearman", "low", "high", "ceiling"]]
    within = found.loc["within PET modules", "spearman"]
    text = f"rank correlation {rho:.2f} (95 % interval {low:.2f} to {high:.2f}, ceiling {ceiling:.2f})"
    return f"{text}, within PET modules {within:.2f}"


# ------------------------------------------------------------------------------------------- maps


def test_a_map_of_utility_has_the_places_of_the_map_of_gates():
    gates = make_gates()
    utility = make_utility(gates)
    ax, map_of_gates = plots.plot_utility(utility, title="solo"), plots.plot_gates(gates)
    np.testing.assert_allclose(np.sort(mesh(ax).get_array()), np.sort(utility["utility"]))
    for row in (utility.iloc[30], utility.iloc[100]):
        assert value_at(ax, gates, row) == row["utility"]
    for gid in ("gates", "absent"):
        assert centres(ax, gid) == centres(map_of_gates, gid)
    assert (ax.get_xlim(), ax.get_ylim()) == (map_of_gates.get_xlim(), map_of_gates.get_ylim())
    (marks,) = by_gid(ax, "inert")
    assert len(marks.get_offsets()) == utility["inert"].sum() and "inert: changes no score" in legend_texts(ax)
    assert not by_gid(ax, "chosen") and not by_gid(ax, "unmeasured") and ax.get_title() == "solo"
    assert ax.figure.axes[-1].get_ylabel() == "solo utility (nats)"
    gains = plots.plot_utility(utility, value="score_gain")
    np.testing.assert_allclose(np.sort(mesh(gains).get_array()), np.sort(utility["score_gain"]))
    assert gains.figure.axes[-1].get_ylabel() == "solo gain in the score"


@pytest.mark.parametrize(
    ("values", "limits", "extend", "colours"),
    [
        (np.linspace(0, 1, 101), (0, 1), "neither", "cividis"),
        (np.linspace(-0.05, 1, 101), (0, 1), "min", "cividis"),
        (np.linspace(-0.5, 1, 101), (-1, 1), "neither", "PuOr_r"),
        ([*np.linspace(0, 1, 100), 9], (0, 0.96), "max", "cividis"),  # the 95 % quantile of 101 numbers: the 96th
        ([-9, *np.linspace(0, 1, 100), 9], (-0.97, 0.97), "both", "PuOr_r"),
        (np.zeros(9), (0, 1), "neither", "cividis"),
        ([2.0, *np.linspace(-1e-5, 1e-5, 100)], (0, 2), "min", "cividis"),  # one does all, the others nothing
    ],
)
def test_colours_start_from_zero_or_diverge_around_it(values, limits, extend, colours):
    utility = make_utility(make_gates()).iloc[: len(values)].assign(utility=values)
    norm, name, arrows = utility_scale(utility["utility"])
    assert (norm.vmin, norm.vmax) == pytest.approx(limits, abs=0.005) and (arrows, name) == (extend, colours)
    collection = mesh(plots.plot_utility(utility))
    assert collection.get_clim() == (norm.vmin, norm.vmax) and collection.get_cmap().name == colours


def test_what_was_not_measured_is_dotted():
    gates = make_gates()
    utility = make_utility(gates)
    utility.loc[[3, 9], "utility"] = np.nan
    ax = plots.plot_utility(utility)
    (dotted,) = by_gid(ax, "unmeasured")
    assert dotted.get_hatch() and len(dotted.get_paths()) == 2 and "not measured" in legend_texts(ax)
    axes = plots.plot_faithfulness(gates, utility.iloc[:-1])
    assert [sum(len(c.get_paths()) for c in by_gid(ax, "unmeasured")) for ax in axes] == [0, 3, 3]
    assert np.ma.getmaskarray(mesh(axes[2]).get_array()).sum() == 3 and len(mesh(axes[0]).get_array()) == len(gates)


def test_faithfulness_shows_three_maps_of_one_grid():
    gates = make_gates()
    utility = make_utility(gates).sample(frac=1, random_state=0)
    axes = plots.plot_faithfulness(SimpleNamespace(gates=gates), utility, title="a title")
    figure = axes[0].figure
    assert figure.get_suptitle() == "a title" and len(axes) == 3 and len(figure.axes) == 6
    assert len({(ax.get_xlim(), ax.get_ylim(), ax.get_position().y0) for ax in axes}) == 1
    assert [len(ax.get_yticks()) > 0 for ax in axes] == [True, False, False]
    ranks = [stats.rankdata(x) for x in (gates["prob"], utility["utility"].sort_index())]
    difference = (ranks[0] - ranks[1]) / (len(gates) - 1)
    measured = utility["utility"].sort_index()
    for i in (0, 40, len(gates) - 1):
        shown = [value_at(ax, gates, gates.iloc[i]) for ax in axes]
        np.testing.assert_allclose(shown, [gates["prob"][i], measured[i], difference[i]])
    chosen = centres(plots.plot_gates(gates), "chosen")
    assert all(centres(ax, "chosen") == chosen for ax in axes)
    assert mesh(axes[2]).get_clim() == (-1, 1)
    (legend,) = figure.legends
    assert caption(legend) == wanted_words(gates, utility).replace("-", "−")
    labels = ["gate probability", "solo utility (nats)", "under- (−) or over-valued (+)"]
    assert [ax.get_xlabel() for ax in figure.axes[3:]] == labels


def test_several_sizes_in_a_cell_share_it():
    gates = make_gates().iloc[:40]
    gates = gates[~gates["inert"]].reset_index(drop=True)
    double = gates.iloc[[0]].assign(rank=4, prob=0.001)
    gates = pd.concat([gates, double], ignore_index=True)
    utility = make_utility(gates)
    axes, table = plots.plot_faithfulness(gates, utility), disagreement(gates, utility)
    both = table[table["site"] == gates["site"][0]].query("pet == 'lora'")
    assert len(both) == 2
    shown = [value_at(ax, gates, gates.iloc[0]) for ax in axes]
    assert shown == pytest.approx([both["prob"].max(), both["utility"].max(), both["difference"].mean()])


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("size", ["paper", "notebook"])
def test_figures_fit_the_page_and_their_texts_do_not_overlap(name, size):
    n_encoder, n_decoder, bert = SPACES[name]
    gates = make_gates(n_encoder, n_decoder, bert=bert)
    with plots.figure_style(size) as style:
        axes = plots.plot_faithfulness(gates, make_utility(gates), title="a title")
        figure = axes[0].figure
        assert figure.get_size_inches()[0] <= style.page + 0.01
        figure.draw_without_rendering()
        texts = [text for ax in axes for text in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.title)]
        bars = [axis.label for ax in figure.axes[3:] for axis in (ax.xaxis, ax.yaxis)]
        assert not overlaps([*texts, *bars, *figure.legends[0].get_texts(), figure.legends[0].get_title()])
        ax = plots.plot_gates_against_utility(gates, make_utility(gates), title="a title")
        ax.figure.draw_without_rendering()
        labels = [text for text in ax.texts if text.get_gid() == "name"]
        assert not overlaps([*labels, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.title, ax.xaxis.label])


# ---------------------------------------------------------------------------------------- scatter


def points(ax, utility):
    """All points of the scatter, by PET module and inertness."""
    gids = [*utility["pet"].unique(), *("inert-" + utility["pet"].unique())]
    return {gid: np.asarray(by_gid(ax, gid)[0].get_offsets()) for gid in gids}


@pytest.mark.parametrize("ranks", [True, False])
def test_every_candidate_is_a_point_with_its_error(ranks):
    gates = make_gates()
    utility = make_utility(gates)
    ax = plots.plot_gates_against_utility(gates, utility, ranks=ranks)
    x, y, error = gates["prob"], utility["utility"], utility["utility_error"]
    if ranks:
        scaled = [(stats.rankdata(values) - 1) / (len(gates) - 1) for values in (x, y)]
        x, y = (type(x)(values) for values in scaled)
    shown = points(ax, utility)
    for pet in utility["pet"].unique():
        for gid, rows in ((pet, ~utility["inert"]), (f"inert-{pet}", utility["inert"])):
            rows = rows & (utility["pet"] == pet)
            wanted = np.stack([x[rows], y[rows]], axis=1)
            np.testing.assert_allclose(np.sort(shown[gid], axis=0), np.sort(wanted, axis=0))
    bars = [segment for bars in by_gid(ax, "error-lora") for segment in bars.get_segments()]
    row = utility[(utility["pet"] == "lora") & ~utility["inert"]].index[5]
    (bar,) = [bar for bar in bars if bar[0, 0] == x[row]]
    low, high = utility["utility"][row] - error[row], utility["utility"][row] + error[row]
    if ranks:  # as many as are below, up to the one between which it lies
        below = [(utility["utility"] < end).sum() / (len(gates) - 1) for end in (low, high)]
        assert bar[:, 1] == pytest.approx(np.array(below) - 0.5 / (len(gates) - 1), abs=0.6 / (len(gates) - 1))
    else:
        assert bar[:, 1] == pytest.approx([low, high])
    assert caption(ax.get_legend()) == wanted_words(gates, utility).replace("-", "−")
    assert {"LoRA", "BitFit", "LNFit", "low-rank", "inert: changes no score"} < set(legend_texts(ax))


def test_the_most_disagreeing_are_named_at_their_points():
    gates = make_gates()
    utility = make_utility(gates)
    prob, measured = gates["prob"].rank(), utility["utility"].rank()
    order = (prob - measured).sort_values(ascending=False)
    ax = plots.plot_gates_against_utility(gates, utility, top=2)
    names = {text.get_text().strip(): text for text in ax.texts if text.get_gid() == "name"}
    pets = {"lora": "LoRA", "bitfit": "BitFit", "lnfit": "LNFit", "lowrank_adapter": "low-rank"}
    for i, side in ((order.index[0], -1), (order.index[1], -1), (order.index[-1], 1), (order.index[-2], 1)):
        text = names.pop(f"{gates['site'][i]} {pets[gates['pet'][i]]}")
        x, y = (values[i] - 1 for values in (prob, measured))
        assert text.get_position()[0] == pytest.approx(x / (len(gates) - 1))
        assert side * text.get_position()[1] > side * (0, 0, 1)[side]
        lines = [line.get_xydata() for line in ax.lines if line.get_gid() == "leader"]
        assert any(np.allclose(line, [[x / 155, y / 155], text.get_position()]) for line in lines)
    assert not names
    assert not by_gid(plots.plot_gates_against_utility(gates, utility, top=0), "name")
    agree = utility.assign(utility=gates["prob"], inert=False)
    assert not by_gid(plots.plot_gates_against_utility(gates, agree), "name")  # nothing disagrees


def test_without_errors_there_are_no_bars_and_no_ceiling():
    gates = make_gates()
    utility = make_utility(gates).assign(utility_error=np.nan, inert=False)
    for ranks in (True, False):
        ax = plots.plot_gates_against_utility(gates, utility, ranks=ranks, ax=plt.figure().subplots())
        assert "ceiling unknown" in caption(ax.get_legend())
        segments = [segment for bars in by_gid(ax, "error-lora") for segment in bars.get_segments()]
        assert not any(len(segment) for segment in segments)
        ax.figure.savefig(io.BytesIO(), format="svg")


def test_bad_tables_raise_before_any_figure():
    gates, utility = make_gates(), make_utility(make_gates())
    mixed = utility.assign(measure=np.where(utility.index < 9, "solo", "drop"))
    for draw in (lambda: plots.plot_utility(mixed), lambda: plots.plot_faithfulness(gates, mixed)):
        with pytest.raises(StudyError, match="several values of 'measure'"):
            draw()
    with pytest.raises(StudyError, match="no candidate has a gate"):
        plots.plot_gates_against_utility(gates, utility.assign(site="x" + utility["site"]))
    assert not plt.get_fignums()


def test_dark_figures_are_vector_graphics():
    gates = make_gates()
    with plots.figure_style(dark=True):
        for figure in (
            plots.plot_faithfulness(gates, make_utility(gates))[0].figure,
            plots.plot_gates_against_utility(gates, make_utility(gates)).figure,
        ):
            file = io.BytesIO()
            figure.savefig(file, format="svg")
            assert b"<image" not in file.getvalue()
