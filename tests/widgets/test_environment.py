"""The report on the environment: what is missing is named, with a command."""

import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from s3pet.widgets import environment
from s3pet.widgets.environment import MANAGER, environment_report


@pytest.fixture
def installed(monkeypatch):
    """Versions as they are, but for the names put into the returned dict (None: not installed)."""
    changed = {}

    def fake(name):
        found = changed.get(name, "as it is")
        if found is None:
            raise PackageNotFoundError(name)
        return version(name) if found == "as it is" else found

    monkeypatch.setattr(environment, "version", fake)
    monkeypatch.setattr(environment, "_servers", list)
    return changed


def test_a_whole_environment_is_ok(installed):
    report = environment_report()
    assert report.ok and "Nothing is missing" in repr(report)
    assert f"torch {version('torch')}" in repr(report) and "This is no notebook" in repr(report)


@pytest.mark.parametrize("have", [None, "7.8.1"])
def test_a_kernel_without_ipywidgets(installed, have):
    installed["ipywidgets"] = have
    ((what, command),) = environment_report().missing
    assert "ipywidgets 8 or newer" in what and (have or "not installed") in what
    assert command.startswith(sys.executable) and "ipywidgets>=8.1" in command


def test_an_old_kernel_hears_the_button_late(installed, monkeypatch):
    installed["ipykernel"] = "6.29.5"
    assert environment_report().ok, "that is of no matter outside a notebook"
    monkeypatch.setattr(environment, "in_notebook", lambda: True)
    report = environment_report()
    assert "6.29.5" in report.missing[0][0] and "ipykernel>=7" in report.missing[0][1]
    assert any("cannot be seen from here" in line for line in report.found)


def test_a_server_without_the_other_half(installed, monkeypatch, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    (whole / MANAGER).parent.mkdir(parents=True)
    (whole / MANAGER).write_text("{}")
    monkeypatch.setattr(environment, "_servers", lambda: [half, whole])
    report = environment_report()
    ((what, command),) = report.missing
    assert str(half) in what and command.startswith(str(half / "bin" / "python")) and "jupyterlab_widgets" in command
    assert any(str(whole) in line and "can show widgets" in line for line in report.found)


def test_extras_are_named(installed):
    installed["peft"] = None
    assert "s3pet[peft]" in repr(environment_report())


def test_this_very_environment_has_the_server_half():
    """The path that is looked for is the one that the pinned jupyterlab_widgets installs."""
    from pathlib import Path

    assert (Path(sys.prefix) / MANAGER).is_file()
    assert environment._prefix(1 << 30) is None
