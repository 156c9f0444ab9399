"""Contrastive training of the embedded backbone on captioned drawings, on a CPU.

The run is a fixed number of steps at growing image sizes. Every step draws its batch from a
generator seeded by the seed and the step, so a resumed run sees the batches it would have seen.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.pretrain import artwork, captions

MODEL = "pictogram-rn-128"
CONFIG = Path(__file__).parents[2] / "safe_ray" / "embedded" / f"{MODEL}.json"
NO_FLIP = frozenset(
    {"flag", "arrow", "letters", "keypad number", "math symbol", "punctuation mark"}
)
MANY_VARIANTS = frozenset(
    {"family", "country flag", "worker", "athlete", "person gesturing", "person doing an activity"}
)


@dataclass
class Corpus:
    """All drawings in memory with what is true of each."""

    images: Tensor  # uint8 [N, 4, S, S]
    concepts: list[str]
    keys: list[frozenset[str]]
    facts: list[list[str]]
    weights: Tensor
    mono: Tensor
    flip: Tensor


def load_corpus(cache: Path) -> Corpus:
    """Render every pre-training style and lay the drawings out in one tensor."""
    items = captions.training_items(cache)
    total = sum(len(found) for found in items.values())
    images = torch.empty((total, 4, artwork.SIZE, artwork.SIZE), dtype=torch.uint8)
    concepts: list[str] = []
    keys: list[frozenset[str]] = []
    facts: list[list[str]] = []
    weights: list[float] = []
    mono: list[bool] = []
    flip: list[bool] = []
    at = 0
    for style, found in items.items():
        emoji = artwork.PRETRAIN[style].kind == "emoji"
        rendered = artwork.render(style, [item.icon for item in found], cache)
        images[at : at + len(found)] = torch.from_numpy(rendered).permute(0, 3, 1, 2)
        at += len(found)
        for item, picture in zip(found, rendered, strict=True):
            known = set(item.facts)
            concepts.append(item.concept)
            facts.append(list(item.facts))
            keys.append(frozenset({item.concept} | known))
            seen = picture[picture[..., 3] > 60][:, :3]
            mono.append(bool(seen.size == 0 or seen.max() < 12))
            words = set(item.concept.split())
            flip.append(not (known & NO_FLIP or words & {"left", "right", "arrow", "letter"}))
            few = 0.35 if known & MANY_VARIANTS else 1.0
            weights.append(few if emoji else (0.6 if len(known) > 2 else 0.35))
    return Corpus(
        images,
        concepts,
        keys,
        facts,
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(mono),
        torch.tensor(flip),
    )


def normalise(views: Tensor) -> Tensor:
    """Apply open_clip's default mean and deviation, which its own transform uses for this model."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    return (views - mean) / torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


def affine_grid(
    count: int, flip: Tensor, size: int, gen: torch.Generator, strength: float
) -> Tensor:
    """Draw a random rotation, scale, aspect, shift and flip per image as a sampling grid."""
    angle = (torch.rand(count, generator=gen) * 2 - 1) * math.radians(18 * strength)
    angle = angle * (torch.rand(count, generator=gen) < 0.7)
    low, high = strength * math.log(0.8), strength * math.log(1.5)
    scale = torch.exp(torch.empty(count).uniform_(low, high, generator=gen))
    aspect = torch.exp(torch.empty(count).uniform_(-0.15, 0.15, generator=gen) * strength)
    shift = (torch.rand((count, 2), generator=gen) * 2 - 1) * 0.18 * strength
    mirror = torch.where(flip & (torch.rand(count, generator=gen) < 0.5), -1.0, 1.0)
    theta = torch.empty(count, 2, 3)
    theta[:, 0, 0] = mirror * scale * aspect * angle.cos()
    theta[:, 0, 1] = -mirror * scale * angle.sin()
    theta[:, 1, 0] = scale * angle.sin()
    theta[:, 1, 1] = scale / aspect * angle.cos()
    theta[:, :, 2] = shift
    return F.affine_grid(theta, [count, 4, size, size], align_corners=False)


def backgrounds(count: int, size: int, gen: torch.Generator, strength: float) -> Tensor:
    """Draw white, flat or gradient backgrounds, mostly light."""
    first = torch.rand((count, 3, 1, 1), generator=gen)
    light = (torch.rand((count, 1, 1, 1), generator=gen) < 0.6).float()
    first = light * (0.6 + 0.4 * first) + (1 - light) * first
    second = (first + 0.5 * (torch.rand((count, 3, 1, 1), generator=gen) - 0.5)).clamp(0, 1)
    ramp = torch.linspace(0, 1, size)
    across = torch.rand((count, 1, 1, 1), generator=gen) < 0.5
    ramp = torch.where(across, ramp.view(1, 1, 1, -1), ramp.view(1, 1, -1, 1))
    graded = (torch.rand((count, 1, 1, 1), generator=gen) < 0.4).float()
    colour = first + (second - first) * ramp * graded
    white = torch.rand((count, 1, 1, 1), generator=gen) < 1 - 0.5 * strength
    return torch.where(white, torch.ones(()), colour)


