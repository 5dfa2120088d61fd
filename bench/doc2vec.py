"""Compares Doc2Vec with gensim on IMDB reviews: speed of training and inference, accuracy of sentiment classification.

python -m bench.doc2vec                                        all measurements; hours, most of them spent in gensim
python -m bench.doc2vec --speed --documents 5000               speed only; minutes
python -m bench.doc2vec --scaling                              embfast only: inference with 1, 2, ... threads
python -m bench.doc2vec --quality --seeds 1 --programs embfast accuracy of embfast only
python -m bench.doc2vec --quality --dim 200 --lr 0 --infer-epochs 10 --c 0.001    settings chosen on held-out reviews;
                                                               --bigrams is more accurate and takes twice as long

Models are trained on the 25,000 reviews of imdb.train.tsv.xz in $EMBFAST_DATA/imdb (by default ../shared/data next to
the checkout), and vectors are inferred for the 25,000 reviews of imdb.test.tsv.xz. Reviews are lower-cased, each
punctuation mark is a separate token, and the seed shuffles their order. Both programs use window 5, 5 negative samples,
sample 1e-3, min_count 5, a learning rate falling from 0.025 to 0.0001, PV-DM with the mean, and one thread. A document
vector counts as tag_weight words in embfast and as one word in gensim (--tag-weight 1 makes them equal). With --lr 0
each mode starts from Doc2Vec's default rate, in gensim too (PV-DM: 0.05). Programs alternate (A B A B); each run is a
separate process.

Training speed is in-vocabulary words x epochs / CPU seconds (gensim: `train`, after build_vocab; embfast: the whole of
`fit`). Inference speed is documents / CPU seconds at 10 epochs; gensim infers one document at a time. PV-DM with
concatenation is timed, but its accuracy is not measured. Scaling is measured in wall-clock time: thread counts
alternate within one process. Other load on the machine affects the median, and the best time less.

Accuracy is the test accuracy of a logistic regression on standardised vectors. It is fitted to the trained vectors of
the training reviews and evaluated on the inferred vectors of the test reviews; with --reinfer it is fitted to inferred
vectors of the training reviews, so that both sets are obtained in the same way. "both" concatenates the PV-DM and
PV-DBOW vectors. --validate 5000 holds out 5,000 training reviews and evaluates on them instead of the test set.
Settings are chosen this way, and the test set is used once. --bigrams appends every bigram to the text as an extra
word (after Li et al. 2016, arXiv:1512.08183). --transductive also trains on the texts of the test reviews, without
their labels, and evaluates their trained vectors, as most reproductions of Le & Mikolov 2014 do, gensim's included.
"""

import argparse
import json
import lzma
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import machine_and_commit
from embfast.documents.doc2vec import Doc2Vec
from embfast.training.threads import cores

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMBFAST_DATA", ROOT.parent / "shared" / "data"))
MODES = ("dbow", "dm", "dm-concat", "both")
TIMED, JUDGED = ("dbow", "dm", "dm-concat"), ("dbow", "dm", "both")  # "both" takes the time of its two parts
MIN_LR = 0.0001

