"""Find what a widget has drawn."""

import io

import numpy as np
from PIL import Image

import s3pet
from s3pet import plots

RUNS = s3pet.__path__[0] + "/../data/runs/searches"
ONE = f"{RUNS}/pocket-t5/sentiment/0.2/seed0"
SEEDS = [f"{RUNS}/pocket-t5/sentiment/0.2/seed{seed}" for seed in range(3)]


def by_gid(ax, gid):
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def centres(ax, gid):
    """Middles of the squares of a collection, as a set."""
    return {tuple(np.round(path.vertices[:4].mean(0), 6)) for artist in by_gid(ax, gid) for path in artist.get_paths()}


def places(gates, rows):
    """Where some rows of a gate table lie on its map, as a set."""
    cells = plots.gate_cells(gates.assign(chosen=rows), grid=plots.make_grid(gates))
    return {tuple(np.round(place, 6)) for place in cells.loc[cells["chosen"], ["x", "y"]].to_numpy()}


def map_of(widget):
    return widget.picture.figure.axes[0]


def mesh(widget):
    return np.asarray(by_gid(map_of(widget), "gates")[0].get_array())


def pixels(widget):
    return np.asarray(Image.open(io.BytesIO(widget.picture.value)).convert("RGB"))
