"""The notebooks in a real JupyterLab, in a real browser: what a person would click, and what the page shows then.

Needs Chromium; the environment variable ``CHROMIUM`` names another one than the first on the path. Screenshots are left
in ``runs/browser``, to be looked at.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import psutil
import pytest

import s3pet

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "runs" / "browser"
TOKEN = "s3pet-test"
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run", "--disable-dev-shm-usage"]
STYLE = 'figure_style("notebook")'
ASKED = (
    'from s3pet.widgets import ask\n\nwhich = ask("Which type comes first?", ["LoRA", "BitFit", "LNFit"])\nwhich',
    'many = ask("How many are chosen of 148, at $p > \\\\frac{1}{2}$?")\nmany',
    'which.reveal("LoRA", "It reads one direction of $x$.")',
    "many.reveal(9)",
)
SEARCHED = (  # long enough to be stopped by hand
    """import torch\n\nimport s3pet\n\ntorch.set_num_threads(1)
model, tokenizer = s3pet.load_backbone("pocket-t5")
task, space = s3pet.load_task("pocket/sentiment", tokenizer), s3pet.make_space(model, "mixed")
options = {"budget": "0.2%", "batch_size": 16, "steps": 1000}""",
    "watched = s3pet.widgets.watch(s3pet.search, model, task, space, **options)",
    'print("watched:", watched.result().metrics["stopped"])',
    """stopped = s3pet.search(model, task, space, **options)
