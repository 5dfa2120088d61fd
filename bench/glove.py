"""GloVe beside Stanford's programs: counting, training and quality on the same text.

python -m bench.glove --stanford GloVe/build                     everything; hours
python -m bench.glove --stanford GloVe/build --speed --dims 100  counting and one epoch, minutes

GloVe/build contains vocab_count, cooccur, shuffle and glove from https://github.com/stanfordnlp/GloVe, built with its
Makefile. PyPI's glove-python-binary is included if an interpreter of --rivals-python has it. Min_count is 5, with one
thread and lines broken at 1,000 words. Programs alternate (A B A B), and each run is a separate process.

Counting speed is words in the vocabulary per CPU second. For embfast it covers counting an encoded text and, in another
column, also reading and encoding; Stanford's cooccur reads the text as well. Training speed is entries per CPU second
of an epoch. For embfast it is measured from the end of the first epoch to the end of the last, without initialisation
and sorting into tiles. For Stanford's glove it is the run minus a run of zero epochs, without initialisation, writing
vectors and shuffle. Peak memory is that of the whole process. Quality is the mean over --seeds with the standard
deviation; vectors are w + w~.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import machine_and_commit
from bench.word2vec import DATA, ROOT, STARTER, judge, read_lines, say, spread, write_text
from embfast.vectors.vectors import Vectors

STANFORD = "Stanford"
OURS = {"embfast": "tiles", "embfast full": "full"}

COUNT = """
import json, sys, time
from embfast.text.corpus import Corpus
from embfast.words.cooccurrence import CooccurrenceMatrix
text, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
begin = time.process_time()
corpus = Corpus.from_file(text, min_count=5, threads=settings["threads"])
read = time.process_time()
wall = time.perf_counter()
matrix = CooccurrenceMatrix.from_corpus(corpus, path=output, **settings)
print(json.dumps({"count_cpu_s": time.process_time() - read, "read_cpu_s": read - begin,
                  "count_wall_s": time.perf_counter() - wall, "tokens": corpus.n_tokens, "words": len(corpus.words),
                  "entries": len(matrix)}))
"""
TRAIN = """
import json, sys, time
from embfast.words.cooccurrence import CooccurrenceMatrix
from embfast.words.glove import GloVe
matrix, output, settings = CooccurrenceMatrix.load(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
begin, ends = time.process_time(), {}
def note(status):
    ends[status.epoch] = time.process_time(), time.perf_counter()  # the last slice of an epoch is kept
model = GloVe(**settings).fit(matrix, progress=note)
cpu = time.process_time() - begin
if output:
    model.vectors_.save(output)
epoch_cpu_s, epoch_wall_s = [(b - a) / (len(ends) - 1) for a, b in zip(ends[1], ends[len(ends)])]
print(json.dumps({"training_cpu_s": cpu, "epoch_cpu_s": epoch_cpu_s, "epoch_wall_s": epoch_wall_s,
                  "loss": model.loss_}))
"""
GLOVE_PYTHON = """
import json, sys, time
import numpy as np
from glove import Glove
from embfast.words.cooccurrence import CooccurrenceMatrix
matrix, output, settings = CooccurrenceMatrix.load(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
upper = matrix.rows <= matrix.columns  # it updates both words of an entry at once
from scipy.sparse import coo_matrix
n = len(matrix.words)
places = np.array(matrix.rows[upper]), np.array(matrix.columns[upper])
entries = coo_matrix((matrix.values[upper].astype(np.float64), places), shape=(n, n))
model = Glove(no_components=settings["dim"], learning_rate=0.05, alpha=settings["alpha"], max_count=settings["x_max"],
              random_state=settings["seed"])
cpu = time.process_time()
model.fit(entries, epochs=settings["epochs"], no_threads=1)
cpu = time.process_time() - cpu
if output:
    from embfast.vectors.vectors import Vectors
    Vectors(matrix.words, np.asarray(model.word_vectors, np.float32)).save(output)
print(json.dumps({"epoch_cpu_s": cpu / settings["epochs"] * len(matrix) / len(entries.data)}))
"""


def run(command: list[str], printed: Path) -> dict[str, Any]:
    """Runs a program with its output in a file and measures it."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    starter = [sys.executable, "-S", "-E", "-c", STARTER, str(printed), *command]
    done = subprocess.run(starter, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} did not start: {done.stderr.strip()[-500:]}")
    usage = json.loads(done.stdout.strip().splitlines()[-1])
    if usage.pop("exit"):
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or printed.read_text()).strip()[-500:]}")
    return usage


def last_line(printed: Path) -> dict[str, Any]:
    return json.loads(printed.read_text().strip().splitlines()[-1])