# Arguments of each script: training text, text to infer, output file for the vectors ("" for none), settings as JSON.
OURS = """
import json, sys, time
import numpy as np
from embfast.text.corpus import Corpus
from embfast.documents.doc2vec import Doc2Vec
train, new, output, settings = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
epochs, reinfer = settings.pop("infer_epochs"), settings.pop("reinfer")
corpus = Corpus.from_file(train, min_count=5, threads=1)
cpu = time.process_time()
model = Doc2Vec(**settings).fit(corpus, progress=False)
train_cpu = time.process_time() - cpu
documents = [line.split() for line in open(new, encoding="utf-8")]
cpu = time.process_time()
inferred = model.infer(documents, epochs=epochs)
infer_cpu = time.process_time() - cpu
if output:
    again = {"reinferred": model.infer(corpus, epochs=epochs)} if reinfer else {}
    np.savez(output, trained=model.vectors_.matrix, inferred=inferred, **again)
print(json.dumps({"train_cpu_s": train_cpu, "infer_cpu_s": infer_cpu, "tokens": corpus.n_tokens,
                  "inferred": len(documents), "loss": model.loss_}))
"""
GENSIM = """
import json, sys, time
import numpy as np
from gensim.models.doc2vec import Doc2Vec, TaggedDocument
train, new, output, settings = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
epochs, reinfer = settings.pop("infer_epochs"), settings.pop("reinfer")
documents = [TaggedDocument(line.split(), [i]) for i, line in enumerate(open(train, encoding="utf-8"))]
model = Doc2Vec(**settings)
model.build_vocab(documents)
cpu = time.process_time()
model.train(documents, total_examples=model.corpus_count, epochs=model.epochs)
train_cpu = time.process_time() - cpu
asked = [line.split() for line in open(new, encoding="utf-8")]
cpu = time.process_time()
inferred = np.array([model.infer_vector(document, epochs=epochs) for document in asked])
infer_cpu = time.process_time() - cpu
if output:
    again = {"reinferred": np.array([model.infer_vector(d.words, epochs=epochs) for d in documents])} if reinfer else {}
    np.savez(output, trained=model.dv.vectors, inferred=inferred, **again)
tokens = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
print(json.dumps({"train_cpu_s": train_cpu, "infer_cpu_s": infer_cpu, "tokens": int(tokens), "inferred": len(asked)}))
"""
# Alternates thread counts and records the wall-clock and CPU seconds of each inference.
SCALING = """
import json, sys, time
from embfast.text.corpus import Corpus
from embfast.documents.doc2vec import Doc2Vec
train, new, _, settings = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
epochs, most, repeats = settings.pop("infer_epochs"), settings.pop("most"), settings.pop("repeats")
model = Doc2Vec(**settings).fit(Corpus.from_file(train, min_count=5, threads=1), progress=False)
documents = Corpus.from_file(new, vocab=model.words_, threads=1)
runs = []
for repeat in range(repeats):
    for threads in range(1, most + 1):
        model.threads = threads
        wall, cpu = time.perf_counter(), time.process_time()
        model.infer(documents, epochs=epochs)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        runs.append({"repeat": repeat, "threads": threads, "wall_s": wall, "cpu_s": cpu})
print(json.dumps({"inferred": len(documents), "runs": runs}))
"""


def command(program: str, python: str, mode: str, args: argparse.Namespace, epochs: int, seed: int) -> list[str]:
    """The complete command line of one run; {train}, {new} and {output} are placeholders for file names."""
    mode, _, join = mode.partition("-")
    own = not args.lr  # each mode starts from Doc2Vec's default rate
    if program == "embfast":
        settings = {"mode": mode, "dim": args.dim, "window": 5, "negatives": 5, "sample": 1e-3, "epochs": epochs}
        settings |= {"lr": None if own else args.lr, "min_lr": MIN_LR, "threads": 1, "seed": seed}
        settings |= {"dm": join or "mean", "tag_weight": args.tag_weight}
        script = OURS
    else:
        lr = (0.05 if mode == "dm" and not join else 0.025) if own else args.lr
        settings = {"dm": int(mode == "dm"), "vector_size": args.dim, "window": 5, "negative": 5, "hs": 0}
        settings |= {"sample": 1e-3, "min_count": 5, "epochs": epochs, "alpha": lr, "min_alpha": MIN_LR}
        settings |= {"dm_mean": 1, "dm_concat": int(join == "concat"), "workers": 1, "seed": seed + 1}
        script = GENSIM
    settings["reinfer"] = args.reinfer
    return [python, "-c", script, "{train}", "{new}", "{output}", json.dumps(settings)]


def run(call: list[str], train: Path, new: Path, output: str, infer_epochs: int) -> dict[str, Any]:
    settings = json.dumps({**json.loads(call[-1]), "infer_epochs": infer_epochs})
    call = [*call[:3], str(train), str(new), output, settings]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().split("\n")[-1])


