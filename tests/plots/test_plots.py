"""What all plotting functions have in common."""

from __future__ import annotations

import inspect

import pytest

from s3pet import plots

FUNCTIONS = [name for name in plots.__all__ if name.startswith("plot_")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_plot_takes_axes_or_a_figure_and_is_documented(name):
    function = getattr(plots, name)
    parameters = inspect.signature(function).parameters
    place = parameters.get("ax") or parameters.get("figure")
    assert place is not None and place.default is None and place.kind is place.KEYWORD_ONLY
    assert inspect.getdoc(function)
    assert "show(" not in inspect.getsource(function)


def test_the_public_names_exist_and_are_sorted():
    assert plots.__all__ == sorted(plots.__all__, key=lambda name: (name[0].islower(), name))
    assert all(hasattr(plots, name) for name in plots.__all__)