def augment(
    images: Tensor,
    mono: Tensor,
    flip: Tensor,
    size: int,
    gen: torch.Generator,
    strength: float = 1.0,
) -> Tensor:
    """Turn RGBA drawings into normalised RGB views of one size."""
    count = images.shape[0]
    pixels = images.float().div_(255)
    if size * 2 <= images.shape[-1]:
        pixels = F.avg_pool2d(pixels, 2)
    alpha = pixels[:, 3:]
    premultiplied = torch.cat([pixels[:, :3] * alpha, alpha], 1)
    grid = affine_grid(count, flip, size, gen, strength)
    moved = F.grid_sample(premultiplied, grid, align_corners=False, padding_mode="zeros")
    colour, alpha = moved[:, :3], moved[:, 3:]
    ground = backgrounds(count, size, gen, strength)
    # Single-colour drawings take a foreground colour that stands out from the background.
    ink = torch.rand((count, 3, 1, 1), generator=gen)
    mean = ground.mean((1, 2, 3), keepdim=True)
    ink = torch.where(mean > 0.5, ink * 0.6 * mean, 1 - (1 - ink) * 0.6 * (1 - mean))
    black = (torch.rand((count, 1, 1, 1), generator=gen) < 0.4) & (mean > 0.5)
    ink = torch.where(black, torch.zeros(()), ink)
    colour = torch.where(mono.view(-1, 1, 1, 1), ink * alpha, colour)
    view = colour + ground * (1 - alpha)
    # Colour: saturation (sometimes none), channel gains, contrast and brightness.
    grey = view.mean(1, keepdim=True)
    saturation = torch.empty((count, 1, 1, 1)).uniform_(0.4, 1.4, generator=gen)
    saturation = saturation * (torch.rand((count, 1, 1, 1), generator=gen) > 0.15 * strength)
    view = grey + (view - grey) * saturation
    gain = 1 + 0.2 * strength * (torch.rand((count, 3, 1, 1), generator=gen) * 2 - 1)
    contrast = torch.empty((count, 1, 1, 1)).uniform_(0.7, 1.2, generator=gen)
    view = ((view * gain - 0.5) * contrast + 0.5).clamp(0, 1)
    negative = torch.rand((count, 1, 1, 1), generator=gen) < 0.04 * strength
    view = torch.where(negative, 1 - view, view)
    return normalise(view).contiguous(memory_format=torch.channels_last)


def encode_images(model: nn.Module, views: Tensor) -> Tensor:
    """Embed images of any size: the pool's positions are interpolated to the feature grid."""
    visual: Any = model.visual
    x = visual.stem(views)
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    pool = visual.attnpool
    side = x.shape[-1]
    position = pool.positional_embedding
    full = math.isqrt(position.shape[0] - 1)
    if side != full:
        table = position[1:].T.reshape(1, -1, full, full)
        table = F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False)
        position = torch.cat([position[:1], table.flatten(2)[0].T])
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + position[:, None]
    out, _ = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=model.training,
        need_weights=False,
    )
    return F.normalize(out[0], dim=-1)


def encode_texts(model: Any, tokens: Tensor) -> Tensor:
    """Embed captions, cut to the longest of the batch."""
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(-1)]
    return F.normalize(x @ model.text_projection, dim=-1)


