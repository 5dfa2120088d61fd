"""Vectors of images: embfast images."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embfast.cli.common import FileFormat, Json, OutputFile, Quiet, check_apart, command, report, say, typed
from embfast.files import formats
from embfast.training.settings import check_place

if TYPE_CHECKING:
    from embfast.images.estimator import ImageEmbedding

LAYER_OPTIONS = {"views", "combine", "l2", "power", "reduce", "whiten"}  # not with --fne
FNE_OPTIONS = {"lower", "upper"}  # only with --fne
NETWORK_OPTIONS = {"fne", "layer", "backbone", "weights", "at", "pool", "size"}  # not with --model


@command("images")
def images(
    pictures: Annotated[
        list[str], typer.Argument(help="A folder, image files, a .txt of paths, or .tar shards (s-{000..011}.tar).")
    ],
    output: OutputFile = None,
    fne: Annotated[bool, typer.Option("--fne", help="Full-Network Embedding: all layers, as -1, 0 and 1.")] = False,
    layer: Annotated[
        list[str] | None, typer.Option(help="Name or number of a layer. Several layers are concatenated.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Network: efficientnet_lite0, or a name that torchvision or timm knows.")
    ] = "efficientnet_lite0",
    weights: Annotated[Path | None, typer.Option(help="Weights of the network, a .safetensors or .pth file.")] = None,
    at: Annotated[
        str, typer.Option(help="Where a layer is taken: after or before the non-linearity, or at its own output.")
    ] = "after",
    pool: Annotated[str, typer.Option(help="Pooling over positions: mean, max, gem, grid or none.")] = "mean",
    views: Annotated[
        str, typer.Option(help="Crops and mirror images: one, flip, rotations or ten. Not with --fne.")
    ] = "one",
    combine: Annotated[
        str, typer.Option(help="Features of the views are averaged (mean) or concatenated (stack).")
    ] = "mean",
    l2: Annotated[bool, typer.Option(help="Scale vectors to length 1. Not with --fne.")] = True,
    power: Annotated[float, typer.Option(help="Features become sign(x) |x|^power. Not with --fne.")] = 1.0,
    reduce: Annotated[
        int, typer.Option(help="Number of principal components to keep; 0 disables PCA. Not with --fne.")
    ] = 0,
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Scale each component to variance 1. Needs --reduce.")
    ] = False,
    lower: Annotated[
        float, typer.Option(help="With --fne: features below this many standard deviations become -1.")
    ] = -0.25,
    upper: Annotated[
        float, typer.Option(help="With --fne: features above this many standard deviations become 1.")
    ] = 0.15,
    size: Annotated[
        int | None, typer.Option(help="Side of the network's input, in pixels. Default: that of its training.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 32,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str, typer.Option(help="Where to run the network: cpu, cuda, cuda:1, or auto (CUDA where a device is usable).")
    ] = "cpu",
    workers: Annotated[
        int, typer.Option(help="Number of processes that read images. 0 reads them in the main process.")
    ] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network by torch.compile.")] = False,
    errors: Annotated[
        str, typer.Option(help="If an image cannot be read: strict stops, skip leaves it out.")
    ] = "strict",
    model: Annotated[
        Path | None, typer.Option(help="Apply this saved model, fitted to other images. Its settings apply.")
    ] = None,
    save_model: Annotated[Path | None, typer.Option(help="Write the fitted model to this file, for --model.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps features. The same command resumes from it.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw a map of thumbnails by t-SNE to this .png.")] = None,
    format: FileFormat = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Embeds images by one layer of a pretrained network, or by all layers with --fne. Needs embfast[images].

    Keys are paths relative to the folder. Statistics (--fne, --reduce) come from these images, or from --model.
    """
    from embfast.images.pictures import encoder_of, open_pictures

    if output is None and save_model is None and picture is None:
        raise ValueError("nothing to write: pass -o FILE, --save-model FILE or --picture FILE")
    for path in (output, save_model, picture):
        if path is not None:
            check_place(path)
    check_apart((output, save_model, picture), [*map(Path, pictures), weights, model])
    _check_given(fne, model)
    if picture is not None:
        encoder_of(picture)
    if output is not None:
        format = formats.format_of(output, format)
    running = {
        "batch": batch,
        "precision": precision,
        "device": device,
        "workers": workers,
        "compile": compile,
        "errors": errors,
    }
    network = {"backbone": backbone, "weights": None if weights is None else str(weights), "at": at, "pool": pool}
    settings = network | running
    layers = [int(name) if name.lstrip("-").isdigit() else name for name in layer or []]
    if model is not None:
        made = _loaded(model).set_params(**running)
    elif fne:
        made = _new("FullNetworkEmbedding", size, layers=layers or "all", lower=lower, upper=upper, **settings)
    else:
        made = _new(
            "LayerEmbedding",
            size,
            layer=layers or "penultimate",
            views=views,
            combine=combine,
            l2=l2,
            power=power,
            reduce=reduce,
            whiten=whiten,
            **settings,
        )
    found = open_pictures(pictures if len(pictures) > 1 else pictures[0])
    if output is not None:
        formats.check_keys(found.keys, formats.format_of(output, format))
    started = time.perf_counter()
    options: dict[str, Any] = {"work": work, "progress": False if quiet else None}
    try:
        vectors = made.embed(found, **options) if model is not None else made.fit_embed(found, **options)
    except KeyboardInterrupt:
        kept = "nothing was kept (--work FOLDER would have)" if work is None else "the same command resumes from here"
        raise KeyboardInterrupt(f"; {kept}") from None
    seconds = time.perf_counter() - started
    if output is not None:
        vectors.save(output, format)
    if save_model is not None:
        made.save(save_model)
    if picture is not None:
        from embfast.images.map import plot_images

        plot_images(vectors, found, picture)
    result = {
        "images": len(vectors),
        "dim": vectors.dim,
        "broken": made.broken_,
        "seconds": seconds,
        "output": None if output is None else str(output),
        "model": None if save_model is None else str(save_model),
    }
    if not quiet and not json_output:
        for why in made.broken_.values():
            say(f"left out: {why}", "yellow")
    summary = f"{len(vectors):,} images, {vectors.dim:,} numbers each, in {seconds:.1f} s"
    report(json_output, quiet, result, [summary], output, save_model, picture)


def _check_given(fne: bool, model: Path | None) -> None:
    """ValueError if an option was given that would have no effect."""
    refused, where = (LAYER_OPTIONS, "--fne") if fne else (FNE_OPTIONS, "layers, only with --fne")
    if model is not None:
        refused, where = NETWORK_OPTIONS | LAYER_OPTIONS | FNE_OPTIONS, "--model, whose settings apply"
    if given := typed(*sorted(refused)):
        raise ValueError(f"{', '.join(f'--{name}' for name in given)} cannot be used with {where}")


def _loaded(path: Path) -> "ImageEmbedding":
    from embfast.images import embeddings
    from embfast.training.model_file import model_class

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    name = model_class(path)
    if name not in ("FullNetworkEmbedding", "LayerEmbedding"):
        raise ValueError(f"{path}: expected a model that --save-model wrote, got {name or 'something else'}")
    return getattr(embeddings, name).load(path)


def _new(kind: str, size: int | None, **settings: Any) -> "ImageEmbedding":
    from dataclasses import replace

    from embfast.images import embeddings

    made = getattr(embeddings, kind)(**settings)
    if size is not None:
        made.preparation = replace(made.network().preparation, size=size, resize=round(size * 256 / 224))
    return made
