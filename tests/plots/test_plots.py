"""Figures: the data in the artists, never pixels."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from s3pet import plots
from s3pet.errors import PlotError, S3PetError

pytestmark = pytest.mark.filterwarnings("error")


def make_gates(n_encoder: int = 4, n_decoder: int = 4, *, bert: bool = False, seed: int = 0) -> pd.DataFrame:
    """A gate table like a search's on T5 (or BERT): every key bias inert, a fifth of the candidates chosen."""
    rows = []

    def add(stack, layer, role, pet, n_params, inert=False):
        site = f"{stack}.{role}" if layer is None else f"{stack}.{layer}.{role}"
        row = {"site": site, "path": f"hf.{site}", "stack": stack, "layer": layer, "role": role, "pet": pet}
        rows.append(row | {"rank": 1 if pet == "lora" else None, "n_params": n_params, "inert": inert})

    for stack, n_layers in (("encoder", n_encoder), ("decoder", n_decoder)):
        for layer in range(n_layers):
            for role in ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.in", "ffn.out"):
                add(stack, layer, role, "lora", 128)
                add(stack, layer, role, "bitfit", 64, role == "attn.k")
            for role in ("attn.norm", "ffn.norm") + ("cross.norm",) * (stack == "decoder"):
                add(stack, layer, role, "lnfit", 64)
                add(stack, layer, role, "bitfit", 64)
            for role in ("attn", "ffn"):
                add(stack, layer, role, "lowrank_adapter", 198)
        if n_layers:
            for pet in ("lnfit", "bitfit"):
                add(stack, None, "embed.norm" if bert else "final.norm", pet, 64)
    table = pd.DataFrame(rows).astype({"layer": "Int64", "rank": "Int64"})
    alpha = np.random.default_rng(seed).normal(size=len(table))
    prob = 1 / (1 + np.exp(2 - alpha))
    cut = np.quantile(prob, 0.8)
    return table.assign(alpha=alpha, prob=prob, chosen=prob > cut, margin=prob - cut)


def make_structure(gates: pd.DataFrame, budget: int | None = None) -> SimpleNamespace:
    chosen = gates.loc[gates["chosen"], ["site", "stack", "layer", "role", "pet", "rank", "n_params"]]
    return SimpleNamespace(table=lambda: chosen, n_params=int(chosen["n_params"].sum()), budget=budget)


def make_scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    runs = (("S³PET-M", "searched", 2048, 0.86), ("S³PET-L", "searched", 2040, 0.85), ("random", "random", 2044, 0.79))
    runs += (("BitFit", "manual", 9216, 0.83), ("LoRA q,v", "manual", 2048, 0.80))
    runs += (("full fine-tuning", "reference", np.nan, 0.87),)
    columns = ["structure", "kind", "n_params", "seed", "score"]
    rows = [(*run[:3], seed, run[3] + rng.normal(0, 0.01)) for run in runs for seed in range(5)]
    return pd.DataFrame(rows, columns=columns)


def by_gid(ax, gid: str) -> list:
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def n_squares(ax, gid: str) -> int:
    return sum(len(collection.get_paths()) for collection in by_gid(ax, gid))


