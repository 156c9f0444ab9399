"""Print the table of families in docs/backbones.md.

python -m bench._families

Models are counted among open_clip's. Each family is then tried with one of its models at its own
size and with random weights: what trunk and pooling give of two images, against what the whole
tower gives, in float32. Speed is what docs/performance.json has of the last `python -m bench`.
"""

from __future__ import annotations

import json
from collections import Counter

import open_clip
import torch

from bench.__main__ import RESULTS
from safe_ray.backbones.claims import Claim, claim, claim_of
from safe_ray.backbones.creation import quiet, register_config
from safe_ray.backbones.openclip import cut_tower, side_of, vision_tower
from safe_ray.files import resolve_path
from safe_ray.specs import BackboneSpec

_TIMM = BackboneSpec(
    "timm_resnet50_clip",
    "timm-resnet50_clip",
    None,
    "pkg://safe_ray/backbones/timm-resnet50_clip.json",
)
# A model of each family, and the bench of its training step.
SHOWN = {
    "modified_resnet": ("RN50", "pooling_rn50"),
    "timm_resnet": (_TIMM.model, "pooling_rn50"),
    "last_block": ("ViT-B-16", "pooling_last_block"),
    "timm_last_block": ("MobileCLIP-B", "pooling_last_block"),
    "latent_attention": ("ViT-B-16-SigLIP", "pooling_map"),
    "coca": ("coca_ViT-B-32", "pooling_coca"),
    "projection": ("convnext_base", None),
}
HEADER = ("family", "models", "tried with", "difference", "tuned", "bytes a view", "speed")


@torch.no_grad()
def tried(model: str) -> tuple[Claim, float]:
    """Return the sizes of a model, and by what share of their norm embeddings differ."""
    torch.manual_seed(0)
    with quiet():
        visual = vision_tower(open_clip.get_model_config(model)).eval()
    for parameter in visual.parameters():
        # Scales that begin next to nothing, and biases that begin at zero, would hide a mistake.
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    side = side_of(visual)
    images = torch.randn(2, 3, side, side)
    whole = visual(images)
    expected = whole[0] if isinstance(whole, tuple) else whole
    cut = cut_tower(visual, side, BackboneSpec(model, model))
    state = {name: tensor.unsqueeze(0) for name, tensor in cut.state.items()}
    found = cut.pooling.pool(cut.pooling.prepare(cut.trunk(images)), state)[0]
    return claim_of(model, visual, cut), float((found - expected).norm() / expected.norm())


def rows(counts: Counter[str]) -> list[tuple[str, ...]]:
    """Return the lines of the table, given how many models each family claims."""
    results = {result["bench"]: result for result in json.loads(RESULTS.read_text())}
    lines: list[tuple[str, ...]] = []
    for family, (model, bench) in SHOWN.items():
        one, difference = tried(model)
        ratio = results.get(bench or "", {}).get("ratio")
        speed = "-" if ratio is None else f"{ratio:.0f} x"
        sizes = (f"{one.tuned:,}", f"{one.view_bytes:,}")
        shown = (f"`{model}`", f"{difference:.0e}", *sizes, speed)
        lines.append((f"`{family}`", str(counts[family]), *shown))
    return lines


def main() -> None:
    """Print the table."""
    counts = Counter(claim(name).family for name in open_clip.list_models())
    register_config(_TIMM, resolve_path(str(_TIMM.model_config)))
    for line in (HEADER, ("---",) * len(HEADER), *rows(counts)):
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
