"""What this environment has, and what is missing for the widgets, with the command that mends it.

Widgets need two halves: ``ipywidgets`` in the environment of the *kernel*, and ``jupyterlab_widgets`` in that of the
*server* that serves JupyterLab. They are often two environments, and the second half is the one that gets forgotten.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from s3pet.progress import in_notebook

MANAGER = Path("share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager/package.json")
EXTRAS = {"peft": "peft", "joblib": "cluster", "dask": "cluster", "voila": "web"}


@dataclass(frozen=True)
class EnvironmentReport:
    """Findings, and what to do about them.

    Attributes:
        found: what is here, a sentence each.
        missing: (what is missing and what that means, the command that mends it), in order of importance.
    """

    found: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def __repr__(self) -> str:
        lines = [*self.found, *(f"Missing: {what}\n    {command}" for what, command in self.missing)]
        return "\n".join([*lines, *["Nothing is missing for the widgets."] * self.ok])


def environment_report() -> EnvironmentReport:
    """Say in plain words what is here, and what is missing for the widgets.

    Returns:
        A report that prints itself; ``.ok`` and ``.missing`` for programs.
    """
    found, missing = [*_versions()], []
    pip = f"{sys.executable} -m pip install"
    if not _at_least("ipywidgets", 8):
        have = _version("ipywidgets") or "not installed"
        missing.append(
            (f"ipywidgets 8 or newer for this kernel ({have}); no widget can be made.", f'{pip} "ipywidgets>=8.1"')
        )
    if in_notebook() and not _at_least("ipykernel", 7):
        what = f"ipykernel 7 or newer ({_version('ipykernel')}); a search's button is heard late, ■ stops it at once."
        missing.append((what, f'{pip} "ipykernel>=7"'))
    servers = _servers()
    if in_notebook() and not servers:
        found.append(
            "The Jupyter server cannot be seen from here; if widgets show as text, it lacks jupyterlab_widgets."
        )
    for prefix in servers:
        if (prefix / MANAGER).is_file():
            found.append(f"The Jupyter server of {prefix} can show widgets.")
        else:
            what = f"jupyterlab_widgets in the environment of the Jupyter server, {prefix}; widgets show as text."
            missing.append((what, f"{prefix / 'bin' / 'python'} -m pip install jupyterlab_widgets  # then restart it"))
    if not in_notebook():
        found.append("This is no notebook: a search shows a bar. Open JupyterLab (make lab) for the widgets.")
    return EnvironmentReport(tuple(found), tuple(missing))


def _versions() -> Iterator[str]:
    import torch

    names = ("s3pet", "torch", "transformers", "ipywidgets", "ipykernel", "jupyterlab", "matplotlib", "pandas")
    versions = ", ".join(f"{name} {_version(name)}" for name in names if _version(name))
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}: {versions}."
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    yield f"{os.cpu_count()} cores, {torch.get_num_threads()} of them for torch; {device}."
    without = sorted({extra for name, extra in EXTRAS.items() if not _version(name)})
    if without:
        yield f"Optional and not installed: {', '.join(f's3pet[{extra}]' for extra in without)}."


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _at_least(name: str, major: int) -> bool:
    have = _version(name)
    return have is not None and int(have.split(".")[0]) >= major


def _servers() -> list[Path]:
    """Environments (prefixes) of the Jupyter servers that run on this machine for this user."""
    try:
        from jupyter_server.serverapp import list_running_servers
    except ImportError:
        return []
    return sorted({prefix for server in list_running_servers() if (prefix := _prefix(int(server["pid"]))) is not None})


def _prefix(pid: int) -> Path | None:
    """The environment a process runs in, where the system tells."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except (OSError, UnicodeDecodeError):
        return None
    python = Path(command)
    return python.parent.parent if python.is_absolute() else None
