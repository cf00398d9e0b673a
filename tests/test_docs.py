"""The documentation's sources: complete, short, and with code that runs. `make docs` builds the site; CI does, too."""

import re
import shlex
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny import tiny_llama
from toy import toy_tokenizer

import s3pet
from s3pet import plots
from s3pet.cli import _make_parser
from s3pet.modules import PETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
BUILT = sorted((ROOT / "docs" / "_build" / "html").rglob("*.html"))


def examples(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.M | re.S)


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^   (~?)(s3pet[\w.]+)$", PAGES["api"], re.M)
    assert {name for short, name in listed if short} == {f"s3pet.{m}.{name}" for name, m in s3pet._MODULE_OF.items()}
    described = {name for short, name in listed if not short}
    assert {f"s3pet.{module}" for module in s3pet._MODULES} <= described
    for module in ("errors", "export", "gates", "objectives", "plots", "structure", "studies", "utility", "widgets"):
        assert f"s3pet.{module}" in described, module


def test_every_figure_has_a_picture_with_a_caption_and_alt_text():
    entries = re.findall(r"^```\{picture\} (\w+)\n---\n(.*?)^---\n(.*?)^```", PAGES["gallery"], re.M | re.S)
    assert sorted(name for name, _, _ in entries) == sorted(name for name in plots.__all__ if name.startswith("plot_"))
    for name, options, code in entries:
        assert set(yaml.safe_load(options)) == {"caption", "alt"}, name
        assert f"{name}(" in code.splitlines()[-1], name  # the picture is of this function


def test_the_glossary_has_the_words():
    terms = set(re.findall(r"^(\w.*)\n  \w", PAGES["glossary"], re.M))
    assert {"site", "candidate", "PET module", "alpha", "gate", "mask", "budget", "structure", "retrain"} <= terms
    assert {"solo utility", "drop utility", "faithfulness", "coverage", "inert", "hypergradient"} <= terms


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^docs/([\w-]+)$", PAGES["contents"], re.M))
    assert listed == set(PAGES) - {"contents"}


def test_sources_name_no_machine():
    for path in [*(ROOT / "docs").glob("*.*"), ROOT / "CITATION.cff"]:
        if path.suffix != ".png":
            assert not re.search(r"/(?:home|root|Users|work|tmp)/|localhost", path.read_text(encoding="utf-8")), path


@pytest.mark.skipif(not BUILT, reason="the site is not built; make docs builds it")
def test_built_pages_load_nothing_from_elsewhere():
    for path in BUILT:
        page = path.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*>", page):
            assert not re.search(r"""\b(?:src|href|data)=["']?(?:https?:)?//""", tag), (path, tag)
        assert "@import" not in page, path


