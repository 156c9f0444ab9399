"""Words for drawings: the emoji's name, its Unicode group and keywords, or the icon's slug."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.pretrain import artwork

# How a Unicode subgroup is said of one drawing; a subgroup without an entry is left out.
SUBGROUPS: dict[str, list[str]] = {
    "smiling": ["smiling face", "happy face", "smiley"],
    "affectionate": ["affectionate face", "face in love"],
    "with tongue": ["face with tongue out"],
    "with hands": ["face with hands"],
    "neutral / skeptical": ["neutral face", "skeptical face"],
    "sleepy": ["sleepy face", "tired face"],
    "unwell": ["unwell face", "sick face"],
    "with hats": ["face with a hat"],
    "with glasses": ["face with glasses"],
    "concerned": ["concerned face", "worried face", "sad face"],
    "negative": ["angry face", "negative face"],
    "costumed & creatures": ["creature", "costumed creature", "monster"],
    "cat faces": ["cat face", "cat emotion"],
    "monkey faces": ["monkey face"],
    "hearts": ["heart", "heart symbol"],
    "emotions": ["emotion symbol", "comic symbol"],
    "fingers open": ["hand gesture", "open hand"],
    "hand signs": ["hand sign", "hand gesture"],
    "finger pointing": ["pointing finger", "pointing hand"],
    "fingers closed": ["fist", "closed hand"],
    "hands": ["pair of hands", "hands"],
    "hand props": ["hand with a thing"],
    "body parts": ["body part"],
    "people": ["person", "portrait of a person"],
    "gestures": ["person gesturing", "person making a gesture"],
    "roles & careers": ["worker", "profession", "person at work"],
    "fantasy": ["fantasy character", "fantasy person"],
    "activities": ["person doing an activity", "activity"],
    "athletics": ["athlete", "person doing sport"],
    "resting": ["person resting"],
    "family": ["family", "couple"],
    "people symbols": ["silhouette of people"],
    "hair styles": ["hair style"],
    "mammals": ["mammal", "animal"],
    "birds": ["bird", "animal"],
    "amphibians": ["amphibian", "animal"],
    "reptiles": ["reptile", "animal"],
    "marine life": ["sea animal", "marine animal", "animal"],
    "bugs": ["bug", "insect", "animal"],
    "flowers": ["flower", "plant"],
    "other plants": ["plant"],
    "fruit": ["fruit", "food"],
    "vegetables": ["vegetable", "food"],
    "cooked / prepared": ["meal", "prepared food", "food"],
    "asian": ["asian food", "food"],
    "sweets & candy": ["dessert", "sweet", "candy", "food"],
    "seafood": ["dessert", "sweet", "candy", "food"],
    "drink": ["drink", "beverage"],
    "dishware": ["dishes", "tableware", "kitchenware"],
    "globes & maps": ["globe or map", "map"],
    "geographic locations": ["landscape", "geographic place"],
    "buildings": ["building"],
    "religious buildings": ["religious building"],
    "other places": ["place", "scenic place"],
    "ground transportation": ["road vehicle", "land vehicle", "vehicle"],
    "water transportation": ["boat", "ship", "vehicle"],
    "air transportation": ["aircraft", "flying vehicle", "vehicle"],
    "hotel": ["hotel sign"],
    "time": ["clock", "time"],
    "weather": ["weather", "sky and weather"],
    "events & holidays": ["celebration", "holiday", "party"],
    "award medals": ["award", "medal"],
    "sports": ["sport", "sports equipment"],
    "games & hobbies": ["game", "toy", "hobby"],
    "arts & crafts": ["art", "craft"],
    "clothing": ["clothing", "piece of clothing", "accessory"],
    "sound": ["sound", "sound symbol"],
    "music": ["music", "music equipment"],
    "musical instruments": ["musical instrument"],
    "phone": ["phone", "telephone"],
    "computer": ["computer", "computer hardware", "electronics"],
    "light, film & video": ["camera or light", "film and video equipment"],
    "books & paper": ["book", "paper"],
    "money": ["money"],
    "mail": ["mail", "letter or mailbox"],
    "writing": ["writing tool", "pen"],
    "office supplies": ["office supplies", "stationery"],
    "lock & keys": ["lock or key"],
    "tools": ["tool", "weapon or tool"],
    "science equipment": ["science equipment", "laboratory equipment"],
    "medical": ["medical equipment", "medicine", "health"],
    "household items": ["household item", "furniture", "bathroom item"],
    "other objects": ["object"],
    "transport signs": ["transport sign", "public sign"],
    "warning symbols": ["warning sign", "prohibition sign"],
    "arrows": ["arrow"],
    "religious symbols": ["religious symbol"],
    "zodiac signs": ["zodiac sign"],
    "audio & video symbols": ["media control button", "play button"],
    "gender signs": ["gender sign"],
    "math symbols": ["math symbol"],
    "punctuation": ["punctuation mark"],
    "currencies": ["currency symbol"],
    "other symbols": ["symbol"],
    "keypad characters": ["keypad number"],
    "alphanumeric symbols": ["letter symbol", "letters"],
    "shapes & colors": ["geometric shape", "coloured shape"],
    "other flags": ["flag"],
    "country flags": ["country flag", "flag", "national flag"],
    "subdivision flags": ["flag"],
}

TEMPLATES = (
    "{}",
    "{}",
    "a {}",
    "a drawing of a {}",
    "a drawing of a {}.",
    "an icon of a {}",
    "an icon of a {}.",
    "a picture of a {}",
    "an emoji of a {}",
    "a {} emoji",
    "a {} icon",
    "a pictogram of a {}",
    "a clip art of a {}",
    "an illustration of a {}.",
)

SKIN = re.compile(r"skin-tone|-tone\d|-(light|medium|dark|medium-light|medium-dark)$")
NOISE = frozenset(
    [
        "outline",
        "outlined",
        "line",
        "lines",
        "fill",
        "filled",
        "bold",
        "duotone",
        "thin",
        "light",
        "solid",
        "flat",
        "rounded",
        "round",
        "sharp",
        "broken",
        "linear",
        "twotone",
        "variant",
        "alt",
        "alternate",
        "small",
        "large",
        "duo",
        "regular",
        "color",
        "colour",
        "emoji",
        "icon",
        "16",
        "20",
        "24",
        "28",
        "32",
        "48",
    ]
)
DROP = frozenset(
    [
        "brand",
        "logo",
        "brands",
        "github",
        "google",
        "facebook",
        "twitter",
        "instagram",
        "microsoft",
        "windows",
        "android",
        "align",
        "border",
        "vector",
        "text",
        "format",
        "editor",
        "table",
        "column",
        "row",
        "input",
        "api",
        "sql",
        "css",
        "html",
        "abstract",
        "alpha",
        "letter",
        "numeric",
        "box",
        "off",
        "cancel",
        "remove",
        "minus",
        "plus",
        "add",
        "edit",
        "check",
        "x",
        "cog",
        "settings",
        "sync",
        "question",
        "exclamation",
        "lock",
        "unlock",
        "pause",
        "star",
        "heart",
        "up",
        "down",
        "left",
        "right",
        "search",
        "share",
        "bolt",
        "dollar",
        "euro",
        "pound",
        "yen",
        "rupee",
        "bitcoin",
        "discount",
        "spark",
        "code",
    ]
)
PARTS = 3


@dataclass(frozen=True)
class Emoji:
    """What is known of one emoji."""

    label: str
    tags: tuple[str, ...]
    subgroup: str
    group: str


@dataclass(frozen=True)
class Item:
    """One drawing for training: its icon name, its concept and all that is true of it."""

    icon: str
    concept: str
    facts: tuple[str, ...] = field(default=())


def slug(text: str) -> str:
    """Reduce a name to letters, digits and single hyphens."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", re.sub("['\u2019]", "", plain)).strip("-")


