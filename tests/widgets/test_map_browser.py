"""The interactive map in a real browser: as a page of its own, in JupyterLab, and reopened there without a kernel."""

import json
from pathlib import Path

import nbformat
import pytest
from gate_tables import make_gates, make_utility
from test_browser import (  # noqa: F401
    browser,
    environment,
    errors,
    finished,
    ground,
    lab,
    menu,
    new_page,
    open_notebook,
    pytestmark,
    run_all,
    shot,
    until,
)
from test_interactive import HOSTILE, with_sizes

from s3pet.plots.style import PETS
from s3pet.widgets import save_html

CODE = """import sys; sys.path.insert(0, {tests!r})
import s3pet; from gate_tables import make_gates; gates = make_gates()
shown = s3pet.widgets.gate_map(gates, title="my map"); shown"""
NOTEBOOK = [CODE, 'shown.selected = "encoder.2.ffn.in:lora:1"', 'print("selected:", shown.selected, "|", shown.value)']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A notebook with a map, where JupyterLab finds it."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    code = [nbformat.v4.new_code_cell(text) for text in NOTEBOOK]
    code[0].source = CODE.format(tests=str(Path(__file__).resolve().parents[1]))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), folder / "notebooks" / "map.ipynb")
    return folder


@pytest.fixture
def open_page(new_page, tmp_path):  # noqa: F811
    """A function that saves a map as a page and opens it; what the page complains of is noted in ``.complaints``."""

    def opened(source, *, dark=False, width=1000, at="", **kwargs):
        path = save_html(source, tmp_path / "map.html", **kwargs)
        page = new_page("about:blank", width=width)
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.goto(path.as_uri() + at)
        page.get_by_role("grid").wait_for()
        return page

    return opened


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_of_t5_large(open_page, dark):
    gates = make_gates(24, 24)
    page = open_page(gates, utility=make_utility(gates), title="T5-large", dark=dark)
    cells = page.get_by_role("gridcell")
    assert cells.count() == 916 and page.locator("canvas, img").count() == 0, "only vectors are crisp at any zoom"
    figure = page.locator(".figure")
    assert figure.evaluate("e => e.scrollWidth <= e.clientWidth"), "24 + 24 layers fit a page"
    assert (ground(page, ".s3pet-map") < 100) == dark == (ground(page, "body") < 100)

    row = gates.iloc[gates["prob"].argmax()]
    cell = page.locator(f"[aria-label^='{row['site']} {PETS[row['pet']]}']")
    cell.hover()
    tip = page.locator(".tip")
    for text in (
        row["path"],
        f"{row['n_params']} parameters",
        f"{row['alpha']:.4g}",
        f"{row['prob']:.4g}",
        "solo utility",
    ):
        assert text in tip.inner_text()
    assert page.locator(".bar.near").count() == 1
    before = cell.get_attribute("fill")
    page.get_by_label("colour").select_option("utility")
    assert cell.get_attribute("fill") != before and "solo utility (nats)" in page.locator(".legend").inner_text()
    assert "colour: solo utility" in page.get_by_role("status").inner_text()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    cell.click()
    assert page.locator(".card .name").inner_text().startswith(row["site"])
    assert page.get_by_role("status").inner_text().startswith(f"selected: {row['site']}")
    cell.hover()
    shot(page, f"map_large_{'dark' if dark else 'light'}")
    page.emulate_media(color_scheme="light" if dark else "dark")
    until(page, lambda: (ground(page, ".s3pet-map") < 100) != dark, "the other theme")
    assert not page.complaints and not page.elsewhere


def test_walking_with_keys(open_page):
    page = open_page(make_gates(), title="keys")
    first = page.locator("[role=gridcell][tabindex='0']")
    assert first.count() == 1, "the tab key reaches one cell"
    first.focus()
    page.keyboard.press("Control+Home")
    assert focused(page).startswith("encoder.0.attn.q LoRA, gate probability")
    assert page.locator(".tip").is_visible(), "what is pointed at by keys is shown, too"
    steps = [("ArrowRight", "encoder.1.attn.q LoRA"), ("ArrowDown", "encoder.1.attn.q BitFit")]
    steps += [("End", "decoder.3.attn.q BitFit"), ("ArrowRight", "decoder.3.attn.q BitFit")]
    steps += [("ArrowUp", "decoder.3.attn.q LoRA"), ("Home", "encoder.0.attn.q LoRA")]
    steps += [("PageDown", "encoder.0.ffn low-rank"), ("Control+End", "decoder.3.ffn low-rank")]
    for key, name in steps:
        page.keyboard.press(key)
        assert focused(page).startswith(f"{name}, "), key
    page.keyboard.press("Enter")
    assert page.locator(".card .name").inner_text() == "decoder.3.ffn low-rank"
    assert page.evaluate("decodeURIComponent(location.hash)") == "#decoder.3.ffn:lowrank_adapter"
    assert page.locator("[aria-selected=true]").count() == 1
    page.keyboard.press("Escape")
    assert "Point at a cell" in page.locator(".card").inner_text() and not page.locator(".tip").is_visible()
    assert page.locator("[role=gridcell][tabindex='0']").count() == 1
    assert not page.complaints


