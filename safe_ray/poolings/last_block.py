"""CLIP's vision transformers: the last block as the class token sees it, `ln_post` and `proj`.

The class token is the only query whose result is used (see `safe_ray.poolings.class_query`). The
dense map is the input of the last block, the class token first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from safe_ray.poolings import class_query
from safe_ray.poolings.base import Cut, HeadState
from safe_ray.poolings.class_query import Block, ClassQuery
from safe_ray.poolings.layers import activation_of
from safe_ray.poolings.trunk import BlockTrunk

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

_WORDS = {
    "ln_1": "attention",
    "attn": "attention",
    "ls_1": "attention",
    "ln_2": "mlp",
    "mlp": "mlp",
    "ls_2": "mlp",
    "ln_post": "ln_post",
    "proj": "proj",
}


@dataclass(frozen=True)
class LastBlock(ClassQuery):
    """open_clip's `ResidualAttentionBlock` of the class token, and what follows it.

    Its state: `transformer.resblocks.<index>.` with ln_1, attn (in_proj_weight `[3 C, C]`,
    in_proj_bias, out_proj), ls_1 where it is, ln_2, mlp (c_fc `[M, C]`, c_proj `[C, M]`) and ls_2
    where it is; ln_post; proj `[C, D]`.
    """

    groups: ClassVar[tuple[str, ...]] = ("attention", "mlp", "ln_post", "proj")
    projection: ClassVar[str] = "proj"
    last_norm: ClassVar[str] = "ln_post"

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        # Workers have a pooling by its name, and open_clip would be half of their start.
        from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

        return (
            isinstance(visual, VisionTransformer)
            and visual.attn_pool is None
            and visual.pool_type == "tok"
            and visual.proj is not None
            and type(visual.transformer.resblocks[-1]) is ResidualAttentionBlock
        )

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        from open_clip.transformer import VisionTransformer

        assert isinstance(visual, VisionTransformer)
        blocks = visual.transformer.resblocks
        index, block = len(blocks) - 1, blocks[-1]
        patch = check_grid(visual, image_size)
        epsilon = class_query.epsilon_of(block.ln_1, block.ln_2, visual.ln_post)
        width = int(visual.positional_embedding.shape[1])
        attention = block.attn
        if attention.in_proj_weight is None or attention.in_proj_bias is None:
            raise ValueError("its last block has no in_proj_weight with a bias")
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("its last block attends to more than its tokens")
        pooling = cls(
            index=index,
            num_heads=int(attention.num_heads),
            epsilon=epsilon,
            activation=activation_of(block.mlp.gelu),
        )
        prefix = f"transformer.resblocks.{index}."
        state = {
            **{prefix + name: value.detach() for name, value in block.named_parameters()},
            **{f"ln_post.{n}": value.detach() for n, value in visual.ln_post.named_parameters()},
            "proj": visual.proj.detach(),
        }
        visual.transformer.resblocks = blocks[:-1]
        visual.ln_post, visual.proj = nn.Identity(), None
        return Cut(
            trunk=BlockTrunk(visual),
            pooling=pooling,
            state=state,
            prefix="visual.",
            tokens=int(visual.positional_embedding.shape[0]),
            width=width,
            embed_dim=int(state["proj"].shape[1]),
            identity={
                "layers": index,
                "patch": patch,
                "heads": pooling.num_heads,
                "epsilon": epsilon,
                "activation": pooling.activation,
            },
        )

    @classmethod
    def group_of(cls, name: str) -> str | None:
        """See `safe_ray.poolings.base.Grouped`."""
        return class_query.word_of(name, _WORDS)

    def block(self, state: HeadState) -> Block:
        """See `ClassQuery`."""
        prefix = f"transformer.resblocks.{self.index}."
        mine: Mapping[str, Any] = {
            name.removeprefix(prefix): tensor for name, tensor in state.items()
        }
        query, key, value = mine["attn.in_proj_weight"].chunk(3, dim=1)
        # The key's bias cancels in the softmax.
        query_bias, _, value_bias = mine["attn.in_proj_bias"].chunk(3, dim=1)
        return Block(
            norm_weight=mine["ln_1.weight"],
            norm_bias=mine["ln_1.bias"],
            query_weight=query,
            query_bias=query_bias,
            key_weight=key,
            value_weight=value,
            value_bias=value_bias,
            output_weight=mine["attn.out_proj.weight"],
            output_bias=mine["attn.out_proj.bias"],
            attention_scale=mine.get("ls_1.gamma"),
            mlp_norm_weight=mine["ln_2.weight"],
            mlp_norm_bias=mine["ln_2.bias"],
            up_weight=mine["mlp.c_fc.weight"],
            up_bias=mine["mlp.c_fc.bias"],
            down_weight=mine["mlp.c_proj.weight"],
            down_bias=mine["mlp.c_proj.bias"],
            mlp_scale=mine.get("ls_2.gamma"),
            last_norm_weight=mine["ln_post.weight"],
            last_norm_bias=mine["ln_post.bias"],
            projection=mine["proj"],
            projection_bias=None,
        )


POOLING = LastBlock


def check_grid(visual: VisionTransformer, image_size: int) -> int:
    """Return the side of a patch of open_clip's own vision transformer.

    Raises:
        ValueError: patches of it do not divide the image, or make another grid than its positions.
    """
    patch, other = (int(side) for side in visual.patch_size)
    if patch != other:
        raise ValueError(f"its patches of {patch}x{other} pixels are not square")
    if image_size % patch:
        raise ValueError(
            f"its patches of {patch} pixels do not divide an image_size of {image_size}: choose a "
            f"multiple of {patch}"
        )
    grid, positions = image_size // patch, int(visual.positional_embedding.shape[0]) - 1
    if grid * grid != positions:
        raise ValueError(
            f"of an image_size of {image_size} it makes {grid}x{grid} tokens, but it has positions "
            f"for {positions}"
        )
    return patch
