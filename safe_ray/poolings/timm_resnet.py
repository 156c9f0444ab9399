"""timm's ResNets with CLIP's attention pooling: `resnet50_clip` and its siblings.

The pooling, timm's `AttentionPool2d`, is the function of open_clip's (see `modified_resnet`), and
its parameters are the same ones under other names. So only names are translated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from safe_ray.poolings.absorbed import AbsorbedHead
from safe_ray.poolings.base import QUERIES, Cut, HeadState
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.poolings.trunk import GridTrunk

if TYPE_CHECKING:
    from open_clip.timm_model import TimmModel

    from safe_ray.heads.bank import Bank
    from safe_ray.heads.gradients import Gradients
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

# timm's words by open_clip's.
_WORDS = {
    "positional_embedding": "pos_embed",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "c_proj": "proj",
}
_OPEN_CLIPS = {timm: open_clip for open_clip, timm in _WORDS.items()}


@dataclass(frozen=True)
class TimmAttentionPool:
    """timm's `AttentionPool2d` with absorbed projections.

    Its state: pos_embed `[L + 1, C]`, {q,k,v}.weight `[C, C]` and .bias `[C]`, proj.weight `[D, C]`
    and .bias `[D]`.

    Attributes:
        num_heads: attention heads; C is a multiple of it.
    """

    groups: ClassVar[tuple[str, ...]] = tuple(_OPEN_CLIPS)
    inert: ClassVar[frozenset[str]] = frozenset({"k.bias"})
    projection: ClassVar[str] = "proj"
    queried: ClassVar[bool] = True

    num_heads: int

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        # Workers have a pooling by its name, and open_clip would be half of their start.
        from open_clip.timm_model import TimmModel

        return isinstance(visual, TimmModel) and _place(visual) is not None

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        from open_clip.timm_model import TimmModel

        assert isinstance(visual, TimmModel)
        place = _place(visual)
        assert place is not None
        parent, name = visual.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]
        pooling = getattr(parent, name)
        _check(visual, pooling, image_size)
        state = {name: value.detach() for name, value in pooling.named_parameters()}
        identity = {
            "tower": type(visual.trunk).__name__,
            "stages": [len(stage) for stage in getattr(visual.trunk, "stages", [])],
            "image_size": image_size,
        }
        setattr(parent, name, nn.Identity())
        return Cut(
            trunk=GridTrunk(visual),
            pooling=cls(num_heads=int(pooling.num_heads)),
            state=state,
            prefix=f"visual.{place}.",
            tokens=int(pooling.seq_len),
            width=int(pooling.in_features),
            embed_dim=int(pooling.out_features),
            identity=identity,
        )

    def prepare(self, maps: Tensor) -> Tensor:
        """See `modified_resnet.with_mean_token`."""
        return self._open_clips.prepare(maps)

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`."""
        return self._open_clips.pool(tokens, _translated(state))

    def pool_in_graph(self, maps: Tensor, state: HeadState) -> Tensor:
        """See `safe_ray.poolings.base.Graphable`."""
        return self._open_clips.pool_in_graph(maps, _translated(state))

    def pool_low_rank(self, tokens: Tensor, shared: HeadState, factors: HeadState) -> Tensor:
        """See `safe_ray.poolings.low_rank.SharedProducts`."""
        return self._open_clips.pool_low_rank(tokens, _translated(shared), _translated(factors))

    def tokens_width(self, state: HeadState) -> int:
        """See `safe_ray.poolings.queries.Queried`."""
        return int(state["pos_embed"].shape[-1])

    def with_queries(self, state: HeadState, queries: Tensor) -> dict[str, Tensor]:
        """See `AttentionPool.with_queries`."""
        return self._open_clips.with_queries(state, queries)

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `AttentionPool.attention`."""
        return self._open_clips.attention(tokens, _translated(state))

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`."""
        return self._open_clips.activation_bytes(_translated(state), batch_size)

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`."""
        from safe_ray.heads.step import FusedStep

        if bank.classifier.device.type != "cpu" or QUERIES in bank.trained:
            return None
        return FusedStep(bank, optimiser, _TranslatedHead(self.num_heads))

    @property
    def _open_clips(self) -> AttentionPool:
        return AttentionPool(self.num_heads)


POOLING = TimmAttentionPool


def _place(visual: TimmModel) -> str | None:
    """Return where in a tower CLIP's attention pooling is, or None."""
    from timm.layers import AttentionPool2d, RotAttentionPool2d

    for place in ("trunk.head", "head.pool"):
        parent, _, name = place.partition(".")
        found = getattr(getattr(visual, parent), name, None)
        if isinstance(found, AttentionPool2d | RotAttentionPool2d):
            return place
    return None


def _check(visual: TimmModel, pooling: nn.Module, image_size: int) -> None:
    """Refuse a pooling that is another function than open_clip's.

    Raises:
        ValueError: see `Pooling.cut`.
    """
    from timm.layers import AttentionPool2d, RotAttentionPool2d

    if isinstance(pooling, RotAttentionPool2d):
        raise ValueError("its pooling turns keys by their positions (rotary), which is not known")
    assert isinstance(pooling, AttentionPool2d)
    after = [layer for layer in visual.head if layer is not pooling]
    if not all(isinstance(layer, nn.Identity | nn.Dropout) for layer in after):
        kinds = ", ".join(type(layer).__name__ for layer in after)
        raise ValueError(f"{kinds} follow its pooling, which must be the last layer: set timm_proj")
    expected = {"pos_embed", *(f"{w}.{k}" for w in "qkv" for k in ("weight", "bias"))}
    expected |= {"proj.weight", "proj.bias"}
    names = {name for name, _ in pooling.named_parameters()}
    if names != expected or pooling.pool_type != "token":
        raise ValueError(
            f"its pooling has the parameters {', '.join(sorted(names))} and the pool_type "
            f"{pooling.pool_type!r}, but {', '.join(sorted(expected))} and 'token' are known"
        )
    if pooling.in_features != pooling.embed_dim:
        raise ValueError(
            f"its pooling projects {pooling.in_features} channels to {pooling.embed_dim}: only a "
            "square projection is known"
        )
    stride = int(visual.trunk.feature_info[-1]["reduction"])
    if image_size % stride:
        raise ValueError(
            f"its stride of {stride} pixels does not divide an image_size of {image_size}: choose "
            f"a multiple of {stride}"
        )
    side = image_size // stride
    if tuple(pooling.feat_size) != (side, side):
        raise ValueError(
            f"of an image_size of {image_size} its trunk makes {side}x{side} tokens, but its "
            f"pooling expects {'x'.join(map(str, pooling.feat_size))}: choose the model whose "
            "image size that is"
        )


def _renamed(name: str, words: Mapping[str, str]) -> str:
    """Translate the first word of a name, if it has another one there."""
    first, dot, rest = name.partition(".")
    return words.get(first, first) + dot + rest


def _translated(state: HeadState) -> dict[str, Tensor]:
    """Return a state, or factors of one, under open_clip's names."""
    return {_renamed(name, _OPEN_CLIPS): tensor for name, tensor in state.items()}


class _TranslatedHead(AbsorbedHead):
    """The hand-written step, of heads with timm's names."""

    def weights(self, head: Mapping[str, Tensor]) -> Any:
        return super().weights(_translated(head))

    def differentiate(
        self, gradient: Tensor, weights: Any, room: Any, gradients: Gradients
    ) -> None:
        super().differentiate(gradient, weights, room, _TranslatedGradients(gradients))


class _TranslatedGradients:
    """Gradients that are asked for by open_clip's names, and wanted by timm's."""

    def __init__(self, gradients: Gradients) -> None:
        self.layers = frozenset(_OPEN_CLIPS[layer] for layer in gradients.layers)
        self._gradients = gradients

    def blocks(self, name: str, unit: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """See `safe_ray.heads.gradients.Gradients`."""
        return self._gradients.blocks(_renamed(name, _WORDS), unit)
