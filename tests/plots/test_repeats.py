"""The figure of repeated retrainings: the data in the artists, never pixels."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from s3pet.errors import PlotError
from s3pet.plots import figure_style, plot_repeats, save_figure
from s3pet.plots.style import KINDS

pytestmark = pytest.mark.filterwarnings("error")


def runs(structures=3, retrainings=4):
    rng, rows = np.random.default_rng(0), []
    for kind, level in (("random", 0.6), ("searched", 0.8)):
        for index in range(structures):
            middle = level + rng.normal(0, 0.05)
            for seed in range(retrainings):
                rows.append(("sst2", f"{kind} 0.01%", kind, index, index + seed, middle + rng.normal(0, 0.02)))
    return pd.DataFrame(rows, columns="task structure kind index seed score".split())


def by_gid(ax, gid):
    (artist,) = [artist for artist in ax.collections if artist.get_gid() == gid]
    return artist


def test_a_line_per_structure_and_a_dot_per_retraining():
    table = runs()
    ax = plot_repeats(table, metric="accuracy", title="sst2")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["searched 0.01%", "random 0.01%"], "the best on top"
    dots, means = (by_gid(ax, gid).get_offsets() for gid in ("retrainings", "means"))
    lines = by_gid(ax, "structures")
    assert sorted(dots[:, 0]) == sorted(table["score"])
    expected = table.groupby(["structure", "index"])["score"].agg(["mean", "min", "max"])
    assert sorted(means[:, 0]) == pytest.approx(sorted(expected["mean"]))
    for (x, y), line, colour in zip(means, lines.get_segments(), lines.get_colors(), strict=True):
        scores = dots[dots[:, 1] == y, 0]
        assert x == pytest.approx(scores.mean()) and (line[:, 1] == y).all()
        assert line[:, 0].tolist() == pytest.approx([scores.min(), scores.max()])
        assert same_color(colour[:3], KINDS["searched" if x > 0.7 else "random"][1])
    assert means[:3, 0].min() > means[3:, 0].max() and list(means[:, 1]) == sorted(means[:, 1])
    assert ax.get_xlabel() == "accuracy" and ax.get_title() == "sst2"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[:2] == ["searched", "random"] and names[-1] == "their mean"


def test_every_style_and_a_given_axes(tmp_path):
    for name in ("paper", "talk"):
        with figure_style(name, dark=name == "talk"):
            save_figure(plot_repeats(runs()), tmp_path / name)
    figure, ax = plt.subplots()
    assert plot_repeats(runs(), ax=ax) is ax and (tmp_path / "talk.png").is_file()


def test_what_cannot_be_drawn():
    with pytest.raises(PlotError, match="No structure was retrained twice"):
        plot_repeats(runs(retrainings=1))
    with pytest.raises(PlotError, match="mixes 2 values of 'task'"):
        plot_repeats(pd.concat([runs(), runs().assign(task="stsb")]))
    with pytest.raises(PlotError, match="no column 'score'"):
        plot_repeats(runs().drop(columns="score"))
