"""Compares Word2Vec with word2vec.c, gensim and fastText on the same text: speed, memory and quality.

python -m bench.word2vec                                            every installed program; hours
python -m bench.word2vec --speed --words 4000000 --modes skipgram   one figure; minutes

All programs use window 5, 5 negative samples (none with hs), sample 1e-3, min_count 5, learning rate 0.025 (CBOW 0.05)
and one thread. Lines longer than 1,000 words are split there for all programs: word2vec.c and fastText split them
anyway, and gensim drops everything after word 10,000. Programs alternate (A B A B); each run is a separate process.

Speed is in-vocabulary words x epochs / CPU seconds of training. For embfast, training is the whole of `fit`, including
initial weights and tables. For word2vec.c it is the program's own clock, which starts after its weights and tables are
built and includes rereading the text in each epoch. For gensim it is `train`, after build_vocab. For fastText it is the
training call minus a call with 0 epochs. Peak memory covers the whole process. Quality is the mean over --seeds, with
the standard deviation. Each seed shuffles the lines of the text for all programs alike, because word2vec.c and fastText
offer no other way to vary a run. The speed of the vocabulary pass, MB of text per CPU second on one thread, is measured
as in bench.corpus: embfast also encodes the text; fastText has no separate pass to measure. The evaluation sets come
from $EMBFAST_DATA/eval, by default ../shared/data/eval next to the checkout. A rival that fails is reported and omitted
from that round.
"""

import argparse
import json
import lzma
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.corpus import embfast_pass, gensim_pass, original_pass
from bench.machine import machine_and_commit, write_json
from embfast import evaluate
from embfast.vectors.vectors import Vectors

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMBFAST_DATA", ROOT.parent / "shared" / "data"))
MODES = ("skipgram", "cbow", "hs")
LINE_WORDS = 1000
SETS = {"WS353": "EN-WS-353-ALL.txt", "SimLex": "EN-SIMLEX-999.txt", "MEN": "EN-MEN-TR-3k.txt"}
ORIGINAL = "word2vec.c"

# Starts a program and measures it. Linux includes the memory of the parent process in the child's peak, so the parent
# must be small.
STARTER = """
import json, os, sys, time
output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
begin = time.perf_counter()
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output, 1)])
_, status, usage = os.wait4(process, 0)
print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "wall_s": time.perf_counter() - begin,
                  "cpu_s": usage.ru_utime + usage.ru_stime, "rss_mb": usage.ru_maxrss / 1024}))
"""
OURS = """
import json, sys, time
from embfast.text.corpus import Corpus
from embfast.words.word2vec import Word2Vec
text, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
corpus = Corpus.from_file(text, min_count=5, threads=1)
wall, cpu = time.perf_counter(), time.process_time()
model = Word2Vec(**settings).fit(corpus, progress=False)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
if output:
    model.vectors_.save(output)
print(json.dumps({"training_wall_s": wall, "training_cpu_s": cpu, "words": len(corpus.words),
                  "tokens": corpus.n_tokens, "loss": model.loss_}))
"""
GENSIM = """
import json, sys, time
from gensim.models import Word2Vec
text, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = Word2Vec(**settings)
model.build_vocab(corpus_file=text)
cpu = time.process_time()
model.train(corpus_file=text, total_examples=model.corpus_count, total_words=model.corpus_total_words,
            epochs=model.epochs)
cpu = time.process_time() - cpu
if output:
    model.wv.save_word2vec_format(output, binary=True)
print(json.dumps({"training_cpu_s": cpu, "words": len(model.wv)}))
"""
FASTTEXT = """
import json, sys, time
import fasttext
text, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
epochs = settings.pop("epochs")
def timed(epochs):
    begin = time.process_time()
    return fasttext.train_unsupervised(text, epoch=epochs, **settings), time.process_time() - begin
model, cpu = timed(epochs)
words, matrix = model.get_words(), model.get_input_matrix()
if output:
    with open(output, "wb") as file:
        file.write(b"%d %d\\n" % (len(words), matrix.shape[1]))
        for word, row in zip(words, matrix):
            file.write(word.encode() + b" " + row.astype("<f4").tobytes() + b"\\n")
n_words = len(set(words) - {"</s>"})
del model, words, matrix
# The 0-epoch call comes second: on one thread, fastText reads some initial weights from uninitialised memory, which is
# all zeros in a fresh process.
print(json.dumps({"training_cpu_s": cpu - timed(0)[1], "words": n_words}))
"""