def legend_texts(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ------------------------------------------------------------------------------------------------ compute


def test_grid_order_groups_and_stacks():
    grid = plots.make_grid(make_gates(4, 4))
    assert list(grid.headers) == ["attention", "FFN", "norms", "block adapters"]
    assert list(grid.rows)[:3] == [("attn.q", "lora"), ("attn.q", "bitfit"), ("attn.k", "lora")]
    assert len(grid.rows) == 22 and len(set(grid.rows.values())) == 22
    assert [name for _, name in grid.columns] == ["0", "1", "2", "3", "final"] * 2
    assert grid.columns["decoder", "0"] - grid.columns["encoder", "final"] > 1  # room for the separator


def test_grid_keeps_a_hole_in_the_layers_and_takes_unknown_roles():
    gates = make_gates(4, 0, bert=True)
    gates = gates[gates["layer"].ne(2).fillna(True).astype(bool)]
    odd = gates.iloc[[0]].assign(role="router", pet="prefix", site="encoder.0.router")
    grid = plots.make_grid(pd.concat([gates, odd]))
    assert [name for _, name in grid.columns] == ["embed", "0", "1", "2", "3"]
    assert list(grid.headers)[-1] == "other" and ("router", "prefix") in grid.rows


def test_cell_is_the_maximum_over_ranks_by_hand():
    rows = [(1, 0.1, False, True), (4, 0.7, True, True), (8, 0.3, False, False)]
    rows = [("encoder", 0, "attn.q", "lora", *row) for row in rows] + [
        ("encoder", 1, "attn.q", "lora", 1, 0.2, False, True)
    ]
    gates = pd.DataFrame(rows, columns=["stack", "layer", "role", "pet", "rank", "prob", "chosen", "inert"])
    cells = plots.gate_cells(gates).set_index("column")
    assert cells.loc["0", ["value", "chosen", "inert", "n_candidates"]].tolist() == [0.7, True, False, 3]
    assert cells.loc["1", ["value", "chosen", "inert", "x", "y"]].tolist() == [
        0.2,
        False,
        True,
        1.0,
        plots.grid.HEADER,
    ]


def test_layers_as_float_or_object_give_the_same_cells():
    gates = make_gates(2, 2)
    want = plots.gate_cells(gates)
    for layer in (gates["layer"].astype("float64"), gates["layer"].astype(object).where(gates["layer"].notna(), None)):
        pd.testing.assert_frame_equal(plots.gate_cells(gates.assign(layer=layer)), want)


def test_value_limits_are_shared_and_symmetric_for_margins():
    one, two = make_gates(seed=0), make_gates(seed=1)
    assert plots.value_limits(one, two) == (0, max(one["prob"].max(), two["prob"].max()))
    low, high = plots.value_limits(one, value="margin")
    assert low == -high and high == one["margin"].abs().max()
    low, high = plots.value_limits(one.assign(alpha=0.0), value="alpha")
    assert low < 0 < high


# ------------------------------------------------------------------------------------------------ gates

SPACES = {"t5-pocket": (4, 4, False), "bert-like": (6, 0, True), "t5-large": (24, 24, False)}


@pytest.mark.parametrize("name", SPACES)
def test_plot_gates_draws_every_candidate_and_hatches_the_rest(name):
    n_encoder, n_decoder, bert = SPACES[name]
    gates = make_gates(n_encoder, n_decoder, bert=bert)
    ax = plots.plot_gates(SimpleNamespace(gates=gates), title=name)
    (mesh,) = by_gid(ax, "gates")
    np.testing.assert_allclose(np.sort(mesh.get_array()), np.sort(gates["prob"]))
    (absent,) = by_gid(ax, "absent")
    grid = plots.make_grid(gates)
    assert absent.get_hatch() and len(absent.get_paths()) == len(grid.rows) * len(grid.columns) - len(gates)
    assert n_squares(ax, "chosen") == gates["chosen"].sum()
    (marks,) = by_gid(ax, "inert")
    assert len(marks.get_offsets()) == n_encoder + n_decoder == gates["inert"].sum()
    assert len(by_gid(ax, "stack-separator")) == (n_decoder > 0)
    texts = {text.get_text() for text in ax.texts}
    assert {"encoder"} | ({"decoder"} if n_decoder else set()) <= texts and ax.get_title() == name
    used = gates.loc[gates["chosen"], "n_params"].sum()
    assert f"chosen: {gates['chosen'].sum()} of {len(gates)}, {used:,} parameters" in legend_texts(ax)


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
def test_no_tick_labels_overlap(name, width):
    n_encoder, n_decoder, bert = SPACES[name]
    ax = plt.subplots(figsize=(width, 4.2), layout="constrained")[1] if width else None
    ax = plots.plot_gates(make_gates(n_encoder, n_decoder, bert=bert), ax=ax)
    ax.figure.draw_without_rendering()
    labels = [text.get_window_extent() for text in (*ax.get_xticklabels(), *ax.get_yticklabels()) if text.get_text()]
    labels += [text.get_window_extent() for text in ax.get_legend().get_texts()]
    assert not [(a, b) for a, b in itertools.combinations(labels, 2) if a.overlaps(b)]
    assert all(label.get_fontsize() >= 6 for label in ax.get_yticklabels())


def test_colour_limits_are_shared_between_panels():
    one, two = make_gates(seed=0), make_gates(seed=1)
    low, high = plots.value_limits(one, two)
    _, axes = plt.subplots(1, 2)
    for gates, ax in zip((one, two), axes, strict=True):
        assert plots.plot_gates(gates, ax=ax, cbar=False, vmin=low, vmax=high) is ax
    assert {by_gid(ax, "gates")[0].get_clim() for ax in axes} == {(low, high)}
    assert len(axes[0].figure.axes) == 2  # no colour bar


def test_margin_diverges_around_zero_and_other_columns_work():
    gates = make_gates()
    (mesh,) = by_gid(plots.plot_gates(gates, value="margin"), "gates")
    low, high = mesh.get_clim()
    assert low == -high and mesh.get_cmap().name.startswith("PuOr")
    for value in ("alpha", "n_params"):
        (mesh,) = by_gid(plots.plot_gates(gates, value=value), "gates")
        np.testing.assert_allclose(mesh.get_array().sum(), gates[value].sum())


def test_colour_bar_marks_the_cut_and_the_uniform_start():
    gates = make_gates()
    ax = plots.plot_gates(gates)
    bar = ax.figure.axes[-1]
    cut = gates["prob"].iloc[0] - gates["margin"].iloc[0]
    start = np.average(gates["prob"], weights=gates["n_params"])
    assert {round(float(line.get_ydata()[0]), 9) for line in bar.lines} == {round(cut, 9), round(start, 9)}
    assert f"cut {cut:.3g}" in legend_texts(ax) and f"uniform start {start:.3g}" in legend_texts(ax)


def test_table_before_any_choice_draws_without_outlines():
    gates = make_gates().drop(columns=["chosen", "margin", "inert", "n_params"]).assign(alpha=0.0)
    ax = plots.plot_gates(gates, value="alpha")
    assert n_squares(ax, "chosen") == 0 and not by_gid(ax, "inert")


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
        (lambda gates: gates.assign(prob="high"), "a colour needs numbers"),
        (lambda gates: pd.concat([gates.assign(seed=0), gates.assign(seed=1)]), "mixes 2 values of 'seed'"),
        (lambda gates: {"prob": 1}, "got dict"),
    ],
)
def test_bad_tables_raise_at_the_door(change, message):
    with pytest.raises(PlotError, match=message) as caught:
        plots.plot_gates(change(make_gates()))
    assert isinstance(caught.value, S3PetError) and isinstance(caught.value, ValueError)
    assert not plt.get_fignums()


