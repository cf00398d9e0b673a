"""The order of the house: what may import what, how large it may get, and that it executes nothing it reads."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "s3pet"
CORE = (
    *("modules", "space", "gates", "structure", "supernet", "bilevel"),
    *("searcher", "result", "trainer", "tuning", "transfer"),
)
WINGS = ("widgets", "studies", "export")
LEVELS = [
    *[("errors",), ("files",), ("progress", "records"), ("backbones",), ("tasks",), ("objectives",)],
    *[CORE, ("utility",), ("plots",), WINGS, ("__init__",), ("cli",), ("__main__",)],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in FILES}


def part_of(file):
    """The part of the house a file belongs to: ``plots/maps.py`` → ``plots``."""
    return file.split("/")[0].removesuffix(".py")


def imports(source):
    """Dotted names below s3pet that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "s3pet":
            base = node.module.removeprefix("s3pet").lstrip(".")
            yield from ([alias.name for alias in node.names] if not base else [base])
        elif isinstance(node, ast.Import):
            yield from (
                n.name.removeprefix("s3pet").lstrip(".") or "__init__" for n in node.names if n.name.startswith("s3pet")
            )


def test_imports_go_downward():
    for file, source in SOURCES.items():
        own = part_of(file)
        for name in imports(source) if own != "__init__" else ():
            other = name.split(".")[0]
            inside = (own == other and "/" in file) or (own in CORE and other in CORE)
            assert inside or LEVEL[other] < LEVEL[own], f"{file} imports s3pet.{name}, which is not below it"


def test_there_are_no_circles():
    module = {file: file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in SOURCES}
    graph = {module[file]: set(imports(source)) & set(module.values()) for file, source in SOURCES.items()}
    graph = {name: needs - {name} for name, needs in graph.items() if name != "__init__"}
    assert [*TopologicalSorter(graph).static_order()]  # raises CycleError


def test_the_core_names_no_wing():
    for file, source in SOURCES.items():
        if part_of(file) in {"errors", "backbones", "tasks", "objectives", *CORE}:
            assert not [wing for wing in ("plots", *WINGS) if f"s3pet.{wing}" in source], file


def test_the_house_stays_small():
    lines = {file: len(source.splitlines()) for file, source in SOURCES.items()}
    assert not {file: n for file, n in lines.items() if n > 400}
    assert sum("/" not in file for file in lines) <= 18  # the others have a room
    assert sum(n for file, n in lines.items() if part_of(file) in CORE) <= 3130
    assert sum(lines.values()) <= 20150  # it may shrink, not grow without a reason


@pytest.mark.parametrize("file", SOURCES)
def test_nothing_executes_what_it_reads(file):
    tree = ast.parse(SOURCES[file])
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "input", "__import__"}
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"torch.load", "torch.save", "pickle.load", "pickle.loads", "os.system"}
    assert "trust_remote_code" not in SOURCES[file]


@pytest.mark.parametrize("file", SOURCES)
def test_public_things_have_docstrings(file):
    tree = ast.parse(SOURCES[file])
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{file}: {node.name}"


def test_importing_is_quiet_and_lazy():
    code = (
        "import sys, warnings; warnings.simplefilter('error'); import s3pet.backbones, s3pet.tasks; "
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'seaborn', 'pandas', 'ipywidgets'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
    assert process.stderr == ""


def test_public_names_are_few_and_all_there():
    import s3pet

    assert len(s3pet.__all__) <= 25
    for name in s3pet.__all__:
        assert getattr(s3pet, name) is not None
    for module in ("gates", "plots", "studies", "widgets", "searcher", "tuning"):
        assert getattr(s3pet, module).__name__ == f"s3pet.{module}"
    assert callable(s3pet.search)
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        _ = s3pet.serach