def test_citation_is_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (s3pet.__version__, "Apache-2.0")
    assert {"type", "title", "authors"} <= set(paper)
    assert all(set(author) in ({"name"}, {"family-names", "given-names"}) for author in paper["authors"])
    assert paper["url"] == "https://arxiv.org/abs/2206.07382"
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- the how-tos' code


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A few steps, in an empty folder; PET modules as before afterwards."""
    search, retrain = s3pet.search, s3pet.retrain
    few = {"steps": 3, "batch_size": 4, "progress": False}
    monkeypatch.setattr(s3pet, "search", lambda *a, **k: search(*a, **{**few, **k}))
    monkeypatch.setattr(s3pet, "retrain", lambda *a, **k: retrain(*a, **{**few, "evaluations": 1, **k}))
    monkeypatch.chdir(tmp_path)
    before = dict(PETS)
    yield tmp_path
    PETS.clear()
    PETS.update(before)


def run(page, only=None):
    names = {}
    for code in examples(page)[only or slice(None)]:
        exec(compile(code, page, "exec"), names)
    return names


def test_a_module_of_your_own(quick):
    names = run("own-module")
    gates, tuned = names["result"].gates, names["tuned"]
    assert set(gates["pet"]) == {"scale", "lora"}
    assert gates.loc[gates["pet"].eq("scale"), "n_params"].isin([128, 256, 512]).all()
    assert gates["prob"].nunique() > 2  # both kinds have gradients
    assert isinstance(tuned.metrics["test"], float | dict)
    plots.plot_gates(names["result"])


def test_a_model_of_your_own(quick, capsys):
    tiny_llama().save_pretrained(quick / "my-model")
    toy_tokenizer().save_pretrained(quick / "my-model")
    names = run("own-model")
    assert set(names["space"].table()["pet"]) == {"lora", "bitfit"}
    assert "lm_head" in capsys.readouterr().out


def test_a_task_of_your_own(quick):
    names = run("own-task")
    assert len(names["task"].test) == 20
    assert isinstance(names["result"].gates, pd.DataFrame)


def test_a_registry(quick, capsys):
    names = run("registry")
    assert names["same"] == names["result"].structure() and names["tuned"].structure == names["structure"]
    row = s3pet.list_structures("my-structures").iloc[0]
    scores = [one.metrics["test"] for one in names["runs"]]
    assert row.score == pytest.approx(sum(scores) / 3) and row.retrainings == 3
    assert "number-1351" in capsys.readouterr().out
    command = re.search(r"^python -m s3pet retrain (\S+) --task (\S+) --lr (\S+)$", PAGES["registry"], re.M)
    entry = s3pet.list_structures().set_index("name").loc[command[1]]
    assert (entry.task, entry.lr) == (command[2], float(command[3]))


def test_many_runs(quick):
    study = re.search(r"^```yaml\n(.*?)^```", PAGES["cluster"], re.M | re.S)[1]
    (quick / "study.yaml").write_text(study, encoding="utf-8")
    from s3pet.studies import Study

    assert {row["structure"] for row in Study.load("study.yaml").rows()} == {"random 0.1%", "searched 0.1%", "lora_qv"}
    run("cluster", only=slice(1, None))
    assert s3pet.load_run("runs/sentiment/seed1").config["seed"] == 1


def test_the_files_for_clusters_say_what_the_commands_take():
    """They were not run on such clusters; that they can be read, and that every option exists, is checked."""
    options = {}
    for what in ("scheduler", "worker"):
        module = pytest.importorskip(f"distributed.cli.dask_{what}", reason="s3pet[cluster] is not installed")
        options[what] = {
            option for parameter in module.main.params for option in parameter.opts + parameter.secondary_opts
        }
    script = re.search(r"^```bash\n(#!/bin/bash\n.*?)^```", PAGES["cluster"], re.M | re.S)[1]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    plain = [shlex.split(line, comments=True) for line in script.replace("\\\n", "").splitlines()]
    commands = [line[line.index("dask") :] for line in plain if "dask" in line] + [plain[-1]]
    kinds = yaml.safe_load_all(re.search(r"^```yaml\n(apiVersion.*?)^```", PAGES["cluster"], re.M | re.S)[1])
    pods = {each["kind"] + each["metadata"]["name"]: each for each in kinds}
    service = pods.pop("Servicescheduler")["spec"]
    assert service["selector"] == pods["Deploymentscheduler"]["spec"]["template"]["metadata"]["labels"]
    commands += [each["spec"]["template"]["spec"]["containers"][0]["command"] for each in pods.values()]
    assert [command[1] for command in commands] == ["scheduler", "worker", "-m", "scheduler", "worker", "-m"]
    for command in commands:
        if command[0] == "dask":
            assert {part.partition("=")[0] for part in command if part.startswith("--")} <= options[command[1]]
        else:
            assert command[:3] == ["python", "-m", "s3pet"]
            assert _make_parser().parse_args(command[3:]).scheduler in ("$address", "tcp://scheduler:8786")


def test_the_estimate_of_the_page_is_printed(capsys):
    run("scale")
    assert re.search(r"^  peak checkpointed +[\d,.]+ MB$", capsys.readouterr().out, re.M)