# -------------------------------------------------------------------------------------------- structures


def test_plot_structure_shares_and_places():
    gates = make_gates()
    structure = make_structure(gates, budget=4000)
    ax = plots.plot_structure(structure, space=gates)
    (mesh,) = by_gid(ax, "gates")
    assert mesh.get_array().sum() == pytest.approx(100)
    assert n_squares(ax, "chosen") == gates["chosen"].sum() and n_squares(ax, "free") == len(gates)
    assert by_gid(ax, "absent")[0].get_hatch()
    assert any(text.endswith(f"{structure.n_params:,} parameters of a budget of 4,000") for text in legend_texts(ax))
    rows = gates[gates["chosen"] & (gates["role"] == "ffn") & (gates["pet"] == "lowrank_adapter")]
    share = f"{100 * rows['n_params'].sum() / structure.n_params:.0f} %"
    y = plots.make_grid(gates).rows["ffn", "lowrank_adapter"]
    assert share in [text.get_text() for text in ax.texts if text.get_position()[1] == y]


def test_plot_structure_without_a_space_draws_only_rows_in_use():
    gates = make_gates()
    ax = plots.plot_structure(make_structure(gates))
    chosen = gates[gates["chosen"]]
    n_rows = len(chosen[["role", "pet"]].drop_duplicates())
    assert len(plots.make_grid(chosen).rows) == n_rows and not by_gid(ax, "absent")
    assert n_squares(ax, "chosen") == len(chosen)


def test_plot_structure_outside_its_space_raises():
    gates = make_gates()
    with pytest.raises(PlotError, match="which the space does not have"):
        plots.plot_structure(make_structure(gates), space=gates[gates["stack"] == "encoder"])


