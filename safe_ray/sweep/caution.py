"""`search.cautious`: a winner whose gain the validation samples do not show gives way to zero-shot.

A method that is zero-shot at some value of its knobs keeps its winner, at that value: SAFE at
alpha = 0. Its head is written once more with these knobs, so that whoever loads it gets what was
tested. Any other method keeps nothing: its result is that of the untouched model. What the
validation samples said of the winner stays, for it is the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_ray.heads.artifact import load_card, load_head, save_head
from safe_ray.methods.base import how_to_load, make_method
from safe_ray.search.choosing import Choice
from safe_ray.specs import MethodSpec
from safe_ray.sweep.winners import Decision

FOLDER = "cautious"
_NAMED = 4


def fall_back(decision: Decision, sweep: Path, say: Callable[[str], None]) -> Decision:
    """Return a decision in which all winners whose gain is not shown are zero-shot.

    Args:
        decision: the winners.
        sweep: the sweep's folder.
        say: is told which they are.

    Raises:
        InputError: a head cannot be read or written.
    """
    doubtful = {
        result: choice
        for result, choice in decision.choices.items()
        if choice.winner.folder is not None and not choice.validation.gain_shown
    }
    if doubtful:
        names = list(dict.fromkeys(result.task_id for result in doubtful))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        say(
            f"search.cautious=true: validation does not show that {len(doubtful)} of "
            f"{len(decision.choices)} winners gain over zero-shot, so zero-shot takes their place "
            f"({', '.join(names[:_NAMED])}{more})."
        )
    found = {result: as_zero_shot(choice, sweep) for result, choice in doubtful.items()}
    return replace(decision, choices={**decision.choices, **found})


def as_zero_shot(choice: Choice, sweep: Path) -> Choice:
    """Return a winner with the knobs that make it zero-shot, or the untouched model in its place.

    Raises:
        InputError: its head cannot be read, or not be written anew.
    """
    winner = choice.winner
    method = winner.method
    at: Mapping[str, float] | None = getattr(
        make_method(method.module, method.options), "zero_shot_at", None
    )
    if at is None or winner.folder is None:
        untouched = MethodSpec(method.name, method.title, "safe_ray.methods.zero_shot")
        winner = replace(winner, method=untouched, folder=None, at={})
        return replace(choice, winner=winner, gave_way=True)
    folder = sweep / FOLDER / winner.task_id / method.name
    save_head(
        folder,
        load_head(winner.folder)[0],
        _card(winner.folder, at),
        how_to_load(method.module, method.options),
        same_weights=winner.folder,
    )
    return replace(choice, winner=replace(winner, folder=folder, at=dict(at)), gave_way=True)


def _card(folder: Path, at: Mapping[str, float]) -> dict[str, Any]:
    """Return a head's card with other knobs, without what is true at its own knobs only."""
    own = ("format_version", "weights", "how_to_load", "calibration", "metrics")
    card = {key: value for key, value in load_card(folder).items() if key not in own}
    alpha = {"alpha": at["alpha"]} if "alpha" in at else {}
    return {**card, **alpha, "knobs": dict(at), "metrics": {}, "cautious": True}
