"""An open_clip model cut in three, and what it makes of maps and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from safe_ray.backbones.tokenizing import tokenizer_of
from safe_ray.data.prompts import check_templates, render_prompts
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError
from safe_ray.poolings.base import Pooling
from safe_ray.specs import BackboneSpec

PROMPTS_PER_BATCH = 256


class AbsentPart(nn.Module):
    """Stands for a part that `load_backbone` was not asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *_: Any) -> torch.Tensor:
        """Say what is missing."""
        raise RuntimeError(f"load_backbone was not asked for the part {self.name!r}")


@dataclass(frozen=True)
class Backbone:
    """An open_clip model cut in three.

    Attributes:
        spec: what it was loaded from.
        digest: 16 hexadecimal digits over all weights and the model's configuration.
        trunk_digest: likewise over the trunk alone.
        trunk: images [N, 3, S, S] -> dense maps [N, L, C]; float32, frozen.
        pooling: the pooling as a function of tokens and a state.
        state: the original state, under open_clip's names, float32. Empty if it was not asked for.
        prefix: what precedes these names in the whole model's state dict, `visual.` or longer.
        tokens: L, the tokens of a dense map.
        width: C, the channels of a token.
        embed_dim: D, the size of an embedding.
        logit_scale: what cosines are multiplied with (already exponentiated). A bias that the model
            adds to every logit, as SigLIP's does, cancels in a softmax over classes.
        preprocessing: how images are made into the trunk's input.
        text: the text tower, tokens [N, context] -> embeddings [N, D].
        context_length: the tokens that the text tower reads.
    """

    spec: BackboneSpec
    digest: str
    trunk_digest: str
    trunk: nn.Module
    pooling: Pooling
    state: dict[str, torch.Tensor]
    prefix: str
    tokens: int
    width: int
    embed_dim: int
    logit_scale: float
    preprocessing: Preprocessing
    text: nn.Module = field(repr=False)
    context_length: int

    @property
    def part(self) -> str:
        """The module of open_clip's model that has the pooling's parameters under their names."""
        return self.prefix.removesuffix(".")

    @torch.no_grad()
    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool dense maps with the original pooling: [N, L, C] -> [N, D] float32, not normalised.

        `pool(trunk(images))` is what open_clip's `encode_image` returns.
        """
        stacked = {name: tensor.unsqueeze(0) for name, tensor in self.state.items()}
        return self.pooling.pool(self.pooling.prepare(maps), stacked)[0]

    @torch.no_grad()
    def classifier(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Embed the class names: each prompt normalised, averaged over the templates, normalised.

        Args:
            classes: names; underscores are read as spaces.
            templates: prompts with one `{}` each.

        Returns:
            float32 [classes, D] on the CPU.

        Raises:
            InputError: a template without exactly one `{}`, two classes whose prompts are the same
                once they are cut to what the text tower reads, or a tokenizer that cannot be had.
        """
        templates = check_templates(templates, f"the classifier of {self.spec.name!r}")
        return self.classifier_of(render_prompts(classes, templates), classes)

    def classifier_of(
        self, prompts: Sequence[Sequence[str]], classes: Sequence[str], distinct: bool = True
    ) -> torch.Tensor:
        """Embed each class's prompts: each normalised, averaged over the class, normalised.

        Args:
            prompts: one or more a class; not all classes need as many.
            classes: their names, for errors.
            distinct: refuse two classes with the same prompts.

        Returns:
            float32 [classes, D] on the CPU.

        Raises:
            InputError: two classes whose prompts are the same once they are cut to what the text
                tower reads.
        """
        tokenizer = tokenizer_of(self.spec)
        tokens = tokenizer(
            [prompt for row in prompts for prompt in row], context_length=self.context_length
        )
        counts = [len(row) for row in prompts]
        if distinct:
            self._check_distinct(tokens.split(counts), classes)
        device = next(iter(self.text.parameters()), torch.empty(0)).device
        embeddings = torch.cat(
            [
                functional.normalize(self.text(batch.to(device)).float(), dim=-1).cpu()
                for batch in tokens.split(PROMPTS_PER_BATCH)
            ]
        )
        mean = torch.stack([rows.mean(dim=0) for rows in embeddings.split(counts)])
        return functional.normalize(mean, dim=-1)

    def _check_distinct(self, tokens: Sequence[torch.Tensor], classes: Sequence[str]) -> None:
        first: dict[tuple[int, ...], str] = {}
        for name, rows in zip(classes, tokens, strict=True):
            other = first.setdefault(tuple(rows.flatten().tolist()), name)
            if other is not name:
                raise InputError(
                    f"The classes {other!r} and {name!r} have the same prompts in the "
                    f"{self.context_length} tokens that {self.spec.name!r} reads: make their names "
                    "differ earlier, or shorten the template."
                )


class TextTower(nn.Module):
    """The text tower: tokens [N, context] -> embeddings [N, D], not normalised."""

    def __init__(self, model: Any) -> None:
        """Take over `model`, whose image tower is thrown away."""
        super().__init__()
        self.model = model
        self.model.visual = nn.Identity()
        self.requires_grad_(False)
        self.eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of the tokens."""
        return self.model.encode_text(tokens)