# -------------------------------------------------------------------------------------------- comparison


def test_summary_matches_scipy():
    from scipy import stats

    scores = make_scores()
    row = plots.summarize_scores(scores).set_index("structure").loc["BitFit"]
    runs = scores.loc[scores["structure"] == "BitFit", "score"]
    low, high = stats.t.interval(0.95, 4, loc=runs.mean(), scale=stats.sem(runs))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((runs.mean(), low, high))
    two = plots.summarize_scores(scores[scores["seed"] < 2]).set_index("structure").loc["BitFit"]
    assert (two["low"], two["high"]) == (runs.iloc[:2].min(), runs.iloc[:2].max())
    one = plots.summarize_scores(scores[scores["seed"] < 1]).set_index("structure").loc["BitFit"]
    assert one["low"] == one["high"] == one["mean"] and one["n"] == 1


def test_plot_comparison_points_means_and_reference():
    scores = make_scores()
    ax = plots.plot_comparison(scores, metric="accuracy")
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "accuracy"
    assert sum(len(line.get_xdata()) for line in by_gid(ax, "runs")) == 25
    means = {line.get_label(): line for line in by_gid(ax, "means")}
    assert set(means) == {"searched", "random", "manual"}
    assert (
        len({line.get_marker() for line in means.values()}) == len({line.get_color() for line in means.values()}) == 3
    )
    assert means["random"].get_ydata()[0] == scores.loc[scores["kind"] == "random", "score"].mean()
    (line,) = by_gid(ax, "reference")
    assert line.get_ydata()[0] == scores.loc[scores["kind"] == "reference", "score"].mean()
    assert len(by_gid(ax, "reference-band")) == 1


@pytest.mark.parametrize("size", [(5.2, 3.4), (3.35, 2.6)])
def test_comparison_labels_do_not_overlap(size):
    ax = plots.plot_comparison(make_scores(), ax=plt.subplots(figsize=size, layout="constrained")[1])
    ax.figure.draw_without_rendering()
    texts = [text for text in ax.texts if text.get_text()]
    boxes = [Text.get_window_extent(text) for text in texts]
    assert {text.get_text() for text in by_gid(ax, "label")} == {"S³PET-M", "S³PET-L", "random", "BitFit", "LoRA q,v"}
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_comparison_refuses_mixed_tasks_and_unplottable_sizes():
    scores = make_scores()
    with pytest.raises(PlotError, match="mixes 2 values of 'task'"):
        plots.plot_comparison(pd.concat([scores.assign(task="a"), scores.assign(task="b")]))
    with pytest.raises(PlotError, match=r"n_params must be > 0 .*BitFit"):
        plots.plot_comparison(scores.assign(n_params=scores["n_params"].mask(scores["structure"] == "BitFit", 0)))
    with pytest.raises(PlotError, match="no column 'kind'"):
        plots.plot_comparison(scores.drop(columns="kind"))


# -------------------------------------------------------------------------------------------------- files


def draw(kind: str):
    gates = make_gates(24, 24)
    if kind == "comparison":
        return plots.plot_comparison(make_scores())
    return plots.plot_gates(gates) if kind == "gates" else plots.plot_structure(make_structure(gates), space=gates)


@pytest.mark.parametrize("kind", ["gates", "structure", "comparison"])
def test_files_are_vector_with_embedded_fonts(tmp_path, kind):
    paths = plots.save_figure(draw(kind), tmp_path / "new" / "map.pdf", formats=("pdf", "svg", "png"))
    assert [path.name for path in paths] == ["map.pdf", "map.svg", "map.png"] and all(path.exists() for path in paths)
    pdf, svg = paths[0].read_bytes(), paths[1].read_text(encoding="utf-8")
    assert not re.search(rb"/Subtype\s*/Image", pdf)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert "<image" not in svg and "<text" in svg


