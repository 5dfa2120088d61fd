"""embfast multimodal: train joint spaces of images and captions, search in them and evaluate them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embfast.cli.common import Json, Run, app, ask, check_apart, command, losses, read_vectors, say, table
from embfast.documents.doc2vec import Doc2Vec
from embfast.multimodal.model import Multimodal
from embfast.training.settings import check_place

if TYPE_CHECKING:
    from embfast.evaluate.retrieval import Retrieval
    from embfast.multimodal.captions import Captions

multimodal = typer.Typer(help="Joint spaces of images and captions: train, search, evaluate.", no_args_is_help=True)
app.add_typer(multimodal, name="multimodal")

ImageVectors = Annotated[Path, typer.Argument(help="Vectors of the images, keyed by image, in any format.")]
CaptionsFile = Annotated[
    Path,
    typer.Argument(help="Captions: Karpathy's or COCO's JSON, Flickr8k.token.txt, tab-separated lines, or Parquet."),
]
Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="NAME=FILE: a file that lists the images of a split, one per line, as in Flickr8k."),
]
Missing = Annotated[str, typer.Option(help="Captions of images without a vector: error or skip.")]
Stem = Annotated[bool, typer.Option("--stem", help="Drop directory and extension from the image keys of the captions.")]


def read_captions(path: Path, splits: list[str] | None, stem: bool) -> "Captions":
    """Reads captions, and the files that list the images of each split."""
    from embfast.multimodal.captions import Captions

    return Captions.from_file(path, splits=split_files(splits), stem=stem)


def split_files(splits: list[str] | None) -> dict[str, Path]:
    """Parses NAME=FILE options into files by split name."""
    files = {}
    for given in splits or ():
        name, equals, file = given.partition("=")
        if not equals:
            raise ValueError(f"--split: expected NAME=FILE, such as train=trainImages.txt, got {given!r}")
        files[name] = Path(file)
    return files


@command("train", under=multimodal)
def multimodal_train(
    model: Multimodal,
    images: ImageVectors,
    captions: CaptionsFile,
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the model.")],
    splits: Splits = None,
    stem: Stem = False,
    missing: Missing = "error",
    words: Annotated[Path | None, typer.Option(help="Initial word vectors, in any format.")] = None,
    document_model: Annotated[Path | None, typer.Option(help="Saved Doc2Vec model, for --text doc2vec.")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Directory for the towers, as images.onnx and captions.onnx.")
    ] = None,
) -> None:
    """Train a joint space of images and captions.

    Trains on the images of the split "train" (or else on those in no split), chooses the best epoch by "dev" and
    evaluates retrieval on "test".
    """
    run.check(model, output)
    run.check_inputs(images, captions, words, document_model, *split_files(splits).values())
    if onnx is not None and not onnx.is_dir():
        raise FileNotFoundError(f"{onnx}: no such directory")
    vectors = read_vectors(images)
    read = read_captions(captions, splits, stem)
    run.say(f"{len(read):,} captions of {len(read.images):,} images; {len(vectors):,} vectors of size {vectors.dim}")
    more = {
        "missing": missing,
        "word_vectors": None if words is None else read_vectors(words),
        "document_model": None if document_model is None else Doc2Vec.load(document_model),
    }
    seconds = run.fit(model, vectors, captions=read, **more)
    model.save(output)
    if onnx is not None:
        for side in ("captions",) if model.loss == "mse" else ("images", "captions"):
            model.save_onnx(onnx / f"{side}.onnx", side)
    tested = model.evaluate(vectors, read.part("test"), missing=missing) if "test" in read.splits else None
    _report(run, model, read, tested, seconds, output)


def _report(
    run: Run, model: Multimodal, captions: "Captions", tested: "Retrieval | None", seconds: float, output: Path
) -> None:
    result = {
        "captions": len(captions),
        "words": len(model.words_),
        "loss": model.loss_,
        "validation": [one.as_dict() for one in model.validation_],
        "test": None if tested is None else tested.as_dict(),
        "train_s": seconds,
        "output": str(output),
        "settings": model.get_params(),
    }
    summary = [f"trained in {seconds:.1f} s; {losses(model)}"]
    if model.validation_:
        best = max(model.validation_, key=lambda one: one.recall_sum)
        summary.append(f"best epoch {model.validation_.index(best) + 1}, recall sum {best.recall_sum:.1f}")
    run.report(result, summary, output)
    if tested is not None and not run.quiet and not run.json_output:
        _show_retrieval(tested)


@command("search", under=multimodal)
def multimodal_search(
    model: Annotated[Path, typer.Argument(help="A model that `multimodal train` wrote.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to find images for. Without any, the command prompts for them.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help="Key of an image to find captions for.")] = None,
    k: Annotated[int, typer.Option("-k", help="Number of results per query.")] = 10,
    vectors: Annotated[
        Path | None, typer.Option(help="Vectors of the images to search. Default: the model's own.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="File for an HTML page of the results, with pictures.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Directory of the pictures, for --html.")] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Link to the pictures instead of embedding them in the page.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Find images for texts, and captions for images."""
    from embfast.multimodal.gallery import write_page

    if html is not None:
        check_place(html)
        check_apart((html,), (model, vectors))
    loaded = Multimodal.load(model)
    if vectors is not None:
        loaded.index(read_vectors(vectors))
    if not texts and not image:
        if html is not None:
            raise ValueError("--html needs texts or --image")
        ask(
            "a text (Ctrl-D ends): ",
            lambda words: _show_found(" ".join(words), loaded.search_images(" ".join(words), k)),
        )
        return
    found = {text: loaded.search_images(text, k) for text in texts or ()}
    captions = {key: loaded.search_captions(key, k) for key in image or ()}
    if html is not None:
        write_page(html, found, captions, folder=folder, embed=not link)
    if json_output:
        print(json.dumps({"images": found, "captions": captions, "html": None if html is None else str(html)}))
    elif html is not None:
        say(f"wrote {html}")
    else:
        for asked, rows in (*found.items(), *captions.items()):
            _show_found(asked, rows)


