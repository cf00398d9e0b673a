"""The kernels of a web page: as many as there are places, and no more; the settings are those of voila."""

import asyncio
import json
from pathlib import Path

import pytest
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets.utils.importstring import import_item

from s3pet.widgets.page import VisitorKernels

SETTINGS = json.loads((Path(__file__).resolve().parents[2] / "notebooks" / "voila.json").read_text())


def test_visitors_who_come_at_once_are_counted(monkeypatch):
    async def start(self, **kwargs):
        await asyncio.sleep(0)  # others come meanwhile
        self._kernels[f"kernel {len(self._kernels)}"] = None
        return f"kernel {len(self._kernels)}"

    async def visits():
        kernels = VisitorKernels(visitors=2)
        come = [kernels.start_kernel(kernel_name="python3") for _ in range(5)]
        first = await asyncio.gather(*come, return_exceptions=True)
        kernels._kernels.popitem()  # one has left
        return [*first, await kernels.start_kernel(kernel_name="python3")]

    monkeypatch.setattr(AsyncMappingKernelManager, "start_kernel", start)
    *first, last = asyncio.run(visits())
    assert first[:2] == ["kernel 1", "kernel 2"] and last == "kernel 2"
    for error in first[2:]:
        assert isinstance(error, HTTPError) and error.status_code == 503
        assert error.reason.startswith("All 2 places of this page are taken. Try again in 10 min")


def test_the_settings_exist_and_kernels_end():
    app = pytest.importorskip("voila.app", reason="voila is not installed: pip install s3pet[web]")
    kinds = {"Voila": app.Voila, "VoilaConfiguration": app.VoilaConfiguration, "VisitorKernels": VisitorKernels}
    for name, settings in SETTINGS.items():
        assert set(settings) <= set(kinds[name].class_traits(config=True)), name
    assert SETTINGS["Voila"]["ip"] == "localhost"
    assert import_item(SETTINGS["VoilaConfiguration"]["multi_kernel_manager_class"]) is VisitorKernels
    kernels = VisitorKernels(**SETTINGS["VisitorKernels"])
    assert kernels.visitors > 0 and kernels.cull_idle_timeout > 0 and kernels.cull_interval > 0
    assert kernels.cull_connected, "a page that is open and unused must end, too"
