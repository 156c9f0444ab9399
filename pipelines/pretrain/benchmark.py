"""Cut the benchmark data sets from drawing families that pre-training never saw.

A drawing and its variants (skin tone, gender, numbered versions, near-identical renderings) belong
to one group, and a group belongs to one split. The cut depends on the seed and the pinned packages
alone.
"""

from __future__ import annotations

import argparse
import io
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.pretrain import artwork, captions

EMOJI_STYLES = ("openmoji", "fxemoji", "streamline-emojis")
ICON_STYLES = ("icon-park", "hugeicons", "pinhead", "game-icons")
ANIMALS = {
    "mammals", "birds", "amphibians", "reptiles", "marine life", "bugs", "cat faces",
    "monkey faces",
}  # fmt: skip
FOODS = {
    "fruit", "vegetables", "cooked / prepared", "asian", "sweets & candy", "seafood", "drink",
    "flowers", "other plants", "dishware",
}  # fmt: skip
PLACES = {
    "ground transportation", "water transportation", "air transportation", "buildings",
    "religious buildings", "other places", "weather", "geographic locations",
}  # fmt: skip
PEOPLE = {"smileys & emotion", "people & body"}
THINGS = {
    "clothing", "musical instruments", "tools", "science equipment", "household items", "computer",
    "phone", "light, film & video", "sports", "games & hobbies", "writing", "office supplies",
    "medical", "money", "lock & keys", "music", "sound", "arts & crafts", "events & holidays",
    "award medals", "books & paper", "mail",
}  # fmt: skip
# Words that may stand beside the class in an icon's name without changing what it shows.
BESIDE = frozenset(
    re.findall(
        r"\w+",
        "head face silhouette side front profile standing sitting swimming flying jumping leaping "
        "running charging one two three four on in water ground left right classic simple single "
        "big open closed top full fresh baby wild",
    )
)
GENDER = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|male|female)s?\b")

THEMES = {
    "Animals": "animal",
    "Arrows": "arrow",
    "Baby": "baby product",
    "Build": "building",
    "Charts": "chart",
    "Clothes": "piece of clothing",
    "Emoji": "emotion face",
    "Energy": "plant or energy source",
    "Foods": "food or drink",
    "Hands": "hand gesture",
    "Hardware": "electronic device",
    "Health": "medicine and health",
    "Makeups": "beauty product",
    "Money": "money",
    "Music": "music and audio",
    "Peoples": "person",
    "Sports": "sports equipment",
    "Travel": "travel and transport",
}
# Nouns that end enough names in the game icon set to make a class each.
GAME_NOUNS = re.findall(
    r"\w+",
    "shield skull sword heart star mask eye helmet helm armor gate bag hand tree bottle hat tower "
    "fish gun door ring bomb flower leaf shell axe boot crown egg book bridge bat knife key hammer "
    "spider house necklace shuriken bird car mushroom wheel glass robot snake dog spear bowl "
    "diamond boat saw bow trap explosion dagger pot ship moon hook bone arrow claw castle dragon "
    "drum trophy cannon box barrel candle flame fire sun cloud chest lamp gem potion fruit "
    "horn cat wolf head gauntlet staff scroll pistol rifle cup belt gloves crystal tooth "
    "feather chair throne table",
)


@dataclass(frozen=True)
class Drawing:
    """A drawing that may enter a data set."""

    style: str
    icon: str
    group: str


@dataclass
class Plan:
    """One data set: candidates per class and how many go where.

    Attributes:
        name: of the data set.
        train: training images per class.
        val: validation images per class.
        most: test images per class at most.
        least: test images per class at least; a class that cannot have them is left out.
        whole: whether every drawing of a group is used (else one stands for its group).
        classes: class name to its candidate drawings.
    """

    name: str
    train: int
    val: int
    most: int
    least: int
    whole: bool = False
    classes: dict[str, list[Drawing]] = field(default_factory=dict)


def numberless(name: str) -> str:
    """Drop the number that tells versions of one icon apart."""
    return re.sub(r"-?\d+$", "", name)


def held_out_names(style: str, cache: Path) -> list[str]:
    """List the icons of a held-out style, without skin tones and hidden ones."""
    icons = artwork.load_icons(style, cache)["icons"]
    shown = (name for name, icon in icons.items() if not icon.get("hidden"))
    return sorted(name for name in shown if not captions.SKIN.search(name))


def class_of(emoji: captions.Emoji) -> str:
    """Name the class of an emoji: an animal and its face are one class."""
    return emoji.label.removesuffix(" face") if emoji.subgroup in ANIMALS else emoji.label


