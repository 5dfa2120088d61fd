"""Document vectors beside gensim on the IMDB reviews: speed of training and inference, and accuracy by their sentiment.

python -m bench.doc2vec                                        everything; hours, most of them gensim's
python -m bench.doc2vec --speed --documents 5000               figures of speed, minutes
python -m bench.doc2vec --quality --seeds 1 --programs embfast accuracy of ours alone

The 25,000 reviews of imdb.train.tsv.xz in $EMBFAST_DATA/imdb (by default ../shared/data beside the checkout) are
trained on, lower-cased, each mark a word of its own, in an order shuffled by the seed; the 25,000 of imdb.test.tsv.xz
are inferred. Window 5, 5 negatives, sample 1e-3, min_count 5, learning rate 0.025 to 0.0001, PV-DM by the mean, one
thread, for both programs. Programs take turns (A B A B), each run a process of its own.

Speed is words in the vocabulary x epochs / CPU seconds of training (gensim: of `train`, after build_vocab; ours: of
all of `fit`), and documents / CPU seconds of inference at 10 epochs, which gensim does one by one. Accuracy is of a
logistic regression on standardised vectors, fitted to the trained vectors of the training reviews and asked for the
inferred ones of the test reviews. "both" puts the vectors of PV-DM and PV-DBOW side by side. With --transductive the
texts of the test reviews, not their labels, are trained on too, and their trained vectors are asked for: so do most
reproductions of Le & Mikolov 2014, gensim's among them.
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
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import machine_and_commit

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMBFAST_DATA", ROOT.parent / "shared" / "data"))
MODES = ("dbow", "dm", "both")
MIN_LR = 0.0001

# Each takes a training text, a text to infer, a file for the vectors ("" for none) and its settings.
OURS = """
import json, sys, time
import numpy as np
from embfast.corpus import Corpus
from embfast.doc2vec import Doc2Vec
train, new, output, settings = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
epochs = settings.pop("infer_epochs")
corpus = Corpus.from_file(train, min_count=5, threads=1)
cpu = time.process_time()
model = Doc2Vec(**settings).fit(corpus, progress=False)
train_cpu = time.process_time() - cpu
documents = [line.split() for line in open(new, encoding="utf-8")]
cpu = time.process_time()
inferred = model.infer(documents, epochs=epochs)
infer_cpu = time.process_time() - cpu
if output:
    np.savez(output, trained=model.vectors_.matrix, inferred=inferred)
print(json.dumps({"train_cpu_s": train_cpu, "infer_cpu_s": infer_cpu, "tokens": corpus.n_tokens,
                  "inferred": len(documents), "loss": model.loss_}))
"""
GENSIM = """
import json, sys, time
import numpy as np
from gensim.models.doc2vec import Doc2Vec, TaggedDocument
train, new, output, settings = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
epochs = settings.pop("infer_epochs")
documents = [TaggedDocument(line.split(), [i]) for i, line in enumerate(open(train, encoding="utf-8"))]
model = Doc2Vec(**settings)
model.build_vocab(documents)
cpu = time.process_time()
model.train(documents, total_examples=model.corpus_count, epochs=model.epochs)
train_cpu = time.process_time() - cpu
documents = [line.split() for line in open(new, encoding="utf-8")]
cpu = time.process_time()
inferred = np.array([model.infer_vector(document, epochs=epochs) for document in documents])
infer_cpu = time.process_time() - cpu
if output:
    np.savez(output, trained=model.dv.vectors, inferred=inferred)
tokens = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
print(json.dumps({"train_cpu_s": train_cpu, "infer_cpu_s": infer_cpu, "tokens": int(tokens),
                  "inferred": len(documents)}))
