"""How the winners among some results were chosen, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_ray.report.rows import gaining, titles_of
from safe_ray.report.summary import Protocol, TaskResult, in_order
from safe_ray.specs import shots_text

UNBIASED = "nothing was chosen on a test image"

EXPLAINED: Mapping[str, Mapping[str, str]] = {
    "selection": {
        "coop": "on a few validation images a class, at most four",
        "cross": "by cross-validation on the support images alone",
        "full": "on the whole validation split, which is far more labels than the shots are",
        "held_out": "on a fifth of the training images of each class, which no head was trained on",
    },
    "metric": {
        "accuracy": "for their accuracy",
        "mean_per_class": "for their mean per class accuracy",
    },
    "convention": {
        "coop": "drawn as CoOp draws them",
        "clip_lora": "drawn as CLIP-LoRA draws them, validation images first",
        "tip_adapter": "drawn as Tip-Adapter draws them, with repetition in small classes",
    },
    "prompts": {
        "single": "the data set's own templates",
        "ensemble": "the data set's ensemble of templates",
        "descriptions": "sentences about each class",
    },
}
"""What the values of a protocol's fields mean."""


def selection_line(results: Sequence[TaskResult]) -> str:
    """Return how the winners of these results were chosen, in one line."""
    parts = [f"{key}: {' and '.join(values_of(results, key))}" for key in EXPLAINED]
    return f"{'; '.join(parts)}; {UNBIASED}."


def values_of(results: Sequence[TaskResult], key: str) -> list[str]:
    """Return the values that a field of the protocol has among these results."""
    return sorted({str(getattr(result.protocol, key)) for result in results})


def protocol_lines(results: Sequence[TaskResult]) -> list[str]:
    """Return a sentence for every protocol among the results, with its data sets if it matters."""
    groups: dict[tuple[str, ...], list[TaskResult]] = {}
    # Zero-shot chooses nothing.
    for result in in_order(gaining(results) or results):
        groups.setdefault(_key(result.protocol), []).append(result)
    of_methods = len({_methods(members) for members in groups.values()}) > 1
    titles = titles_of(results)
    lines = []
    for members in groups.values():
        protocol = members[0].protocol
        sizes = [member.protocol.validation_samples for member in members]
        images = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        where = f" of {_places(members)}" if len(groups) > 1 else ""
        if of_methods:
            named = [title for name, title in titles.items() if name in _methods(members)]
            where = f" of {', '.join(named)} in the tasks{where}"
        lines.append(
            f"The hyper-parameters of every winner{where} were chosen "
            f"{_explained('metric', protocol)} {_explained('selection', protocol)} "
            f"(`{protocol.selection}`; {images} images a task). Samples are "
            f"{_explained('convention', protocol)} (`{protocol.convention}`); prompts are "
            f"{_explained('prompts', protocol)} (`{protocol.prompts}`).{_refitted(protocol)}"
        )
    return lines


def _methods(results: Sequence[TaskResult]) -> frozenset[str]:
    return frozenset(result.method for result in results)


def _places(results: Sequence[TaskResult]) -> str:
    shots: dict[str, dict[str, None]] = {}
    for result in results:
        shots.setdefault(result.dataset, {})[shots_text(result.shots)] = None
    return ", ".join(f"{name} (shots: {', '.join(found)})" for name, found in shots.items())


def _key(protocol: Protocol) -> tuple[str, ...]:
    return (*(str(getattr(protocol, key)) for key in EXPLAINED), str(protocol.refit))


def _refitted(protocol: Protocol) -> str:
    if not protocol.refit:
        return ""
    return (
        " Winners were then trained once more, on support and validation samples together, which "
        "no published protocol does."
    )


def _explained(key: str, protocol: Protocol) -> str:
    value = str(getattr(protocol, key))
    return EXPLAINED[key].get(value, f"by {value}")
