"""The styles: what they change, what they leave alone, and the files that are saved."""

from __future__ import annotations

import re

import matplotlib
import matplotlib.pyplot as plt
import pytest
from gate_tables import contrast, make_gates, make_structure
from matplotlib.colors import rgb_to_hsv, same_color, to_hex, to_rgb
from matplotlib.figure import Figure

from s3pet import plots
from s3pet.errors import PlotError

pytestmark = pytest.mark.filterwarnings("error")

GATES = make_gates(2, 2)
FIGURES = {
    "gates": lambda: plots.plot_gates(GATES),
    "difference": lambda: plots.plot_difference(GATES, make_gates(2, 2, seed=1)),
    "panels": lambda: plots.plot_gate_panels({"a": GATES, "b": GATES})[0],
    "structure": lambda: plots.plot_structure(make_structure(GATES), space=GATES),
    "cut": lambda: plots.plot_cut(GATES, layers=(0, 0), candidate="encoder.0.attn.q:lora:1")[0],
    "budget bar": lambda: plots.plot_budget_bar(GATES),
    "profile": lambda: plots.plot_profile(GATES),
    "two": lambda: plots.plot_two({"a": GATES, "b": make_gates(2, 2, seed=1)}, "a", "b"),
    "lab": lambda: plots.plot_gate_lab([1.0, 0.0, -1.0], [10, 20, 30], 20)[0],
}