class Captioner:
    """Writes captions and keeps their tokens."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.tokenizer = open_clip.get_tokenizer(MODEL)
        self.kept: dict[str, Tensor] = {}

    def tokens(self, texts: list[str]) -> Tensor:
        """Tokenise, once per distinct caption."""
        for text in texts:
            if text not in self.kept:
                self.kept[text] = self.tokenizer([text])[0]
        return torch.stack([self.kept[text] for text in texts])

    def write(self, items: list[int], rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """Say the name, or something that is true, of each item; give the key and the caption."""
        keys, texts = [], []
        for item in items:
            facts = self.corpus.facts[item]
            name = self.corpus.concepts[item]
            key = name
            if facts and rng.random() < 0.35:
                # The kind of thing comes first in the facts: favour it over keywords.
                key = facts[int(len(facts) * rng.random() ** 2)]
            template = captions.TEMPLATES[int(rng.integers(len(captions.TEMPLATES)))]
            keys.append(key)
            texts.append(template.format(key))
        return keys, texts


def truth(corpus: Corpus, items: list[int], keys: list[str]) -> Tensor:
    """Mark which captions hold for which drawings."""
    columns: dict[str, list[int]] = {}
    for column, key in enumerate(keys):
        columns.setdefault(key, []).append(column)
    holds = torch.zeros(len(items), len(keys))
    for row, item in enumerate(items):
        for key in corpus.keys[item]:
            for column in columns.get(key, ()):
                holds[row, column] = 1.0
    return holds


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, holds: Tensor) -> Tensor:
    """Match images and captions where several captions may hold for one image."""
    logits = scale * image @ text.T
    rows = holds / holds.sum(1, keepdim=True)
    to_text = -(rows * F.log_softmax(logits, 1)).sum(1).mean()
    used = holds.sum(0) > 0
    columns = holds[:, used] / holds[:, used].sum(0)
    to_image = -(columns * F.log_softmax(logits[:, used], 0)).sum(0).mean()
    return (to_text + to_image) / 2


class Bridge(nn.Module):
    """One vector per name and fact, which images and captions both learn to point at.

    It gives every step the whole vocabulary as negatives and is thrown away after training.
    """

    def __init__(self, corpus: Corpus, model: Any, captioner: Captioner) -> None:
        super().__init__()
        words = sorted(set().union(*corpus.keys))
        self.row = {word: at for at, word in enumerate(words)}
        with torch.no_grad():
            parts = [words[at : at + 512] for at in range(0, len(words), 512)]
            start = torch.cat([encode_texts(model, captioner.tokens(part)) for part in parts])
        self.table = nn.Parameter(start)
        self.scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.concept = torch.tensor([self.row[name] for name in corpus.concepts])
        self.facts = [[self.row[fact] for fact in facts] for facts in corpus.facts]

    def forward(self, image: Tensor, text: Tensor, items: list[int], keys: list[str]) -> Tensor:
        """Score images against their name and facts, and captions against what they say."""
        bank = F.normalize(self.table, dim=-1)
        scale = self.scale.exp()
        logits = F.log_softmax(scale * image @ bank.T, 1)
        name = self.concept[items]
        score = 0.7 * logits.gather(1, name[:, None])[:, 0]
        rest = [
            logits[at, self.facts[item]].mean() if self.facts[item] else logits[at, name[at]]
            for at, item in enumerate(items)
        ]
        said = torch.tensor([self.row[key] for key in keys])
        return -(score + 0.3 * torch.stack(rest)).mean() + F.cross_entropy(
            scale * text @ bank.T, said
        )


def probe(model: Any, captioner: Captioner, folder: Path, size: int) -> dict[str, float]:
    """Measure zero-shot accuracy on the validation split of every benchmark data set."""
    import pyarrow.parquet as pq
    from PIL import Image

    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=["image", "class_name", "split"]).to_pylist()
        names = sorted({row["class_name"] for row in table})
        rows = [row for row in table if row["split"] == "val"]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows])
        views = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
        if size != views.shape[-1]:
            views = F.interpolate(views, size=size, mode="bilinear", antialias=True)
        model.eval()
        with torch.no_grad():
            texts = ["a drawing of a {}.", "an icon of a {}.", "{}"]
            bank = [
                encode_texts(model, captioner.tokens([t.format(n) for n in names])) for t in texts
            ]
            image = torch.cat([encode_images(model, normalise(v)) for v in views.split(256)])
        model.train()
        guess = (image @ torch.stack(bank).mean(0).T).argmax(1).tolist()
        right = [names[g] == row["class_name"] for g, row in zip(guess, rows, strict=True)]
        found[path.stem] = round(sum(right) / len(right), 3)
    return found


Parts = dict[str, nn.Module]


def save(
    folder: Path, step: int, parts: Parts, optim: torch.optim.Optimizer, run: dict[str, Any]
) -> None:
    """Write a checkpoint to go on from: tensors as safetensors, the rest as JSON."""
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    for index, state in optim.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{k}": v.contiguous() for k, v in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "checkpoint.part")
    (folder / "checkpoint.part").rename(folder / "checkpoint.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps({"step": step, **run}), encoding="utf-8")


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Read one part of a checkpoint."""
    tensors = load_file(folder / "checkpoint.safetensors")
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def restore(folder: Path, parts: Parts, optim: torch.optim.Optimizer) -> int:
    """Read a checkpoint back and give the step to go on from."""
    for name, part in parts.items():
        part.load_state_dict(weights(folder, name))
    state = optim.state_dict()
    state["state"] = {}
    for key, value in weights(folder, "optim").items():
        index, name = key.split(".")
        state["state"].setdefault(int(index), {})[name] = value
    optim.load_state_dict(state)
    step: int = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["step"]
    return step