def fine_plan(name: str, subgroups: set[str], cache: Path, train: int) -> Plan:
    """Collect drawings of single concepts over all held-out styles."""
    index = captions.load_emoji(cache)
    emoji = {e.label: e for e in index.values() if e.subgroup in subgroups}
    classes: dict[str, list[Drawing]] = {class_of(e): [] for e in emoji.values()}
    for style in EMOJI_STYLES:
        for icon in held_out_names(style, cache):
            found = index.get(icon) or index.get(numberless(icon))
            if found and found.label in emoji:
                drawing = Drawing(style, icon, f"{style}/{found.label}")
                classes[class_of(found)].append(drawing)
    for style in ICON_STYLES:
        for icon in held_out_names(style, cache):
            base = "-".join(captions.icon_words(numberless(icon)))
            words = base.split("-")
            kept = [word for word in words if word not in BESIDE]
            found = index.get(base) or index.get("-".join(kept))
            if found and class_of(found) in classes and found.label in emoji:
                group = f"{style}/{'-'.join(w for w in words if w not in ('one', 'two', 'three'))}"
                classes[class_of(found)].append(Drawing(style, icon, group))
    # An icon called "mouse" or "bat" may show the other thing of that name.
    for word in ("mouse", "bat"):
        if word in classes:
            classes[word] = [d for d in classes[word] if d.style in EMOJI_STYLES]
    return Plan(name, train, 1, 6, 1, classes=classes)


SKIPPED_KINDS = {
    "country flags", "subdivision flags", "other flags", "other objects", "other symbols", "hotel",
}  # fmt: skip


def kinds_plan(name: str, styles: tuple[str, ...], cache: Path, most: int) -> Plan:
    """Collect drawings by the Unicode subgroup of the emoji that they show."""
    index = captions.load_emoji(cache)
    classes: dict[str, list[Drawing]] = {}
    for style in styles:
        for icon in held_out_names(style, cache):
            if style in EMOJI_STYLES:
                emoji = index.get(icon) or index.get(numberless(icon))
            else:
                emoji = index.get("-".join(captions.icon_words(numberless(icon))))
            if emoji is None or emoji.subgroup in SKIPPED_KINDS:
                continue
            if emoji.subgroup in captions.SUBGROUPS:
                kind = captions.SUBGROUPS[emoji.subgroup][0]
                # What one emoji names, in any gender and in all styles, is one group.
                group = GENDER.sub("", emoji.label).strip()
                classes.setdefault(kind, []).append(Drawing(style, icon, group))
    return Plan(name, 16, 4, most, 5, whole=True, classes=classes)


def names_plan(cache: Path) -> Plan:
    """Collect the emoji that all three held-out emoji families drew, faces and people left out."""
    index = captions.load_emoji(cache)
    classes: dict[str, list[Drawing]] = {}
    for style in EMOJI_STYLES:
        for icon in held_out_names(style, cache):
            emoji = index.get(icon) or index.get(numberless(icon))
            if emoji and emoji.group not in PEOPLE and emoji.subgroup not in SKIPPED_KINDS:
                drawing = Drawing(style, icon, style)
                classes.setdefault(emoji.label, []).append(drawing)
    return Plan("emoji_names", 1, 1, 1, 1, classes=classes)


def themes_plan(cache: Path) -> Plan:
    """Collect the icons of IconPark by its own categories."""
    shown = set(held_out_names("icon-park", cache))
    classes: dict[str, list[Drawing]] = {}
    for category, icons in artwork.load_categories("icon-park", cache).items():
        if category in THEMES:
            classes[THEMES[category]] = [
                Drawing("icon-park", icon, re.sub(r"-(one|two|three|four|five|six)$", "", icon))
                for icon in sorted(icons)
                if icon in shown
            ]
    return Plan("icon_themes", 16, 4, 20, 5, classes=classes)


def game_plan(cache: Path) -> Plan:
    """Collect game icons by the noun that ends their name, where an emoji is called so too."""
    known = {emoji.label for emoji in captions.load_emoji(cache).values()}
    classes: dict[str, list[Drawing]] = {noun: [] for noun in GAME_NOUNS if noun in known}
    for icon in held_out_names("game-icons", cache):
        noun = icon.split("-")[-1]
        if noun in classes:
            classes[noun].append(Drawing("game-icons", icon, icon))
    return Plan("game_icons", 4, 1, 20, 2, classes=classes)


def plans(cache: Path) -> list[Plan]:
    """Give every data set of the benchmark."""
    return [
        fine_plan("pictogram_animals", ANIMALS, cache, 2),
        fine_plan("pictogram_foods", FOODS, cache, 2),
        fine_plan("pictogram_places", PLACES, cache, 2),
        fine_plan("pictogram_objects", THINGS, cache, 2),
        names_plan(cache),
        kinds_plan("emoji_kinds", EMOJI_STYLES, cache, 10),
        kinds_plan("icon_kinds", ICON_STYLES, cache, 10),
        themes_plan(cache),
        game_plan(cache),
    ]


