"""Whether this environment can show widgets, and the command to run where it cannot.

Widgets need ``ipywidgets`` and ``anywidget`` in the environment of the *kernel*, ``jupyterlab_widgets`` and
``anywidget`` in that of the *server*, which may be another environment.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FRONT_ENDS = {"jupyterlab_widgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}  # of the server
PACKAGES = ("s3pet", "torch", "transformers", "ipywidgets", "anywidget", "ipykernel", "jupyterlab", "matplotlib")


@dataclass(frozen=True)
class EnvironmentReport:
    """What is ``installed``, and pairs of what is ``missing`` for the widgets and the command that installs it."""

    installed: str
    missing: list[tuple[str, str]]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def __repr__(self) -> str:
        missing = [f"Missing: {what}\n    {command}" for what, command in self.missing]
        return "\n".join([self.installed, *(missing or ["Nothing is missing for the widgets."])])


def environment_report() -> EnvironmentReport:
    """Say what is installed and what is missing for the widgets."""
    installed = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if _version(name))
    missing, pip, server = [], f"{sys.executable} -m pip install", _server()
    if not at_least("ipywidgets", 8):
        missing.append((f"ipywidgets 8 or newer, not {_version('ipywidgets')}", f'{pip} "ipywidgets>=8.1"'))
    if in_notebook() and not at_least("ipykernel", 7):
        what = f"ipykernel 7 or newer, not {_version('ipykernel')}; until then ■ stops a search, its button does not"
        missing.append((what, f'{pip} "ipykernel>=7"'))
    for name, folder in FRONT_ENDS.items():
        if server is not None and not (server / "share/jupyter/labextensions" / folder / "package.json").is_file():
            what = f"{name} in the environment of the Jupyter server, {server}; widgets show as text"
            missing.append((what, f"{server / 'bin' / 'python'} -m pip install {name}  # then restart it"))
    return EnvironmentReport(installed, missing)


def on_page() -> bool:
    """Whether this is the kernel of a web page (voila), whose visitors must not write on the server."""
    return "VOILA_BASE_URL" in os.environ  # of every kernel that voila starts


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def at_least(package: str, major: int) -> bool:
    """Whether a package is installed in this major version or a newer one."""
    return int((_version(package) or "0").split(".")[0]) >= major


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _server() -> Path | None:
    """The environment of the Jupyter server that started this kernel; None if that cannot be seen."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(int(os.environ["JPY_PARENT_PID"]))
        python = Path(process.cwd(), process.cmdline()[0])  # it may have been started by a relative path
    except (KeyError, ValueError, IndexError, psutil.Error):
        return None
    return python.parent.parent if python.is_file() else None