@dataclass(frozen=True)
class Task:
    """Settings of one training run."""

    mode: str
    dim: int
    epochs: int
    seed: int
    threads: int = 1

    @property
    def cbow(self) -> bool:
        return self.mode == "cbow"

    @property
    def hs(self) -> bool:
        return self.mode == "hs"

    @property
    def negatives(self) -> int:
        return 0 if self.hs else 5

    @property
    def lr(self) -> float:
        return 0.05 if self.cbow else 0.025


@dataclass(frozen=True)
class Program:
    """One program of the comparison: its command line and the parser of its standard output."""

    name: str
    command: Callable[[str, str, Task], list[str]]
    read: Callable[[str, Task], dict[str, Any]]
    ours: bool = False
    vocabulary: Callable[[Path], dict[str, Any]] | None = None  # a pass over a text that only builds the vocabulary


def ours(name: str, shared: bool) -> Program:
    def command(text: str, output: str, task: Task) -> list[str]:
        settings = {
            "dim": task.dim,
            "window": 5,
            "negatives": task.negatives,
            "hs": task.hs,
            "cbow": task.cbow,
            "sample": 1e-3,
            "epochs": task.epochs,
            "lr": task.lr,
            "negatives_shared": shared,
            "threads": task.threads,
            "seed": task.seed,
        }
        return [sys.executable, "-c", OURS, text, output, json.dumps(settings)]

    vocabulary = partial(embfast_pass, threads=1) if shared else None  # identical with and without shared negatives
    return Program(name, command, last_line, ours=True, vocabulary=vocabulary)


def original(tool: str) -> Program:
    def command(text: str, output: str, task: Task) -> list[str]:
        options = {
            "-train": text,
            "-output": output or os.devnull,
            "-size": task.dim,
            "-window": 5,
            "-negative": task.negatives,
            "-hs": int(task.hs),
            "-cbow": int(task.cbow),
            "-sample": 1e-3,
            "-min-count": 5,
            "-iter": task.epochs,
            "-alpha": task.lr,
            "-threads": 1,
            "-binary": 1,
            "-debug": 2,
        }
        return [tool, *(str(word) for option in options.items() for word in option)]

    return Program(ORIGINAL, command, read_original, vocabulary=partial(original_pass, tool=tool))


def read_original(output: str, task: Task) -> dict[str, Any]:
    """Parses the progress printed every 10,000 words. word2vec.c counts the `</s>` of each line as a word."""
    words = int(re.search(r"Vocab size: (\d+)", output)[1]) - 1
    tokens = task.epochs * int(re.search(r"Words in train file: (\d+)", output)[1])
    reports = re.findall(r"Progress: ([\d.]+)%\s+Words/thread/sec: ([\d.]+)k", output)
    # Some versions stop after the first epoch. The last report is at most 10,000 words and a sentence before the end.
    if not reports or float(reports[-1][0]) < 100 * (1 - 21_000 / tokens):
        raise RuntimeError(
            f"word2vec.c reports no end of training on {tokens} words: it stopped early, or the text is too short"
        )
    return {"training_cpu_s": tokens / (1000 * float(reports[-1][1])), "words": words}


def gensim(python: str) -> Program:
    def command(text: str, output: str, task: Task) -> list[str]:
        settings = {
            "vector_size": task.dim,
            "window": 5,
            "negative": task.negatives,
            "hs": int(task.hs),
            "sg": int(not task.cbow),
            "sample": 1e-3,
            "min_count": 5,
            "epochs": task.epochs,
            "alpha": task.lr,
            "workers": 1,
            "seed": task.seed + 1,
        }
        return [python, "-c", GENSIM, text, output, json.dumps(settings)]

    return Program("gensim", command, last_line, vocabulary=partial(gensim_pass, python=python))


def fasttext(python: str) -> Program:
    def command(text: str, output: str, task: Task) -> list[str]:
        settings = {
            "model": "cbow" if task.cbow else "skipgram",
            "loss": "hs" if task.hs else "ns",
            "dim": task.dim,
            "ws": 5,
            "neg": 5,
            "t": 1e-3,
            "minCount": 5,
            "epochs": task.epochs,
            "lr": task.lr,
            "minn": 0,
            "maxn": 0,
            "bucket": 0,
            "thread": 1,
            "verbose": 0,
        }
        return [python, "-c", FASTTEXT, text, output, json.dumps(settings)]

    return Program("fastText", command, last_line)


def last_line(output: str, task: Task) -> dict[str, Any]:
    return json.loads(output.strip().splitlines()[-1])