class Bench:
    """A directory with the text and the matrices of all programs."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args = folder, args
        self.text = folder / "text.txt"
        self.printed = folder / "printed"

    def ours(self, script: str, source: Path, output: str, settings: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-c", script, str(source), output, json.dumps(settings)]
        usage = run(command, self.printed)
        return {**usage, **last_line(self.printed)}

    def stanford(self, tool: str, *options: Any, source: Path | None = None, output: Path | None = None):
        words = [str(self.args.stanford / tool), *map(str, options)]
        line = "exec " + shlex.join(words)
        line += f" < {shlex.quote(str(source))}" if source else ""
        line += f" > {shlex.quote(str(output))}" if output else ""
        return run(["/bin/sh", "-c", f"{line} 2> {shlex.quote(str(self.printed))}.err"], self.printed)

    def count(self, repeat: int, threads: list[int]) -> list[dict[str, Any]]:
        """Counts with every program."""
        args, rows = self.args, []
        for n in threads:
            settings = {"window": args.window, "memory_gb": args.memory_gb, "threads": n}
            row = self.ours(COUNT, self.text, str(self.folder / "matrix"), settings)
            tokens, words, entries = row["tokens"], row["words"], row["entries"]
            say(f"embfast counted {entries:,} entries in {row['count_cpu_s']:.2f} CPU s, {n} thread(s)")
            rows.append({"program": "embfast", "threads": n, "repeat": repeat, **row})
        if args.stanford:
            options = ["-min-count", 5, "-verbose", 0]
            self.stanford("vocab_count", *options, source=self.text, output=self.folder / "vocab")
            found = (self.folder / "vocab").read_bytes().count(b"\n")
            if found != words:
                raise RuntimeError(f"vocabulary sizes differ: embfast {words}, Stanford {found}")
            options = ["-memory", args.memory_gb, "-vocab-file", self.folder / "vocab", "-window-size", args.window]
            options += ["-overflow-file", self.folder / "overflow", "-verbose", 0]
            row = self.stanford("cooccur", *options, source=self.text, output=self.folder / "cooccurrence.bin")
            n = (self.folder / "cooccurrence.bin").stat().st_size // 16
            say(f"{STANFORD} counted {n:,} entries in {row['cpu_s']:.2f} CPU s")
            row |= {"count_cpu_s": row["cpu_s"], "read_cpu_s": 0.0, "tokens": tokens, "words": words, "entries": n}
            rows.append({"program": STANFORD, "threads": 1, "repeat": repeat, **row})
        return rows

    def shuffle(self, seed: int) -> None:
        options = ["-memory", self.args.memory_gb, "-verbose", 0, "-seed", seed + 1]
        options += ["-temp-file", self.folder / "shuffle"]
        files = {"source": self.folder / "cooccurrence.bin", "output": self.folder / "shuffled.bin"}
        row = self.stanford("shuffle", *options, **files)
        say(f"{STANFORD} shuffled in {row['cpu_s']:.2f} CPU s")

    def train(self, program: str, dim: int, epochs: int, seed: int, threads: int = 1, output: str = "") -> dict:
        """Trains once. output: A .bin file for the vectors."""
        args = self.args
        settings = {"dim": dim, "epochs": epochs, "x_max": args.x_max, "alpha": 0.75, "seed": seed}
        if program == STANFORD:
            row = self.train_stanford(settings, output)
        elif program in OURS:
            settings |= {"shuffle": OURS[program], "threads": threads}
            row = self.ours(TRAIN, self.folder / "matrix", output, settings)
        else:
            command = [args.glove_python, "-c", GLOVE_PYTHON, str(self.folder / "matrix"), output, json.dumps(settings)]
            usage = run(command, self.printed)
            row = {**usage, **last_line(self.printed)}
        say(f"{program:14} D={dim:<4} {epochs} epochs, {threads} thread(s): {row['epoch_cpu_s']:.2f} CPU s an epoch")
        return {"program": program, "dim": dim, "epochs": epochs, "seed": seed, "threads": threads, **row}

    def train_stanford(self, settings: dict[str, Any], output: str) -> dict[str, Any]:
        options = ["-input-file", self.folder / "shuffled.bin", "-vocab-file", self.folder / "vocab", "-threads", 1]
        options += ["-vector-size", settings["dim"], "-x-max", settings["x_max"], "-alpha", settings["alpha"]]
        options += ["-save-file", self.folder / "stanford", "-seed", settings["seed"] + 1, "-verbose", 0]
        rest = self.stanford("glove", *options, "-iter", 0)
        row = self.stanford("glove", *options, "-iter", settings["epochs"])
        said = Path(f"{self.printed}.err").read_text()
        row["loss"] = [float(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "cost:" in line]
        if len(row["loss"]) != settings["epochs"]:
            raise RuntimeError(f"{STANFORD} reports {len(row['loss'])} epochs, not {settings['epochs']}: {said[-300:]}")
        if output:
            Vectors.load(self.folder / "stanford.txt", "glove").save(output)
        return {**row, "epoch_cpu_s": (row["cpu_s"] - rest["cpu_s"]) / settings["epochs"]}


def attempt(program: str, train: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Trains once. Returns no row if a rival fails, which must not lose hours of other runs."""
    try:
        return [train()]
    except RuntimeError as error:
        if program in OURS:
            raise
        say(str(error))
        return []


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Medians over repeats, and mean quality over seeds."""
    counting = []
    for program, threads in dict.fromkeys((r["program"], r["threads"]) for r in runs["counting"]):
        mine = [r for r in runs["counting"] if (r["program"], r["threads"]) == (program, threads)]
        counting.append(
            {
                "program": program,
                "threads": threads,
                "words_per_cpu_s": spread([r["tokens"] / r["count_cpu_s"] for r in mine]),
                "words_per_cpu_s_with_reading": spread(
                    [r["tokens"] / (r["count_cpu_s"] + r["read_cpu_s"]) for r in mine]
                ),
                "rss_mb": max(r["rss_mb"] for r in mine),
                "entries": mine[-1]["entries"],
            }
        )
    training = []
    trained = [*runs["speed"], *runs["quality"]]
    names = dict.fromkeys((r["dim"], r["program"]) for r in trained)
    for dim, program in sorted(names, key=lambda name: name[0]):
        mine = [r for r in trained if (r["dim"], r["program"]) == (dim, program)]
        mine = [r for r in mine if "repeat" in r] or mine  # quality runs are timed too
        single = [r for r in mine if r["threads"] == 1]
        wall: dict[str, list[float]] = {}
        for r in mine:
            if "epoch_wall_s" in r:
                wall.setdefault(str(r["threads"]), []).append(r["entries"] / r["epoch_wall_s"])
        scores: dict[str, list[float]] = {}
        judged = [r for r in runs["quality"] if (r["dim"], r["program"]) == (dim, program)]
        for r in judged:
            for name, value in r["scores"].items():
                scores.setdefault(name, []).extend([] if value is None else [value])
        # speed runs have different numbers of epochs, so their first epochs are compared
        losses = [r["loss"][-1 if judged else 0] for r in judged or single if "loss" in r]
        training.append(
            {
                "program": program,
                "dim": dim,
                "entries_per_cpu_s": spread([r["entries"] / r["epoch_cpu_s"] for r in single]),
                "entries_per_s": {n: spread(rates) for n, rates in wall.items()},
                "rss_mb": max(r["rss_mb"] for r in single),
                "loss": statistics.mean(losses) if losses else None,
                "quality": {
                    name: {"mean": statistics.mean(v), "deviation": statistics.stdev(v) if len(v) > 1 else None}
                    for name, v in scores.items()
                    if v
                },
            }
        )
    return {"counting": counting, "training": training}


def show(result: dict[str, list[dict[str, Any]]], title: str) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=180)

    def millions(s: dict[str, float]) -> str:
        return f"{s['median'] / 1e6:.2f} ({s['least'] / 1e6:.2f}-{s['most'] / 1e6:.2f})"

    def ratio(row: dict[str, Any], rows: list[dict[str, Any]], name: str, *same: str) -> str:
        theirs = [r for r in rows if r["program"] == STANFORD and all(r[key] == row[key] for key in same)]
        return f"{row[name]['median'] / theirs[0][name]['median']:.1f}" if theirs else ""

    if result["counting"]:
        table = Table(title=f"counting, {title}", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("program", "threads", "M words/CPU s", f"x {STANFORD}", "with reading", "MB", "entries"):
            table.add_column(name, justify="left" if name == "program" else "right")
        for row in result["counting"]:
            table.add_row(
                row["program"],
                str(row["threads"]),
                millions(row["words_per_cpu_s"]),
                ratio(row, result["counting"], "words_per_cpu_s"),
                millions(row["words_per_cpu_s_with_reading"]),
                f"{row['rss_mb']:,.0f}",
                f"{row['entries']:,}",
            )
        console.print(table)
    if result["training"]:
        table = Table(title=f"training, {title}", title_justify="left", box=box.SIMPLE_HEAD)
        threads = sorted({n for row in result["training"] for n in row["entries_per_s"]}, key=int)
        scores = list(dict.fromkeys(name for row in result["training"] for name in row["quality"]))
        columns = ["M entries/CPU s", f"x {STANFORD}", *(f"M entries/s, {n} thr." for n in threads), "MB", "loss"]
        for name in ("D", "program", *columns, *scores):
            table.add_column(name, justify="left" if name == "program" else "right")
        for row in result["training"]:
            wall = [row["entries_per_s"].get(n) for n in threads]
            quality = [row["quality"].get(name) for name in scores]
            table.add_row(
                str(row["dim"]),
                row["program"],
                millions(row["entries_per_cpu_s"]),
                ratio(row, result["training"], "entries_per_cpu_s", "dim"),
                *(f"{w['median'] / 1e6:.2f}" if w else "" for w in wall),
                f"{row['rss_mb']:,.0f}",
                f"{row['loss']:.5f}" if row["loss"] is not None else "",
                *(
                    f"{q['mean']:.1f}" + (f"±{q['deviation']:.1f}" if q["deviation"] is not None else "") if q else ""
                    for q in quality
                ),
            )
        console.print(table)


def glove_python(pythons: list[str]) -> str | None:
    """The first interpreter with glove-python-binary."""
    for python in pythons:
        if subprocess.run([python, "-c", "from glove import Glove"], capture_output=True, check=False).returncode == 0:
            return python
    say("glove-python is skipped: pip install glove-python-binary, or pass its interpreter by --rivals-python")
    return None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, default=DATA / "wiki-en-2015" / "corpus.txt.xz", help="plain or .xz")
    add("--words", type=int, default=17_000_000, help="number of words of the text, up to the next end of a line")
    add("--speed-words", type=int, default=4_000_000, help="number of words for measuring training speed")
    add("--stanford", type=Path, help="directory with vocab_count, cooccur, shuffle and glove")
    add("--rivals-python", nargs="+", default=[sys.executable], help="interpreters to search for glove-python-binary")
    add("--dims", type=int, nargs="+", default=[100, 300])
    add("--window", type=int, default=15)
    add("--x-max", type=float, default=10.0)
    add(
        "--memory-gb",
        type=float,
        default=4.0,
        help="memory for counting; cooccur uses about half of it",
    )
    add("--epochs", type=int, default=15, help="for measuring quality")
    add("--repeats", type=int, default=3, help="for measuring speed")
    add("--seeds", type=int, default=3, help="for measuring quality")
    add("--threads", type=int, nargs="+", default=[1, 2], help="thread counts of embfast; rivals use one thread")
    add("--leave-out", nargs="+", default=[], help="names of programs to skip, as in the table")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--speed", action="store_true", help="measure speed only")
    part.add_argument("--quality", action="store_true", help="measure quality only, and count once")
    add("--json", type=Path, help="output file, written after every run; default: bench/results/glove-<date>.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.glove_python = glove_python(args.rivals_python)
    programs = [*OURS, *([STANFORD] if args.stanford else []), *(["glove-python"] if args.glove_python else [])]
    programs = [p for p in programs if p not in args.leave_out]
    if STANFORD not in programs:
        args.stanford = None
        say(f"{STANFORD} is skipped: build https://github.com/stanfordnlp/GloVe and pass --stanford GloVe/build")
    path = args.json or ROOT / "bench" / "results" / f"glove-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = machine_and_commit()
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    runs: dict[str, list[dict[str, Any]]] = {"counting": [], "speed": [], "quality": []}

    def save(name: str, rows: list[dict[str, Any]]) -> None:
        runs[name] += rows
        result = {"settings": settings, "machine": machine, **summarise(runs), "runs": runs}
        path.write_text(json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), args)
        write_text(bench.text, read_lines(args.text, args.words), None)
        for repeat in range(1 if args.quality else args.repeats):
            save("counting", bench.count(repeat, [1] if args.quality else sorted({1, *args.threads})))
        entries = runs["counting"][0]["entries"]
        if not args.speed:
            vectors = str(bench.folder / "vectors.bin")
            for seed in range(args.seeds):
                if args.stanford:
                    bench.shuffle(seed)
                for dim, program in product(args.dims, programs):
                    found = attempt(program, partial(bench.train, program, dim, args.epochs, seed, output=vectors))
                    save("quality", [{**row, "entries": entries, "scores": judge(vectors)} for row in found])
        if not args.quality:
            write_text(bench.text, read_lines(args.text, min(args.speed_words, args.words)), None)
            entries = bench.count(0, [1])[0]["entries"]
            if args.stanford:
                bench.shuffle(0)
            for dim, repeat, program in product(args.dims, range(args.repeats), programs):
                for threads in sorted({1, *args.threads}) if program in OURS else [1]:
                    epochs = 3 if program in OURS else 1
                    found = attempt(program, partial(bench.train, program, dim, epochs, 0, threads))
                    save("speed", [{**row, "entries": entries, "repeat": repeat} for row in found])
    title = f"{args.text.name}, window {args.window}, {machine['cpu']}, embfast {machine['commit']}, {machine['date']}"
    show(summarise(runs), title)
    say(f"written to {path}")


if __name__ == "__main__":
    main()
