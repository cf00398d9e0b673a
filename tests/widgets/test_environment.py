"""The report on the environment: what is missing is named, with a command."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from s3pet.widgets import environment
from s3pet.widgets.environment import MANAGER, environment_report, in_notebook


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
    ((what, command),) = environment_report().missing
    assert str(tmp_path) in what and command.startswith(str(tmp_path / "bin" / "python"))
    (tmp_path / MANAGER).parent.mkdir(parents=True)
    (tmp_path / MANAGER).write_text("{}")
    assert environment_report().ok


def test_the_server_is_the_process_that_started_the_kernel(monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    assert environment._server() == Path(sys.executable).parent.parent
    assert (environment._server() / MANAGER).is_file(), "the pinned jupyterlab_widgets installs this file"
    for unusable in ("", "none", str(1 << 30)):
        monkeypatch.setenv("JPY_PARENT_PID", unusable)
        assert environment._server() is None
    monkeypatch.delenv("JPY_PARENT_PID")
    assert environment._server() is None
