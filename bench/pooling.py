"""The sides of the pooling benches: one training step of a bank, and of what people use today."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor
from torch.nn import functional

from bench.harness import Rates, Side, check_close, finish, interleave
from safe_ray.heads.bank import Bank, tuned_logits
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import AutogradStep, between_steps
from safe_ray.poolings.base import HeadState, Pooling
from safe_ray.poolings.modified_resnet import AttentionPool, with_mean_token

_LR, _DECAY, _SCALE = 1e-5, 0.01, 100.0


@dataclass(frozen=True)
class Size:
    """Sizes of a pooling and of a training batch; `grid ** 2 + 1` tokens with the mean token."""

    width: int
    heads: int
    grid: int
    output: int
    batch: int
    classes: int

    @property
    def tokens(self) -> int:
        """Tokens with the mean token."""
        return self.grid**2 + 1

    @property
    def parameters(self) -> int:
        """Trained parameters of one head (the key bias has no gradient)."""
        square = 3 * self.width**2 + self.output * self.width
        return square + 2 * self.width + self.output + self.tokens * self.width

    @property
    def operations(self) -> int:
        """Floating-point operations of one step of one head: two a multiply-add.

        Forward Wq, Wk, Wv, Wc and two products with the tokens; backward twice that, but that the
        mean token's gradient is needed as a sum only; and the position's gradient.
        """
        square, projection = self.width**2, self.output * self.width
        with_tokens = self.heads * self.tokens * self.width
        sample = 3 * (3 * square + projection + 2 * with_tokens) - 2 * with_tokens - square
        return 2 * (self.batch * sample + 2 * self.tokens * square)

    @property
    def bytes_moved(self) -> int:
        """Bytes that a step of one head cannot save when nothing stays in a cache between steps.

        Weights are read by the forward and the backward pass, and with both moments read and
        written by AdamW; gradients never leave the cache.
        """
        return 4 * self.parameters * (1 + 1 + 5)


RN50 = Size(width=2048, heads=32, grid=7, output=1024, batch=64, classes=100)
EMBEDDED = Size(width=512, heads=8, grid=4, output=192, batch=32, classes=20)
TINY = Size(width=64, heads=2, grid=2, output=16, batch=4, classes=3)


def single_query(pooling: AttentionPool2d, images: Tensor) -> Tensor:
    """open_clip's layer with the mean token as the only query: `[N, C, H, W]` -> `[N, D]`."""
    tokens = images.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens], dim=0)
    tokens = tokens + pooling.positional_embedding[:, None, :]
    pooled, _ = functional.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pooling.num_heads,
        q_proj_weight=pooling.q_proj.weight,
        k_proj_weight=pooling.k_proj.weight,
        v_proj_weight=pooling.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pooling.q_proj.bias, pooling.k_proj.bias, pooling.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pooling.c_proj.weight,
        out_proj_bias=pooling.c_proj.bias,
        use_separate_proj_weight=True,
        training=True,
        need_weights=False,
    )
    return pooled[0]


