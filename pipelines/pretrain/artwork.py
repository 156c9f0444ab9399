"""Fetch openly licensed drawings at pinned versions and render them into a cache.

Every drawing comes from an npm package ``@iconify-json/<style>``, which holds one drawing family
as SVG with its licence. ``PRETRAIN`` names the styles the backbone learns from; ``HELD_OUT`` names
the styles that only the benchmark shows. The two lists share no drawing family.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 128
DEFAULT_CACHE = Path("~/.cache/safe_ray/artwork").expanduser()


@dataclass(frozen=True)
class Style:
    """One npm package of drawings and who made them under which licence."""

    version: str
    family: str
    author: str
    licence: str
    kind: str  # "emoji" or "icon"
    url: str

    def package(self, style: str) -> str:
        """Name the package with its pinned version."""
        return f"@iconify-json/{style}@{self.version}"


_GITHUB = "https://github.com/"
_STREAMLINE = _GITHUB + "webalys-hq/streamline-vectors"

PRETRAIN: dict[str, Style] = {
    "twemoji": Style(
        "1.2.5", "twemoji", "Twitter", "CC-BY-4.0", "emoji", _GITHUB + "jdecked/twemoji"
    ),
    "noto": Style(
        "1.2.9", "noto", "Google Inc", "Apache-2.0", "emoji", _GITHUB + "googlefonts/noto-emoji"
    ),
    "noto-v1": Style(
        "1.2.5", "noto", "Google Inc", "Apache-2.0", "emoji", _GITHUB + "googlefonts/noto-emoji"
    ),
    "fluent-emoji": Style(
        "1.2.7", "fluent", "Microsoft", "MIT", "emoji", _GITHUB + "microsoft/fluentui-emoji"
    ),
    "fluent-emoji-flat": Style(
        "1.2.6", "fluent", "Microsoft", "MIT", "emoji", _GITHUB + "microsoft/fluentui-emoji"
    ),
    "fluent-emoji-high-contrast": Style(
        "1.2.6", "fluent", "Microsoft", "MIT", "emoji", _GITHUB + "microsoft/fluentui-emoji"
    ),
    "emojione": Style(
        "1.2.3", "emojione", "Emoji One", "CC-BY-4.0", "emoji", _GITHUB + "EmojiTwo/emojitwo"
    ),
    "emojione-monotone": Style(
        "1.2.1", "emojione", "Emoji One", "CC-BY-4.0", "emoji", _GITHUB + "EmojiTwo/emojitwo"
    ),
    "dinkie-icons": Style(
        "1.2.0", "dinkie", "atelierAnchor", "MIT", "emoji", _GITHUB + "atelier-anchor/dinkie-icons"
    ),
    "mdi": Style(
        "1.2.3",
        "mdi",
        "Pictogrammers",
        "Apache-2.0",
        "icon",
        _GITHUB + "Templarian/MaterialDesign",
    ),
    "tabler": Style(
        "1.2.41", "tabler", "Paweł Kuna", "MIT", "icon", _GITHUB + "tabler/tabler-icons"
    ),
    "ph": Style(
        "1.2.2", "phosphor", "Phosphor Icons", "MIT", "icon", _GITHUB + "phosphor-icons/core"
    ),
    "mingcute": Style(
        "1.2.8",
        "mingcute",
        "MingCute Design",
        "Apache-2.0",
        "icon",
        _GITHUB + "Richard9394/MingCute",
    ),
    "fa7-solid": Style(
        "1.2.5",
        "fontawesome",
        "Dave Gandy",
        "CC-BY-4.0",
        "icon",
        _GITHUB + "FortAwesome/Font-Awesome",
    ),
    "lucide": Style(
        "1.2.137", "lucide", "Lucide Contributors", "ISC", "icon", _GITHUB + "lucide-icons/lucide"
    ),
    "lucide-lab": Style(
        "1.2.3", "lucide", "Lucide Contributors", "ISC", "icon", _GITHUB + "lucide-icons/lucide-lab"
    ),
    "streamline-color": Style(
        "1.2.2", "streamline-core", "Streamline", "CC-BY-4.0", "icon", _STREAMLINE
    ),
    "streamline-plump-color": Style(
        "1.2.2", "streamline-plump", "Streamline", "CC-BY-4.0", "icon", _STREAMLINE
    ),
    "streamline-ultimate-color": Style(
        "1.2.2", "streamline-ultimate", "Streamline", "CC-BY-4.0", "icon", _STREAMLINE
    ),
    "streamline-freehand-color": Style(
        "1.2.2", "streamline-freehand", "Streamline", "CC-BY-4.0", "icon", _STREAMLINE
    ),
    "streamline-stickies-color": Style(
        "1.2.2", "streamline-stickies", "Streamline", "CC-BY-4.0", "icon", _STREAMLINE
    ),
    "marketeq": Style(
        "1.2.2",
        "marketeq",
        "Marketeq",
        "MIT",
        "icon",
        "https://icon-sets.iconify.design/marketeq/",
    ),
    "flat-color-icons": Style(
        "1.2.3", "flat-color-icons", "Icons8", "MIT", "icon", _GITHUB + "icons8/flat-color-icons"
    ),
    "fluent-color": Style(
        "1.2.21",
        "fluent-ui",
        "Microsoft Corporation",
        "MIT",
        "icon",
        _GITHUB + "microsoft/fluentui-system-icons",
    ),
}

HELD_OUT: dict[str, Style] = {
    "openmoji": Style(
        "1.2.29", "openmoji", "OpenMoji", "CC-BY-SA-4.0", "emoji", _GITHUB + "hfg-gmuend/openmoji"
    ),
    "fxemoji": Style(
        "1.2.2", "fxemoji", "Mozilla", "Apache-2.0", "emoji", _GITHUB + "mozilla/fxemoji"
    ),
    "streamline-emojis": Style(
        "1.2.4", "streamline-emojis", "Streamline", "CC-BY-4.0", "emoji", _STREAMLINE
    ),
    "game-icons": Style(
        "1.2.4", "game-icons", "GameIcons", "CC-BY-3.0", "icon", _GITHUB + "game-icons/icons"
    ),
    "icon-park": Style(
        "1.2.4", "icon-park", "ByteDance", "Apache-2.0", "icon", _GITHUB + "bytedance/IconPark"
    ),
    "hugeicons": Style(
        "1.2.35",
        "hugeicons",
        "Hugeicons",
        "MIT",
        "icon",
        "https://icon-sets.iconify.design/icon-sets/hugeicons/",
    ),
    "pinhead": Style(
        "1.2.28", "pinhead", "Quincy Morgan", "CC0-1.0", "icon", _GITHUB + "waysidemapping/pinhead"
    ),
}

EMOJI_NAMES = "emojibase-data@17.0.0"


def npm_pack(package: str, cache: Path) -> Path:
    """Fetch one npm package at a pinned version and unpack its JSON files."""
    folder = cache / "npm" / package.replace("/", "+")
    if (folder / "package.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "pack", "--silent", package],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    with tarfile.open(folder / done.stdout.split()[-1]) as bundle:
        for member in bundle.getmembers():
            if member.isfile() and member.name.endswith(".json"):
                target = folder / re.sub("^package/", "", member.name)
                if folder in target.resolve().parents or target.parent == folder:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = bundle.extractfile(member)
                    assert source is not None
                    target.write_bytes(source.read())
    return folder


def style_of(name: str) -> Style:
    """Look a style up in either list."""
    return PRETRAIN[name] if name in PRETRAIN else HELD_OUT[name]


def load_icons(style: str, cache: Path) -> dict[str, Any]:
    """Read the icon set of one style."""
    folder = npm_pack(style_of(style).package(style), cache)
    icons: dict[str, Any] = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    return icons


def load_categories(style: str, cache: Path) -> dict[str, list[str]]:
    """Read the category lists that some icon sets carry: category name to icon names."""
    path = npm_pack(style_of(style).package(style), cache) / "metadata.json"
    if not path.exists():
        return {}
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8")).get("categories", {})
    return found


def svg_of(icons: dict[str, Any], name: str) -> str:
    """Write one icon as a stand-alone SVG document (single-colour icons become black)."""
    icon = icons["icons"][name]
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}" color="black">{icon["body"]}</svg>'
    )


def render_svg(svg: str) -> np.ndarray:
    """Render an SVG document to a straight-alpha RGBA array of SIZE x SIZE."""
    import io

    import resvg_py
    from PIL import Image

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def render(style: str, names: list[str], cache: Path) -> np.ndarray:
    """Render named icons of a style, through a cache on disk, to uint8 [N, SIZE, SIZE, 4]."""
    folder = cache / "render"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{style}@{style_of(style).version}"
    array, index = folder / f"{stem}.npy", folder / f"{stem}.json"
    if index.exists() and array.exists():
        have = json.loads(index.read_text(encoding="utf-8"))
        if have == names:
            cached: np.ndarray = np.load(array, allow_pickle=False)
            return cached
    icons = load_icons(style, cache)
    images = np.stack([render_svg(svg_of(icons, name)) for name in names])
    np.save(array, images, allow_pickle=False)
    index.write_text(json.dumps(names), encoding="utf-8")
    return images


def main() -> None:
    """Fetch every package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where artwork is kept")
    arguments = parser.parse_args()
    cache = arguments.cache.expanduser()
    npm_pack(EMOJI_NAMES, cache)
    for name, style in {**PRETRAIN, **HELD_OUT}.items():
        print(style.package(name), len(load_icons(name, cache)["icons"]))


if __name__ == "__main__":
    main()
