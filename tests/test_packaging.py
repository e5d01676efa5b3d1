"""The wheel holds exactly the files of git's rooms, and the core in it works without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
FOLDERS = {folder: package.replace(".", "/") for package, folder in ROOMS.items()}
LINKS = {place for folder, place in FOLDERS.items() if "/" not in folder} - {"mvspec"}
"""A link for each room; what lies in a room is reached through the room's."""


def git_files() -> list[str]:
    """Return every file that a commit of the working tree would hold, links included."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = sorted(set(found.stdout.split("\0")) - {""})
    return [name for name in names if (ROOT / name).is_symlink() or (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the wheel built from the tree and the one built from its sdist."""
    tree = tmp_path_factory.mktemp("tree")
    for name in git_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    built: list[Path] = []
    for out, options in (("direct", ["--wheel"]), ("through-sdist", [])):
        command = [sys.executable, "-m", "build", "--no-isolation", *options]
        command += ["--outdir", str(tree / out), str(tree)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        built += (tree / out).glob("*.whl")
        shutil.rmtree(tree / "build", ignore_errors=True)
    return built


def test_wheel_holds_what_git_holds(wheels: list[Path]) -> None:
    expected = set()
    for name in git_files():
        folder, _, rest = name.partition("/")
        if folder in FOLDERS and f"{folder}/{rest}" not in LINKS:
            expected.add(f"{FOLDERS[folder]}/{rest}")
    for wheel in wheels:
        names = [name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name]
        assert len(names) == len(set(names))
        missing, foreign = expected - set(names), set(names) - expected
        assert not missing, "list the package or its data in pyproject.toml [tool.setuptools]"
        assert not foreign, "the wheel holds files that git does not"


def test_every_room_has_its_link() -> None:
    for folder, place in FOLDERS.items():
        link = ROOT / place
        if place not in LINKS:
            assert link.is_dir()
            assert not link.is_symlink()
        elif link.is_symlink():
            assert link.readlink() == Path("..", folder)
        else:  # a checkout without links has small text files in their place
            assert link.read_text("utf-8") == f"../{folder}"


def test_core_of_the_wheel_works_without_torch(wheels: list[Path], tmp_path: Path) -> None:
    ZipFile(wheels[0]).extractall(tmp_path)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
for name in ("torch", "transformers", "tokenizers"):
    sys.modules[name] = None
import mvspec, mvspec.cli
assert mvspec.__file__.startswith({str(tmp_path)!r}), mvspec.__file__
text = "<Think>\\nHm.\\n</Think>\\n\\nAnswer: 4"
assert mvspec.render(mvspec.parse(text)) == text
"""
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_core_loads_neither_torch_nor_the_parser() -> None:
    program = (
        "import mvspec, mvspec.cli, mvspec.forms, sys; "
        "sys.exit(bool({'torch', 'lark'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
