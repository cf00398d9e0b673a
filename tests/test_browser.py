"""The notebooks in a real JupyterLab, in a real browser: what a person would click, and what the page shows then.

Needs Chromium (``CHROMIUM`` names another one than the first found). Screenshots are left in ``runs/browser``, to be
looked at.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "runs" / "browser"
TOKEN = "s3pet-test"
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run", "--disable-quic"]

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"),
]


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The notebooks without outputs, beside the saved runs, in a place of their own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    for name in ("03_search", "08_explorer"):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """JupyterLab on the loopback, with settings of its own; yields the address of a notebook."""
    port, own = free_port(), folder / "jupyter"
    places = {name: own / name.lower() for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    places |= {name: own / name.lower() for name in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url="]
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
                time.sleep(0.3)
        yield lambda name: f"{address}/lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset", places
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab, browser):
    """Open a notebook in a new page, in a theme; closes it afterwards."""
    address, places = lab
    pages = []

    def opened(name, *, dark=False, height=1400):
        themes = places["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / "apputils-extension"
        themes.mkdir(parents=True, exist_ok=True)
        (themes / "themes.jupyterlab-settings").write_text(
            json.dumps({"theme": f"JupyterLab {'Dark' if dark else 'Light'}"})
        )
        (themes / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
        page = browser.new_page(viewport={"width": 1400, "height": height})
        page.goto(address(name))
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()


def menu(page, *names):
    page.get_by_role("menuitem", name=names[0], exact=True).click()
    for name in names[1:]:
        page.get_by_text(name, exact=True).click()


def cell(page, text):
    """The code cell whose source has the text; brought into view, because JupyterLab draws only what is seen."""
    notebook = page.locator(".jp-WindowedPanel-outer").first
    notebook.evaluate("panel => panel.scrollTo(0, 0)")
    for _ in range(80):
        found = page.locator(".jp-CodeCell").filter(has=page.locator(f".cm-content:has-text({json.dumps(text)})"))
        if found.count():
            found.first.scroll_into_view_if_needed()
            return found.first
        notebook.evaluate("panel => panel.scrollBy(0, 500)")
        page.wait_for_timeout(100)
    raise AssertionError(f"no cell with {text!r}")


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def picture(found):
    """The picture a cell shows."""
    return found.locator("img").first.get_attribute("src")


def wait_until(claim, seconds=60, every=0.2):
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every)