def test_drawing_again_gives_the_same_bytes(tmp_path):
    one, two = (
        plots.save_figure(plots.plot_gates(make_gates(2, 2)), tmp_path / name, ("pdf", "svg"))
        for name in ("v1.0", "b.pdf")
    )
    assert [path.name for path in one + two] == ["v1.0.pdf", "v1.0.svg", "b.pdf", "b.svg"]  # "0" is no format
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_files_carry_their_description(tmp_path):
    from PIL import Image

    table = make_gates(2, 2)
    alt = plots.describe(table)
    png, svg, pdf = plots.save_figure(plots.plot_gates(table), tmp_path / "gates", ["png", "svg", "pdf"], alt=alt)
    assert Image.open(png).text["Description"] == alt
    assert alt.split(";")[0] in svg.read_text(encoding="utf-8")
    assert b"/Subject" in pdf.read_bytes()
    (bare,) = plots.save_figure(plots.plot_gates(table), tmp_path / "bare", ["png"])
    assert "Description" not in Image.open(bare).text


def test_unknown_format_raises(tmp_path):
    with pytest.raises(PlotError, match="Expected a list of formats"):
        plots.save_figure(plots.plot_gates(make_gates(1, 1)), tmp_path / "a", ("docx",))


# ----------------------------------------------------------------------------------------------- describe


def test_describe_says_true_numbers():
    gates = make_gates()
    chosen = gates[gates["chosen"]]
    text = plots.describe(gates)
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


def test_describe_says_how_far_a_search_has_learned():
    gates = make_gates()
    told = plots.describe(SimpleNamespace(gates=gates, loss_drop=0.314))
    assert told == plots.describe(gates) + " The search's loss on held-out rows fell by 31 %."
    assert plots.describe(SimpleNamespace(gates=gates, loss_drop=-0.02)).endswith("on held-out rows rose by 2 %.")
    assert plots.describe(SimpleNamespace(gates=gates, loss_drop=float("nan"))) == plots.describe(gates)


def test_describe_says_where_the_budget_goes():
    gates = make_gates(8, 0).assign(chosen=False)
    wanted = (gates["role"] == "attn.q") & (gates["pet"] == "lora") & gates["layer"].isin([0, 3, 4, 5])
    other = (gates["role"] == "final.norm") & (gates["pet"] == "lnfit")
    text = plots.describe(gates.assign(chosen=(wanted | other).fillna(False)))
    share = 100 * 4 * 128 / (4 * 128 + 64)
    assert f"LoRA on encoder attention queries, layers 0 and 3-5 ({share:.0f} %)" in text
    assert f"LNFit on encoder final norm ({100 - share:.0f} %)." in text
    inside = (gates["prob"] * gates["n_params"])[wanted | other].sum() / (gates["prob"] * gates["n_params"]).sum()
    assert f"{100 * inside:.0f} % of the parameters that the gates expect lie on what was chosen." in text


def test_describe_works_when_nothing_is_chosen():
    text = plots.describe(make_gates().assign(chosen=False, margin=np.nan))
    assert "0 chosen with 0 parameters (0 %)" in text and "nan" not in text and "cut" not in text


def test_drawing_leaves_the_users_settings_alone():
    before = dict(matplotlib.rcParams)
    plots.plot_gates(make_gates(1, 1))
    assert dict(matplotlib.rcParams) == before


# -------------------------------------------------------------------- difference, panels, styles


def test_difference_shows_the_sign_and_who_chose():
    one, other = make_gates(seed=0), make_gates(seed=1)
    ax = plots.plot_difference(one, other, names=("A", "B"))
    (mesh,) = by_gid(ax, "gates")
    low, high = mesh.get_clim()
    assert low == -high and np.abs(mesh.get_array()).max() == pytest.approx(high)
    np.testing.assert_allclose(mesh.get_array().sum(), (one["prob"] - other["prob"]).sum())
    both, mine = one["chosen"] & other["chosen"], one["chosen"] & ~other["chosen"]
    assert n_squares(ax, "chosen") == both.sum() and f"chosen by A only: {mine.sum()}" in legend_texts(ax)
    (marks,) = by_gid(ax, "only_one")
    site = one[mine].iloc[0]
    grid = plots.make_grid(one)
    column = "final" if site["layer"] is pd.NA else str(site["layer"])
    place = (grid.columns[site["stack"], column], grid.rows[site["role"], site["pet"]])
    assert place in set(zip(*marks.get_data(), strict=True)) and len(marks.get_xdata()) == mine.sum()
    assert ax.figure.axes[-1].get_ylabel() == "gate probability: A − B"
    fixed = plots.plot_difference(one, other, limit=2.0)
    assert by_gid(fixed, "gates")[0].get_clim() == (-2.0, 2.0)


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
    with pytest.raises(PlotError, match="got none"):
        plots.plot_gate_panels({})


