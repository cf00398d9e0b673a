"""The project's own files agree with each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import s3pet

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomllib needs Python 3.11")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.match(r"([\w.\-]+)==([\w.!+]+)", line).groups()
            found.setdefault(canonical(name), []).append(version)
    return found


def requirements():
    extras = PROJECT["optional-dependencies"]
    for line in PROJECT["dependencies"] + [line for extra in extras.values() for line in extra]:
        yield canonical(re.match(r"[\w.\-]+", line)[0]), line


def test_every_dependency_is_pinned():
    locked = pins()
    assert locked["torch"] == ["2.13.0"]
    missing = [line for name, line in requirements() if name not in locked]
    assert not missing
    assert {"peft", "cluster", "test", "web"} <= set(PROJECT["optional-dependencies"])
    assert PROJECT["requires-python"] == ">=3.10"


def test_the_lock_is_what_runs():
    from importlib.metadata import version

    locked = pins()
    for name in ("torch", "transformers", "pandas", "matplotlib", "safetensors", "pytest", "ruff"):
        assert version(name).split("+")[0] in locked[name], (
            f"{name} differs from the lock; run make clean, then make test"
        )


def test_conda_environment_is_the_same_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-c requirements.lock" in pip
    (editable,) = [line for line in pip if line.startswith("-e")]
    named = set(re.search(r"\[(.*)\]", editable)[1].split(","))
    assert named == set(PROJECT["optional-dependencies"])
    assert f"[{','.join(PROJECT['optional-dependencies'])}]" in (ROOT / "Makefile").read_text()


def test_versions_agree():
    assert PROJECT["version"] == s3pet.__version__
    assert f"[{s3pet.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_commands_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^make (\w+)", readme, re.M))
    assert {"demo", "test"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.M), command
    for target in re.findall(r"(?:src=\"|\]\()([\w./-]+\.(?:png|md|ipynb|py))", readme):
        assert (ROOT / target).exists(), target


def test_readme_python_uses_public_names():
    readme = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"s3pet\.(\w+)\(", readme)):
        assert name in s3pet.__all__, name


def tracked_files():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.decode().split("\0") if name]


def test_no_paths_of_a_machine_and_no_large_files():
    places = re.compile(r"(/(?:home|root|Users|work)/[\w.]+)")
    for path in tracked_files():
        if not path.is_file():
            continue
        assert path.stat().st_size < 5_000_000, path
        if path.suffix in {".py", ".md", ".toml", ".yml", ".json", ".ipynb", ".csv", ".txt", ".jsonl"}:
            found = places.findall(path.read_text(encoding="utf-8"))
            assert path == Path(__file__) or not found, (path, found[:3])
