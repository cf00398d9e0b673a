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
    return [line for line in ax.lines if line.get_gid() == gid]


def test_a_line_per_structure_and_a_dot_per_retraining():
    table = runs()
    ax = plot_repeats(table, metric="accuracy", title="sst2")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["searched 0.01%", "random 0.01%"], "the best on top"
    dots, lines, means = (by_gid(ax, gid) for gid in ("retrainings", "structures", "means"))
    assert len(dots) == len(lines) == len(means) == 6
    assert sorted(np.concatenate([line.get_xdata() for line in dots])) == sorted(table["score"])
    expected = table.groupby(["structure", "index"])["score"].agg(["mean", "min", "max"])
    assert sorted(line.get_xdata()[0] for line in means) == pytest.approx(sorted(expected["mean"]))
    assert sorted(map(tuple, (line.get_xdata() for line in lines))) == sorted(
        zip(expected["min"], expected["max"], strict=True)
    )
    for dot, line, mean in zip(dots, lines, means, strict=True):
        assert dot.get_ydata()[0] == line.get_ydata()[0] == mean.get_ydata()[0]
        assert dot.get_xdata().mean() == pytest.approx(mean.get_xdata()[0])
    assert [same_color(dot.get_color(), KINDS["searched"][1]) for dot in dots] == [True] * 3 + [False] * 3
    heights = [dot.get_ydata()[0] for dot in dots]
    assert heights == sorted(heights) and len(set(heights)) == 6
    assert ax.get_xlabel() == "accuracy" and ax.get_title() == "sst2"


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
