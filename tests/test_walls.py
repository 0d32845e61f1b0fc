"""The walls of the house, read off the imports: who may know Ray, who may know torch, who may know the acts."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "raycap"
DOORS = {"cli"}  # what may import an act
# Rooms of the acts, not acts.
SHARED_STAGES = {f"raycap.stages.{room}" for room in ("nodes", "pictures", "session", "workers")}
BULK = ("also", "anew", "captions", "digests", "features", "passes")
BULK += ("publish", "retried", "shape", "shown", "standing", "todo", "work")
SHARED_STAGES |= {"raycap.stages.bulk", *(f"raycap.stages.bulk.{room}" for room in BULK)}
LIGHT = ("raycap.cli", "raycap.config", "raycap.tables", "raycap.metrics", "raycap.evaluation")
LIGHT += ("raycap.report", "raycap.tuning")
# Acts that answer at once, and load the heavy parts only where they need them.
LIGHT += ("raycap.stages.caption", "raycap.stages.evaluate", "raycap.stages.report")
FORBIDDEN_WORDS = {"utils", "common", "helpers", "base", "manager", "core"}

MODULES = {
    ".".join(("raycap", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def imports_any(path: Path, package: str) -> list[str]:
    return [name for name in imports(path) if name == package or name.startswith(package + ".")]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_acts_and_the_sinks_know_ray(module: str) -> None:
    if not module.startswith(("raycap.stages", "raycap.sinks")):
        assert not imports_any(MODULES[module], "ray")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nobody_but_the_doors_imports_an_act(module: str) -> None:
    if not module.startswith("raycap.stages") and module.split(".")[-1] not in DOORS:
        assert not imports_any(MODULES[module], "raycap.stages")


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("raycap.stages.")))
def test_acts_do_not_import_each_other(module: str) -> None:
    act = ".".join(module.split(".")[:3])  # which may be a folder
    others = set(imports_any(MODULES[module], "raycap.stages")) - SHARED_STAGES
    others = {other for other in others if not f"{other}.".startswith(f"{act}.")}
    assert others <= ({"raycap.stages.train"} if act == "raycap.stages.tune" else set())


@pytest.mark.parametrize("module", [name for name in LIGHT if name in MODULES])
def test_light_rooms_load_neither_torch_nor_ray(module: str) -> None:
    program = (
        f"import sys, {module}; print([name for name in ('torch', 'ray', 'torchvision') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"raycap.terminal"}))
def test_everything_that_is_printed_is_escaped_on_its_way(module: str) -> None:
    """All but `raycap.terminal`, which escapes, leave stdout and stderr alone."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for call in (node.func for node in ast.walk(tree) if isinstance(node, ast.Call)):
        assert not (isinstance(call, ast.Name) and call.id == "print")
        written = ast.unparse(call)
        assert not re.fullmatch(r"(sys\.)?(std(out|err)|__std(out|err)__)(\.buffer)?\.write(lines)?", written), (
            written
        )
        assert not written.endswith(("basicConfig", "StreamHandler", "print_exc"))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_house_rules_of_a_file(module: str) -> None:
    path = MODULES[module]
    text = path.read_text(encoding="utf-8")
    first = ast.get_docstring(ast.parse(text))
    assert first and first.splitlines()[0].strip(), "the first line says the file's job"
    assert not FORBIDDEN_WORDS & set(module.split("."))
    assert len(text.splitlines()) <= 400, "a file this long has two jobs: split it"