def _show_found(asked: str, rows: list[tuple[str, float]]) -> None:
    table(asked, ("found", "score"), [(key, f"{score:.4f}") for key, score in rows])


@command("evaluate", under=multimodal)
def multimodal_evaluate(
    model: Annotated[Path, typer.Argument(help="A model that `multimodal train` wrote.")],
    images: ImageVectors,
    captions: CaptionsFile,
    part: Annotated[str | None, typer.Option(help="Split to evaluate. Default: all images.")] = None,
    folds: Annotated[int, typer.Option(help="Average over this many equal parts: 5 for COCO's 5,000 test images.")] = 1,
    splits: Splits = None,
    stem: Stem = False,
    missing: Missing = "error",
    json_output: Json = False,
) -> None:
    """Evaluate retrieval of captions by images and of images by captions: recall, median and mean rank, mAP."""
    read = read_captions(captions, splits, stem)
    if part is not None:
        read = read.part(part)
    found = Multimodal.load(model).evaluate(read_vectors(images), read, folds, missing=missing)
    if json_output:
        print(json.dumps(found.as_dict()))
    else:
        _show_retrieval(found)


def _show_retrieval(found: Any) -> None:
    rows = [
        (
            name,
            *(f"{100 * recall:.1f}" for recall in (side.r1, side.r5, side.r10)),
            f"{side.median:g}",
            f"{side.mean:.1f}",
            f"{100 * side.map:.1f}",
            f"{side.queries}",
        )
        for name, side in (("captions of an image", found.captions), ("image of a caption", found.images))
    ]
    table(
        "retrieval: recall in percent, ranks of the first right answer, mAP in percent",
        ("", "R@1", "R@5", "R@10", "median", "mean", "mAP", "queries"),
        rows,
    )
