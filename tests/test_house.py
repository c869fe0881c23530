"""The house: what may import what, and how large a room may be. Every import counts, those inside functions too."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ANY = {"cli", "__main__"}  # rooms that may import every other
LAW = {  # room -> the rooms of lora_bench that it may import
    "wording": set(),
    "paths": set(),
    "config": {"paths", "wording"},
    "store": {"config", "paths", "wording"},
    "tasks": {"config", "paths"},
    "verdicts": {"config", "wording"},
    "models": {"config", "paths"},
    "packing": {"models", "config"},
    "tracking": {"config", "store", "paths", "wording"},
    "training": {"packing", "models", "tasks", "tracking", "store", "config", "paths"},
    "predictors": {"models", "config"},
    "reports": {"verdicts", "store", "config", "paths", "wording"},
    "questions": {"reports", "verdicts", "store", "config", "paths", "wording"},
    "calibration": {"reports", "verdicts", "store", "config", "wording"},
    "launch": {
        "training",
        "packing",
        "models",
        "tasks",
        "questions",
        "tracking",
        "verdicts",
        "store",
        "config",
        "paths",
        "wording",
    },
}
EDGES = {  # what the law forbids, and why it stands
    ("lora_bench.questions.subspaces", "lora_bench.models.starts"): "step zero draws A again, as training drew it",
}
CIRCLES: dict[tuple[str, ...], str] = {}  # and why it stands
PROGRAMS = {"embedded_tasks", "throughput"}  # whole programs in analysis/
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {"lora_bench.cli.dashboard.parts": "a list of what the dashboard shows"}
MANY_PARAMETERS: dict[str, str] = {}
NO_NOUNS = ("one", "each", "told", "found", "mine", "held")  # names of locals that say nothing


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LIBRARY = {module_of(path): path for path in sorted((ROOT / "lora_bench").rglob("*.py"))}
PLUGINS = {module_of(path): path for path in sorted((ROOT / "hydra_plugins").rglob("*.py"))}
SCRIPTS = {module_of(path): path for path in sorted((ROOT / "analysis").glob("*.py"))}
KNOWN = LIBRARY | PLUGINS | SCRIPTS


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(KNOWN[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, str | None, str]]:
    """What a module imports of ours, wherever it does: (module, name or None, how it is called here)."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in ("lora_bench", "analysis", "hydra_plugins"):
                    yield alias.name, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            source = str(node.module)
            if source.partition(".")[0] not in ("lora_bench", "analysis", "hydra_plugins"):
                continue
            for alias in node.names:
                whole, local = f"{source}.{alias.name}", alias.asname or alias.name
                yield (whole, None, local) if whole in KNOWN else (source, alias.name, local)


@cache
def graph() -> dict[str, set[str]]:
    return {module: {source for source, _, _ in imports(module) if source != "lora_bench"} for module in KNOWN}


def room(module: str) -> str:
    """The folder or file on the first level of lora_bench."""
    return module.split(".")[1] if module.startswith("lora_bench.") else module.partition(".")[0]


def test_every_room_is_named_in_the_law():
    rooms = {room(module) for module in LIBRARY if module != "lora_bench"}
    assert rooms == ANY | set(LAW)


@pytest.mark.parametrize("name", LAW)
def test_a_room_imports_what_the_law_allows(name):
    """Whoever changes a room needs to know those below it and no other."""
    allowed = LAW[name] | {name}
    broken = [
        f"{module} -> {source}"
        for module in LIBRARY
        if room(module) == name
        for source in sorted(graph()[module])
        if room(source) not in allowed and (module, source) not in EDGES
    ]
    assert not broken


def test_nothing_imports_the_scripts():
    assert not [
        f"{module} -> {source}"
        for module in LIBRARY | PLUGINS
        for source in graph()[module]
        if room(source) == "analysis"
    ]


