"""Vectors of any model: embfast neighbors, analogy, plot, evaluate and convert."""

import codecs
import json
from pathlib import Path
from typing import Annotated

import typer

from embfast.cli.common import (
    FileFormat,
    Json,
    Quiet,
    VectorsFile,
    ask,
    check_apart,
    command,
    read_vectors,
    say,
    table,
    warnings_said,
)
from embfast.files import formats
from embfast.training.settings import check_place

Restrict = Annotated[int | None, typer.Option(help="Number of keys to search, the most frequent ones. Default: all.")]


@command("neighbors")
def neighbors(
    vectors: VectorsFile,
    words: Annotated[
        list[str] | None, typer.Argument(help="Words to look up. Without any, the program asks for them.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of neighbours per word.")] = 10,
    restrict: Restrict = None,
    format: FileFormat = None,
    json_output: Json = False,
) -> None:
    """Show the nearest neighbours of words, by cosine."""
    loaded = read_vectors(vectors, format)

    def answer(asked: list[str]) -> None:
        found = {word: loaded.most_similar(word, k=k, restrict=restrict) for word in asked}
        if json_output:
            print(json.dumps(found), flush=True)
        else:
            for word, rows in found.items():
                table(f"neighbours of {word}", ("word", "cosine"), [(key, f"{score:.4f}") for key, score in rows])

    if words:
        answer(words)
    else:
        ask("words (Ctrl-D ends): ", answer)


@command("analogy")
def analogy(
    vectors: VectorsFile,
    words: Annotated[
        list[str] | None,
        typer.Argument(help="A B C, for: A is to B as C is to ? Without any, the program asks for them."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of answers.")] = 5,
    restrict: Restrict = None,
    method: Annotated[str, typer.Option(help="Scoring method: add (3CosAdd) or mul (3CosMul).")] = "add",
    format: FileFormat = None,
    json_output: Json = False,
) -> None:
    """Answer "man is to king as woman is to ?": embfast analogy vectors.bin man king woman."""
    if words and len(words) != 3:
        raise ValueError(f"expected three words, as in man king woman, got {len(words)}")
    loaded = read_vectors(vectors, format)

    def answer(asked: list[str]) -> None:
        if len(asked) != 3:
            raise ValueError(f"expected three words, as in man king woman, got {len(asked)}")
        a, b, c = asked
        rows = loaded.most_similar([b, c], [a], k=k, restrict=restrict, method=method)
        if json_output:
            print(json.dumps(rows), flush=True)
        else:
            table(f"{a} is to {b} as {c} is to", ("word", "score"), [(key, f"{score:.4f}") for key, score in rows])

    if words:
        answer(words)
    else:
        ask("three words (Ctrl-D ends): ", answer)


@command("plot")
def plot(
    vectors: VectorsFile,
    words: Annotated[list[str] | None, typer.Argument(help="Words to draw. Default: the most frequent ones.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the picture: .png, .svg or .pdf.")] = Path(
        "words.png"
    ),
    top: Annotated[int, typer.Option(help="Number of most frequent words to draw.")] = 200,
    method: Annotated[str, typer.Option(help="Projection: pca, tsne, or umap (if umap-learn is installed).")] = "pca",
    clusters: Annotated[int, typer.Option(help="Number of k-means clusters to colour; 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of tsne, umap and clusters.")] = 0,
    format: FileFormat = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw words in a plane, similar words near each other; requires embfast[plot]."""
    from embfast.vectors.plot import plot as draw

    check_place(output)
    check_apart([output], [vectors])
    loaded = read_vectors(vectors, format)
    with warnings_said():
        places = draw(loaded, output, words or None, n=top, method=method, seed=seed, clusters=clusters)
    if json_output:
        print(json.dumps({"output": str(output), "places": places}))
    elif not quiet:
        say(f"drew {len(places):,} words; wrote {output}")


@command("evaluate")
def evaluate(
    vectors: VectorsFile,
    files: Annotated[
        list[Path],
        typer.Argument(help="Analogies (questions-words.txt), or word pairs with human scores (WordSim353, SimLex)."),
    ],
    restrict: Annotated[int, typer.Option(help="Number of most frequent keys among the answers; 0 for all.")] = 30_000,
    method: Annotated[str, typer.Option(help="Scoring method of analogies: add (3CosAdd) or mul (3CosMul).")] = "add",
    format: FileFormat = None,
    json_output: Json = False,
) -> None:
    """Score vectors on analogies and on word similarities; the first line of a file tells which it holds."""
    from embfast.evaluate import words as scores

    kinds = {path: _has_sections(path) for path in files}
    loaded = read_vectors(vectors, format)
    results = {
        path: scores.analogies(loaded, path, restrict=restrict, method=method)
        if has_sections
        else scores.similarity(loaded, path)
        for path, has_sections in kinds.items()
    }
    if json_output:
        kind = {True: "analogies", False: "similarity"}
        print(json.dumps({str(path): {"kind": kind[kinds[path]], **r.as_dict()} for path, r in results.items()}))
        return
    for path, result in results.items():
        if isinstance(result, scores.Analogies):
            sections = [*result.sections, result.semantic, result.syntactic, result.total]
            rows = [
                (s.name, f"{100 * s.accuracy:.2f} %" if s.total else "-", f"{s.correct}", f"{s.total}", f"{s.skipped}")
                for s in sections
            ]
            table(path.name, ("section", "accuracy", "correct", "asked", "skipped"), rows)
    pairs = [
        (path.name, f"{r.spearman:.4f}", f"{r.pearson:.4f}", f"{r.pairs}", f"{100 * r.oov:.1f} %")
        for path, r in results.items()
        if isinstance(r, scores.Similarity)
    ]
    if pairs:
        table("similarity", ("file", "Spearman", "Pearson", "pairs", "unknown"), pairs)


def _has_sections(path: Path) -> bool:
    """Whether the first non-blank line of a file begins with ":", as in analogy files."""
    with open(path, "rb") as stream:
        first = next((line.strip() for line in stream if line.strip()), b"").removeprefix(codecs.BOM_UTF8)
    if not first:
        raise ValueError(f"{path}: expected questions or word pairs, got an empty file")
    return first.startswith(b":")


@command("convert")
def convert(
    source: VectorsFile,
    target: Annotated[Path, typer.Argument(help="File to write; its extension selects the format.")],
    from_format: Annotated[str | None, typer.Option(help="Format of the source. Default: by the extension.")] = None,
    format: FileFormat = None,
    limit: Annotated[int | None, typer.Option(help="Number of rows to convert. Default: all.")] = None,
    errors: Annotated[str, typer.Option(help="Faulty rows: strict (an error), replace or skip.")] = "strict",
    encoding: Annotated[str, typer.Option(help="Encoding of the keys in the source.")] = "utf-8",
    quiet: Quiet = False,
) -> None:
    """Write vectors in another format."""
    formats.format_of(target, format)
    check_place(target)
    check_apart([target], [source])
    with warnings_said():
        vectors = read_vectors(source, from_format, limit=limit, errors=errors, encoding=encoding)
    vectors.save(target, format)
    if not quiet:
        say(f"wrote {len(vectors):,} vectors of dimension {vectors.dim} to {target}")
