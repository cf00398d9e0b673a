"""The report on the environment: what is missing is named, with a command."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from s3pet.widgets import environment
from s3pet.widgets.environment import FRONT_ENDS, environment_report, in_notebook


@pytest.fixture
def installed(monkeypatch):
    """Real versions, except for the names in the returned dict (None: not installed); no server."""
    changed = {}

    def fake(name):
        value = changed.get(name, "real")
        if value is None:
            raise PackageNotFoundError(name)
        return version(name) if value == "real" else value

    monkeypatch.setattr(environment, "version", fake)
    monkeypatch.setattr(environment, "_server", lambda: None)
    return changed


def test_complete_environment_is_ok(installed):
    report = environment_report()
    assert report.ok and "Nothing is missing" in repr(report) and f"torch {version('torch')}" in repr(report)


@pytest.mark.parametrize("have", [None, "7.8.1"])
def test_kernel_without_ipywidgets_8(installed, have):
    installed["ipywidgets"] = have
    report = environment_report()
    ((what, command),) = report.missing
    assert "ipywidgets 8 or newer" in what and str(have) in what and not report.ok
    assert command.startswith(sys.executable) and "ipywidgets>=8.1" in command and command in repr(report)


def test_old_ipykernel_matters_only_in_a_notebook(installed, monkeypatch):
    installed["ipykernel"] = "6.29.5"
    assert not in_notebook() and environment_report().ok
    monkeypatch.setattr(environment, "in_notebook", lambda: True)
    ((what, command),) = environment_report().missing
    assert "6.29.5" in what and "ipykernel>=7" in command


def test_server_without_jupyterlab_widgets(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_server", lambda: tmp_path)
    for n_missing, (name, folder) in zip((2, 1), FRONT_ENDS.items(), strict=True):
        missing = environment_report().missing
        assert len(missing) == n_missing and missing[0][0].startswith(name) and str(tmp_path) in missing[0][0]
        assert missing[0][1].startswith(str(tmp_path / "bin" / "python")) and f"install {name} " in missing[0][1]
        file = tmp_path / "share/jupyter/labextensions" / folder / "package.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    assert environment_report().ok


def test_the_server_is_the_process_that_started_the_kernel(monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    assert environment._server() == Path(sys.executable).parent.parent
    for folder in FRONT_ENDS.values():
        file = environment._server() / "share/jupyter/labextensions" / folder / "package.json"
        assert file.is_file(), "the pinned version installs this file"
    for unusable in ("", "none", str(1 << 30)):
        monkeypatch.setenv("JPY_PARENT_PID", unusable)
        assert environment._server() is None
    monkeypatch.delenv("JPY_PARENT_PID")
    assert environment._server() is None
