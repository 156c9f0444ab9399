"""timm's vision transformers that pool by their class token: the last block, `norm` and `head`.

It is what `safe_ray.poolings.last_block` is for open_clip's own, under timm's names: MobileCLIP's
ViTs and EVA01. Of EVA02 they are left out: most rotate the keys of all tokens but the class token,
so that no query can be absorbed, and the largest normalise after the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from safe_ray.poolings import class_query
from safe_ray.poolings.base import Cut, HeadState
from safe_ray.poolings.class_query import Block, ClassQuery
from safe_ray.poolings.layers import activation_of
from safe_ray.poolings.trunk import TokenTrunk

_WORDS = {
    "norm1": "attention",
    "attn": "attention",
    "ls1": "attention",
    "gamma_1": "attention",
    "norm2": "mlp",
    "mlp": "mlp",
    "ls2": "mlp",
    "gamma_2": "mlp",
    "norm": "norm",
    "head": "head",
}


@dataclass(frozen=True)
class TimmLastBlock(ClassQuery):
    """timm's `Block` or `EvaBlock` of the class token, and what follows it.

    Its state: `trunk.blocks.<index>.` with norm1, attn (qkv.weight `[3 C, C]`, its bias or q_bias
    and v_bias, proj), the scale where it is (ls1.gamma or gamma_1), norm2, mlp (fc1 `[M, C]`, fc2
    `[C, M]`) and its scale; trunk.norm; trunk.head `[D, C]`.
    """

    groups: ClassVar[tuple[str, ...]] = ("attention", "mlp", "norm", "head")
    projection: ClassVar[str] = "head"
    last_norm: ClassVar[str] = "trunk.norm"

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        # Workers have a pooling by its name, and open_clip would be half of their start.
        from open_clip.timm_model import TimmModel
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(visual, TimmModel) or len(visual.head):
            return False
        trunk = visual.trunk
        if not isinstance(trunk, VisionTransformer | Eva) or trunk.global_pool != "token":
            return False
        return (
            trunk.attn_pool is None
            and trunk.num_prefix_tokens == 1
            and isinstance(trunk.fc_norm, nn.Identity)
            and isinstance(trunk.head, nn.Linear)
            and getattr(trunk, "rope", None) is None
            and _is_plain(trunk.blocks[-1])
        )

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        trunk: Any = visual.trunk
        index, block = len(trunk.blocks) - 1, trunk.blocks[-1]
        size = tuple(trunk.patch_embed.img_size or ())
        if size and size != (image_size, image_size):
            raise ValueError(f"its grid is of {size[0]} pixels, and its images have {image_size}")
        epsilon = class_query.epsilon_of(block.norm1, block.norm2, trunk.norm)
        pooling = cls(
            index=index,
            num_heads=int(block.attn.num_heads),
            epsilon=epsilon,
            activation=activation_of(block.mlp.act),
        )
        parts = {f"trunk.blocks.{index}": block, "trunk.norm": trunk.norm, "trunk.head": trunk.head}
        state = {
            f"{part}.{name}": value.detach()
            for part, module in parts.items()
            for name, value in module.named_parameters()
        }
        identity = {
            "model": type(trunk).__name__,
            "layers": index,
            "patch": list(trunk.patch_embed.patch_size),
            "heads": pooling.num_heads,
            "epsilon": epsilon,
            "activation": pooling.activation,
        }
        tokens, width = int(trunk.patch_embed.num_patches) + 1, int(trunk.embed_dim)
        trunk.blocks, trunk.norm, trunk.head = trunk.blocks[:-1], nn.Identity(), nn.Identity()
        return Cut(
            trunk=TokenTrunk(trunk, 0),
            pooling=pooling,
            state=state,
            prefix="visual.",
            tokens=tokens,
            width=width,
            embed_dim=int(state["trunk.head.weight"].shape[0]),
            identity=identity,
        )

    @classmethod
    def group_of(cls, name: str) -> str | None:
        """See `safe_ray.poolings.base.Grouped`."""
        return class_query.word_of(name, _WORDS)

    def block(self, state: HeadState) -> Block:
        """See `ClassQuery`."""
        prefix = f"trunk.blocks.{self.index}."
        mine: Mapping[str, Any] = {
            name.removeprefix(prefix): tensor for name, tensor in state.items()
        }
        query, key, value = mine["attn.qkv.weight"].chunk(3, dim=1)
        query_bias, value_bias = mine.get("attn.q_bias"), mine.get("attn.v_bias")
        if "attn.qkv.bias" in mine:
            # The key's bias cancels in the softmax.
            query_bias, _, value_bias = mine["attn.qkv.bias"].chunk(3, dim=1)
        return Block(
            norm_weight=mine["norm1.weight"],
            norm_bias=mine["norm1.bias"],
            query_weight=query,
            query_bias=query_bias,
            key_weight=key,
            value_weight=value,
            value_bias=value_bias,
            output_weight=mine["attn.proj.weight"],
            output_bias=mine.get("attn.proj.bias"),
            attention_scale=mine.get("ls1.gamma", mine.get("gamma_1")),
            mlp_norm_weight=mine["norm2.weight"],
            mlp_norm_bias=mine["norm2.bias"],
            up_weight=mine["mlp.fc1.weight"],
            up_bias=mine.get("mlp.fc1.bias"),
            down_weight=mine["mlp.fc2.weight"],
            down_bias=mine.get("mlp.fc2.bias"),
            mlp_scale=mine.get("ls2.gamma", mine.get("gamma_2")),
            last_norm_weight=mine["trunk.norm.weight"],
            last_norm_bias=mine["trunk.norm.bias"],
            projection=mine["trunk.head.weight"].transpose(1, 2),
            projection_bias=mine.get("trunk.head.bias"),
        )


POOLING = TimmLastBlock


def _is_plain(block: Any) -> bool:
    """Return whether a block normalises before its parts, and has nothing else within them."""
    from timm.layers import Attention, Mlp
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block as TimmBlock

    if type(block) not in (TimmBlock, EvaBlock):
        return False
    attention, mlp = block.attn, block.mlp
    plain = (
        type(attention) in (Attention, EvaAttention)
        and attention.qkv is not None
        and attention.gate is None
        and attention.qkv.weight.shape[0] == 3 * attention.qkv.weight.shape[1]
        and type(mlp) is Mlp
    )
    return plain and all(
        isinstance(part, nn.Identity)
        for part in (attention.norm, attention.q_norm, attention.k_norm, mlp.norm)
    )
