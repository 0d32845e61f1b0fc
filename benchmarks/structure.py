"""Measures the shape of the code: files, lines, functions, imports.

    python benchmarks/structure.py            # a table
    python benchmarks/structure.py --json     # the same as JSON, to compare two commits

Everything is read off the syntax trees in raycap/, apart from two figures that a fresh process
measures: the files that `import raycap.captioners` loads and the time of `raycap --help`.
"""

import argparse
import ast
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "raycap"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    figures = measure()
    if parser.parse_args().json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:<42} {value}")


def measure() -> dict[str, Any]:
    """Every figure by its name."""
    trees: dict[str, ast.Module] = {}
    lines: dict[str, int] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(REPOSITORY))
        trees[name], lines[name] = ast.parse(text), len(text.splitlines())

    functions = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    longest_file = max(lines, key=lambda name: lines[name])
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        "median lines of a file": statistics.median(lines.values()),
        "longest file": f"{lines[longest_file]} ({longest_file})",
        "functions": len(functions),
        "median lines of a function": statistics.median(lengths),
        "longest function": max(lengths),
        "private functions used once": private_functions_used_once(trees),
        "class names with several owners": class_names_with_several_owners(trees),
        "functions that take Config": functions_that_take_config(functions),
        "import cycles": import_cycles(trees),
        "files that `import raycap.captioners` loads": files_loaded_by_the_captioners(),
        "seconds of `raycap --help`": seconds_of_help(),
    }


def private_functions_used_once(trees: dict[str, ast.Module]) -> int:
    """Functions and methods named _like_this to which their file refers at most once."""
    count = 0
    for tree in trees.values():
        nodes = list(ast.walk(tree))
        uses = Counter(node.id for node in nodes if isinstance(node, ast.Name))
        uses += Counter(node.attr for node in nodes if isinstance(node, ast.Attribute))
        for node in nodes:
            if (
                isinstance(node, ast.FunctionDef)
                and node.name.startswith("_")
                and not node.name.endswith("__")
            ):
                count += uses[node.name] <= 1
    return count


def class_names_with_several_owners(trees: dict[str, ast.Module]) -> int:
    names = Counter(
        node.name
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    )
    return sum(owners > 1 for owners in names.values())


def functions_that_take_config(functions: list[Any]) -> int:
    count = 0
    for node in functions:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        annotations = [ast.unparse(each.annotation) for each in arguments if each.annotation]
        count += any(annotation.strip("\"'") == "Config" for annotation in annotations)
    return count


def import_cycles(trees: dict[str, ast.Module]) -> int:
    """Groups of files that import each other at the top of the file (strongly connected, two files
    or more)."""
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name in trees
    }
    graph: dict[str, set[str]] = {}
    for module, name in modules.items():
        graph[module] = set()
        for node in trees[name].body:
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            graph[module].update(each for each in imported if each in modules and each != module)
    return sum(len(group) > 1 for group in strongly_connected(graph))


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for neighbour in graph[node]:
            if neighbour not in index:
                visit(neighbour)
                low[node] = min(low[node], low[neighbour])
            elif neighbour in stack:
                low[node] = min(low[node], index[neighbour])
        if low[node] == index[node]:
            group = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            groups.append(group)

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def files_loaded_by_the_captioners() -> int:
    """Files of raycap that are loaded by importing what captions pictures (its older name:
    raycap.captioners.trained)."""
    module = (
        "raycap.captioners" if (PACKAGE / "captioners").is_dir() else "raycap.captioners.trained"
    )
    program = (
        f"import sys, {module}; print(sum(name.split('.')[0] == 'raycap' for name in sys.modules))"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return int(answer.stdout)


def seconds_of_help() -> float:
    """The median of five runs."""
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        command = [sys.executable, "-m", "raycap", "--help"]
        subprocess.run(command, capture_output=True, check=True, cwd=REPOSITORY)
        seconds.append(time.monotonic() - started)
    return round(statistics.median(seconds), 2)


if __name__ == "__main__":
    main()
