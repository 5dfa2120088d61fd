"""A web page of search results with their pictures: one file, without scripts or a server."""

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
    path: str | os.PathLike[str],
    images: Mapping[str, Iterable[tuple[str, float]]],
    captions: Mapping[str, Iterable[tuple[str, float]]] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    embed: bool = True,
    title: str = "Search results",
) -> None:
    """Writes the results of search_images and search_captions to an HTML page.

    Args:
        images: keys and scores of images, best first, by query text.
        captions: captions and scores, best first, by key of the query image.
        folder: directory of the image files. A key is the path of a file below it, with or without the extension.
            Without a folder the page shows keys only.
        embed: embed the image files in the page, at about 4/3 of their size. Otherwise the page links to them by
            relative paths.
        title: title of the page.

    All keys and texts are escaped.

    Raises:
        FileNotFoundError: an image is not in the folder.
        ValueError: a key leads out of the folder.
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
    """The image files of a folder, as a page refers to them."""

    def __init__(self, folder: Path, page: Path, embed: bool) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such directory of images")
        self.folder, self.embed = folder, embed
        self.page = page.absolute().parent
        self.by_stem: dict[Path, dict[str, str]] = {}  # file names by stem, for each directory that keys lead to

    def _stems(self, folder: Path) -> dict[str, str]:
        if folder not in self.by_stem:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file()) if folder.is_dir() else []
            self.by_stem[folder] = {os.path.splitext(name)[0]: name for name in reversed(names)}
        return self.by_stem[folder]

    def source(self, key: str) -> str:
        """The src attribute of a picture."""
        file = self.folder / key
        if os.path.isabs(key) or os.path.normpath(key).split(os.sep)[0] == os.pardir:
            raise ValueError(f"image {key!r} leads out of {self.folder}")
        if not file.is_file():
            if file.name not in self._stems(file.parent):
                raise FileNotFoundError(f"{file}: no such image, with this or another extension")
            file = file.parent / self._stems(file.parent)[file.name]
        if not self.embed:
            return quote(Path(os.path.relpath(file.absolute(), self.page)).as_posix())
        kind = mimetypes.guess_type(file.name)[0] or {".webp": "image/webp"}.get(file.suffix.lower(), "image/jpeg")
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _picture(files: _Files | None, key: str) -> str:
    return "" if files is None else f'<img loading=lazy alt="{escape(key)}" src="{escape(files.source(key))}">'