def usual_step(
    pool: Callable[[], Tensor], parameters: Iterable[Tensor], labels: Tensor, classifier: Tensor
) -> tuple[Callable[[], Tensor], torch.optim.AdamW]:
    """Return a step of one head by autograd and torch's AdamW as it is by default.

    Args:
        pool: pools the batch with a library's layer, `[N, D]`.
        parameters: what is trained of it.
        labels: `[N]`.
        classifier: `[classes, D]`.
    """
    optimiser = torch.optim.AdamW(parameters, lr=_LR, weight_decay=_DECAY)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(tuned_logits(pool(), classifier, _SCALE), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step, optimiser


def bank_step(
    pooling: Pooling,
    heads: Sequence[HeadState],
    maps: Tensor,
    labels: Tensor,
    classifier: Tensor,
    precision: torch.dtype | None = None,
) -> tuple[Callable[[], Tensor], Bank, BankOptimiser]:
    """Return a step of a bank of K heads, by the family's own step where it has one.

    Args:
        pooling: of the heads.
        heads: where they begin.
        maps: `[N, L, C]`, of the batch.
        labels: `[N]`.
        classifier: `[classes, D]`.
        precision: see `Bank`.
    """
    count, samples = len(heads), len(labels)
    bank = Bank(heads, pooling, tuple(heads[0]), classifier, _SCALE, precision)
    optimiser = BankOptimiser(bank, [_DECAY] * count)
    weights = torch.full((count, samples), 1 / samples)
    step = pooling.step(bank, optimiser) or AutogradStep(bank, optimiser)

    def run() -> Tensor:
        with between_steps(step):
            return step(pooling.prepare(maps), labels, weights, [_LR] * count)

    return run, bank, optimiser


class Problem:
    """One batch at one size, and the sides that train on it from the same weights."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.maps = torch.randn(size.batch, size.grid**2, size.width).relu()
        shape = (size.batch, size.width, size.grid, size.grid)
        self.images = self.maps.transpose(1, 2).reshape(shape).contiguous()
        self.labels = torch.randint(size.classes, (size.batch,))
        self.classifier = functional.normalize(torch.randn(size.classes, size.output), dim=-1)
        start = AttentionPool2d(size.grid, size.width, size.heads, size.output)
        self.start = {name: tensor.clone() for name, tensor in start.state_dict().items()}

    def usual(
        self, pool: Callable[[AttentionPool2d, Tensor], Tensor]
    ) -> tuple[Callable[[], Tensor], AttentionPool2d, torch.optim.AdamW]:
        """One head in open_clip's layer under torch's AdamW as it is by default."""
        layer = AttentionPool2d(self.size.grid, self.size.width, self.size.heads, self.size.output)
        layer.load_state_dict(self.start)
        step, optimiser = usual_step(
            lambda: pool(layer, self.images), layer.parameters(), self.labels, self.classifier
        )
        return step, layer, optimiser

    def bank(
        self, candidates: int, precision: torch.dtype | None = None
    ) -> tuple[Callable[[], Tensor], Bank, BankOptimiser]:
        """A bank of K heads."""
        pooling = AttentionPool(self.size.heads)
        heads = [self.start] * candidates
        return bank_step(pooling, heads, self.maps, self.labels, self.classifier, precision)

    def check(self) -> None:
        """Stop unless all sides have the same loss, gradients and pooled features.

        After one step AdamW's first moment is the gradient times a constant; the second step's
        loss shows that the update was the same.
        """
        step, bank, optimiser = self.bank(2)
        losses = [step(), step()]
        maps = with_mean_token(self.maps)
        for name, pool in (("open_clip", AttentionPool2d.forward), ("single query", single_query)):
            usual, layer, adamw = self.usual(pool)
            expected = [usual(), usual()]
            for candidate in range(2):
                for mine, theirs in zip(losses, expected, strict=True):
                    check_close(f"the loss against {name}", mine[candidate], theirs, 1e-4)
                first = optimiser.moments()[candidate].first
                for parameter, tensor in layer.named_parameters():
                    if parameter != "k_proj.bias":
                        check_close(
                            f"the gradient of {parameter} against {name}",
                            first[parameter],
                            adamw.state[tensor]["exp_avg"],
                            1e-3,
                        )
                with torch.no_grad():
                    check_close(
                        f"the pooled features against {name}",
                        bank.pool(maps)[candidate],
                        pool(layer, self.images),
                        1e-3,
                    )


def compare(
    bench: str,
    size: Size,
    target: float,
    candidates: tuple[int, ...],
    repeats: int,
    calls: int,
    quick: bool,
) -> None:
    """Time a step a head at every K against both usual forms, and print the result."""
    problem = Problem(size)
    problem.check()
    rates = Rates(quick)
    # The usual side trains one head after another, so that K heads cost K steps.
    sides: dict[str, Side] = {
        "open_clip": problem.usual(AttentionPool2d.forward)[0],
        "single query": problem.usual(single_query)[0],
        **{f"K={count}": problem.bank(count)[0] for count in candidates},
        **rates.sides,
    }
    medians = interleave(sides, repeats, calls=calls)
    floor = rates.floor(medians, size.operations, size.bytes_moved)
    usual, single = medians["open_clip"], medians["single query"]
    print(f"a step a head: open_clip {1e3 * usual:.1f} ms, single query {1e3 * single:.1f} ms")
    ratios, against_single = {}, {}
    for count in candidates:
        seconds = medians[f"K={count}"] / count
        ratios[count], against_single[count] = usual / seconds, single / seconds
        print(
            f"K={count}: {1e3 * seconds:.2f} ms, {ratios[count]:.1f} x open_clip, "
            f"{against_single[count]:.1f} x single query, {seconds / floor:.2f} of the floor"
        )
    finish(
        bench,
        min(ratios.values()),
        target,
        ratio_by_heads={str(count): round(value, 2) for count, value in ratios.items()},
        single_query_by_heads={
            str(count): round(value, 2) for count, value in against_single.items()
        },
        floor_ms=round(1e3 * floor, 2),
        step_ms={str(count): round(1e3 * medians[f"K={count}"] / count, 2) for count in candidates},
        open_clip_ms=round(1e3 * usual, 2),
    )