def installed(pythons: Iterable[str]) -> list[Program]:
    """Returns each rival found on this machine once; reports missing ones on stderr."""
    found: dict[str, Program] = {}
    pythons = list(pythons)
    tools = [shutil.which("word2vec"), *(shutil.which("word2vec", path=str(Path(p).parent)) for p in pythons)]
    for tool in filter(None, tools):
        found.setdefault(ORIGINAL, original(tool))
    for module, make in (("gensim", gensim), ("fasttext", fasttext)):
        for python in pythons:
            probe = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
            if probe.returncode == 0:
                rival = make(python)
                found.setdefault(rival.name, rival)
    for name, package in ((ORIGINAL, "word2vec"), ("gensim", "gensim"), ("fastText", "fasttext")):
        if name not in found:
            say(f"{name} not found, skipped: pip install {package}, or pass its interpreter as --rivals-python")
    return list(found.values())


def run(program: Program, text: Path, task: Task, output: str = "") -> dict[str, Any]:
    """Trains once and returns the measurements. output: a .bin file for the vectors, or "" for none."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    if program.ours:
        environment["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as directory:
        printed = Path(directory) / "printed"
        command = [sys.executable, "-S", "-E", "-c", STARTER, printed, *program.command(str(text), output, task)]
        starter = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if starter.returncode:
            raise RuntimeError(f"{program.name} did not start: {starter.stderr.strip()[-500:]}")
        usage = last_line(starter.stdout, task)
        # word2vec.c separates its reports with carriage returns
        said = printed.read_text(errors="replace").replace("\r", "\n")
    if usage.pop("exit"):
        raise RuntimeError(f"{program.name} failed: {(starter.stderr or said).strip()[-500:]}")
    result = {"program": program.name, **asdict(task), **usage, **program.read(said, task)}
    say(
        f"{program.name:16} {task.mode:8} D={task.dim:<4} {task.epochs} epochs, {task.threads} thread(s), seed "
        f"{task.seed}: {result['training_cpu_s']:8.2f} CPU s of training, {result['wall_s']:8.2f} s in total"
    )
    return result


def attempt(program: Program, text: Path, task: Task, output: str = "") -> list[dict[str, Any]]:
    """Runs once. Returns an empty list if a rival fails, so that hours of other runs are not lost."""
    return unless_it_fails(program, lambda: run(program, text, task, output))


def unless_it_fails(program: Program, measure: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [measure()]
    except RuntimeError as error:
        if program.ours:
            raise
        say(str(error))
        return []


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def read_lines(path: Path, n_words: int) -> list[str]:
    """Reads the lines of a text, plain or .xz, up to and including the line that contains word n_words."""
    lines, total = [], 0
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else open(path, encoding="utf-8") as file:
        for line in file:
            lines.append(line)
            total += len(line.split())
            if total >= n_words:
                break
    if total < n_words:
        say(f"{path.name} has only {total:,} words, fewer than the {n_words:,} requested")
    return lines


def write_text(path: Path, lines: list[str], seed: int | None) -> Path:
    """Writes the lines, shuffled with the seed (None: unshuffled) and split every LINE_WORDS words."""
    if seed is not None:
        lines = random.Random(seed).sample(lines, len(lines))
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            words = line.split()
            for at in range(0, len(words), LINE_WORDS):
                file.write(" ".join(words[at : at + LINE_WORDS]) + "\n")
    return path


def check_vocabularies(runs: list[dict[str, Any]]) -> None:
    """Raises RuntimeError if vocabulary sizes differ, because the programs then do different amounts of work."""
    sizes = {row["program"]: row["words"] for row in runs}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"the programs found vocabularies of different sizes: {sizes}")


def measure_vocabulary(programs: list[Program], text: Path, repeats: int, save: Callable[..., None]) -> None:
    for repeat in range(repeats):
        round_runs = []
        for program in programs:
            if program.vocabulary:
                found = unless_it_fails(program, partial(program.vocabulary, text))
                facts = {"program": program.name, "repeat": repeat, "bytes": text.stat().st_size}
                round_runs += [{**facts, **row} for row in found]
        check_vocabularies(round_runs)
        save("vocabulary", round_runs)


def measure_speed(
    programs: list[Program], text: Path, tasks: list[Task], threads: list[int], repeats: int, save: Callable[..., None]
) -> None:
    for task in tasks:
        for repeat in range(repeats):
            round_runs = []
            for program in offered(programs, task.mode):
                for n in threads if program.ours else [1]:
                    found = attempt(program, text, Task(task.mode, task.dim, task.epochs, repeat, n))
                    round_runs += [{**row, "repeat": repeat} for row in found]
            check_vocabularies(round_runs)
            save("speed", round_runs)


def measure_quality(
    programs: list[Program], lines: list[str], tasks: list[Task], n_seeds: int, folder: Path, save: Callable[..., None]
) -> None:
    vectors = str(folder / "vectors.bin")
    for seed in range(n_seeds):
        text = write_text(folder / "shuffled.txt", lines, seed)
        for task in tasks:
            round_runs = []
            for program in offered(programs, task.mode):
                found = attempt(program, text, Task(task.mode, task.dim, task.epochs, seed), vectors)
                round_runs += [{**row, "scores": judge(vectors)} for row in found]
            check_vocabularies(round_runs)
            save("quality", round_runs)


def offered(programs: list[Program], mode: str) -> list[Program]:
    """Programs that support a mode. Hierarchical softmax draws no negatives, so no variant can share them."""
    return [p for p in programs if mode != "hs" or p.name != "embfast pairs"]


def judge(path: str) -> dict[str, float | None]:
    """Analogy accuracy and Spearman correlations in percent, without `</s>`; None if no question could be evaluated."""
    loaded = Vectors.load(path)
    rows = [i for i, key in enumerate(loaded.keys) if key != "</s>"]
    vectors = Vectors([loaded.keys[i] for i in rows], loaded.matrix[rows])
    scores = {"analogy": evaluate.analogies(vectors, DATA / "eval" / "questions-words.txt", restrict=30_000).accuracy}
    for name, file in SETS.items():
        scores[name] = evaluate.similarity(vectors, DATA / "eval" / file).spearman
    return {name: None if value != value else 100 * value for name, value in scores.items()}


def summarise(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per mode, dim and program: median speed over repeats, mean quality over seeds."""
    tokens = {part: next((r["tokens"] for r in rows if "tokens" in r), None) for part, rows in runs.items()}
    part = "speed" if runs["speed"] else "quality"  # quality runs are timed too

    def rate(row: dict[str, Any], clock: str) -> float:
        return tokens[part] * row["epochs"] / row[f"training_{clock}_s"]

    def turn(row: dict[str, Any]) -> int:
        return row.get("repeat", row["seed"])

    rows = []
    names = dict.fromkeys((r["mode"], r["dim"], r["program"]) for r in (*runs["speed"], *runs["quality"]))
    for mode, dim, program in sorted(names, key=lambda name: (MODES.index(name[0]), name[1])):
        same = [r for r in runs[part] if (r["mode"], r["dim"]) == (mode, dim)]
        mine = [r for r in same if r["program"] == program]
        single = [r for r in mine if r["threads"] == 1]
        rates = [rate(r, "cpu") for r in single]
        theirs = {turn(r): rate(r, "cpu") for r in same if r["program"] == ORIGINAL}
        ratios = [rate(r, "cpu") / theirs[turn(r)] for r in single if turn(r) in theirs]
        wall: dict[int, list[float]] = {}
        for r in mine:
            if "training_wall_s" in r:
                wall.setdefault(r["threads"], []).append(rate(r, "wall"))
        judged = [r for r in runs["quality"] if (r["mode"], r["dim"], r["program"]) == (mode, dim, program)]
        quality = {}
        for name in judged[0]["scores"] if judged else ():
            scores = [r["scores"][name] for r in judged if r["scores"][name] is not None]
            if scores:
                quality[name] = {
                    "mean": statistics.mean(scores),
                    "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
                    "least": min(scores),
                    "most": max(scores),
                }
        passes = [r["bytes"] / 1e6 / r["cpu_s"] for r in runs["vocabulary"] if r["program"] == program]
        losses = [r["loss"][-1] for r in judged or single if "loss" in r]
        rows.append(
            {
                "mode": mode,
                "dim": dim,
                "program": program,
                "words_per_cpu_s": spread(rates),
                "times_word2vec_c": spread(ratios) if ratios else None,
                "words_per_s": {str(n): spread(values) for n, values in wall.items()},
                "vocabulary_mb_per_cpu_s": spread(passes) if passes else None,
                "rss_mb": max(r["rss_mb"] for r in single),
                "loss": statistics.mean(losses) if losses else None,
                "quality": quality,
            }
        )
    return rows


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    threads = sorted({int(n) for row in rows for n in row["words_per_s"]})
    scores = list(dict.fromkeys(name for row in rows for name in row["quality"]))
    for name in ("mode", "D", "program"):
        table.add_column(name, no_wrap=True)
    columns = ["k words/CPU s", "(least-most)", f"x {ORIGINAL}", *(f"k words/s, {n} thr." for n in threads)]
    for name in (*columns, "vocab. MB/CPU s", "MB", "loss", *scores):
        table.add_column(name, justify="right")
    last = None
    for row in rows:
        if last not in (None, (row["mode"], row["dim"])):
            table.add_section()
        last = (row["mode"], row["dim"])
        speed, ratio = row["words_per_cpu_s"], row["times_word2vec_c"]
        wall = [row["words_per_s"].get(str(n)) for n in threads]
        vocabulary = row["vocabulary_mb_per_cpu_s"]
        quality = [row["quality"].get(name) for name in scores]
        table.add_row(
            row["mode"],
            str(row["dim"]),
            row["program"],
            f"{speed['median'] / 1e3:,.0f}",
            f"({speed['least'] / 1e3:,.0f}-{speed['most'] / 1e3:,.0f})",
            f"{ratio['median']:.1f}" if ratio else "",
            *(f"{w['median'] / 1e3:,.0f}" if w else "" for w in wall),
            f"{vocabulary['median']:,.0f}" if vocabulary else "",
            f"{row['rss_mb']:,.0f}",
            f"{row['loss']:.4f}" if row["loss"] is not None else "",
            *(
                f"{q['mean']:.1f}" + (f"±{q['deviation']:.1f}" if q["deviation"] is not None else "") if q else ""
                for q in quality
            ),
        )
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, default=DATA / "wiki-en-2015" / "corpus.txt.xz", help="Training text, plain or .xz.")
    add(
        "--words",
        type=int,
        default=17_000_000,
        help="Number of words to read from the text, rounded up to a whole line.",
    )
    add("--speed-words", type=int, help="Number of words for the speed runs. Default: --words.")
    add("--dims", type=int, nargs="+", default=[100, 300], help="Vector sizes.")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="Training modes.")
    add("--epochs", type=int, default=5, help="Number of epochs in quality runs.")
    add("--speed-epochs", type=int, default=1, help="Number of epochs in speed runs.")
    add("--repeats", type=int, default=3, help="Number of speed runs per configuration.")
    add("--seeds", type=int, default=3, help="Number of seeds in quality runs.")
    add("--threads", type=int, nargs="+", default=[1, 2], help="Thread counts for embfast; rivals use one thread.")
    add(
        "--rivals-python",
        nargs="+",
        default=[sys.executable],
        help="Python interpreters with gensim, fasttext or word2vec.",
    )
    add("--leave-out", nargs="+", default=[], help="Programs to skip, named as in the table.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--speed", action="store_true", help="Measure only speed.")
    part.add_argument("--quality", action="store_true", help="Measure only quality (and the speed of those runs).")
    add(
        "--json", type=Path, help="Output file, updated after every round. Default: bench/results/word2vec-<date>.json."
    )
    args = parser.parse_args(argv)

    programs = [ours("embfast", True), ours("embfast pairs", False), *installed(args.rivals_python)]
    programs = [p for p in programs if p.name not in args.leave_out]
    if not any(p.ours for p in programs):
        parser.error("--leave-out: keep embfast or embfast pairs, because it counts the words of the text")
    path = args.json or ROOT / "bench" / "results" / f"word2vec-{time.strftime('%Y%m%d-%H%M%S')}.json"
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    machine = machine_and_commit()
    runs: dict[str, list[dict[str, Any]]] = {"vocabulary": [], "speed": [], "quality": []}

    def save(name: str, rows: list[dict[str, Any]]) -> None:
        runs[name] += rows
        write_json(path, {"settings": settings, "machine": machine, "rows": summarise(runs), "runs": runs})

    pairs = [(mode, dim) for mode in args.modes for dim in args.dims]
    with tempfile.TemporaryDirectory() as directory:
        if not args.quality:
            lines = read_lines(args.text, args.speed_words or args.words)
            text = write_text(Path(directory) / "text.txt", lines, None)
            tasks = [Task(mode, dim, args.speed_epochs, 0) for mode, dim in pairs]
            measure_vocabulary(programs, text, args.repeats, save)
            measure_speed(programs, text, tasks, sorted({1, *args.threads}), args.repeats, save)
        if not args.speed:
            lines = read_lines(args.text, args.words)
            tasks = [Task(mode, dim, args.epochs, 0) for mode, dim in pairs]
            measure_quality(programs, lines, tasks, args.seeds, Path(directory), save)
    title = f"{args.text.name}, {machine['cpu']}, embfast {machine['commit']}, {machine['date']}"
    show(summarise(runs), title)
    say(f"results written to {path}")


if __name__ == "__main__":
    main()
