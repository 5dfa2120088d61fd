"""Mutation tests: plants one fault at a time in a copy of the tree and reports the faults that no test detects.

python tests/mutants.py                    faults in Python: settings replaced or swapped, faults in shared code
python tests/mutants.py --only Node2Vec    faults of one model
python tests/mutants.py --each             settings replaced at one place in the code at a time; hours
python tests/mutants.py --cpp              faults in C++, compiled for the baseline instruction set only
python tests/mutants.py --match PATTERN    faults whose name matches a regular expression

The contract (tests/test_contract.py) runs first, then the model's own tests. The exit code is 1 if a fault without a
reason in planted.NOT_SEEN survives.
"""

import argparse
import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import planted
from models import ENTRIES

LIMIT = 600  # seconds per test run; a fault that hangs counts as detected


@dataclass
class Mutant:
    model: str
    name: str
    changes: list[tuple[Path, list[tuple[int, int, str]]]]  # file below ROOT; replacements of bytes first..last
    tests: list[list[str]]  # pytest arguments of successive runs; stops at the first failure


# ---- faults -------------------------------------------------------------------------------------------------------


def reads_of(kind, setting):
    """Finds reads of self.setting outside __init__ and _check, and of model.setting in the model's trainer.

    By file: the first and last byte, the method, and the expression that the setting is read from.
    """
    found = reads_of_trainer(kind.__name__, setting)
    for owner in inspect.getmro(kind):
        if not owner.__module__.startswith("embfast."):
            continue
        path = Path(inspect.getsourcefile(owner))
        text = path.read_text()
        starts = [0]
        for line in text.encode().split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)
        tree = next(
            node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == owner.__name__
        )
        for method in tree.body:
            if not isinstance(method, ast.FunctionDef) or method.name in ("__init__", "_check"):
                continue
            inside_texts = {
                id(inner) for node in ast.walk(method) if isinstance(node, ast.JoinedStr) for inner in ast.walk(node)
            }
            for node in ast.walk(method):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr == setting
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                    and isinstance(node.ctx, ast.Load)
                    and id(node) not in inside_texts
                ):
                    first = starts[node.lineno - 1] + node.col_offset
                    last = starts[node.end_lineno - 1] + node.end_col_offset
                    found.setdefault(path.relative_to(ROOT), []).append(
                        (first, last, f"{owner.__name__}.{method.name}", "self")
                    )
    return found


def reads_of_trainer(name, setting):
    """Reads of model.setting, self.model.setting or self._model.setting in the file that trains the model."""
    found = {}
    for file in planted.TRAINERS.get(name, ()):
        path = ROOT / "embfast" / file
        text = path.read_text()
        starts = [0]
        for line in text.encode().split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and node.attr == setting and isinstance(node.ctx, ast.Load):
                base = ast.unparse(node.value)
                if base in ("model", "self.model", "self._model"):
                    first = starts[node.lineno - 1] + node.col_offset
                    last = starts[node.end_lineno - 1] + node.end_col_offset
                    found.setdefault(path.relative_to(ROOT), []).append((first, last, path.stem, base))
    return found


def asked(name, *more):
    """Pytest arguments for a model: the contract first, then the model's own tests."""
    return [["tests/test_contract.py", "-k", name], [*dict.fromkeys((*more, *ENTRIES[name].tests))]]


def of_settings(name, each=False):
    """Replaces each setting by its default, or by another constant if the fit of the contract uses the default.

    each: Replace one place at a time. Otherwise all places are replaced together.
    """
    entry = ENTRIES[name]
    for setting, parameter in inspect.signature(entry.kind).parameters.items():
        value = parameter.default
        if entry.fast.get(setting, value) == value and setting in entry.changed:
            simple = [case.value for case in entry.changed[setting] if not callable(case.value)]
            value = simple[0] if simple and not isinstance(value, bool) and value is not None else value
        reads = reads_of(entry.kind, setting)
        changes = [
            (path, [(first, last, f"({value!r})") for first, last, *_ in places]) for path, places in reads.items()
        ]
        if changes and not each:
            yield Mutant(name, f"{setting} is {value!r}", changes, asked(name))
        named = Counter()
        for path, places in reads.items() if each else ():
            for first, last, method, _ in places:
                named[method] += 1
                where = method if named[method] == 1 else f"{method}, place {named[method]}"
                change = path, [(first, last, f"({value!r})")]
                more = planted.TESTS_OF["device"] if "_device_" in method else ()
                yield Mutant(name, f"{setting} is {value!r} in {where}", [change], asked(name, *more))


def of_swaps(name):
    for pair in planted.SWAPPED[name].split(", "):
        one, other = pair.split()
        changes = {}
        for setting, instead in ((one, other), (other, one)):
            for path, places in reads_of(ENTRIES[name].kind, setting).items():
                changes.setdefault(path, []).extend(
                    (first, last, f"{base}.{instead}") for first, last, _, base in places
                )
        yield Mutant(name, f"{one} and {other} swapped", list(changes.items()), asked(name))


def planted_in(path, text, instead):
    """Replaces a text that must occur exactly once in the file."""
    source = (ROOT / path).read_bytes()
    place = source.find(text.encode())
    if place < 0 or source.find(text.encode(), place + 1) >= 0:
        raise ValueError(f"{path}: expected {text!r} exactly once, found it {source.count(text.encode())} times")
    return path, [(place, place + len(text.encode()), instead)]


