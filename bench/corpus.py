"""Compares counting and encoding a text with the vocabulary passes of word2vec.c and gensim.

python -m bench.corpus TEXT

The rivals only count words; embfast counts and encodes them. Programs alternate, each run is a separate process, and
medians are printed. Figures of word2vec.c cover its whole process; those of embfast and gensim exclude imports.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.machine import machine_and_commit, report
from embfast.text.corpus import Corpus
from embfast.text.vocabulary import read_vocab

ROOT = Path(__file__).resolve().parents[1]

OURS = """
import json, re, sys, time
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
from embfast.text.corpus import Corpus
before = peak()
wall, cpu = time.perf_counter(), time.process_time()
corpus = Corpus.from_file(sys.argv[1], threads=int(sys.argv[2]))
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "words": len(corpus.words),
                  "rss_mb": (peak() - before) / 1024}))
"""
GENSIM = """
import json, re, sys, time
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
from gensim.models import Word2Vec
before = peak()
model = Word2Vec(min_count=5, vector_size=1)
wall, cpu = time.perf_counter(), time.process_time()
model.build_vocab(corpus_file=sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "words": len(model.wv),
                  "rss_mb": (peak() - before) / 1024}))
"""


def in_python(python: str, program: str, *arguments: str, **environment: str) -> dict[str, Any]:
    command = [python, "-c", program, *arguments]
    run = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{python} failed: {run.stderr.strip()[-500:]}")
    return json.loads(run.stdout)


def embfast_pass(text: Path, threads: int) -> dict[str, Any]:
    return in_python(sys.executable, OURS, str(text), str(threads), PYTHONPATH=str(ROOT))


def gensim_pass(text: Path, python: str) -> dict[str, Any]:
    return in_python(python, GENSIM, str(text))


def original_pass(text: Path, tool: str) -> dict[str, Any]:
    """Runs word2vec.c without -output, so that it exits after saving the vocabulary."""
    with tempfile.TemporaryDirectory() as directory:
        vocab = Path(directory) / "vocab"
        start = time.perf_counter()
        command = [tool, "-train", str(text), "-save-vocab", str(vocab), "-min-count", "5", "-debug", "0"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"{tool} failed with exit code {process.returncode}")
        words = len(set(read_vocab(vocab)[0]) - {"</s>"})
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "words": words,
        "rss_mb": usage.ru_maxrss / 1024,
    }


def check(tool: str, text: Path) -> None:
    """Checks that both vocabularies agree on the first 4 MB of the text, ended with a newline."""
    with tempfile.TemporaryDirectory() as directory:
        part, theirs, ours = (Path(directory) / name for name in ("part", "theirs", "ours"))
        with open(text, "rb") as file:
            part.write_bytes(file.read(4_000_000) + b"\n")
        subprocess.run([tool, "-train", part, "-save-vocab", theirs, "-debug", "0"], check=True, capture_output=True)
        Corpus.from_file(part).save_vocab(ours)
        if ours.read_bytes() != theirs.read_bytes():
            raise AssertionError(f"embfast and word2vec.c find different vocabularies in the first 4 MB of {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="Plain text file.")
    parser.add_argument("--runs", type=int, default=5, help="Number of runs per program.")
    parser.add_argument("--gensim-python", default=sys.executable, help="Python interpreter with gensim.")
    parser.add_argument("--json", type=Path, help="JSON file for the results.")
    args = parser.parse_args()

    runs = {f"embfast, {n} thread{'s' * (n > 1)}": partial(embfast_pass, threads=n) for n in (1, 2)}
    tool = shutil.which("word2vec")
    if tool:
        check(tool, args.text)
        runs["word2vec.c, vocabulary only"] = partial(original_pass, tool=tool)
    else:
        print("word2vec is not on PATH, skipped (pip install word2vec)", file=sys.stderr)
    if subprocess.run([args.gensim_python, "-c", "import gensim"], capture_output=True, check=False).returncode == 0:
        runs["gensim, vocabulary only"] = partial(gensim_pass, python=args.gensim_python)
    else:
        print(f"{args.gensim_python} has no gensim, skipped (pip install gensim)", file=sys.stderr)

    n_bytes = args.text.stat().st_size
    n_tokens = Corpus.from_file(args.text, min_count=1).n_tokens  # also loads the text into the page cache
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for _ in range(args.runs):
        for name, measure in runs.items():
            measured[name].append(measure(args.text))

    results = {}
    print(
        f"{args.text.name}: {n_bytes / 1e6:.1f} MB, {n_tokens / 1e6:.2f} M words; median of {args.runs} (least, most)\n"
    )
    print(
        f"{'':28} {'wall s':>7} {'CPU s':>7} {'(least, most)':>16} {'GB/s':>6} {'M words/s':>10} {'MB':>6} {'words':>8}"
    )
    for name, rows in measured.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        cpu = [row["cpu_s"] for row in rows]
        results[name] = {
            **middle,
            "cpu_s_least": min(cpu),
            "cpu_s_most": max(cpu),
            "gb_per_s": n_bytes / middle["wall_s"] / 1e9,
            "words_per_s": n_tokens / middle["wall_s"],
        }
        print(
            f"{name:28} {middle['wall_s']:7.3f} {middle['cpu_s']:7.3f} {f'({min(cpu):.3f}, {max(cpu):.3f})':>16} "
            f"{results[name]['gb_per_s']:6.3f} {results[name]['words_per_s'] / 1e6:10.1f} "
            f"{middle['rss_mb']:6.0f} {middle['words']:8.0f}"
        )
    result = {"text": args.text.name, "bytes": n_bytes, "tokens": n_tokens, "runs": results, **machine_and_commit()}
    report(result, args.json)


if __name__ == "__main__":
    main()