def load_emoji(cache: Path) -> dict[str, Emoji]:
    """Index emoji by every name they go by (CLDR label, Unicode name and short codes)."""
    folder = artwork.npm_pack(artwork.EMOJI_NAMES, cache) / "en"
    messages = json.loads((folder / "messages.json").read_text(encoding="utf-8"))
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    codes = json.loads((folder / "shortcodes" / "iamcal.json").read_text(encoding="utf-8"))
    index: dict[str, Emoji] = {}
    other: dict[str, Emoji] = {}
    for entry in data:
        if "group" not in entry:
            continue
        label = entry["label"].lower().replace("flag: ", "flag of ").replace("\u2019", "'")
        label = label.replace(":", "")
        emoji = Emoji(
            label=label,
            tags=tuple(entry.get("tags", ())),
            subgroup=subgroups[entry["subgroup"]],
            group=groups[entry["group"]],
        )
        index[slug(label)] = emoji
        names = codes.get(entry["hexcode"], [])
        names = [names] if isinstance(names, str) else list(names)
        symbol = entry["emoji"].replace("\ufe0f", "")
        if len(symbol) == 1:
            names.append(unicodedata.name(symbol, label))
        for name in names:
            other.setdefault(slug(name), emoji)
        if label.startswith("flag of "):
            other.setdefault("flag-for-" + slug(label[8:]), emoji)
            other.setdefault("flag-" + slug(label[8:]), emoji)
    for name, emoji in other.items():
        index.setdefault(name, emoji)
    for name, emoji in list(index.items()):
        index.setdefault(name.replace("-", ""), emoji)
    return index


