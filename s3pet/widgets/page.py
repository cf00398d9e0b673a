"""The kernels of a web page (voila): few at a time, and ended where nobody uses them.

Voila starts a kernel for every visitor, about half a gigabyte, and by itself neither limits nor ends them. The settings
are in ``notebooks/voila.json``, which voila reads where it is started.
"""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Bool, Integer


class VisitorKernels(AsyncMappingKernelManager):
    """A kernel for each of the first ``visitors``; the next one is asked to come back later (HTTP 503)."""

    visitors = Integer(4, min=1, help="kernels at a time").tag(config=True)
    cull_idle_timeout = Integer(600, help="seconds without a click after which a kernel is ended").tag(config=True)
    cull_interval = Integer(30, help="seconds between two looks at all kernels").tag(config=True)
    cull_connected = Bool(True, help="whether a page that is still open, but unused, loses its kernel").tag(config=True)

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._one_by_one = asyncio.Lock()

    async def start_kernel(self, **kwargs: Any) -> str:  # type: ignore[override]
        """Start a kernel, one at a time, so that none is missed in counting."""
        async with self._one_by_one:
            if len(self) >= self.visitors:
                minutes = max(1, round(self.cull_idle_timeout / 60))
                taken = f"All {self.visitors} places of this page are taken. Try again in {minutes} min"
                raise HTTPError(503, reason=f"{taken}: places of idle visitors become free.")  # the page shows it
            return await super().start_kernel(**kwargs)