print("ended:", stopped.metrics["stopped"], "| kept:", stopped.structure().n_params <= stopped.budget.n_params)""",
)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The explorer without outputs and small notebooks, beside the saved runs, in a place of their own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    notebook = nbformat.read(ROOT / "notebooks" / "explorer.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "notebooks" / "explorer.ipynb")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")  # of the explorer
    first.source, light = first.source.replace(STYLE, f"{STYLE[:-1]}, dark=True)"), first.source
    assert first.source != light
    nbformat.write(notebook, folder / "notebooks" / "explorer_dark.ipynb")
    for name, sources in {"predictions": ASKED, "searches": SEARCHED}.items():
        notebook.cells = [*map(nbformat.v4.new_code_cell, sources)]
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder


@contextmanager
def server(command, folder, environment, path):
    """A process that serves on the loopback, until it answers at ``path``; yields its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", folder / f"{port}.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", *command, f"--port={port}"]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{address}{path}", timeout=60).read()
                    break
                except urllib.error.HTTPError:
                    break  # an answer is an answer
                except OSError:
                    assert process.poll() is None, log.read_text()[-2000:]
                    time.sleep(0.3)
            else:
                raise AssertionError(log.read_text()[-2000:])
            yield address
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def environment(folder):
    """Environment of a Jupyter that has no settings but ours; ``settings`` is where JupyterLab keeps its own."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = {name: str(folder / "jupyter" / name.lower()) for name in names}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | own


@pytest.fixture(scope="module")
def lab(folder, environment):
    """The address of a JupyterLab that serves the folder."""
    command = ["jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url="]
    with server(command, folder, environment, f"/api/status?token={TOKEN}") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """A function that opens an address; what the page loads from elsewhere is refused, and noted in ``.elsewhere``."""
    pages = []

    def opened(address, width=1500, height=1100):
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.elsewhere = []

        def gate(route):
            if route.request.url.startswith(("http://127.0.0.1", "data:", "blob:", "file:")):
                route.continue_()
            else:
                page.elsewhere.append(route.request.url)
                route.abort()

        page.route("**/*", gate)
        page.goto(address, timeout=120_000)
        return page

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def open_notebook(lab, environment, new_page):
    """A function that opens a notebook in JupyterLab, in a theme, with a fresh kernel."""

    def opened(name, *, dark=False):
        settings = Path(environment["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True, exist_ok=True)
        theme = {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"}
        (settings / "themes.jupyterlab-settings").write_text(json.dumps(theme))
        (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
        page = new_page(f"{lab}/lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)  # else it asks for a kernel
        return page

    return opened


def menu(page, name, item):
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.locator(f".lm-Menu-itemLabel:text-is('{item}')").click()


def run_all(page):
    """Ask for all cells, again if a page that was not ready took no notice; returns when the first is running."""
    asked = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(5):
        menu(page, "Run", "Run All Cells")
        for _ in range(50):
            if asked.count():
                return
            page.wait_for_timeout(200)
    raise AssertionError("JupyterLab does not run the cells")


def cell(page, text):
    """The code cell whose source has the text; brought into view, because JupyterLab draws only what is seen."""
    found = page.locator(".jp-CodeCell").filter(has=page.locator(f".jp-InputArea :text({json.dumps(text)})")).first
    panel = page.locator(".jp-WindowedPanel-outer").first
    panel.evaluate("panel => panel.scrollTo(0, 0)")
    for _ in range(100):
        if found.count():
            found.scroll_into_view_if_needed()
            return found
        panel.evaluate("panel => panel.scrollBy(0, 400)")
        page.wait_for_timeout(100)
    raise AssertionError(f"no cell with {text!r}")


def finished(page, seconds=240):
    """Wait until the kernel has run every cell that was asked for; no cell may have failed."""
    idle = ".jp-Notebook-ExecutionIndicator[data-status='idle']"
    end = time.monotonic() + seconds
    while page.locator(".jp-InputPrompt:text-is('[*]:')").count() or not page.locator(idle).count():
        assert time.monotonic() < end, "the kernel is still busy"
        assert not errors(page), errors(page)
        page.wait_for_timeout(300)
    assert not errors(page), errors(page)


def errors(page):
    return page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").all_text_contents()


def until(page, claim, what, seconds=60):
    """Wait for a claim to hold; returns its value. The page must be waited with: its requests pass through us."""
    end = time.monotonic() + seconds
    while not (value := claim()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        page.wait_for_timeout(100)
    return value


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def picture(found):
    """What identifies the picture in a cell, once it is there."""
    image = found.locator("img").first
    image.wait_for(timeout=60_000)
    until(found.page, lambda: image.evaluate("image => image.naturalWidth"), "a picture")
    return image.get_attribute("src")


def slide(found, label, key, times):
    """Move a slider by its keys, as a person without a mouse does."""
    handle = found.locator(f".widget-slider:has(label:text-is('{label}')) .noUi-handle").first
    handle.focus()
    for _ in range(times):
        handle.press(key)


def spent(found):
    """(budget, parameters used) as the explorer says them: one sentence, so the two belong together."""
    words = found.get_by_text("candidates use").first.inner_text()
    return int(words.split(" ")[0].replace(",", "")), int(words.split(" ")[-1].replace(",", ""))


def ground(page, selector):
    """How bright the background of an element is, 0 to 255."""
    colour = page.locator(selector).first.evaluate("e => getComputedStyle(e).backgroundColor")
    return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 3


def outlines(found):
    """Where the map outlines what is chosen, once it is there."""
    chosen = found.locator("[role=grid] path.chosen").first
    chosen.wait_for(state="attached", timeout=60_000)
    return chosen.get_attribute("d")


def explore(page, found, name):
    """Use the explorer: the slider moves budget, choice and map; returns the budget and what was used."""
    before, old = spent(found), outlines(found)
    slide(found, "budget", "ArrowLeft", 12)
    after = until(page, lambda: (now := spent(found)) != before and now, "another budget")
    until(page, lambda: spent(found)[0] < before[0] * 0.9 and outlines(found) != old, "another cut")
    budget, used = spent(found)  # read once: a slow page is still catching up with the last keys
    assert used <= budget and used < before[1], (before, after)
    found.get_by_role("button", name="chosen next").click()
    until(
        page, lambda: found.get_by_text("candidate", exact=True).count() and found.locator("td").count() > 6, "the card"
    )
    last = spent(found)
    while page.wait_for_timeout(1000) or last != spent(found):
        last = spent(found)
    point(page, found)
    shot(page, name)
    return last


def point(page, found):
    """Point at a cell of the map, click it, and walk from it with the keys, which the notebook must not take."""
    cell, name = found.get_by_role("gridcell", name="decoder.1.attn.v LoRA"), found.locator(".card .name")
    cell.scroll_into_view_if_needed()
    cell.hover()
    tip = found.locator(".tip")
    tip.wait_for()
    assert "decoder.block.1.layer.0.SelfAttention.v" in tip.inner_text() and "chosen in" in tip.inner_text()
    cell.click()
    assert name.inner_text() == "decoder.1.attn.v LoRA" and cell.get_attribute("aria-selected") == "true"
    assert found.locator(".bar.on .label").inner_text() == "LoRA"
    cell.press("ArrowRight")
    page.keyboard.press("Enter")
    assert name.inner_text() == "decoder.2.attn.v LoRA"
    cell.hover()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_explorer(open_notebook, new_page, folder, dark):
    theme = "dark" if dark else "light"
    page = open_notebook("explorer_dark" if dark else "explorer", dark=dark)
    assert (ground(page, ".jp-Notebook") < 100) == dark
    run_all(page)
    finished(page)
    found = cell(page, "widgets.explore(")
    budget, used = explore(page, found, f"explorer_{theme}")
    assert (ground(page, ".s3pet-map") < 100) == dark

    for label, file, start in (("export figure", f"{theme}/map", b"%PDF"), ("save structure", f"{theme}/one", b"{")):
        row = found.locator(".widget-hbox", has=page.get_by_role("button", name=label)).last
        row.locator("input[type=text]").fill(file)
        row.locator("input[type=text]").press("Tab")
        row.get_by_role("button", name=label).click()
        found.get_by_text(f"wrote {file}").first.wait_for(timeout=60_000)
        (written,) = (folder / "notebooks" / theme).glob(f"{Path(file).name}.*")
        assert written.read_bytes().startswith(start)
    saved = json.loads((folder / "notebooks" / theme / "one.json").read_text())
    assert f"of {budget:,}" in found.get_by_text("wrote").first.inner_text() and len(saved["candidates"]) > 0
    assert used <= budget
    row.get_by_role("button", name=label).click()
    found.get_by_text("exists already").first.wait_for()

    compared = cell(page, "widgets.compare(")
    old = picture(compared)
    compared.locator("button:text-is('difference')").click()
    until(page, lambda: picture(compared) != old, "the difference map")
    shot(page, f"compare_{theme}")
    assert not page.elsewhere, "nothing may come from the network"

    if not dark:
        menu(page, "File", "Save Notebook")
        path = folder / "notebooks" / "explorer.ipynb"
        until(page, lambda: '"execution_count": 1' in path.read_text(), "the saved file")
        shows_its_static_twin(path, folder / "reopened.html", new_page)


def shows_its_static_twin(path, target, new_page):
    """A saved notebook, opened where no kernel runs, has a picture under each widget's cell and under its twin's."""
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata, "GitHub refuses notebooks with half a widget state"
    for cell in notebook.cells:  # as GitHub shows it: it knows no widgets
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    target.write_text(HTMLExporter(embed_images=True).from_notebook_node(notebook)[0])
    page = new_page(target.as_uri(), height=1400)
    for text in ("widgets.explore(", "plot_cut(explorer.gates", "widgets.compare(", "plot_agreement(comparison"):
        found = page.locator(".jp-CodeCell", has=page.locator(f".jp-InputArea:has-text('{text}')")).first
        found.scroll_into_view_if_needed()
        assert found.locator("img").count() == 1, text
        assert found.locator("img").evaluate("image => image.naturalWidth") > 400
    shot(page, "reopened")


def test_stop_and_keep(open_notebook):
    """Both buttons: of a search that is watched, and of one that a cell waits for."""
    page = open_notebook("searches")
    run_all(page)
    watched = cell(page, "widgets.watch(")
    stop(page, watched, "watch")
    found = cell(page, "stopped = s3pet.search(")
    stop(page, found, "search")
    words = found.locator(".jp-OutputArea-output pre:has-text('ended:')").first
    words.wait_for(timeout=60_000)
    assert words.inner_text().strip() == "ended: stopped | kept: True"
    finished(page)
    cell(page, "watched.result()").locator("pre:has-text('watched: stopped')").wait_for()
    assert not page.elsewhere


def stop(page, found, name):
    """Wait until the search shows something, press its button, and see it give way to the static figure."""
    button = found.get_by_role("button", name="Stop and keep")
    button.wait_for(timeout=180_000)
    found.scroll_into_view_if_needed()
    found.get_by_text("of 1000").first.wait_for(timeout=60_000)
    picture(found)
    page.wait_for_timeout(1500)
    shot(page, f"{name}_running")
    button.click()
    until(page, lambda: not found.locator("button.jupyter-button").count(), "the end of the search", 30)
    picture(found)
    found.locator("img").first.evaluate("image => image.scrollIntoView()")  # the picture may just be exchanged
    page.wait_for_timeout(500)
    shot(page, f"{name}_stopped")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_prediction_is_taken_answered_and_scored(open_notebook, dark):
    """The cells have all run; the reader chooses now, changes the choice, and types a number."""
    page = open_notebook("predictions", dark=dark)
    run_all(page)
    finished(page)
    which, many = cell(page, "which = ask("), cell(page, "many = ask(")
    answers = cell(page, "which.reveal("), cell(page, "many.reveal(")
    answers[0].get_by_text("Answer: LoRA. It reads").wait_for()
    assert not answers[0].get_by_text("You said").count()
    which.get_by_label("BitFit").check()
    which.get_by_text("✗ The answer is LoRA.").wait_for()
    answers[0].get_by_text("You said BitFit: not so. Your score: 0 of 1.").wait_for()
    which.get_by_label("LoRA").check()
    which.get_by_text("✓ right").wait_for()
    many.locator("input[type=text]").fill("a few")
    many.locator("input[type=text]").press("Enter")
    many.get_by_text("Please type a number").wait_for()
    many.locator("input[type=text]").fill("12")
    many.locator("input[type=text]").press("Enter")
    answers[1].get_by_text("You said 12: not so. Your score: 1 of 2.").wait_for()
    shot(page, f"predictions_{'dark' if dark else 'light'}")
    assert not page.elsewhere


def test_explorer_as_a_web_page(folder, environment, new_page, tmp_path):
    """As `make page` serves it: files are downloaded, nothing is written, kernels are few and end when unused."""
    pytest.importorskip("voila", reason="voila is not installed: pip install s3pet[web]")
    place = folder / "notebooks"
    shutil.copy(ROOT / "notebooks" / "voila.json", place)
    command = ["voila", "explorer.ipynb", "--no-browser", "--Voila.ip=127.0.0.1", "--VisitorKernels.visitors=1"]
    command += ["--VisitorKernels.cull_idle_timeout=60", "--VisitorKernels.cull_interval=2"]
    before = files_of(folder)
    with server(command, place, environment, "/static/none") as address:
        page = new_page(address)
        found = page.locator(".widget-vbox", has=page.get_by_role("button", name="save structure")).last
        found.wait_for(timeout=400_000)
        found.scroll_into_view_if_needed()
        explore(page, found, "voila")
        assert found.get_by_text("no longer answers; then load it again").count() == 1
        assert page.locator("input[type=text]").count() == 0, "no field for paths"
        assert found.locator("input[placeholder='type an address']").count() == 1
        for label, name, start in (("export figure", "map.pdf", b"%PDF"), ("save structure", "structure.json", b"{")):
            found.get_by_role("button", name=label).click()
            link = found.get_by_text(f"download {name}")
            link.wait_for(timeout=60_000)
            with page.expect_download() as waiting:
                link.click()
            waiting.value.save_as(tmp_path / name)
            assert waiting.value.suggested_filename == name and (tmp_path / name).read_bytes().startswith(start)
        assert s3pet.Structure.from_json(tmp_path / "structure.json").n_params == spent(found)[1]
        second = new_page(address)
        assert "All 1 places of this page are taken. Try again in 1 min" in second.locator("body").inner_text()
        shot(second, "voila_taken")
        for path in ("voila/files/explorer.ipynb", "voila/files/../data/runs/ways.svg", "voila/files/a.png"):
            with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
                urllib.request.urlopen(f"{address}/{path}", timeout=60)
        until(page, lambda: not kernels(), "the end of an unused kernel", 600)
        page.wait_for_timeout(3000)
        shot(page, "voila_ended")
        # voila's own page asks for an icon style sheet, and does without it
        assert all("fontawesome" in address for address in page.elsewhere)
        third = new_page(address)
        third.get_by_text("places of this page are taken").wait_for(state="detached")
        until(third, kernels, "a kernel for the next visitor")
    assert files_of(folder) == before


def files_of(folder):
    """Every file but logs and what Jupyter keeps for itself."""
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    return {path: time for path, time in files.items() if "jupyter" not in path.relative_to(folder).parts[0]}


def kernels():
    """Kernels of the web page: those below a voila that this process has started, not those of JupyterLab."""
    found = []
    for server in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ends at this moment
            if "voila" in server.cmdline():
                found += [child for child in server.children(recursive=True) if "ipykernel_launcher" in child.cmdline()]
    return found
