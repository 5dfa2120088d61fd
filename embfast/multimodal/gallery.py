"""A web page of search results with their pictures: one file, no script, no server."""

import base64
import mimetypes
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from embfast.files.durable import replacing

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em; color: #222; background: #fff }}
h2 {{ font-size: 1.1em; margin: 2em 0 .6em }}
.row {{ display: flex; flex-wrap: wrap; gap: 12px }}
figure {{ margin: 0; width: 200px }}
img {{ width: 200px; height: 150px; object-fit: cover; background: #eee }}
figcaption {{ font-size: .8em; overflow-wrap: anywhere }}
li {{ margin: .2em 0 }}
.score {{ color: #777 }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def write_page(
    path: str | os.PathLike,
    images: Mapping[str, Iterable[tuple[str, float]]],
    captions: Mapping[str, Iterable[tuple[str, float]]] | None = None,
    *,
    folder: str | os.PathLike | None = None,
    embed: bool = True,
    title: str = "Search results",
) -> None:
    """Writes what search_images found for texts, and search_captions for images.

    Settings:
        images: for each text asked for the keys and scores of images, best first.
        captions: for each image asked for captions and scores.
        folder: where the image files are; a key is the name of a file below it, with or without its extension. Without
            a folder the page has keys alone.
        embed: put the files themselves into the page, about 4/3 of their size; otherwise links that are relative to
            where the page is.
        title: of the page.

    All keys and texts are escaped.

    Raises:
        FileNotFoundError: an image is not in folder.
        ValueError: a key leads out of folder.
    """
    files = None if folder is None else _Files(Path(folder), Path(path), embed)
    parts = []
    for text, found in images.items():
        figures = "".join(
            f"<figure>{_picture(files, key)}<figcaption>{escape(key)} <span class=score>{score:.3f}</span></figcaption>"
            "</figure>\n"
            for key, score in found
        )
        parts.append(f"<h2>{escape(text)}</h2>\n<div class=row>\n{figures}</div>")
    for key, found in (captions or {}).items():
        lines = "".join(f"<li>{escape(text)} <span class=score>{score:.3f}</span></li>\n" for text, score in found)
        parts.append(f"<h2>{escape(key)}</h2>\n{_picture(files, key)}\n<ol>\n{lines}</ol>")
    page = _PAGE.format(title=escape(title), body="\n".join(parts))
    with replacing(path) as stream:
        stream.write(page.encode("utf-8", "replace"))


class _Files:
    """Where a page finds the pictures of a folder."""

    def __init__(self, folder: Path, page: Path, embed: bool) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such directory of images")
        self.folder, self.embed = folder, embed
        self.page = page.absolute().parent
        self.by_stem: dict[Path, dict[str, str]] = {}  # of each folder that keys lead to

    def _stems(self, folder: Path) -> dict[str, str]:
        if folder not in self.by_stem:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file()) if folder.is_dir() else []
            self.by_stem[folder] = {os.path.splitext(name)[0]: name for name in reversed(names)}
        return self.by_stem[folder]

    def source(self, key: str) -> str:
        """What stands in the src of a picture."""
        file = self.folder / key
        if os.path.isabs(key) or os.path.normpath(key).split(os.sep)[0] == os.pardir:
            raise ValueError(f"image {key!r} leads out of {self.folder}")
        if not file.is_file():
            if file.name not in self._stems(file.parent):
                raise FileNotFoundError(f"{file}: no such image, neither with another extension")
            file = file.parent / self._stems(file.parent)[file.name]
        if not self.embed:
            return quote(Path(os.path.relpath(file.absolute(), self.page)).as_posix())
        kind = mimetypes.guess_type(file.name)[0] or {".webp": "image/webp"}.get(file.suffix.lower(), "image/jpeg")
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _picture(files: _Files | None, key: str) -> str:
    return "" if files is None else f'<img loading=lazy alt="{escape(key)}" src="{escape(files.source(key))}">'
