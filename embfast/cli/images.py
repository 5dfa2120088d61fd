"""Vectors of images: embfast images."""

import time
from pathlib import Path
from typing import Annotated

import typer

from embfast.cli.common import FileFormat, Json, OutputFile, Quiet, check_apart, command, report, say, typed
from embfast.files import formats
from embfast.training.settings import check_place


@command("images")
def images(
    pictures: Annotated[
        list[str], typer.Argument(help="A folder, image files, a .txt of paths, or .tar shards (s-{000..011}.tar).")
    ],
    output: OutputFile = None,
    fne: Annotated[bool, typer.Option("--fne", help="All layers, as -1, 0 and 1: Full-Network Embedding.")] = False,
    layer: Annotated[
        list[str] | None, typer.Option(help="A layer by name or number; several are put one after the other.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="efficientnet_lite0, or a name that torchvision or timm knows.")
    ] = "efficientnet_lite0",
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone: .safetensors or .pth.")] = None,
    at: Annotated[str, typer.Option(help="after or before the non-linearity, or the layer's own output.")] = "after",
    pool: Annotated[str, typer.Option(help="mean, max, gem, grid or none.")] = "mean",
    views: Annotated[str, typer.Option(help="one, flip, rotations or ten; not with --fne.")] = "one",
    combine: Annotated[str, typer.Option(help="mean or stack: what is done with the views.")] = "mean",
    l2: Annotated[bool, typer.Option(help="Vectors of length 1; not with --fne.")] = True,
    power: Annotated[float, typer.Option(help="sign(x) |x|^power; not with --fne.")] = 1.0,
    reduce: Annotated[int, typer.Option(help="Numbers that PCA leaves; 0 for none of it; not with --fne.")] = 0,
    whiten: Annotated[bool, typer.Option("--whiten", help="PCA whitens.")] = False,
    lower: Annotated[float, typer.Option(help="With --fne: -1 below it, in standard deviations.")] = -0.25,
    upper: Annotated[float, typer.Option(help="With --fne: 1 above it.")] = 0.15,
    size: Annotated[
        int | None, typer.Option(help="Pixels of the square; as the network was trained if not given.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 32,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; CUDA where there is one.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    errors: Annotated[str, typer.Option(help="Images that cannot be read: strict (an error) or skip.")] = "strict",
    model: Annotated[
        Path | None, typer.Option(help="Use this saved model, fitted to other images; its settings hold.")
    ] = None,
    save_model: Annotated[
        Path | None, typer.Option(help="Write what was learned of these images, for --model.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Keep features in this folder; the same command again goes on from there.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw thumbnails by t-SNE to this .png.")] = None,
    format: FileFormat = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Vectors of images: a layer of a pretrained network, or all of them with --fne; needs embfast[images].

    Keys are paths below the folder. Statistics (--fne, --reduce) are those of the images given, or of --model.
    """
    from dataclasses import replace

    from embfast.images.embeddings import FullNetworkEmbedding, ImageEmbedding, LayerEmbedding
    from embfast.images.pictures import encoder_of, open_pictures
    from embfast.training.model_file import model_class

    if output is None and save_model is None and picture is None:
        raise ValueError("nothing to write: pass -o FILE, --save-model FILE or --picture FILE")
    for path in (output, save_model, picture):
        if path is not None:
            check_place(path)
    check_apart((output, save_model, picture), [*map(Path, pictures), weights, model])
    of_layers, of_fne = {"views", "combine", "l2", "power", "reduce", "whiten"}, {"lower", "upper"}
    refused, where = (of_layers, "--fne") if fne else (of_fne, "layers, only with --fne")
    if model is not None:
        of_networks = {"fne", "layer", "backbone", "weights", "at", "pool", "size"}
        refused, where = of_networks | of_layers | of_fne, "--model, whose settings hold"
    if given := typed(*sorted(refused)):
        raise ValueError(f"{', '.join(f'--{name}' for name in given)} cannot be used with {where}")
    if picture is not None:
        encoder_of(picture)
    if output is not None:
        format = formats.format_of(output, format)
    layers = [int(name) if name.lstrip("-").isdigit() else name for name in layer or []]
    kinds = {kind.__name__: kind for kind in (FullNetworkEmbedding, LayerEmbedding)}
    running = {
        "batch": batch,
        "precision": precision,
        "device": device,
        "workers": workers,
        "compile": compile,
        "errors": errors,
    }
    made: ImageEmbedding
    if model is not None:
        if not model.exists():
            raise FileNotFoundError(f"{model}: no such file")
        name = model_class(model)
        if name not in kinds:
            raise ValueError(f"{model}: expected a model that --save-model wrote, got {name or 'something else'}")
        made = kinds[name].load(model).set_params(**running)
    else:
        network = {"backbone": backbone, "weights": None if weights is None else str(weights), "at": at, "pool": pool}
        if fne:
            made = FullNetworkEmbedding(**network, layers=layers or "all", lower=lower, upper=upper, **running)
        else:
            made = LayerEmbedding(
                **network,
                layer=layers or "penultimate",
                views=views,
                combine=combine,
                l2=l2,
                power=power,
                reduce=reduce,
                whiten=whiten,
                **running,
            )
        if size is not None:
            made.preparation = replace(made.network().preparation, size=size, resize=round(size * 256 / 224))
    found = open_pictures(pictures if len(pictures) > 1 else pictures[0])
    if output is not None:
        formats.check_keys(found.keys, format)
    started = time.perf_counter()
    options = {"work": work, "progress": False if quiet else None}
    try:
        vectors = made.embed(found, **options) if model is not None else made.fit_embed(found, **options)
    except KeyboardInterrupt:
        kept = "nothing was kept (--work FOLDER would have)" if work is None else "the same command goes on from here"
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
