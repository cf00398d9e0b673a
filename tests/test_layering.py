"""Rooms import only from lower levels, stay small, and execute nothing they read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "s3pet"
LEVELS = {
    "errors": 0, "cost": 0, "batches": 0, "glue": 1, "families": 1,
    "modules": 1, "gates": 1, "bilevel": 1, "backbones": 1, "checkpoint": 1,
    "tasks": 2, "space": 2, "fused": 2, "settings": 2,
    "structure": 3, "objective": 3,
    "supernet": 4, "runs": 4,
    "progress": 4.5, "environment": 4.6, "selectors": 4.7,
    "trainer": 4.9, "search": 5, "retrain": 5, "transfer": 5, "adalora": 5.5, "halving": 5.5,
    "resampling": 1, "statistics": 5, "validation": 5.1, "variance": 5.1, "comparison": 5.6,
    "jobs": 5.8, "export": 6, "study": 6,
    "plots": 6.3,
    "widgets": 7.2,
    "report": 7.5, "cli": 8, "__main__": 9, "__init__": 9,
    # within the figures
    "plots.style": 6.0, "plots.grid": 6.1, "plots.maps": 6.2,
    "plots.curves": 6.2, "plots.scores": 6.2, "plots.matrices": 6.2, "plots.words": 6.2,
    "plots.overview": 6.25, "plots.cuts": 6.25, "plots.choices": 6.27, "plots.lab": 6.2, "plots.ranking": 6.25,
    "plots.repeats": 6.26, "plots.__init__": 6.3,
    # within the widgets
    "widgets.canvas": 7.0, "widgets.shelf": 7.0, "widgets.parts": 7.0, "widgets.recut": 7.0,
    "widgets.live": 7.1, "widgets.explorer": 7.1, "widgets.comparison": 7.1, "widgets.lab": 7.1,
    "widgets.__init__": 7.2,
}  # fmt: skip
ROOMS = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_rooms(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("s3pet"):
            if node.module == "s3pet":
                yield from (alias.name for alias in node.names)
            else:
                yield node.module.removeprefix("s3pet.")
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("s3pet.") for alias in node.names if alias.name.startswith("s3pet."))


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_rooms_import_only_lower_levels(path):
    name = name_of(path)
    assert name in LEVELS, f"{name} has no level; give it one"
    wrong = [room for room in imported_rooms(ast.parse(path.read_text())) if LEVELS[room] >= LEVELS[name]]
    assert not wrong, f"{name} (level {LEVELS[name]}) imports {wrong}"


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_rooms_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_nothing_executes_what_it_reads(path):
    tree = ast.parse(path.read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "input", "__import__"}
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"torch.load", "torch.save", "pickle.load", "pickle.loads", "os.system"}
    assert "trust_remote_code" not in path.read_text()


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.stem}.{node.name}"


def test_importing_is_quiet_and_lazy():
    code = (
        "import sys, warnings; warnings.simplefilter('error'); import s3pet; "
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'seaborn', 'pandas', 'ipywidgets'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""


def test_every_public_name_is_there_and_functions_win_over_rooms():
    import s3pet
    import s3pet.search as room

    assert len(s3pet.__all__) <= 42
    for name in s3pet.__all__:
        assert getattr(s3pet, name) is not None
    assert callable(s3pet.search)
    assert callable(s3pet.retrain)
    assert room is s3pet.search
    assert s3pet.gates.solve_shift
    assert s3pet.structure.select_mask
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        _ = s3pet.serach