"""


def command(program: str, python: str, mode: str, args: argparse.Namespace, epochs: int, seed: int) -> list[str]:
    """The call of one run, to be followed by nothing; file names stand where {train}, {new} and {output} are."""
    if program == "embfast":
        settings = {"mode": mode, "dim": args.dim, "window": 5, "negatives": 5, "sample": 1e-3, "epochs": epochs}
        settings |= {"lr": 0.025, "min_lr": MIN_LR, "threads": 1, "seed": seed}
        script = OURS
    else:
        settings = {"dm": int(mode == "dm"), "vector_size": args.dim, "window": 5, "negative": 5, "hs": 0}
        settings |= {"sample": 1e-3, "min_count": 5, "epochs": epochs, "alpha": 0.025, "min_alpha": MIN_LR}
        settings |= {"dm_mean": 1, "workers": 1, "seed": seed + 1}
        script = GENSIM
    return [python, "-c", script, "{train}", "{new}", "{output}", json.dumps(settings)]


def run(call: list[str], train: Path, new: Path, output: str, infer_epochs: int) -> dict[str, Any]:
    settings = json.dumps({**json.loads(call[-1]), "infer_epochs": infer_epochs})
    call = [*call[:3], str(train), str(new), output, settings]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().split("\n")[-1])


def read_reviews(path: Path, n: int) -> list[tuple[int, str]]:
    """(1 for a good one, words with spaces between) of n reviews, as many good as bad ones."""
    found: dict[str, list[tuple[int, str]]] = {"neg": [], "pos": []}
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            label, _, _, text = line.rstrip("\n").split("\t", 3)
            if len(found[label]) < (n + 1) // 2:
                found[label].append((int(label == "pos"), " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))))
    return (found["neg"] + found["pos"])[:n] if n < 2 else found["neg"] + found["pos"]


def write_reviews(path: Path, reviews: list[tuple[int, str]], seed: int) -> np.ndarray:
    """Writes the texts, a line each, in an order made of the seed; returns the labels in that order."""
    reviews = list(reviews)
    random.Random(seed).shuffle(reviews)
    path.write_text("".join(text + "\n" for _, text in reviews), encoding="utf-8")
    return np.array([label for label, _ in reviews])


def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(model.fit(train, labels).score(test, test_labels))


def with_gensim(pythons: Iterable[str]) -> str | None:
    for python in pythons:
        if subprocess.run([python, "-c", "import gensim"], capture_output=True).returncode == 0:
            return python
    return None


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def summarise(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each mode and program: medians of speed, with ratios of the same round; accuracies over seeds."""
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dim", type=int, default=100)
    add("--epochs", type=int, default=20, help="for the accuracy, of training and inference")
    add("--speed-epochs", type=int, default=2, help="for the speed of training; inference takes 10")
    add("--documents", type=int, default=25_000, help="of the reviews, to train on; as many are inferred for accuracy")
    add("--inferred", type=int, default=2_000, help="documents inferred for the speed")
    add("--repeats", type=int, default=3, help="for the speed")
    add("--seeds", type=int, default=3, help="for the accuracy")
    add("--transductive", action="store_true", help="accuracy of vectors trained on the test reviews' texts too")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--programs", nargs="+", choices=("embfast", "gensim"), default=["embfast", "gensim"])
    add("--rivals-python", nargs="+", default=[sys.executable], help="interpreters, one of which has gensim")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--speed", action="store_true", help="only the speed")
    part.add_argument("--quality", action="store_true", help="only the accuracy; needs scikit-learn")
    add("--json", type=Path, help="by default bench/results/doc2vec-<date>.json; written after every run")
    args = parser.parse_args(argv)

    rival = with_gensim(args.rivals_python)
    pythons = {"embfast": sys.executable} | ({"gensim": rival} if rival else {})
    pythons = {name: python for name, python in pythons.items() if name in args.programs}
    path = args.json or ROOT / "bench" / "results" / f"doc2vec-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    machine = machine_and_commit()
    runs: dict[str, list[dict[str, Any]]] = {"speed": [], "quality": []}

    def keep(kind: str, row: dict[str, Any]) -> None:
        runs[kind].append(row)
        say(f"{kind}: {row}")
        result = {"settings": settings, "machine": machine, "rows": summarise(runs), "runs": runs}
        path.write_text(json.dumps(result, indent=1) + "\n")

    train = read_reviews(DATA / "imdb" / "imdb.train.tsv.xz", args.documents)
    test = read_reviews(DATA / "imdb" / "imdb.test.tsv.xz", args.documents)
    with tempfile.TemporaryDirectory() as directory:
        texts = Path(directory) / "train.txt", Path(directory) / "new.txt"
        if not args.quality:
            write_reviews(texts[0], train, 0)
            write_reviews(texts[1], random.Random(0).sample(test, min(args.inferred, len(test))), 0)
            for repeat in range(args.repeats):
                for mode in args.modes:
                    for program, python in pythons.items():
                        if mode == "both":  # its parts are measured
                            continue
                        call = command(program, python, mode, args, args.speed_epochs, 0)
                        row = run(call, *texts, "", 10)
                        row["words_per_cpu_s"] = row["tokens"] * args.speed_epochs / row["train_cpu_s"]
                        row["documents_per_cpu_s"] = row["inferred"] / row["infer_cpu_s"]
                        keep("speed", {"mode": mode, "program": program, "repeat": repeat, **row})
        for seed in range(0 if args.speed else args.seeds):
            labels, test_labels = (
                write_reviews(to, reviews, seed) for to, reviews in zip(texts, (train, test), strict=True)
            )
            if args.transductive:
                new = texts[1].read_text(encoding="utf-8")
                texts[0].write_text(texts[0].read_text(encoding="utf-8") + new, encoding="utf-8")
                texts[1].write_text(new[: new.index("\n") + 1], encoding="utf-8")
            for program, python in pythons.items():
                vectors: dict[str, Any] = {}
                for mode in args.modes:
                    row: dict[str, Any] = {}
                    if mode == "both" and {"dm", "dbow"} <= vectors.keys() and program == "gensim":
                        parts = vectors["dm"], vectors["dbow"]
                        vectors[mode] = {n: np.hstack([part[n] for part in parts]) for n in ("trained", "inferred")}
                    elif mode == "both" and program == "gensim":
                        continue
                    else:
                        output = str(Path(directory) / "vectors.npz")
                        row = run(command(program, python, mode, args, args.epochs, seed), *texts, output, args.epochs)
                        with np.load(output) as arrays:
                            vectors[mode] = dict(arrays)
                        if args.transductive:
                            vectors[mode]["inferred"] = vectors[mode]["trained"][len(labels) :]
                            vectors[mode]["trained"] = vectors[mode]["trained"][: len(labels)]
                    made = vectors[mode]
                    row["accuracy"] = accuracy(made["trained"], labels, made["inferred"], test_labels)
                    keep("quality", {"mode": mode, "program": program, "seed": seed, **row})
    show(summarise(runs), f"IMDB, {machine['cpu']}, embfast {machine['commit']}, {machine['date']}")
    say(f"written to {path}")


if __name__ == "__main__":
    main()
