"""Write the attribution of everything in the package that others drew."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from pipelines.pretrain.artwork import EMOJI_NAMES, HELD_OUT, PRETRAIN, Style

LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "ISC": "https://opensource.org/license/isc-license-txt",
    "MIT": "https://opensource.org/license/mit",
}

HEAD = """# Attribution

## Images in the data sets

The Parquet files hold drawings of these families. Each was rendered from SVG at 128 px on white
and stored as lossless WebP; nothing else was changed. Every row names its style, the npm package
and icon that it was rendered from, and its licence, which goes on to apply to that image:
adaptations of OpenMoji drawings, for one, are to be shared under CC BY-SA 4.0. The game icons are
the work of Lorc, Delapouite and the other contributors of https://game-icons.net.

"""

MIDDLE = """
## Drawings that the backbone learned from

None of these images is in the package; the weights of `pictogram-rn-128` were trained on them.

"""

TAIL = f"""
The names, keywords, groups and subgroups of emoji in the captions are from npm package
`{EMOJI_NAMES}` (MIT, https://github.com/milesj/emojibase), which has them from the Unicode CLDR
(Unicode-3.0, https://www.unicode.org/license.txt).

## Licence texts

"""


def table(styles: Mapping[str, Style]) -> str:
    """Lay styles out as a Markdown table."""
    lines = ["| Package | Author | Licence | Origin |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {about.package(name)} | {about.author} | {about.licence} | {about.url} |"
        for name, about in styles.items()
    ]
    return "\n".join(lines) + "\n"


def attribution() -> str:
    """Write the whole document."""
    used = sorted({about.licence for about in [*PRETRAIN.values(), *HELD_OUT.values()]})
    texts = "".join(f"- {name}: {LICENCES[name]}\n" for name in used)
    return HEAD + table(HELD_OUT) + MIDDLE + table(PRETRAIN) + TAIL + texts


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    options = parser.parse_args()
    options.out.write_text(attribution(), encoding="utf-8")


if __name__ == "__main__":
    main()
