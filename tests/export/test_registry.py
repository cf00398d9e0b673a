"""A registry gives back what was measured, refuses what is damaged, hostile or of another model, and asks the hub."""

import importlib.util
import json
import math
from pathlib import Path

import huggingface_hub
import pytest
from tiny import tiny_bert, tiny_t5
from toy import short_task
from tuned import structure_of

import s3pet
from s3pet.errors import ExportError, RunError, StructureMismatchError
from s3pet.export.registry import ENTRY, INDEX, save_structure

ROOT = Path(__file__).resolve().parents[2]
FEW = {"steps": 1, "batch_size": 4, "evaluations": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_t5()


@pytest.fixture(scope="module")
def tuned(model):
    """Three retrainings of one structure, with test scores of our own."""
    models = [s3pet.retrain(model, short_task(), structure_of(model, "bitfit"), seed=seed, **FEW) for seed in range(3)]
    for one, score in zip(models, (0.5, 0.6, 1.0), strict=True):
        one.metrics["test"] = score
    return models


@pytest.fixture
def registry(tuned, tmp_path):
    save_structure(tuned, tmp_path / "mine", "three")
    save_structure(tuned[1], tmp_path / "mine", "one")
    return tmp_path / "mine"


def change(path, edit):
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def test_what_was_saved_is_listed_with_its_mean_and_error_and_loads(registry, tuned, model):
    table = s3pet.list_structures(registry).set_index("name")
    first, single = table.loc["three"], table.loc["one"]
    assert (first.score, first.retrainings, single.score, single.retrainings) == (pytest.approx(0.7), 3, 0.6, 1)
    assert first.error == pytest.approx(math.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2 / 3)) and math.isnan(single.error)
    assert first.validation == pytest.approx(sum(one.metrics["validation"] for one in tuned) / 3)
    assert (first.steps, first.batch_size, first.n_params) == (1, 4, tuned[0].structure.n_params)
    assert table["budget"].isna().all() and table["budget"].dtype == "Int64"
    structure = s3pet.load_structure("three", model, source=registry)
    assert structure == tuned[0].structure
    assert s3pet.Structure.from_json(registry / "three.json") == structure  # a plain structure file


def test_an_entry_is_replaced_only_when_told(registry, tuned):
    with pytest.raises(RunError, match="holds a structure 'three'; choose another folder or pass overwrite=True"):
        save_structure(tuned[0], registry, "three")
    save_structure(tuned[0], registry, "three", overwrite=True)
    table = s3pet.list_structures(registry).set_index("name")
    assert len(table) == 2 and table.loc["three", "score"] == 0.5


def test_only_measured_structures_that_were_trained_alike_are_taken(tuned, model, tmp_path):
    task, structure = short_task(), tuned[0].structure
    unlike = s3pet.retrain(model, task, structure, seed=5, **FEW | {"batch_size": 2})
    other = s3pet.retrain(model, task, structure_of(model, "lnfit"), seed=5, **FEW)
    for bad, words in (
        (s3pet.retrain(model, task, structure, test=False, **FEW), "test scores"),
        (s3pet.retrain(model, task, "zero-shot"), "test scores"),
        ([], "test scores"),
        ([tuned[0], tuned[0]], "different seeds"),
        ([tuned[0], unlike], "trained alike.*batch_size 4 → 2"),
        ([tuned[0], other], "trained alike.*candidates"),
        ([tuned[0], structure], "tuned must be"),
    ):
        with pytest.raises(ExportError, match=words):
            save_structure(bad, tmp_path / "new", "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../three", "a/b", "..", "", "index", "INDEX", "a\nb", "é", "x" * 81, ".hidden", 3])
def test_names_that_are_paths_are_refused(registry, tuned, name):
    with pytest.raises(RunError, match="name must be a name of letters"):
        s3pet.load_structure(name, source=registry)
    with pytest.raises(RunError, match="name must be a name of letters"):
        save_structure(tuned[0], registry, name)
    change(registry / INDEX, lambda index: index["structures"][0].update(name=name))
    with pytest.raises(RunError, match=r"index of a registry.*name is"):
        s3pet.list_structures(registry)


@pytest.mark.parametrize("field", ENTRY)
def test_an_index_with_a_field_that_is_missing_or_wrong_is_refused(registry, field):
    whole = (registry / INDEX).read_text()
    change(registry / INDEX, lambda index: index["structures"][0].pop(field))
    with pytest.raises(RunError, match=f"it has no {field}"):
        s3pet.list_structures(registry)
    (registry / INDEX).write_text(whole)
    change(registry / INDEX, lambda index: index["structures"][0].update({field: ["\x1b[2J"]}))
    with pytest.raises(RunError, match=f"{field} is .*; expected"):
        s3pet.list_structures(registry)


