"""The interactive map as data and as a web page; tests/widgets/test_map_browser.py points and clicks at it."""

import hashlib
import html.parser
import json
import re
from base64 import b64encode
from collections import Counter

import pandas as pd
import pytest
from artists import ONE, RUNS, SEEDS, cells, facts, texts
from gate_tables import make_gates, make_utility, places

import s3pet
from s3pet.cli import main
from s3pet.errors import PlotError, RunError
from s3pet.plots.style import DARK
from s3pet.widgets import gate_map, save_html
from s3pet.widgets.interactive import SCRIPT, STYLE
from s3pet.widgets.map_data import CHOSEN, IS_INERT, map_data

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'&\u2028 {data}"


@pytest.fixture(scope="module")
def gates():
    return make_gates()


@pytest.fixture(scope="module")
def run():
    return s3pet.load_run(ONE)


class Page(html.parser.HTMLParser):
    """The elements of a page: (tag, attributes, text)."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.elements[-1][2] += data

    def all(self, tag):
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]


def with_sizes(gates):
    """The table with LoRA in two ranks at every site; of both, rank 4 is the more probable, rank 1 the chosen."""
    large = gates[gates["pet"] == "lora"].assign(rank=4, n_params=512, chosen=False)
    return pd.concat([gates, large.assign(prob=large["prob"] + 0.01)], ignore_index=True).astype({"rank": "Int64"})


@pytest.mark.parametrize("bert", [False, True])
def test_every_candidate_is_in_one_cell_and_the_chosen_and_inert_are_marked(bert):
    gates = make_gates(6, 0, bert=True) if bert else make_gates()
    data = map_data(gates)
    json.dumps(data, allow_nan=False)
    assert Counter(i for inside in data["cells"]["candidates"] for i in inside) == Counter(range(len(gates)))
    assert cells(data, CHOSEN) == places(gates, gates["chosen"])
    assert cells(data, IS_INERT) == places(gates, gates["inert"])
    assert [name for name, *_ in data["grid"]["stacks"]] == (["encoder"] if bert else ["encoder", "decoder"])
    columns = [name for _, name in data["grid"]["columns"]]
    assert columns[:2] == (["embed", "0"] if bert else ["0", "1"]) and (columns[-1] == "final") != bert


def test_a_cell_with_sizes_shows_the_chosen_one_else_the_most_probable(gates):
    table = with_sizes(gates)
    data = map_data(table)
    several = [inside for inside in data["cells"]["candidates"] if len(inside) > 1]
    assert len(several) == (gates["pet"] == "lora").sum()
    for first, second in several:
        assert table["chosen"][first] or (table["rank"][first] == 4 and not table["chosen"][second])
    assert set(texts(data["cells"]["rank"])) == {"", "1", "4"} and "rank" in data["legend"]["rank"]


def test_utility_is_a_colour_and_a_fact(gates):
    utility = make_utility(gates)
    data = map_data(gates, utility=utility)
    assert data["values"]["utility"]["label"] == "solo utility (nats)"
    low, high = data["values"]["utility"]["limits"]
    assert low == -high and data["values"]["utility"]["colours"] == {"light": "PuOr_r", "dark": "purple_dark_orange"}
    said = facts(data, "solo utility")
    assert all(
        (text.startswith("no score")) == inert for text, inert in zip(said.values(), gates["inert"], strict=True)
    )
    alone = gate_map(utility.drop(index=[3])).data
    assert alone["value"] == "utility" and [*alone["values"]] == ["utility", "score_gain"][:1]
    assert not alone["order"] and not alone["bars"] and "chosen" not in alone["facts"]
    part = map_data(gates, utility=utility.drop(index=[3]))
    assert part["values"]["utility"]["index"].count(-1) == 1


def test_sources(run):
    one, three = gate_map(run), gate_map(SEEDS, value="frequency")
    assert one.data["title"] == "sentiment, seed 0" and "chosen in" not in one.data["facts"]
    assert three.value == "frequency" and "mean of 3" in three.data["title"]
    assert facts(three.data, "chosen in") == facts(gate_map(ONE, seeds=SEEDS).data, "chosen in")
    structure = run.structure()
    whole, alone = gate_map(structure, space=run.space), gate_map(structure)
    assert whole.value == alone.value == "share" and len(alone.data["names"]) == len(structure)
    assert cells(whole.data, CHOSEN) == places(run.gates, run.gates["chosen"])
    with pytest.raises(RunError, match="the space does not have 1 candidates of the structure"):
        gate_map(structure, space=run.gates[run.gates["site"] != structure.candidates[0].site])
    with pytest.raises(PlotError, match=r"no column 'probs' of numbers; nearest: 'prob'"):
        gate_map(run, value="probs")
    with pytest.raises(PlotError, match="no numbers such as prob"):
        gate_map(run.space.table())
    with pytest.raises(RunError, match="is no run"):
        gate_map(3)


def test_runs_of_one_name_and_seed_are_told_apart():
    folders = [f"{RUNS}/pocket-t5/{task}/0.2/seed0" for task in ("sentiment", "number")]
    said = set(facts(gate_map(folders).data, "chosen in").values())
    assert "1 of 2: 2 seed0" in said and "1 of 2: 1 seed0" in said


def test_the_widget_knows_its_candidates_and_is_a_picture_without_a_kernel(gates):
    widget = gate_map(gates)
    widget.selected, widget.value = "encoder.0.attn.q:lora:1", "alpha"
    with pytest.raises(PlotError, match=r"no candidate is called 'encoder.0.attn.q:lora'"):
        widget.selected = "encoder.0.attn.q:lora"
    with pytest.raises(PlotError, match="the map does not show 'alfa'"):
        widget.value = "alfa"
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == s3pet.describe(gates)
    assert widget.get_state()["_esm"] == SCRIPT.read_text("utf-8"), "saved with its script, it needs no kernel"
    widget.show(map_data(gates[gates["stack"] == "decoder"]))
    assert widget.selected == "" and widget.value == "alpha"


def test_the_page_is_complete_and_loads_nothing(gates, tmp_path):
    path = save_html(gates, tmp_path / "new" / "map", title="A map")
    text = path.read_text("utf-8")
    page = Page(text)
    assert path.name == "map.html" and [*path.parent.iterdir()] == [path]
    assert save_html(gates, path, title="A map").read_text("utf-8") == text, "the same map gives the same bytes"
    assert not re.findall(r"(?:src|href|action)=|url\(|@import|\bimport\b|fetch\(|http-equiv=\"refresh", text)
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}
    for _, attributes, _ in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    (data, code), (style,) = page.all("script"), page.all("style")
    assert json.loads(data[1])["names"] == map_data(gates)["names"]
    policy = next(a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for content in (code[1], style[1]):
        assert b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_the_page_escapes_every_text(gates, tmp_path):
    table = gates.assign(path=gates["path"] + HOSTILE, role=gates["role"].replace("attn.q", HOSTILE))
    table["site"] = table["site"] + HOSTILE
    page = Page(save_html(table, tmp_path / "map.html", title=HOSTILE).read_text("utf-8"))
    assert Counter(tag for tag, *_ in page.elements) == Counter(
        {"meta": 4, "script": 2, "p": 2, "html": 1, "head": 1, "title": 1, "style": 1, "body": 1, "main": 1, "div": 1}
        | {"noscript": 1}
    )
    data = json.loads(page.all("script")[0][1])
    assert data["title"] == HOSTILE and page.all("title")[0][1].strip() == HOSTILE
    assert texts(data["facts"]["module"]) == table["path"].tolist()


def test_a_page_that_cannot_be_written_is_said(gates, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_html(gates, tmp_path / "file" / "map.html")


def test_t5_large_fits_in_300_kb(tmp_path):
    gates = make_gates(24, 24)
    paths = gates["stack"] + ".block." + gates["layer"].astype("string").fillna("") + ".layer.0.SelfAttention.q.weight"
    path = save_html(gates.assign(path=paths), tmp_path / "large.html", utility=make_utility(gates))
    assert len(gates) == 916 and path.stat().st_size < 300_000


def test_the_colours_are_those_of_the_figures():
    light, dark = re.findall(
        r"--ground: (#\w+); --ink: (#\w+); --grey: (#\w+); --faint: (#\w+); --pale: (#\w+);", STYLE.read_text("utf-8")
    )
    assert dark == tuple(DARK[name] for name in ("ground", "ink", "grey", "faint", "pale"))
    white = s3pet.plots.style.STYLES["paper"]
    assert light == ("#FFFFFF", "#000000", white.grey, white.faint, white.pale)
    assert (white.ground, white.ink) == ("white", "black")


def test_command_line(tmp_path, capsys):
    assert main(["map", *SEEDS, str(tmp_path / "mean.html"), "--value", "frequency"]) == 0
    assert "mean.html" in capsys.readouterr().out
    data = json.loads(Page((tmp_path / "mean.html").read_text("utf-8")).all("script")[0][1])
    assert data["value"] == "frequency" and "mean of 3" in data["title"]
    assert main(["map", str(tmp_path / "none"), str(tmp_path / "x.html")]) == 2
    assert "does not exist" in capsys.readouterr().err
