"""Compares search, analogies and file I/O of Vectors with gensim's KeyedVectors on the same rows.

OPENBLAS_NUM_THREADS=1 python -m bench.search                          100,000 x 300 random rows, one core
python -m bench.search --vectors v.bin --questions questions-words.txt --json results/search.json

Each figure is the median of --repeats runs that alternate between embfast and gensim. Answers are compared before they
are timed. Without gensim, its columns are empty.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.machine import machine_and_commit, write_json
from embfast import evaluate
from embfast.vectors.vectors import Vectors

try:
    from gensim.models import KeyedVectors
except ImportError:
    KeyedVectors = None

SINGLE = 100  # queries, one key per call
TOGETHER = 1000  # queries in a single nearest() call


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Alternates the runs; returns the median, best and worst seconds of each."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: {"median": statistics.median(s), "best": min(s), "worst": max(s)} for name, s in seconds.items()}


def random_vectors(n: int, dim: int, questions: dict) -> Vectors:
    """Generates n random rows whose shuffled keys include the lower-cased words of the questions."""
    words = sorted({word.lower() for group in questions.values() for question in group for word in question})[:n]
    keys = words + [f"word{i}" for i in range(n - len(words))]
    rng = np.random.default_rng(0)
    rng.shuffle(keys)
    return Vectors(keys, rng.normal(0, 0.2, size=(n, dim)).astype(np.float32))


def synthetic_questions() -> dict:
    """Generates questions at the scale of questions-words.txt: 14 sections with all pairs of 38 word pairs."""
    pairs = [[(f"a{s}x{i}", f"b{s}x{i}") for i in range(38)] for s in range(14)]
    return {f"section{s}": [(*p, *q) for p in group for q in group if p != q] for s, group in enumerate(pairs)}


def read_questions(path: Path) -> dict:
    sections, group = {}, []
    for line in path.read_text().splitlines():
        if line.startswith(":"):
            group = sections.setdefault(line[1:].strip(), [])
        elif line.strip():
            group.append(tuple(line.split()))
    return sections


def bench_search(vectors: Vectors, theirs, repeats: int) -> dict:
    keys = vectors.keys[:: max(1, len(vectors) // SINGLE)][:SINGLE]
    many = vectors.keys[:TOGETHER]
    if theirs is not None:
        for key in keys[:10]:
            ours, other = vectors.most_similar(key), theirs.most_similar(key)
            assert [k for k, _ in ours] == [k for k, _ in other]
            np.testing.assert_allclose([s for _, s in ours], [s for _, s in other], atol=1e-5)
    vectors.nearest(many[:1])
    one_by_one = {"embfast": lambda: [vectors.most_similar(key) for key in keys]}
    batch = {"embfast": lambda: vectors.nearest(many)}
    if theirs is not None:
        one_by_one["gensim"] = lambda: [theirs.most_similar(key) for key in keys]
        batch["gensim"] = lambda: [theirs.most_similar(key) for key in many]
    return {
        "most_similar, queries/s": rates(take_turns(one_by_one, repeats), len(keys)),
        f"nearest, {len(many)} at once, queries/s": rates(take_turns(batch, repeats), len(many)),
    }


def bench_analogies(vectors: Vectors, theirs, questions: dict, sample: int, repeats: int) -> dict:
    """Times analogies. gensim answers `sample` questions per section; its time is scaled up to all of them."""
    total = sum(map(len, questions.values()))
    runs = {"embfast": lambda: evaluate.analogies(vectors, questions, restrict=0)}
    scale = {"embfast": 1.0}
    with tempfile.TemporaryDirectory() as directory:
        if theirs is not None:
            few = {name: group[:sample] for name, group in questions.items()}
            path = Path(directory, "questions.txt")
            path.write_text("".join(f": {n}\n" + "".join(" ".join(q) + "\n" for q in g) for n, g in few.items()))
            accuracy, _ = theirs.evaluate_word_analogies(str(path), restrict_vocab=len(vectors))
            ours = evaluate.analogies(vectors, few, restrict=0)
            assert abs(ours.accuracy - accuracy) <= 2 / ours.total.total, (ours.accuracy, accuracy)
            runs["gensim"] = lambda: theirs.evaluate_word_analogies(str(path), restrict_vocab=len(vectors))
            scale["gensim"] = total / sum(map(len, few.values()))
        seconds = take_turns(runs, repeats)
    return {
        f"analogies, {total} questions, s": {
            name: {which: s * scale[name] for which, s in values.items()} for name, values in seconds.items()
        }
    }


def bench_files(vectors: Vectors, theirs, repeats: int) -> dict:
    results = {}
    megabytes = vectors.matrix.nbytes / 1e6
    with tempfile.TemporaryDirectory() as directory:
        for extension in (".bin", ".txt", ".npz", ".safetensors"):
            ours, other = Path(directory, f"ours{extension}"), Path(directory, f"theirs{extension}")
            save = {"embfast": lambda path=ours: vectors.save(path)}
            load = {"embfast": lambda path=ours: Vectors.load(path)}
            if theirs is not None and extension in (".bin", ".txt"):
                binary = extension == ".bin"
                save["gensim"] = lambda path=other, b=binary: theirs.save_word2vec_format(path, binary=b)
                load["gensim"] = lambda path=ours, b=binary: KeyedVectors.load_word2vec_format(path, binary=b)
            results[f"save {extension}, MB/s"] = rates(take_turns(save, repeats), megabytes)
            back = Vectors.load(ours)
            assert back.keys == vectors.keys
            assert np.array_equal(back.matrix, vectors.matrix)
            results[f"load {extension}, MB/s"] = rates(take_turns(load, repeats), megabytes)
    return results


def rates(seconds: dict[str, dict[str, float]], amount: float) -> dict[str, dict[str, float]]:
    return {
        name: {"median": amount / s["median"], "best": amount / s["best"], "worst": amount / s["worst"]}
        for name, s in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help="Vectors to load. Default: random rows.")
    parser.add_argument("--questions", type=Path, help="Analogy file. Default: synthetic questions, a similar number.")
    parser.add_argument("--rows", type=int, default=100_000, help="Number of random rows.")
    parser.add_argument("--dim", type=int, default=300, help="Vector size of the random rows.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of runs per figure.")
    parser.add_argument("--sample", type=int, default=20, help="Number of questions per section for gensim.")
    parser.add_argument("--json", type=Path, help="JSON file for the results.")
    args = parser.parse_args()

    questions = read_questions(args.questions) if args.questions else synthetic_questions()
    vectors = Vectors.load(args.vectors) if args.vectors else random_vectors(args.rows, args.dim, questions)
    theirs = vectors.to_gensim() if KeyedVectors else None
    results = {
        **bench_search(vectors, theirs, args.repeats),
        **bench_analogies(vectors, theirs, questions, args.sample, args.repeats),
        **bench_files(vectors, theirs, args.repeats),
    }
    machine = {**machine_and_commit(), "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all")}
    print(f"{len(vectors)} x {vectors.dim}, median of {args.repeats}; {json.dumps(machine)}")
    print(f"{'':40}{'embfast':>12}{'gensim':>12}{'ratio':>8}")
    for name, row in results.items():
        ours, other = row["embfast"]["median"], row.get("gensim", {}).get("median")
        line = f"{name:40}{ours:12.1f}"
        if other:
            line += f"{other:12.1f}{other / ours if name.endswith(' s') else ours / other:7.1f}x"
        print(line)
    if args.json:
        write_json(args.json, {"rows": len(vectors), "dim": vectors.dim, "machine": machine, "results": results})


if __name__ == "__main__":
    main()