def emoji_facts(emoji: Emoji) -> tuple[str, ...]:
    """Say what kind of thing an emoji is, then its keywords."""
    return tuple(dict.fromkeys([*SUBGROUPS.get(emoji.subgroup, []), *emoji.tags]))


def icon_words(name: str) -> list[str]:
    """Turn an icon's slug into words without style suffixes and numbers."""
    words = [word for word in name.split("-") if word and word not in NOISE]
    while words and words[-1].isdigit():
        words.pop()
    return words


def category_words(category: str) -> str:
    """Turn a category such as 'FoodDrink' into lower-case words."""
    return " ".join(re.sub(r"([a-z])([A-Z])", r"\1 \2", category).lower().replace("/", " ").split())


def emoji_items(style: str, index: dict[str, Emoji], names: list[str]) -> list[Item]:
    """Caption the drawings of an emoji style; skin-tone variants are left out."""
    items = []
    for name in names:
        base = re.sub(r"-(small|filled|alt)(?=-|$)", "", name) if style == "dinkie-icons" else name
        if SKIN.search(name) or "-small" in name:
            continue
        emoji = index.get(base)
        if emoji is None:
            if style == "dinkie-icons" or re.search(r"\d", base):
                continue
            items.append(Item(name, base.replace("-", " ")))
        else:
            items.append(Item(name, emoji.label, emoji_facts(emoji)))
    return items


def icon_items(
    style: str, index: dict[str, Emoji], names: list[str], categories: dict[str, list[str]]
) -> list[Item]:
    """Caption the drawings of an icon set whose names say what they show."""
    vocabulary = {
        word
        for emoji in index.values()
        for text in (emoji.label, *emoji.tags)
        for word in slug(text).split("-")
        if len(word) > 2
    }
    facts: dict[str, list[str]] = {}
    for category, members in categories.items():
        for name in members:
            facts.setdefault(name, []).append(category_words(category))
    items: list[Item] = []
    seen: dict[tuple[str, bool], int] = {}
    for name in names:
        words = icon_words(name)
        brand = any("brand" in fact or "logo" in fact for fact in facts.get(name, ()))
        if not words or len(words) > PARTS or brand:
            continue
        label = " ".join(words)
        emoji = index.get("-".join(words))
        if emoji is None:
            if DROP.intersection(words) or not vocabulary.intersection((words[0], words[-1])):
                continue
            if seen.setdefault((words[0], len(words) > 1), 0) >= PARTS * 2 and len(words) > 1:
                continue
            seen[words[0], len(words) > 1] += 1
        if style == "ph" and re.search("-(bold|light|thin)$", name):
            continue
        if style == "mingcute" and name.endswith("-line"):
            continue
        more = list(emoji_facts(emoji)) if emoji else []
        items.append(Item(name, label, tuple(dict.fromkeys([*facts.get(name, ()), *more]))))
    return items


def training_items(cache: Path) -> dict[str, list[Item]]:
    """Caption every pre-training style."""
    index = load_emoji(cache)
    found = {}
    for style, about in artwork.PRETRAIN.items():
        icons = artwork.load_icons(style, cache)["icons"]
        names = sorted(name for name, icon in icons.items() if not icon.get("hidden"))
        if about.kind == "emoji":
            found[style] = emoji_items(style, index, names)
        else:
            found[style] = icon_items(style, index, names, artwork.load_categories(style, cache))
    return found
