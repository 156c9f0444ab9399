"""How many candidates a bank may hold."""

from __future__ import annotations

from dataclasses import dataclass

# Weights, gradients and two AdamW moments, in float32; and once more while a bank is restacked.
_BYTES_PER_PARAMETER = 4 * 5
# Intermediates of [batch, heads, C] that one candidate keeps between forward and backward.
_INTERMEDIATES = 8
# The first bank is quasi-random; at least as many as this follow it, so that TPE has its say.
_LATER_BANKS = 3


@dataclass(frozen=True)
class BankFootprint:
    """What a bank needs of a device's memory.

    Attributes:
        tokens: tokens of a dense map (L).
        width: channels of a dense map (C).
        embed_dim: dimensions of the pooled features (D).
        num_heads: attention heads of the pooling.
        batch_size: support samples a step.
        members: members of the bank for each candidate: 1, and 1 more a fold.
        maps: dense maps of the largest task that a worker keeps on the device.
    """

    tokens: int
    width: int
    embed_dim: int
    num_heads: int
    batch_size: int
    members: int
    maps: int

    @property
    def maps_bytes(self) -> int:
        """Bytes of the support maps, which the candidates share."""
        return 2 * self.maps * self.tokens * self.width

    @property
    def candidate_bytes(self) -> int:
        """Bytes that one more candidate takes."""
        parameters = (
            (self.tokens + 1) * self.width
            + 3 * self.width * (self.width + 1)
            + self.embed_dim * (self.width + 1)
        )
        activations = 4 * _INTERMEDIATES * self.batch_size * self.num_heads * self.width
        return self.members * (_BYTES_PER_PARAMETER * parameters + activations)


def automatic_bank_size(candidates: int, footprint: BankFootprint, memory: int) -> int:
    """Return the size of a bank for `search.bank=auto`.

    As many candidates as the memory holds, but no more than a quarter of a task's candidates: one
    bank for all would be quasi-random throughout, and the estimator would never be asked.

    Args:
        candidates: of each task.
        footprint: what a bank needs.
        memory: bytes of the device that a trial may use.
    """
    fitting = (memory - footprint.maps_bytes) // footprint.candidate_bytes
    wanted = -(-candidates // (1 + _LATER_BANKS))
    return int(max(1, min(fitting, wanted)))
