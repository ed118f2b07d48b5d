"""The house rules: imports run downward, Pyro's internals and the compiler stay in their rooms."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up; a module may import from its own floor's package and from floors below.
FLOORS = [
    {"arguments", "diverged", "l_bfgs", "ranks", "renamed", "settings_table", "version"},
    {"files"},
    {"models", "data", "tasks"},
    {"inference", "networks"},
    {"diagnostics"},
    {"plots"},
    {"free_energy", "finetuning"},
    {"demo"},
    {"cli"},
]
# The same within the engine.
ENGINE_FLOORS = [
    {"schedules", "targets"},
    {"dynamics", "program"},
    {"step"},
    {"run_plan"},
    {"record"},
    {"warmup"},
    {"pyro_kernel"},
    {"kernels"},
    {"samplers", "adjusted", "run"},
    {"sampling"},
]
PYRO_ROOMS = (
    "ppl_fe/inference/program/ancestors.py",
    "ppl_fe/inference/program/enumeration.py",
    "ppl_fe/inference/program/equal_forms.py",
    "ppl_fe/inference/program/simulate.py",
    "ppl_fe/inference/program/trace.py",
    "ppl_fe/inference/program/trial.py",
    "ppl_fe/inference/program/potential.py",
    "ppl_fe/inference/pyro_kernel.py",
)
# A file is one idea, however long; above this many lines ask why.
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
MOST_ARGUMENTS = 8
MOST_ATTRIBUTES = 15


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


def floor(room_name: str, floors: Sequence[set[str]] = FLOORS) -> int:
    return next(level for level, rooms in enumerate(floors) if room_name in rooms)


@pytest.mark.parametrize("path", sources(), ids=name)
def test_imports_run_downward(path: Path) -> None:
    if name(path) == "ppl_fe/__init__.py":
        return
    own = room(path)
    for imported in imports(path):
        if imported.startswith("ppl_fe."):
            other = imported.split(".")[1]
            assert other == own or floor(other) < floor(own), f"{name(path)} imports {imported}"


def test_imports_run_downward_within_the_engine() -> None:
    engine = "ppl_fe.inference."
    for module, imported in graph(modules()).items():
        if module.startswith(engine):
            own = module.split(".")[2]
            for other in {name.split(".")[2] for name in imported if name.startswith(engine)}:
                lower = floor(other, ENGINE_FLOORS) < floor(own, ENGINE_FLOORS)
                assert other == own or lower, f"{module} imports {other}"


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
            assert name(path).startswith(PYRO_ROOMS), f"{name(path)} imports {imported}"
        if imported.startswith(("torch._inductor", "torch._dynamo")):
            assert name(path) == "ppl_fe/inference/step/compile.py"
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
                "warnings",
            }, imported


@pytest.mark.parametrize("path", every_file(), ids=name)
def test_files_are_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE or path not in sources()
    assert ast.get_docstring(ast.parse(text)), f"{name(path)} says nothing of itself"


def public_names() -> set[str]:
    """Every name that some package exports."""
    found: set[str] = set()
    for module, path in modules().items():
        if path.name == "__init__.py":
            found |= set(getattr(importlib.import_module(module), "__all__", ()))
    return found


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Each function and method with the name it is called by: a constructor by its class."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef):
                if isinstance(parent, ast.ClassDef) and node.name == "__init__":
                    yield parent.name, node
                else:
                    yield node.name, node


def test_inner_functions_take_few_arguments() -> None:
    public, many = public_names(), []
    for path in sources():
        for called, node in functions(path):
            own = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([argument for argument in own if argument.arg not in ("self", "cls")])
            if called not in public and count > MOST_ARGUMENTS:
                many.append(f"{name(path)}: {called} takes {count}")
    assert not many, "\n".join(many)


def test_inner_calls_pass_few_arguments() -> None:
    public, many = public_names() | {"super", "__init__"}, []
    own = {called for path in sources() for called, _ in functions(path)}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                count = len(node.args) + len(node.keywords)
                if called in own - public and count > MOST_ARGUMENTS:
                    many.append(f"{name(path)}:{node.lineno} gives {called} {count}")
    assert not many, "\n".join(many)


def test_functions_are_short() -> None:
    long = []
    for path in sources():
        for called, node in functions(path):
            explained = node.body[0].end_lineno or 0 if ast.get_docstring(node) else node.lineno
            count = (node.end_lineno or 0) - explained
            if count > LONGEST_FUNCTION:
                long.append(f"{name(path)}: {called} has {count} lines")
    assert not long, "\n".join(long)


def attributes(node: ast.ClassDef) -> set[str]:
    """What an object of the class carries: its fields, and what methods set on `self`."""
    fields = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    return fields | {
        item.attr
        for item in ast.walk(node)
        if isinstance(item, ast.Attribute)
        and isinstance(item.ctx, ast.Store)
        and isinstance(item.value, ast.Name)
        and item.value.id == "self"
    }


def test_classes_carry_few_attributes() -> None:
    many = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and len(attributes(node)) > MOST_ATTRIBUTES:
                many.append(f"{name(path)}: {node.name} has {len(attributes(node))}")
    assert not many, "\n".join(many)


def test_no_two_modules_of_one_stem() -> None:
    stems = Counter(path.stem for path in sources() if path.stem != "__init__")
    assert not [stem for stem, count in stems.items() if count > 1]


@pytest.mark.parametrize("path", sorted(ROOT.glob("ppl_fe/*/**/__init__.py")), ids=name)
def test_each_folder_has_a_map_of_itself(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    inside = [entry for entry in path.parent.iterdir() if entry.name[0] not in "_."]
    rooms = {
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in inside
        if entry.suffix == ".py" or (entry / "__init__.py").exists()
    }
    mapped = re.findall(r"^ *(\w+(?:\.py|/))  ", text, re.MULTILINE)
    assert sorted(mapped) == sorted(rooms)


def test_no_module_bears_the_name_of_a_public_function() -> None:
    import ppl_fe

    stems = {path.stem for path in sources()}
    assert not stems & set(ppl_fe.__all__) - {"models", "schedules"}


def test_every_public_name_is_documented() -> None:
    import ppl_fe

    for public in ppl_fe.__all__:
        value = getattr(ppl_fe, public)
        assert isinstance(value, str) or value.__doc__, public


def test_public_modules_are_found_by_attribute() -> None:
    code = "import ppl_fe as fe; assert fe.plots.plot_ranks and fe.models.gaussian and fe.schedules"
    subprocess.run([sys.executable, "-c", code], check=True)
