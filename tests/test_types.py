"""The public face is typed: every public function has annotations, and type checkers see what users import."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import embfast
from embfast import _cpu, evaluate

HOME = Path(embfast.__file__).parent
FACE = [getattr(embfast, name) for name in embfast.__all__ if name != "evaluate"]
FACE += [getattr(evaluate, name) for name in evaluate.__all__]


def public_functions(thing):
    """The function itself, or the constructor and the public methods and properties of a class."""
    if not isinstance(thing, type):
        return [thing]
    members = {name: inspect.getattr_static(thing, name) for name in dir(thing)}
    found = []
    for name, member in members.items():
        function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        ours = inspect.isfunction(function) and function.__module__.startswith("embfast.")
        if ours and (name == "__init__" or not name.startswith("_")):
            found.append(function)
    return found


@pytest.mark.parametrize("thing", FACE, ids=lambda thing: thing.__name__)
def test_public_functions_have_annotations(thing):
    missing = []
    for function in public_functions(thing):
        signature = inspect.signature(function)
        empty = [
            p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        if signature.return_annotation is signature.empty:
            empty.append("return")
        missing += [f"{function.__qualname__}: {name}" for name in empty]
    assert not missing


def test_type_checkers_see_the_public_names():
    """The imports of __init__.pyi are those of _HOMES."""
    tree = ast.parse((HOME / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported = {alias.name: node.module for node in imports for alias in node.names}
    assert imported == {"evaluate": "embfast", **{name: f"embfast.{home}" for name, home in embfast._HOMES.items()}}
    assert set(imported) == set(embfast.__all__)


def written_signatures():
    """Parameter names of each function and method in _cpu.pyi, with "*" before those to be passed by name."""
    found, names = {}, set()
    for node in ast.parse((HOME / "_cpu.pyi").read_text()).body:
        if isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
        for function in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(function, ast.FunctionDef) and not any(
                ast.unparse(decorator) == "property" for decorator in function.decorator_list
            ):
                a = function.args
                parameters = [p.arg for p in a.args] + ["*"] * bool(a.kwonlyargs) + [p.arg for p in a.kwonlyargs]
                prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                found[prefix + function.name] = parameters
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return found, names


def test_stub_states_the_compiled_module():
    """pybind11 writes the signature of each function to the first line of its docstring."""
    signatures, names = written_signatures()
    assert names == {name for name in dir(_cpu) if not name.startswith("__")}
    for name, parameters in signatures.items():
        function = _cpu
        for part in name.split("."):
            function = getattr(function, part)
        line = function.__doc__.split("\n")[0]
        compiled = re.findall(r"(?<=[(,])\s*(\w+(?=:)|\*(?=,))", line)
        assert compiled == parameters, name


def test_stub_states_the_classes_of_the_compiled_module():
    for node in ast.parse((HOME / "_cpu.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            members |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            compiled = {name for name in vars(getattr(_cpu, node.name)) if not name.startswith("_")}
            assert {name for name in members if not name.startswith("_")} == compiled, node.name