@pytest.mark.parametrize("layers", [(4, 4), (24, 24), (6, 0)])
def test_panels_fit_the_page_and_their_texts_do_not_overlap(layers):
    with plots.figure_style("paper") as style:
        axes = plots.plot_gate_panels({f"{seed}": make_gates(*layers, bert=layers == (6, 0)) for seed in range(3)})
    figure = axes[0].figure
    assert figure.get_size_inches()[0] <= style.page + 0.01
    figure.draw_without_rendering()
    labels = [label for ax in axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.title)]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_frequencies_reach_from_0_to_1():
    gates = make_gates().assign(frequency=0.25)
    (mesh,) = by_gid(plots.plot_gates(gates, value="frequency"), "gates")
    assert mesh.get_clim() == (0.0, 1.0)


def test_styles_change_size_and_ground_and_go_back():
    normal = plots.plot_gates(make_gates(2, 2))
    with plots.figure_style("talk", dark=True) as style:
        ax = plots.plot_gates(make_gates(2, 2))
        assert ax.get_yticklabels()[0].get_fontsize() == style.font > normal.get_yticklabels()[0].get_fontsize()
        assert matplotlib.colors.same_color(ax.figure.get_facecolor(), style.ground)
        texts = [*ax.get_yticklabels(), *ax.get_xticklabels(), *ax.texts, *ax.get_legend().get_texts()]
        assert {text.get_color() for text in texts} == {style.ink}
    again = plots.plot_gates(make_gates(2, 2))
    assert again.get_yticklabels()[0].get_fontsize() == normal.get_yticklabels()[0].get_fontsize()
    with pytest.raises(PlotError, match=r"'slides' is not known; .*talk"):
        plots.figure_style("slides")


def test_a_style_lasts_until_changed():
    before = plots.style.style()
    try:
        plots.figure_style("paper")
        assert plots.style.style().name == "paper"
    finally:
        plots.figure_style(before.name)


def contrast(one, other):
    """Ratio of relative luminances (WCAG 2)."""

    def luminance(colour):
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_ink_and_lines_stand_out_from_the_ground(dark):
    with plots.figure_style("notebook", dark=dark) as style:
        assert contrast(style.ink, style.ground) > 12
        assert contrast(style.grey, style.ground) > 4.5
        for colour in plots.style.PET_COLOURS.values():
            assert contrast(colour, style.ground) > 2.1


@pytest.mark.parametrize("function", [plots.plot_gates, plots.plot_profile])
def test_axes_made_without_the_style_get_its_ground_and_ink(function):
    with plots.figure_style("paper", dark=True) as look:
        ax = plt.subplots(figsize=(look.column, 3), layout="constrained")[1]
        function(make_gates(), ax=ax)
        shown = {to_hex(ax.figure.get_facecolor()), to_hex(ax.get_facecolor())}
        assert shown == {look.ground.lower()}
        assert {to_hex(label.get_color()) for label in ax.get_xticklabels()} == {look.ink.lower()}
    ax = plt.subplots()[1]
    ax.set_facecolor("beige")
    plots.plot_gates(make_gates(), ax=ax)
    assert to_hex(ax.get_facecolor()) == to_hex("beige"), "a light figure of the user's own stays as it is"


def test_a_long_legend_does_not_squeeze_the_map_of_a_structure():
    gates = make_gates()
    with plots.figure_style("paper") as look:
        wide = []
        for budget in (None, 1_234_567):
            ax = plt.subplots(figsize=(look.column, 3), layout="constrained")[1]
            plots.plot_structure(make_structure(gates, budget), space=gates, ax=ax)
            ax.figure.draw_without_rendering()
            wide.append(ax.get_position().width)
            text = ax.get_legend().get_window_extent()
            assert text.x1 <= ax.figure.bbox.x1 + 1
        assert wide[1] > 0.9 * wide[0] > 0.4