def test_the_exceptions_are_needed():
    assert all(source in graph()[module] for module, source in EDGES)
    assert {tuple(circle) for circle in circles()} == set(CIRCLES)


def circles() -> list[list[str]]:
    """Modules that import each other, directly or through others (the strongly connected components)."""
    reach = {}
    for module in LIBRARY:
        seen, todo = set(), [module]
        while todo:
            new = [source for source in graph().get(todo.pop(), ()) if source not in seen]
            seen.update(new)
            todo += new
        reach[module] = seen
    mutual = {
        tuple(sorted(source for source in reach[module] if module in reach.get(source, ()))) for module in LIBRARY
    }
    return sorted(list(circle) for circle in mutual if circle)


def test_no_modules_import_each_other():
    """Not through a lazy import either: it would hide the circle and keep it."""
    assert not [circle for circle in circles() if tuple(circle) not in CIRCLES]


def test_no_private_name_leaves_its_module():
    broken = []
    for module in KNOWN:
        modules = {local: source for source, name, local in imports(module) if name is None}
        broken += [f"{module}: {source}.{name}" for source, name, _ in imports(module) if is_private(name)]
        broken += [
            f"{module}: {modules[node.value.id]}.{node.attr}"
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
            if is_private(node.attr)
        ]
    assert not broken


def is_private(name: str | None) -> bool:
    return bool(name) and str(name).startswith("_") and not str(name).startswith("__")


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_first_level_has_few_rooms_of_like_size():
    rooms = Counter()
    for module, path in LIBRARY.items():
        rooms[room(module)] += lines_of(path)
    assert len(rooms) <= 18
    total = sum(rooms.values())
    assert {name: n for name, n in rooms.items() if n > 0.15 * total} == {}


def test_no_file_is_too_long_to_be_read():
    long = {str(path.relative_to(ROOT)) for path in LIBRARY.values() if lines_of(path) > 450}
    assert long == set(LONG_FILES)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module in LIBRARY:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module}.{node.name}", node


def test_no_function_is_too_long_to_be_seen():
    long = {name for name, node in functions() if int(node.end_lineno or 0) - node.lineno + 1 > 60}
    assert long == set(LONG_FUNCTIONS)


def test_no_function_takes_too_many_parameters_by_place():
    many = {name for name, node in functions() if len(node.args.posonlyargs) + len(node.args.args) > 7}
    assert many == set(MANY_PARAMETERS)


def words_bound(module: str) -> Iterator[str]:
    """The names that a module binds: variables, those of comprehensions and loops too, and parameters."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_a_local_is_a_noun_of_the_domain():
    """`found` tells a reader nothing of what was found."""
    assert not [f"{module}: {word}" for module in KNOWN for word in words_bound(module) if word in NO_NOUNS]


def test_commands_are_thin():
    """A command parses, calls a question, prints and writes."""
    long = {path.stem for path in SCRIPTS.values() if lines_of(path) > 100}
    assert long <= PROGRAMS


def test_nothing_is_imported_by_its_path():
    """One way to import: whatever else is tried hides an arrow from these tests."""
    words = ("spec_from_file_location", "import_module", "runpy", "sys.path.insert", "__package__")
    apart = {"test_docs.py", Path(__file__).name}  # the documentation's scripts run as it says
    files = [*KNOWN.values(), *(path for path in (ROOT / "tests").rglob("*.py") if path.name not in apart)]
    broken = [
        f"{path.relative_to(ROOT)}: {word}" for path in files for word in words if word in path.read_text("utf-8")
    ]
    assert not broken


def test_questions_and_reports_are_read_without_torch():
    """A table from a finished store must not take the seconds and the gigabyte that torch does."""
    names = [
        module for module in LIBRARY if room(module) in ("questions", "reports", "calibration", "verdicts", "store")
    ]
    code = f"import sys, {', '.join(names)}\nassert not {{'torch', 'transformers', 'wandb'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
