"""The layout of the code: small folders, files and functions, and imports without cycles."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).parents[1]
ROOTS = ("client", "gradellm_engine", "server", "tests")
MAX_FILES_OF_A_FOLDER = 15
MAX_FILES_OF_THE_ENGINE = 6
MAX_LINES_OF_A_FILE = 450
MAX_LINES_OF_A_FUNCTION = 60
GENERATED = PROJECT / "client" / "gradellm" / "v1"
# Tests of each package are in a folder that mirrors it.
TESTS_OF = {
    "gradellm_engine": "tests/engine",
    "client/gradellm": "tests/client",
    "server/gradellm_server": "tests/server",
    "server/gradellm_gateway": "tests/gateway",
    "server/gradellm_bench": "tests/bench",
    "server/gradellm_ray": "tests/on_ray",
}
# Sources with hardly any behaviour of their own, and the tests that cover them.
TESTED_ELSEWHERE = {
    "client/gradellm/cli/commands/bench.py": "tests/client/cli/commands/test_serve.py",
    "client/gradellm/cli/commands/token.py": "tests/client/cli/commands/test_serve.py",
    "server/gradellm_server/engine_loop/errors.py": "tests/server/rpc/test_status.py",
}
# `Explanation` is a facade: its methods call modules that take an Explanation.
FACADE = "gradellm.explanation."


@cache
def sources() -> tuple[Path, ...]:
    found = (path for root in ROOTS for path in (PROJECT / root).rglob("*") if path.suffix in (".py", ".js", ".ts"))
    return tuple(sorted(path for path in found if GENERATED not in path.parents and "__pycache__" not in path.parts))


def shown(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def test_folders_hold_few_files() -> None:
    files: dict[Path, list[Path]] = defaultdict(list)
    for path in sources():
        if path.name != "__init__.py":
            files[path.parent].append(path)
    assert {shown(folder): len(paths) for folder, paths in files.items() if len(paths) > MAX_FILES_OF_A_FOLDER} == {}
    at_the_root = [path.name for path in sources() if path.parent == PROJECT / "gradellm_engine"]
    assert len(at_the_root) <= MAX_FILES_OF_THE_ENGINE, at_the_root


def test_files_are_short() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES_OF_A_FILE} == {}


def test_functions_are_short() -> None:
    too_long = {
        f"{shown(path)}:{name}": length
        for path in sources()
        for name, length in (python_functions(path) if path.suffix == ".py" else javascript_functions(path))
        if length > MAX_LINES_OF_A_FUNCTION
    }
    assert too_long == {}


def test_sources_have_tests_of_their_name() -> None:
    """For `a/b.py` there is `a/test_b.py`, some `a/test_b_*.py`, or a folder `a/b`, in the tests of its package."""
    missing = [
        shown(path)
        for package, tests in TESTS_OF.items()
        for path in (PROJECT / package).rglob("*.py")
        if path in sources() and not path.stem.startswith("__") and any(python_functions(path))
        if not has_test(PROJECT / tests / path.relative_to(PROJECT / package))
    ]
    assert sorted(missing) == sorted(TESTED_ELSEWHERE)
    assert [test for test in TESTED_ELSEWHERE.values() if not (PROJECT / test).is_file()] == []


def has_test(mirrored: Path) -> bool:
    """Whether there are tests of a source file, whose path is given as if it stood among the tests."""
    name, folder = mirrored.stem, mirrored.parent
    names = (path.name for pattern in (f"test_{name}.py", f"test_{name}_*.py") for path in folder.glob(pattern))
    return any(names) or any((folder / name).glob("test_*.py"))


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def javascript_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Functions that begin at the start of a line and end with a brace there, as they are all written here."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for start, line in enumerate(lines):
        if match := re.match(
            r"( *)(?:export )?(?:async )?function\*? ?(\w*)|( *)const (\w+) = (?:async )?\(.*=> \{$", line
        ):
            indent = match[1] if match[1] is not None else match[3]
            end = next((n for n in range(start, len(lines)) if re.match(rf"{indent}\}}", lines[n])), start)
            yield match[2] or match[4], end - start + 1


def test_imports_have_no_circles() -> None:
    """Imports for type checkers are counted, too: a reader of the file follows them all."""
    modules = dict(module_files())
    graph = {name: imported(path, modules) - {name} for name, path in modules.items()}
    circles = [circle for circle in strongly_connected(graph) if not all(m.startswith(FACADE) for m in circle)]
    assert circles == []


def module_files() -> Iterator[tuple[str, Path]]:
    for path in sources():
        root = path.relative_to(PROJECT).parts[0]
        if root == "tests" or path.suffix != ".py":
            continue
        base = PROJECT if root == "gradellm_engine" else PROJECT / root
        yield ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The project's modules that a file names in imports, wherever in it they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
            found |= submodules or {node.module}
    return found & modules.keys()


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (Tarjan's algorithm), those of one module left out."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for successor in sorted(graph[node]):
            if successor not in index:
                visit(successor)
                low[node] = min(low[node], low[successor])
            elif successor in stack:
                low[node] = min(low[node], index[successor])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_scripts_of_the_makefile_run_when_called() -> None:
    """A script without its last two lines would do nothing, and succeed."""
    scripts = re.findall(r"/python ([\w/.-]+\.py)\b", (PROJECT / "Makefile").read_text(encoding="utf-8"))
    assert len(scripts) >= 8
    idle = [name for name in scripts if '__name__ == "__main__"' not in (PROJECT / name).read_text(encoding="utf-8")]
    assert idle == []
