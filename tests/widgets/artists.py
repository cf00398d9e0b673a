"""Find what a widget has drawn."""

import io

import numpy as np
from PIL import Image

import s3pet

RUNS = s3pet.__path__[0] + "/../data/runs/searches"
ONE = f"{RUNS}/pocket-t5/sentiment/0.2/seed0"
SEEDS = [f"{RUNS}/pocket-t5/sentiment/0.2/seed{seed}" for seed in range(3)]


def cells(data, bit):
    """Middles of the cells of an interactive map that have this bit."""
    states = zip(data["cells"]["x"], data["cells"]["y"], data["cells"]["state"], strict=True)
    return {(x, y) for x, y, state in states if state & bit}


def texts(coded):
    """A list of texts as it was before it was coded."""
    return coded if isinstance(coded, list) else [coded["of"][at] for at in coded["at"]]


def facts(data, name):
    """A fact of every candidate."""
    return dict(zip(data["names"], texts(data["facts"][name]), strict=True))


def total(data, name):
    """Sum of a fact that is a number."""
    return sum(float(text) for text in facts(data, name).values())


def pixels(widget):
    return np.asarray(Image.open(io.BytesIO(widget.picture.value)).convert("RGB"))
