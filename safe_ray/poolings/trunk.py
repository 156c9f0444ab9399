"""What the trunks of all families have in common: they are frozen, and stay in eval mode."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn


class FrozenTrunk(nn.Module):
    """A tower without its pooling: images `[N, 3, S, S]` -> tokens `[N, L, C]`.

    It stays in eval mode, for its statistics are frozen with its weights. It may be moved and cast
    like any module; the images then have to be on its device and of its dtype. A family overrides
    `forward` where its tower returns something else.
    """

    def __init__(self, visual: Any) -> None:
        """Take over `visual`, from which the pooling has been taken away."""
        super().__init__()
        self.visual = visual
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` asks for."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the dense maps of the images, contiguous `[N, L, C]`."""
        tokens: Tensor = self.visual(images)
        return tokens.contiguous()


class GridTrunk(FrozenTrunk):
    """A tower that returns its map as `[N, C, h, w]`; L is h times w, row by row."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the dense maps of the images, contiguous `[N, L, C]`."""
        grid: Tensor = self.visual(images)
        return grid.flatten(2).transpose(1, 2).contiguous()


class BlockTrunk(FrozenTrunk):
    """The blocks of an open_clip ViT, without what follows them."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the dense maps of the images, contiguous `[N, L, C]`, the class token first."""
        tokens: Tensor = self.visual.transformer(self.visual._embeds(images))
        return tokens.contiguous()


class TokenTrunk(FrozenTrunk):
    """A ViT of timm's up to its pooling, the last norm included where it still has one.

    Args:
        tower: timm's, without its pooling.
        dropped: how many of its first tokens the pooling does not see.
    """

    def __init__(self, tower: nn.Module, dropped: int) -> None:
        super().__init__(tower)
        self.dropped = dropped

    def forward(self, images: Tensor) -> Tensor:
        """Return the dense maps of the images, contiguous `[N, L, C]`."""
        tokens: Tensor = self.visual.forward_features(images)
        return tokens[:, self.dropped :].contiguous()
