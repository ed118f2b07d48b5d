"""The house rules: imports run downward, Pyro's internals and the compiler stay in their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up; a module may import from its own floor's package and from floors below.
FLOORS = [
    {"version", "files", "models", "data"},
    {"inference", "networks"},
    {"diagnostics"},
    {"free_energy", "finetuning"},
    {"demo"},
    {"cli"},
]
PYRO_ROOMS = {
    "ppl_fe/inference/observed.py",
    "ppl_fe/inference/program.py",
    "ppl_fe/inference/pyro_kernel.py",
}
LONGEST_FILE = 250


def sources() -> list[Path]:
    return sorted([*ROOT.glob("ppl_fe/**/*.py"), *ROOT.glob("models/*.py")])


def every_file() -> list[Path]:
    folders = ("benchmarks", "docs", "notebooks", "tests")
    return sorted([*sources(), *(path for f in folders for path in ROOT.glob(f"{f}/**/*.py"))])


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all imports, at the top of a file or within a function; .name if relative."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or name(path).startswith("models/"), f"{path}: relative import"
            base = "." * node.level + (f"{node.module}." if node.module else "")
            yield from (base + alias.name for alias in node.names)


def room(path: Path) -> str:
    parts = name(path).removesuffix(".py").split("/")
    return "models" if parts[0] == "models" else parts[1]


def modules() -> dict[str, Path]:
    """Dotted name -> file; models/ is imported as ppl_fe.models."""
    dotted = {path: name(path).removesuffix(".py").removesuffix("/__init__") for path in sources()}
    return {
        ("ppl_fe/" * text.startswith("models") + text).replace("/", "."): path
        for path, text in dotted.items()
    }


def graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules among these that it imports."""
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        found[module] = set()
        for imported in imports(path):
            if imported.startswith("."):  # in models/ alone
                imported = f"ppl_fe.models{imported}"
            while imported and imported not in files:  # a name within a module
                imported = imported.rpartition(".")[0]
            if imported:
                found[module].add(imported)
    return found


def floor(room_name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room_name in rooms)


@pytest.mark.parametrize("path", sources(), ids=name)
def test_imports_run_downward(path: Path) -> None:
    if name(path) == "ppl_fe/__init__.py":
        return
    own = room(path)
    for imported in imports(path):
        if imported.startswith("ppl_fe."):
            other = imported.split(".")[1]
            assert other == own or floor(other) < floor(own), f"{name(path)} imports {imported}"


def test_no_imports_in_a_circle() -> None:
    list(TopologicalSorter(graph(modules())).static_order())  # CycleError names the modules


def test_the_rules_can_fail(tmp_path: Path) -> None:
    assert floor("inference") < floor("free_energy") < floor("cli")
    assert list(imports(Path(__file__)))
    (tmp_path / "a.py").write_text("from ppl_fe.b import f")
    (tmp_path / "b.py").write_text("def f():\n    from ppl_fe import a")
    files = {f"ppl_fe.{stem}": tmp_path / f"{stem}.py" for stem in "ab"}
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(files)).static_order())
    assert "ppl_fe.models.likelihoods" in graph(modules())["ppl_fe.models.localized"]


@pytest.mark.parametrize("path", sources(), ids=name)
def test_pyro_and_the_compiler_stay_in_their_rooms(path: Path) -> None:
    for imported in imports(path):
        top = imported.split(".")[0]
        if top == "pyro" and room(path) != "models":
            assert name(path) in PYRO_ROOMS, f"{name(path)} imports {imported}"
        if imported.startswith(("torch._inductor", "torch._dynamo")):
            assert name(path) == "ppl_fe/inference/compile.py"
        if room(path) == "models" and not imported.startswith("."):
            assert top in {
                "__future__",
                "collections",
                "dataclasses",
                "math",
                "pyro",
                "scipy",
                "torch",
                "typing",
            }, imported


@pytest.mark.parametrize("path", every_file(), ids=name)
def test_files_are_short_and_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(text)), f"{name(path)} says nothing of itself"


def test_no_module_bears_the_name_of_a_public_function() -> None:
    import ppl_fe

    stems = {path.stem for path in sources()}
    assert not stems & set(ppl_fe.__all__) - {"models"}


def test_every_public_name_is_documented() -> None:
    import ppl_fe

    for public in ppl_fe.__all__:
        value = getattr(ppl_fe, public)
        assert isinstance(value, str) or value.__doc__, public