def scale(mode: str, args: argparse.Namespace, train: Path, new: Path) -> list[dict[str, Any]]:
    """Measures inference with alternating thread counts: seconds, and speed-up over one thread."""
    kind, _, join = mode.partition("-")
    settings = {"mode": kind, "dm": join or "mean", "dim": args.dim, "epochs": 1, "threads": 1}
    settings |= {"tag_weight": args.tag_weight}
    settings |= {"most": args.threads, "repeats": args.turns}
    done = run([sys.executable, "-c", SCALING, "", "", "", json.dumps(settings)], train, new, "", 10)
    walls, cpus = (
        {t: [r[clock] for r in done["runs"] if r["threads"] == t] for t in range(1, args.threads + 1)}
        for clock in ("wall_s", "cpu_s")
    )
    return [
        {
            "mode": mode,
            "threads": t,
            "documents_per_s": done["inferred"] / statistics.median(walls[t]),
            "best_documents_per_s": done["inferred"] / min(walls[t]),
            "cpu_s": statistics.median(cpus[t]),
            "times_one": statistics.median(a / b for a, b in zip(walls[1], walls[t], strict=True)),
            "best_times_one": min(walls[1]) / min(walls[t]),
            "wall_s": walls[t],
        }
        for t in walls
    ]


def read_reviews(path: Path, n: int) -> list[tuple[int, str]]:
    """Reads n reviews, half positive and half negative, as (label, space-separated words); label 1 is positive."""
    found: dict[str, list[tuple[int, str]]] = {"neg": [], "pos": []}
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            label, _, _, text = line.rstrip("\n").split("\t", 3)
            if len(found[label]) < (n + 1) // 2:
                found[label].append((int(label == "pos"), " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))))
    return (found["neg"] + found["pos"])[:n] if n < 2 else found["neg"] + found["pos"]


def with_bigrams(text: str) -> str:
    """Returns the words, followed by every bigram joined with an underscore.

    >>> with_bigrams("not so good")
    'not so good not_so so_good'
    """
    words = text.split()
    return " ".join(words + [f"{a}_{b}" for a, b in pairwise(words)])


def write_reviews(path: Path, reviews: list[tuple[int, str]], seed: int) -> np.ndarray:
    """Writes one review per line, shuffled with the seed; returns the labels in the same order."""
    reviews = list(reviews)
    random.Random(seed).shuffle(reviews)
    path.write_text("".join(text + "\n" for _, text in reviews), encoding="utf-8")
    return np.array([label for label, _ in reviews])


def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, c: float = 1.0) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    return float(model.fit(train, labels).score(test, test_labels))


def with_gensim(pythons: Iterable[str]) -> str | None:
    for python in pythons:
        if subprocess.run([python, "-c", "import gensim"], capture_output=True).returncode == 0:
            return python
    return None


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def summarise(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per mode and program: median speeds, medians of the ratios within a round, accuracies of all seeds."""
    rows = []
    for mode in MODES:
        for program in ("embfast", "gensim"):
            fast = [r for r in runs["speed"] if (r["mode"], r["program"]) == (mode, program)]
            good = [r for r in runs["quality"] if (r["mode"], r["program"]) == (mode, program)]
            if not fast and not good:
                continue
            row: dict[str, Any] = {"mode": mode, "program": program}
            for name in ("words_per_cpu_s", "documents_per_cpu_s"):
                row[name] = statistics.median(r[name] for r in fast) if fast else None
                theirs = {r["repeat"]: r[name] for r in runs["speed"] if (r["mode"], r["program"]) == (mode, "gensim")}
                ratios = [r[name] / theirs[r["repeat"]] for r in fast if r["repeat"] in theirs]
                row[f"times_{name}"] = statistics.median(ratios) if ratios else None
            row["accuracy"] = [r["accuracy"] for r in good]
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("mode", "program"):
        table.add_column(name)
    for name in ("k words/CPU s", "x gensim", "documents/CPU s", "x gensim", "accuracy %", "seeds"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row["mode"], row["program"]]
        for name, unit in (("words_per_cpu_s", 1e3), ("documents_per_cpu_s", 1)):
            value, times = row[name], row[f"times_{name}"]
            cells += [f"{value / unit:,.0f}" if value else "", f"{times:.1f}" if times else ""]
        scores = row["accuracy"]
        cells += [f"{100 * statistics.mean(scores):.2f}" if scores else "", str(len(scores))]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def show_scaling(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Inference, wall clock", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("mode")
    for name in ("threads", "documents/s", "best", "x one thread", "best / best", "CPU s"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row[name] for name in ("documents_per_s", "best_documents_per_s"))
        ratios = (row[name] for name in ("times_one", "best_times_one", "cpu_s"))
        table.add_row(row["mode"], str(row["threads"]), *(f"{x:,.0f}" for x in numbers), *(f"{x:.2f}" for x in ratios))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dim", type=int, default=100, help="Vector size.")
    add("--epochs", type=int, default=20, help="Number of training and inference epochs in accuracy runs.")
    add(
        "--speed-epochs", type=int, default=2, help="Number of training epochs in speed runs; inference always uses 10."
    )
    add("--documents", type=int, default=25_000, help="Number of training reviews, and of test reviews for accuracy.")
    add("--inferred", type=int, default=2_000, help="Number of documents inferred in speed runs.")
    add("--repeats", type=int, default=3, help="Number of speed runs per configuration.")
    add("--turns", type=int, default=15, help="Number of repetitions per thread count in the scaling run.")
    add("--threads", type=int, default=cores(), help="Largest number of threads in the scaling run.")
    add("--seeds", type=int, default=3, help="Number of seeds in accuracy runs.")
    add("--lr", type=float, default=0.025, help="Initial learning rate; 0 uses Doc2Vec's default for each mode.")
    add("--tag-weight", type=int, default=Doc2Vec().tag_weight, help="tag_weight of embfast in PV-DM; gensim's is 1.")
    add("--c", type=float, default=1.0, help="Inverse regularisation strength C of the logistic regression.")
    add("--infer-epochs", type=int, help="Number of inference epochs in accuracy runs. Default: --epochs.")
    add("--reinfer", action="store_true", help="Fit the regression to inferred vectors of the training reviews.")
    add(
        "--validate",
        type=int,
        default=0,
        help="Number of training reviews to hold out and evaluate on instead of the test set.",
    )
    add("--bigrams", action="store_true", help="Add every bigram to the document as a word.")
    add(
        "--transductive",
        action="store_true",
        help="Train on the texts of the test reviews too and evaluate their trained vectors.",
    )
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="Training modes.")
    add("--programs", nargs="+", choices=("embfast", "gensim"), default=["embfast", "gensim"], help="Programs to run.")
    add("--rivals-python", nargs="+", default=[sys.executable], help="Python interpreters to search for gensim.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--speed", action="store_true", help="Measure only speed.")
    part.add_argument("--scaling", action="store_true", help="Measure only how inference scales with threads.")
    part.add_argument("--quality", action="store_true", help="Measure only accuracy; requires scikit-learn.")
    add("--json", type=Path, help="Output file, updated after every run. Default: bench/results/doc2vec-<date>.json.")
    args = parser.parse_args(argv)
    if args.transductive and (args.reinfer or args.validate):
        parser.error(
            "--transductive cannot be combined with --reinfer or --validate: it neither infers nor holds out reviews"
        )
    wanted = {name for name in ("speed", "scaling", "quality") if getattr(args, name)} or {
        "speed",
        "scaling",
        "quality",
    }

    rival = with_gensim(args.rivals_python)
    pythons = {"embfast": sys.executable} | ({"gensim": rival} if rival else {})
    pythons = {name: python for name, python in pythons.items() if name in args.programs}
    path = args.json or ROOT / "bench" / "results" / f"doc2vec-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    machine = machine_and_commit()
    runs: dict[str, list[dict[str, Any]]] = {"speed": [], "scaling": [], "quality": []}

    def keep(kind: str, row: dict[str, Any]) -> None:
        runs[kind].append(row)
        say(f"{kind}: {row}")
        result = {"settings": settings, "machine": machine, "rows": summarise(runs), "runs": runs}
        path.write_text(json.dumps(result, indent=1) + "\n")

    train = read_reviews(DATA / "imdb" / "imdb.train.tsv.xz", args.documents)
    test = read_reviews(DATA / "imdb" / "imdb.test.tsv.xz", args.documents)
    if args.bigrams:
        train, test = ([(label, with_bigrams(text)) for label, text in reviews] for reviews in (train, test))
    with tempfile.TemporaryDirectory() as directory:
        texts = Path(directory) / "train.txt", Path(directory) / "new.txt"
        if wanted & {"speed", "scaling"}:
            write_reviews(texts[0], train, 0)
            write_reviews(texts[1], random.Random(0).sample(test, min(args.inferred, len(test))), 0)
        for mode in TIMED if "scaling" in wanted and "embfast" in pythons else ():
            if mode in args.modes:
                for row in scale(mode, args, *texts):
                    keep("scaling", row)
        if "speed" in wanted:
            for repeat in range(args.repeats):
                for mode in [mode for mode in TIMED if mode in args.modes]:
                    for program, python in pythons.items():
                        call = command(program, python, mode, args, args.speed_epochs, 0)
                        row = run(call, *texts, "", 10)
                        row["words_per_cpu_s"] = row["tokens"] * args.speed_epochs / row["train_cpu_s"]
                        row["documents_per_cpu_s"] = row["inferred"] / row["infer_cpu_s"]
                        keep("speed", {"mode": mode, "program": program, "repeat": repeat, **row})
        for seed in range(args.seeds if "quality" in wanted else 0):
            halves = train, test
            if args.validate:
                mixed = list(train)
                random.Random(seed).shuffle(mixed)
                halves = mixed[args.validate :], mixed[: args.validate]
            labels, test_labels = (write_reviews(to, reviews, seed) for to, reviews in zip(texts, halves, strict=True))
            if args.transductive:
                new = texts[1].read_text(encoding="utf-8")
                texts[0].write_text(texts[0].read_text(encoding="utf-8") + new, encoding="utf-8")
                texts[1].write_text(new[: new.index("\n") + 1], encoding="utf-8")
            for program, python in pythons.items():
                vectors: dict[str, Any] = {}
                for mode in [mode for mode in JUDGED if mode in args.modes]:
                    row: dict[str, Any] = {}
                    if mode == "both" and {"dm", "dbow"} <= vectors.keys() and program == "gensim":
                        parts = vectors["dm"], vectors["dbow"]
                        vectors[mode] = {n: np.hstack([part[n] for part in parts]) for n in parts[0]}
                    elif mode == "both" and program == "gensim":
                        continue
                    else:
                        output = str(Path(directory) / "vectors.npz")
                        call = command(program, python, mode, args, args.epochs, seed)
                        row = run(call, *texts, output, args.infer_epochs or args.epochs)
                        with np.load(output) as arrays:
                            vectors[mode] = dict(arrays)
                        if args.transductive:
                            vectors[mode]["inferred"] = vectors[mode]["trained"][len(labels) :]
                            vectors[mode]["trained"] = vectors[mode]["trained"][: len(labels)]
                    made = vectors[mode]
                    fitted = made["reinferred" if args.reinfer else "trained"]
                    row["accuracy"] = accuracy(fitted, labels, made["inferred"], test_labels, args.c)
                    keep("quality", {"mode": mode, "program": program, "seed": seed, **row})
    if runs["scaling"]:
        show_scaling(runs["scaling"])
    if runs["speed"] or runs["quality"]:
        show(summarise(runs), f"IMDB, {machine['cpu']}, embfast {machine['commit']}, {machine['date']}")
    say(f"results written to {path}")


if __name__ == "__main__":
    main()