def phases(text: str) -> list[tuple[int, int]]:
    """Read 'size:steps,size:steps'."""
    return [(int(part.split(":")[0]), int(part.split(":")[1])) for part in text.split(",")]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cache", type=Path, default=artwork.DEFAULT_CACHE, help="where artwork is kept")
    add("--run", type=Path, required=True, help="folder for checkpoints and the log")
    add("--phases", type=phases, default=phases("64:1800,96:1500,128:500"), help="size:steps,...")
    add("--batch", type=int, default=256, help="drawings per step")
    add("--extra", type=int, default=256, help="captions of other drawings per step")
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=int, default=150, help="steps of linear warm-up")
    add("--ema", type=float, default=0.997, help="decay of the averaged weights")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    add("--probe", type=Path, help="folder of benchmark Parquet files, for the validation probe")
    add("--probe-every", type=int, default=250)
    add("--init", type=Path, help="folder of an earlier run whose averaged weights to start from")
    add("--bridge", type=float, default=0.0, help="weight of the vocabulary table's loss")
    add("--strength", type=float, default=1.0, help="strength of the augmentation")
    add("--resume", action="store_true", help="go on from the run folder's checkpoint")
    add("--stop-after", type=int, help="end early at this step (the schedule stays the same)")
    return parser.parse_args()


def main() -> None:
    """Train."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    open_clip.add_model_config(CONFIG)
    model: Any = open_clip.create_model(MODEL).to(memory_format=torch.channels_last)
    ema: Any = open_clip.create_model(MODEL).to(memory_format=torch.channels_last)
    if options.init:
        model.load_state_dict(weights(options.init, "ema"))
    ema.load_state_dict(model.state_dict())
    corpus = load_corpus(options.cache.expanduser())
    captioner = Captioner(corpus)
    parts: Parts = {"model": model, "ema": ema}
    bridge = Bridge(corpus, model, captioner) if options.bridge else None
    if bridge:
        parts["bridge"] = bridge
    trained = [*model.parameters(), *(bridge.parameters() if bridge else ())]
    decay = [p for p in trained if p.ndim >= 2]
    rest = [p for p in trained if p.ndim < 2]
    optim = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": options.weight_decay},
            {"params": rest, "weight_decay": 0},
        ],
        lr=options.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
        foreach=True,
    )
    sizes = [size for size, steps in options.phases for _ in range(steps)]
    start = restore(options.run, parts, optim) if options.resume else 0
    stop = min(len(sizes), options.stop_after or len(sizes))
    record = {
        k: str(v) for k, v in vars(options).items() if k not in ("cache", "run", "probe", "init")
    }
    print(
        f"{len(corpus.concepts)} drawings, {len(set(corpus.concepts))} names, {len(sizes)} steps",
        flush=True,
    )
    model.train()
    clock, losses, pulls, began = time.time(), [], [], time.time()
    for step in range(start, stop):
        size = sizes[step]
        rate = min(1.0, (step + 1) / options.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * step / len(sizes)))
        for group in optim.param_groups:
            group["lr"] = options.lr * rate
        gen = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rng = np.random.default_rng([options.seed, step])
        drawn = torch.multinomial(corpus.weights, options.batch + options.extra, generator=gen)
        items = drawn[: options.batch]
        views = augment(
            corpus.images[items],
            corpus.mono[items],
            corpus.flip[items],
            size,
            gen,
            options.strength,
        )
        keys, texts = captioner.write(drawn.tolist(), rng)
        holds = truth(corpus, items.tolist(), keys)
        image = encode_images(model, views)
        text = encode_texts(model, captioner.tokens(texts))
        loss = contrastive_loss(image, text, model.logit_scale.exp(), holds)
        losses.append(loss.item())
        if bridge:
            pull = bridge(image, text, items.tolist(), keys)
            pulls.append(pull.item())
            loss = loss + options.bridge * pull
        optim.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optim.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            keep = min(options.ema, (step + 1) / (step + 10))
            for mean, now in zip(
                ema.state_dict().values(), model.state_dict().values(), strict=True
            ):
                mean.lerp_(now, 1 - keep) if mean.is_floating_point() else mean.copy_(now)
        if (step + 1) % 25 == 0:
            took = time.time() - clock
            pace = took / 25
            left = sum(pace * (sizes[s] / size) ** 2 for s in range(step + 1, stop)) / 60
            print(
                f"step {step + 1}/{stop} size {size} loss {np.mean(losses):.3f} "
                f"bridge {np.mean(pulls or [0]):.3f} "
                f"scale {model.logit_scale.exp().item():.1f} {options.batch / pace:.0f} images/s "
                f"elapsed {(time.time() - began) / 60:.1f} min, about {left:.1f} min left",
                flush=True,
            )
            losses, pulls, clock = [], [], time.time()
        if (step + 1) % options.probe_every == 0 or step + 1 == stop:
            save(options.run, step + 1, parts, optim, record)
            if options.probe:
                print(
                    "  validation zero-shot", probe(ema, captioner, options.probe, size), flush=True
                )
            clock = time.time()


if __name__ == "__main__":
    main()
