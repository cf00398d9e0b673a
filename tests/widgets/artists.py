"""Find what a widget has drawn."""

import io

import numpy as np
from gate_tables import by_gid
from PIL import Image

import s3pet

RUNS = s3pet.__path__[0] + "/../data/runs/searches"
ONE = f"{RUNS}/pocket-t5/sentiment/0.2/seed0"
SEEDS = [f"{RUNS}/pocket-t5/sentiment/0.2/seed{seed}" for seed in range(3)]


def map_of(widget):
    return widget.picture.figure.axes[0]


def mesh(widget):
    return np.asarray(by_gid(map_of(widget), "gates")[0].get_array())


def pixels(widget):
    return np.asarray(Image.open(io.BytesIO(widget.picture.value)).convert("RGB"))