def of_shared_parts(name):
    for fault, (model, file, text, instead) in planted.SHARED.items():
        if model == name:
            more = [test for part, tests in planted.TESTS_OF.items() if file.startswith(part) for test in tests]
            yield Mutant(name, fault, [planted_in(Path("embfast") / file, text, instead)], asked(name, *more))


def of_cpp():
    for fault, (file, text, instead) in planted.COMPILED.items():
        folder = file.split("/")[0]
        tests = list(map(list, planted.COMPILED_TESTS[folder]))
        yield Mutant(folder, fault, [planted_in(Path("csrc") / file, text, instead)], tests)


# ---- a copy of the tree -------------------------------------------------------------------------------------------


class Tree:
    """A copy of the package and its tests. One fault at a time is planted in it."""

    def __init__(self, home, cpp):
        self.home, self.cpp = home, cpp
        ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
        for folder in ("embfast", "tests", *(["csrc"] if cpp else [])):
            shutil.copytree(ROOT / folder, home / folder, ignore=ignored)
        for file in ("pyproject.toml", "CMakeLists.txt"):
            shutil.copy2(ROOT / file, home / file)
        self.planted = 0
        self.times = {}
        for file in (home / "embfast").rglob("*.py"):
            self.times[file.relative_to(home)] = time = int(file.stat().st_mtime)
            os.utime(file, (time, time))
        if cpp:
            for module in (home / "embfast").glob("_cpu*"):
                module.unlink()
            pybind = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True).strip()
            cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
            self.make = [cmake, "--build", str(home / "build"), "-j1"]
            options = {
                "EMBFAST_CUDA": "OFF",
                "EMBFAST_BASELINE_ONLY": "ON",
                "CMAKE_BUILD_TYPE": "Release",
                "CMAKE_LIBRARY_OUTPUT_DIRECTORY": home / "embfast",
                "Python_EXECUTABLE": sys.executable,
                "pybind11_DIR": pybind,
            }
            given = [f"-D{name}={value}" for name, value in options.items()]
            subprocess.run([cmake, "-S", home, "-B", home / "build", *given], check=True, stdout=subprocess.DEVNULL)
            self.build()

    def build(self):
        """Compiles changed files. Raises ValueError if a fault does not compile, because no test could detect it."""
        if self.cpp:
            done = subprocess.run(self.make, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"does not compile: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def test(self, arguments):
        """Runs tests; returns whether they pass, and the first failure."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        if self.cpp:
            environment["EMBFAST_ISA"] = "baseline"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
        try:
            done = subprocess.run(
                [*command, *arguments], cwd=self.home, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return False, "timeout"
        red = re.search(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
        return done.returncode in (0, 5), red.group(1) if red else f"exit {done.returncode}"

    def seen(self, mutant):
        """Returns the first test that detects a fault, or None."""
        before = {}
        for path, edits in mutant.changes:
            file = self.home / path
            source = before[file] = file.read_bytes()
            for first, last, instead in sorted(edits, reverse=True):
                source = source[:first] + instead.encode() + source[last:]
            file.write_bytes(source)
            self.planted += 1  # for a unique mtime: bytecode and Numba caches compare mtime and size
            os.utime(file, None if self.cpp else (self.times[path] + self.planted,) * 2)
        try:
            self.build()
            for arguments in mutant.tests:
                green, line = self.test(arguments)
                if not green:
                    return line
            return None
        finally:
            for file, source in before.items():
                file.write_bytes(source)
                os.utime(file, None if self.cpp else (self.times[file.relative_to(self.home)],) * 2)


# ---- the run ------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="MODEL", choices=list(ENTRIES), help="Test the faults of one model.")
    parser.add_argument("--cpp", action="store_true", help="Plant faults in C++ instead of Python.")
    parser.add_argument(
        "--each", action="store_true", help="Replace settings only, at one place in the code at a time."
    )
    parser.add_argument("--match", default="", metavar="PATTERN", help="Regular expression that names must match.")
    args = parser.parse_args()
    mutants = list(of_cpp()) if args.cpp else []
    for name in [] if args.cpp else [args.only] if args.only else ENTRIES:
        mutants += of_settings(name, args.each)
        if not args.each:
            mutants += [mutant for mutant in of_settings(name, True) if mutant.name.startswith("seed ")]
            mutants += [*of_swaps(name), *of_shared_parts(name)]
    mutants = [mutant for mutant in mutants if re.search(args.match, f"{mutant.model}: {mutant.name}")]
    print(f"{len(mutants)} faults", flush=True)
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Tree(Path(folder), args.cpp)
        runs = {tuple(mutant.tests[0]): None for mutant in mutants}
        for arguments in runs:
            green, line = tree.test(list(arguments))
            if not green:
                sys.exit(f"tests fail without a fault: {' '.join(arguments)}: {line}")
        for mutant in mutants:
            started = time.monotonic()
            line = tree.seen(mutant)
            name = f"{mutant.model}: {mutant.name}"
            print(f"{'red' if line else 'GREEN':5} {time.monotonic() - started:6.1f} s  {name}  [{line}]", flush=True)
            if line is None:
                survivors.append(name)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} faults detected; survivors:")
    for name in survivors:
        print(f"  {name}: {planted.NOT_SEEN.get(name, 'NO REASON')}")
    sys.exit(any(name not in planted.NOT_SEEN for name in survivors))


if __name__ == "__main__":
    main()
