"""Which package may import which: read off the import statements."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "raycap"
# Only these packages may import Ray.
RAY = ("raycap.bulk", "raycap.cluster", "raycap.tuning", "raycap.commands")
# These answer at once: they import neither torch nor Ray when they are loaded.
LIGHT = ("raycap.cli", "raycap.config", "raycap.schema", "raycap.metrics", "raycap.evaluation")
LIGHT += ("raycap.report", "raycap.tuning")
LIGHT += ("raycap.commands.caption", "raycap.commands.evaluate", "raycap.commands.report")
# What a package may not import: (importer, imported).
WALLS = (
    ("raycap.captioners", "raycap.training"),
    ("raycap.captioners", "raycap.config"),
    ("raycap.bulk", "raycap.training"),
    ("raycap.report", "raycap.training"),
)
FORBIDDEN_WORDS = {"utils", "common", "helpers", "base", "manager", "core"}

MODULES = {
    ".".join(("raycap", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def imports_any(path: Path, package: str) -> list[str]:
    return [name for name in imports(path) if name == package or name.startswith(package + ".")]


def lies_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def test_ray_is_imported_only_where_it_may_be() -> None:
    for module, path in MODULES.items():
        if not any(lies_in(module, package) for package in RAY):
            assert not imports_any(path, "ray"), module


def test_only_the_command_line_imports_commands() -> None:
    """A command turns the config into parts and calls them; nothing below a command knows it."""
    for module, path in MODULES.items():
        may = lies_in(module, "raycap.commands") or module in ("raycap.cli", "raycap.__main__")
        assert may or not imports_any(path, "raycap.commands"), module


@pytest.mark.parametrize("importer, imported", WALLS)
def test_walls_between_packages(importer: str, imported: str) -> None:
    inside = [module for module in sorted(MODULES) if lies_in(module, importer)]
    assert inside
    assert [module for module in inside if imports_any(MODULES[module], imported)] == []


IMPORT_EACH = """
import importlib, sys

for module in sys.argv[1:]:
    importlib.import_module(module)
    if heavy := {"torch", "ray", "torchvision"} & set(sys.modules):
        sys.exit(f"{module} loads {heavy}")
"""


def test_light_modules_load_neither_torch_nor_ray() -> None:
    light = [name for name in LIGHT if name in MODULES]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *light], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_everything_that_is_printed_is_escaped_on_its_way() -> None:
    """All but `raycap.terminal`, which escapes, leave stdout and stderr alone."""
    writes = re.compile(r"(sys\.)?(std(out|err)|__std(out|err)__)(\.buffer)?\.write(lines)?")
    for module in set(MODULES) - {"raycap.terminal"}:
        tree = tree_of(MODULES[module])
        for call in (node.func for node in ast.walk(tree) if isinstance(node, ast.Call)):
            assert not (isinstance(call, ast.Name) and call.id == "print"), module
            written = ast.unparse(call)
            assert not writes.fullmatch(written), f"{module}: {written}"
            ends = ("basicConfig", "StreamHandler", "print_exc")
            assert not written.endswith(ends), f"{module}: {written}"


def test_house_rules_of_a_file() -> None:
    for module, path in MODULES.items():
        first = ast.get_docstring(tree_of(path))
        assert first and first.splitlines()[0].strip(), f"{module}: its first line names its job"
        assert not FORBIDDEN_WORDS & set(module.split(".")), module


def test_a_class_name_has_one_owner() -> None:
    owners: dict[str, str] = {}
    for module, path in MODULES.items():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                other = owners.setdefault(node.name, module)
                assert other == module, f"{node.name} is a class of {other} and of {module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports at the top of a file; those inside functions are for what is loaded late."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph[module] = set()
        for node in tree_of(path).body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                submodules = [f"{node.module}.{alias.name}" for alias in node.names]
                # `from package import module` loads the module; the package is loaded already.
                names = [name for name in submodules if name in MODULES] or [node.module]
            graph[module].update(name for name in names if name in MODULES and name != module)
    left = dict(graph)
    while left:  # modules that import nothing that is left are in no circle
        free = [module for module, imported in left.items() if not imported & left.keys()]
        assert free, f"these import each other: {sorted(left)}"
        for module in free:
            del left[module]