class Pictures:
    """Held-out drawings on white, rendered once."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.icons = {style: artwork.load_icons(style, cache) for style in artwork.HELD_OUT}
        self.kept: dict[tuple[str, str], np.ndarray] = {}

    def rgb(self, drawing: Drawing) -> np.ndarray:
        """Render a drawing as uint8 RGB composited on white."""
        key = (drawing.style, drawing.icon)
        if key not in self.kept:
            svg = artwork.svg_of(self.icons[drawing.style], drawing.icon)
            rgba = artwork.render_svg(svg).astype(np.float32) / 255
            alpha = rgba[..., 3:]
            self.kept[key] = np.round((rgba[..., :3] * alpha + 1 - alpha) * 255).astype(np.uint8)
        return self.kept[key]

    def small(self, drawing: Drawing) -> np.ndarray:
        """Reduce a drawing to 32 x 32 for the near-duplicate check."""
        blocks = self.rgb(drawing).astype(np.float32).reshape(32, 4, 32, 4, 3)
        return blocks.mean((1, 3)).ravel()


def distinct(drawings: list[Drawing], pictures: Pictures, taken: list[np.ndarray]) -> list[Drawing]:
    """Keep the drawings that differ visibly from all that the data set holds already."""
    kept = []
    for drawing in drawings:
        small = pictures.small(drawing)
        if small.mean() > 252:  # nothing to see on white
            continue
        if taken and np.abs(np.stack(taken) - small).mean(1).min() < 6:
            continue
        taken.append(small)
        kept.append(drawing)
    return kept


def split_class(
    plan: Plan, drawings: list[Drawing], rng: random.Random
) -> dict[str, list[Drawing]] | None:
    """Deal the groups of one class to the splits, or give none when there are too few."""
    groups: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        groups.setdefault(drawing.group, []).append(drawing)
    order = sorted(groups)
    rng.shuffle(order)
    left = []
    for group in order:
        rng.shuffle(groups[group])
        left.append(groups[group] if plan.whole else groups[group][:1])
    dealt: dict[str, list[Drawing]] = {}
    for split, wanted in (("train", plan.train), ("val", plan.val)):
        dealt[split] = []
        while left and len(dealt[split]) < wanted:
            dealt[split] += left.pop(0)
        if len(dealt[split]) < wanted:
            return None
        dealt[split] = dealt[split][:wanted]
    dealt["test"] = [drawing for group in left for drawing in group][: plan.most]
    return dealt if len(dealt["test"]) >= plan.least else None


def cut(plan: Plan, pictures: Pictures, seed: int) -> list[dict[str, Any]]:
    """Deal every class of a plan and write its rows in their fixed order."""
    rows: list[dict[str, Any]] = []
    taken: list[np.ndarray] = []
    for name in sorted(plan.classes):
        rng = random.Random(f"{seed}/{plan.name}/{name}")
        mine = len(taken)
        drawings = distinct(plan.classes[name], pictures, taken)
        dealt = split_class(plan, drawings, rng)
        if dealt is None:
            del taken[mine:]
            continue
        for split, members in dealt.items():
            for drawing in members:
                about = artwork.HELD_OUT[drawing.style]
                data = io.BytesIO()
                picture = Image.fromarray(pictures.rgb(drawing))
                picture.save(data, "WEBP", lossless=True, quality=100, method=4)
                rows.append(
                    {
                        "image": data.getvalue(),
                        "class_name": name,
                        "split": split,
                        "path": f"{drawing.style}/{drawing.icon}.webp",
                        "style": drawing.style,
                        "source": f"{about.package(drawing.style)} {drawing.icon}",
                        "licence": about.licence,
                    }
                )
    return sorted(rows, key=lambda row: (row["split"], row["class_name"], row["path"]))


def main() -> None:
    """Write the Parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=artwork.DEFAULT_CACHE, help="artwork folder")
    parser.add_argument("--out", type=Path, required=True, help="where the Parquet files go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of data sets (default: all)")
    options = parser.parse_args()
    cache = options.cache.expanduser()
    pictures = Pictures(cache)
    options.out.mkdir(parents=True, exist_ok=True)
    for plan in plans(cache):
        if options.only and plan.name not in options.only:
            continue
        rows = cut(plan, pictures, options.seed)
        path = options.out / f"{plan.name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
        count = Counter(row["split"] for row in rows)
        names = sorted({str(row["class_name"]) for row in rows})
        print(f"{plan.name}: {len(names)} classes, {dict(count)}, {path.stat().st_size} bytes")
        print("   ", ", ".join(names))


if __name__ == "__main__":
    main()