def save(ax, path):
    files = plots.save_figure(ax, path, ("svg",))
    return files[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_saved_after_its_style_ended_looks_the_same(name, tmp_path):
    """matplotlib makes most ticks only when it draws, so they used to follow the settings at that time."""
    with plots.figure_style("talk", dark=True):
        inside = save(FIGURES[name](), tmp_path / "inside")
    with plots.figure_style("talk", dark=True):
        ax = FIGURES[name]()
    with plt.rc_context({"font.size": 30, "xtick.color": "red", "ytick.color": "red", "xtick.labelsize": 30}):
        after = save(ax, tmp_path / "after")
    assert inside == after


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_leaves_the_settings_of_matplotlib_alone(name, tmp_path):
    before = dict(matplotlib.rcParams)
    with plt.rc_context({"font.size": 23, "axes.facecolor": "beige"}):
        users = dict(matplotlib.rcParams)
        ax = FIGURES[name]()
        plots.save_figure(ax, tmp_path / "figure", ("pdf", "svg"))
        assert dict(matplotlib.rcParams) == users
        assert to_hex(plt.subplots()[1].get_facecolor()) == to_hex("beige")
    assert dict(matplotlib.rcParams) == before


def test_settings_that_the_user_makes_while_a_figure_is_drawn_stay():
    class Search:
        @property
        def gates(self):
            matplotlib.rcParams["image.interpolation"] = "nearest"  # as another thread may do at any time
            return GATES

    with plt.rc_context({"image.interpolation": "bilinear"}):
        plots.plot_gates(Search())
        assert matplotlib.rcParams["image.interpolation"] == "nearest"


def test_settings_are_back_after_an_error():
    before = dict(matplotlib.rcParams)
    with pytest.raises(PlotError):
        plots.plot_gates(GATES.iloc[:0])
    with pytest.raises(ZeroDivisionError), plots.figure_style("paper", dark=True):
        1 / 0  # noqa: B018
    assert dict(matplotlib.rcParams) == before and plots.style.style().name == "notebook"


def test_figure_style_sets_the_users_own_figures_on_request_and_goes_back():
    before = dict(matplotlib.rcParams)
    with plots.figure_style("paper", dark=True) as outer:
        ax = plt.subplots()[1]
        assert same_color(ax.figure.get_facecolor(), outer.ground) and same_color(ax.get_facecolor(), outer.ground)
        assert ax.xaxis.get_major_ticks()[0].label1.get_fontsize() == outer.font
        with plots.figure_style("talk") as inner:
            assert matplotlib.rcParams["xtick.labelsize"] == inner.font and plots.style.style() is inner
        assert matplotlib.rcParams["xtick.labelsize"] == outer.font and plots.style.style() is outer
    assert dict(matplotlib.rcParams) == before
    with plots.figure_style("notebook"):  # puts back what the next call changes for good
        plots.figure_style("paper")
        assert plots.style.style().name == "paper" and matplotlib.rcParams["xtick.labelsize"] == outer.font
    assert dict(matplotlib.rcParams) == before


def test_a_style_keeps_the_users_font():
    """A font is looked up when the figure is saved, so it must not change between drawing and saving."""
    with plt.rc_context({"font.sans-serif": ["DejaVu Serif"]}), plots.figure_style("paper"):
        assert matplotlib.rcParams["font.sans-serif"] == ["DejaVu Serif"]


def test_styles_change_size_and_ground():
    normal = plots.plot_gates(GATES)
    with plots.figure_style("talk", dark=True) as style:
        ax = plots.plot_gates(GATES)
    assert ax.get_yticklabels()[0].get_fontsize() == style.font > normal.get_yticklabels()[0].get_fontsize()
    assert same_color(ax.figure.get_facecolor(), style.ground)
    texts = [*ax.get_yticklabels(), *ax.get_xticklabels(), *ax.texts, *ax.get_legend().get_texts()]
    texts += ax.figure.axes[-1].get_yticklabels()
    assert {text.get_color() for text in texts} == {style.ink}
    with pytest.raises(PlotError, match=r"'slides' is not known; .*talk"):
        plots.figure_style("slides")


@pytest.mark.parametrize("dark", [False, True])
def test_ink_and_lines_stand_out_from_the_ground(dark):
    with plots.figure_style("notebook", dark=dark) as style:
        assert contrast(style.ink, style.ground) > 12
        assert contrast(style.grey, style.ground) > 4.5
        for colour in plots.style.PET_COLOURS.values():
            assert contrast(colour, style.ground) > 2.1


def test_a_colour_has_one_meaning():
    from s3pet.plots.style import KINDS, OTHER, PALETTE, PET_COLOURS

    kinds = {colour for _, colour in [*KINDS.values(), OTHER]}
    assert not kinds & set(PET_COLOURS.values()) and len(set(PET_COLOURS.values())) == len(PET_COLOURS)
    assert len({look for name, look in KINDS.items() if name != "rules"}) == len(KINDS) - 1  # rules are manual
    for colour in (*kinds, *PET_COLOURS.values(), *PALETTE):  # orange is what is above 0 in a difference
        hue, saturation, _ = rgb_to_hsv(to_rgb(colour))
        assert not (0.07 < hue < 0.12 and saturation > 0.6), colour


@pytest.mark.parametrize("dark", [False, True])
def test_bright_is_high_in_all_maps_and_orange_is_above_zero(dark):
    with plots.figure_style("notebook", dark=dark) as style:
        axes = [plots.plot_gates(GATES), plots.plot_structure(make_structure(GATES), space=GATES)]
        axes.append(plots.plot_gate_panels({"a": GATES})[0])
        difference = plots.plot_difference(GATES, make_gates(2, 2, seed=1))
    for ax in axes:
        (mesh,) = (artist for artist in ax.collections if artist.get_gid() == "gates")
        low, middle, high = (contrast(mesh.cmap(at), "black") for at in (0.0, 0.5, 1.0))
        assert low < middle < high
    (mesh,) = (artist for artist in difference.collections if artist.get_gid() == "gates")
    red, _, blue, _ = mesh.cmap(0.85)
    assert red > 2 * blue and contrast(mesh.cmap(0.5), style.ground) < 1.2
    red, _, blue, _ = mesh.cmap(0.15)
    assert blue > red


@pytest.mark.parametrize("function", [plots.plot_gates, plots.plot_profile])
def test_axes_made_without_the_style_get_its_ground_and_ink(function):
    ax = plt.subplots(layout="constrained")[1]
    with plots.figure_style("paper", dark=True) as style:
        function(GATES, ax=ax)
        assert {to_hex(ax.figure.get_facecolor()), to_hex(ax.get_facecolor())} == {style.ground.lower()}
        assert {to_hex(label.get_color()) for label in ax.get_xticklabels()} == {style.ink.lower()}
    ax = plt.subplots()[1]
    ax.set_facecolor("beige")
    plots.plot_gates(GATES, ax=ax)
    assert to_hex(ax.get_facecolor()) == to_hex("beige"), "a light figure of the user stays as it is"


def test_a_figure_of_the_user_is_emptied_and_resized():
    figure = Figure(figsize=(1, 1))
    figure.subplots(3, 3)
    with plots.figure_style("paper", dark=True) as style:
        axes = plots.plot_gate_panels({"a": GATES}, figure=figure)
    assert axes[0].figure is figure and len(figure.axes) == 2 and figure.get_figwidth() > 1
    assert same_color(figure.get_facecolor(), style.ground)


# -------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["gates", "structure", "difference", "panels", "cut"])
def test_files_are_vector_with_embedded_fonts(tmp_path, name):
    paths = plots.save_figure(FIGURES[name](), tmp_path / "new" / "map.pdf", formats=("pdf", "svg", "png"))
    assert [path.name for path in paths] == ["map.pdf", "map.svg", "map.png"] and all(path.exists() for path in paths)
    pdf, svg = paths[0].read_bytes(), paths[1].read_text(encoding="utf-8")
    assert not re.search(rb"/Subtype\s*/Image", pdf)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert "<image" not in svg and "<text" in svg


def test_drawing_again_gives_the_same_bytes(tmp_path):
    one, two = (
        plots.save_figure(plots.plot_gates(GATES), tmp_path / name, ("pdf", "svg")) for name in ("v1.0", "b.pdf")
    )
    assert [path.name for path in one + two] == ["v1.0.pdf", "v1.0.svg", "b.pdf", "b.svg"]  # "0" is no format
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_files_carry_their_description(tmp_path):
    from PIL import Image

    alt = plots.describe(GATES)
    png, svg, pdf = plots.save_figure(plots.plot_gates(GATES), tmp_path / "gates", ["png", "svg", "pdf"], alt=alt)
    assert Image.open(png).text["Description"] == alt
    assert alt.split(";")[0] in svg.read_text(encoding="utf-8")
    assert b"/Subject" in pdf.read_bytes()
    (bare,) = plots.save_figure(plots.plot_gates(GATES), tmp_path / "bare", ["png"])
    assert "Description" not in Image.open(bare).text


def test_unknown_format_raises(tmp_path):
    with pytest.raises(PlotError, match="formats must be a list of different values"):
        plots.save_figure(plots.plot_gates(GATES), tmp_path / "a", ("docx",))