def test_a_damaged_registry_says_what_is_wrong(registry, tmp_path):
    file, index = registry / "three.json", registry / INDEX
    kept = file.read_bytes(), index.read_bytes()

    def load():
        return s3pet.load_structure("three", source=registry)

    file.write_bytes(kept[0] + b"\n")
    with pytest.raises(RunError, match=r"three\.json cannot be read: it is not the file that index\.json lists"):
        load()
    file.unlink()
    with pytest.raises(RunError, match=r"No such file.*copy or save it again"):
        load()
    with open(file, "wb") as huge:
        huge.truncate(2**40)
    with pytest.raises(RunError, match="bytes; at most"):
        load()
    file.write_bytes(kept[0])
    change(index, lambda record: record["structures"][0].update(n_params=1))
    with pytest.raises(RunError, match=r"its n_params is \d+, in index\.json 1"):
        load()
    for edit, words in (
        (lambda record: record["structures"].append(record["structures"][0]), "a name is there twice"),
        (lambda record: record.update(version=2), "version 2"),
        (lambda record: record.update(format="other"), "format 'other'"),
        (lambda record: record.pop("structures"), "it has no structures"),
    ):
        index.write_bytes(kept[1])
        change(index, edit)
        with pytest.raises(RunError, match=words):
            load()
    index.write_bytes(kept[1])
    with pytest.raises(RunError, match="has no structure 'tree'; nearest: 'three'"):
        s3pet.load_structure("tree", source=registry)
    with pytest.raises(RunError, match="index of a registry"):
        s3pet.list_structures(tmp_path)
    assert load().n_params


def test_a_structure_is_checked_against_the_model(registry, model):
    with pytest.raises(StructureMismatchError, match="does not fit this Bert"):
        s3pet.load_structure("three", tiny_bert(), source=registry)
    with pytest.warns(UserWarning, match=r"the score of 'three' is of weights of .* with checksum"):
        s3pet.load_structure("three", tiny_t5(std=0.5), source=registry)


def test_a_dataset_of_the_hub_is_downloaded_by_name(registry, monkeypatch):
    asked = []

    def download(repo, **options):
        asked.append({"repo": repo, **options})
        return str(registry)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    how = {"source": "some-body/structures", "revision": "v1", "local_files_only": True}
    assert set(s3pet.list_structures(**how)["name"]) >= {"three"}
    assert s3pet.load_structure("three", **how).n_params
    options = {"repo": "some-body/structures", "repo_type": "dataset", "revision": "v1", "local_files_only": True}
    assert asked == [options | {"allow_patterns": [INDEX]}, options | {"allow_patterns": [INDEX, "three.json"]}]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no\nnet")))
    with pytest.raises(RunError, match=r"some-body/structures is not a folder, nor a dataset.*no net. Check its name"):
        s3pet.list_structures("some-body/structures")
    for source in ("/nowhere/there", "../there", "a/b/c", "name", "a/..", Path("a/b")):
        with pytest.raises(RunError, match=r"is no folder; pass one with index\.json, or a dataset"):
            s3pet.list_structures(source)


def test_what_is_not_in_the_cache_is_an_error_without_a_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunError, match="nor a dataset that the hub gives"):
        s3pet.list_structures("some-body/structures", local_files_only=True)


def test_the_registry_of_the_package_is_what_its_script_makes(tmp_path):
    folder = ROOT / "data" / "registry"
    spec = importlib.util.spec_from_file_location("build_registry", folder / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.build(tmp_path)
    names = {path.name for path in folder.glob("*.json")}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_registry_of_the_package_agrees_with_the_bench():
    from s3pet.studies import Bench

    bench, table = Bench.load("pocket"), s3pet.list_structures()
    assert len(table) == 6 and table["retrainings"].ge(3).all()
    model, _ = s3pet.load_backbone("pocket-t5")
    for row in table.itertuples():
        structure = s3pet.load_structure(row.name, model)  # without a warning: the weights are those of the score
        record = bench.lookup(structure, row.task.rpartition("/")[2])
        assert record.score == pytest.approx(row.score, abs=1e-6) and record.lr == row.lr
        assert structure.n_params == row.n_params <= row.budget
