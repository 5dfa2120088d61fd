"""The rule of docs/architecture.md: imports go down from floor to floor, and never in a circle inside a room."""

import ast
import re
from pathlib import Path

import embfast

HOME = Path(embfast.__file__).parent
FLOORS = (  # from the ground up
    {"errors", "reference", "device"},
    {"kernels"},
    {"files"},
    {"text", "vectors"},
    {"training"},
    {"words", "documents", "graphs", "images"},
    {"evaluate"},
    {"multimodal"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path):
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ENTRANCES = ("embfast", "embfast.__main__")  # they belong to no room: the public names, and `python -m embfast`
MODULES = {module_name(path): path for path in sorted(HOME.rglob("*.py"))}


def imports_of(path):
    """Modules of embfast that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return {name for name in found if name.split(".")[0] == "embfast"} - {"embfast", "embfast._cpu"}


def room_of(module):
    return module.split(".")[1]


def test_every_module_stands_in_a_room():
    assert {room_of(module) for module in MODULES if module not in ENTRANCES} == set(FLOOR)


def test_imports_go_down():
    """A room imports only rooms of lower floors."""
    up = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module not in ENTRANCES
        for other in imports_of(path)
        if room_of(other) != room_of(module) and FLOOR[room_of(other)] >= FLOOR[room_of(module)]
    ]
    assert not up, "\n".join(sorted(up))


def test_no_circle_inside_a_room():
    graph = {
        module: {other for other in imports_of(path) if other != module and room_of(other) == room_of(module)}
        for module, path in MODULES.items()
        if module not in (*ENTRANCES, *(f"embfast.{room}" for room in FLOOR))
    }
    done = set()
    while len(done) < len(graph):
        ready = {module for module in graph if module not in done and graph[module] & set(graph) <= done}
        assert ready, f"a circle among {sorted(set(graph) - done)}"
        done |= ready


def test_one_door_to_compiled_code():
    found = {module for module, path in MODULES.items() if re.search(r"\b_cpu\b(?!\.)", path.read_text())}
    assert found <= {"embfast.kernels"}, found