def test_bars_buttons_and_names_select(open_page):
    gates = make_gates()
    page, name = open_page(gates, at="#encoder.1.attn.q:lora:1"), lambda: page.locator(".card .name").inner_text()
    assert name() == "encoder.1.attn.q LoRA", "the address of the page names a candidate"
    chosen = gates[gates["chosen"]].sort_values("prob", ascending=False)
    page.get_by_role("button", name="chosen next").click()
    assert name().startswith(f"{chosen['site'].iloc[0]} ")
    page.get_by_role("button", name="chosen before").click()
    assert name().startswith(f"{chosen['site'].iloc[-1]} ")
    lora = chosen[chosen["pet"] == "lora"]["site"]
    bar = page.get_by_role("button", name="LoRA: ")
    bar.hover()
    assert page.locator(".cell.dim").count() == (gates["pet"] != "lora").sum()
    for site in (*lora, lora.iloc[0]):
        bar.click()
        assert name() == f"{site} LoRA" and bar.locator(".part").is_visible()
    find = page.get_by_label("candidate")
    find.fill("decoder.final.norm:lnfit")
    find.press("Enter")
    assert name() == "decoder.final.norm LNFit"
    find.fill("nowhere")
    find.press("Enter")
    assert (
        name() == "decoder.final.norm LNFit"
        and "no candidate is called nowhere" in page.get_by_role("status").inner_text()
    )
    assert not page.complaints


def test_sizes_of_a_module_are_gone_through(open_page):
    page = open_page(with_sizes(make_gates()), width=700)
    cell = page.get_by_role("gridcell", name="encoder.1.attn.q LoRA")
    assert "2 sizes" in cell.get_attribute("aria-label")
    seen = []
    for _ in range(3):
        cell.click()
        seen.append(page.locator(".card .name").inner_text())
    assert seen[0] == seen[2] and {*seen} == {"encoder.1.attn.q LoRA 1", "encoder.1.attn.q LoRA 4"}
    assert page.locator("text.rank").count() and "sizes: probability" in page.locator(".card").inner_text()
    shot(page, "map_sizes")


def test_texts_are_only_texts(open_page):
    gates = make_gates()
    page = open_page(gates.assign(path=HOSTILE), title=HOSTILE)
    assert page.locator(".title").inner_text().startswith("</script>") and page.title().startswith("</script>")
    page.get_by_role("gridcell").first.click()
    assert HOSTILE.replace("\u2028", "")[:40] in page.locator(".card").inner_text()
    assert page.locator("img").count() == 0 and not page.complaints


def test_a_widget_in_jupyterlab_saved_and_reopened_without_a_kernel(open_notebook, environment, folder):  # noqa: F811
    settings = Path(environment["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyter-widgets" / "jupyterlab-manager"
    settings.mkdir(parents=True)
    (settings / "plugin.jupyterlab-settings").write_text(json.dumps({"saveState": True}))
    page = open_notebook("map", dark=True)
    run_all(page)
    finished(page)
    grid, name = page.get_by_role("grid", name="my map"), page.locator(".card .name")
    grid.wait_for(timeout=60_000)
    until(page, lambda: name.inner_text() == "encoder.2.ffn.in LoRA", "what Python selected")
    assert ground(page, ".s3pet-map") < 100
    page.get_by_role("gridcell", name="encoder.1.attn.v LoRA").click()
    page.get_by_label("colour").select_option("alpha")
    page.locator(".jp-InputArea", has_text="print(").click()
    menu(page, "Run", "Run Selected Cell")
    page.locator("pre", has_text="selected: encoder.1.attn.v:lora:1 | alpha").wait_for(timeout=60_000)
    menu(page, "File", "Save Notebook")
    path = folder / "notebooks" / "map.ipynb"
    until(page, lambda: "encoder.1.attn.v:lora:1 | alpha" in path.read_text(), "the saved file")
    menu(page, "Kernel", "Shut Down All Kernels…")
    page.get_by_role("button", name="Shut Down All").click()
    page.close()

    page = open_notebook("map")
    page.get_by_role("grid", name="my map").wait_for(timeout=60_000)
    assert ground(page, ".s3pet-map") > 200, "the theme is that of now"
    assert page.locator(".card .name").inner_text() == "encoder.1.attn.v LoRA"
    page.get_by_role("gridcell", name="decoder.0.attn.q LoRA").click()
    assert page.locator(".card .name").inner_text() == "decoder.0.attn.q LoRA"
    shot(page, "map_reopened")
    assert not page.elsewhere and not errors(page)
