"""What a method is: `Method` is fitted to a task and gives a `Fitted` for each candidate.

A candidate is a mapping of names to values, such as a learning rate and epochs. A knob is
what a fitted method still leaves open: it is solved exactly, on the validation samples, from tables
that hold every point of its grid.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.heads.artifact import HOW_TO_LOAD_METHOD
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums
from safe_ray.outside import is_module_name
from safe_ray.poolings.base import HeadState
from safe_ray.specs import Values

At = Mapping[str, float]
"""A value for each knob."""

CLASS = "METHOD"


@dataclass(frozen=True)
class Recipe:
    """Which bank of poolings a method needs trained: methods with equal recipes share one.

    Attributes:
        parameters: the parts of the pooling that are trained: `("all",)`, or some of its groups.
        low_rank: whether matrices change by a product of two thin ones, whose rank is the
            candidate's `rank` (see `safe_ray.poolings.low_rank`), and nothing else does.
    """

    parameters: tuple[str, ...] = ("all",)
    low_rank: bool = False

    @staticmethod
    def of(parameters: str | Sequence[str], low_rank: bool = False) -> Recipe:
        """Return the recipe of one part, or of several, as a method's options name them."""
        one = isinstance(parameters, str)
        return Recipe((str(parameters),) if one else tuple(parameters), low_rank)


@dataclass(frozen=True)
class TaskData:
    """What a method is fitted to.

    Attributes:
        features: of the S support samples, in all their views.
        labels: `[S]` int64 class indices.
        classifier: `[classes, D]`, normalised text embeddings.
        logit_scale: the model's, already exponentiated.
        original: the original head.
        heads: the trained head of each candidate, in their order; empty for a method without a
            recipe. They have seen these support samples and no others.
        seed: what a method that draws random numbers draws them with.
    """

    features: Features
    labels: Tensor
    classifier: Tensor
    logit_scale: float
    original: HeadState
    heads: Sequence[HeadState] = ()
    seed: int = 0


class Fitted(Protocol):
    """One candidate of a method, fitted to a task."""

    def logits(self, features: Features, at: At) -> Tensor:
        """Return the class logits `[N, classes]` of view 0 of each sample.

        Args:
            features: of the samples to classify.
            at: a value for each knob.
        """
        ...

    def sums(self, features: Features, labels: Tensor, grid: Grid, at: At) -> KnobSums:
        """Evaluate labelled samples at every point of a grid; `sums_of_logits` does for most.

        Args:
            features: of the N samples.
            labels: `[N]` int64 class indices.
            grid: the values of each knob that varies; the last one varies fastest.
            at: a value for each of the other knobs.
        """
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors from which the method's `load` makes it again."""
        ...


@runtime_checkable
class Graphable(Protocol):
    """A fitted method whose `logits` a graph cannot hold as they are, and what it can hold."""

    def function(self, at: At) -> Callable[[Features], Tensor]:
        """Return `logits` at these knobs, as a function of features alone.

        What does not depend on features is computed before, and how it goes does not depend on the
        number of samples.
        """
        ...


def function_of(fitted: Fitted, at: At) -> Callable[[Features], Tensor]:
    """Return the logits at these knobs as a function of features that a graph can hold."""
    if isinstance(fitted, Graphable):
        return fitted.function(at)
    return lambda features: fitted.logits(features, at)


class Method(Protocol):
    """A way to adapt to a task, with its options as fields.

    What is searched and what the knobs' grids are is the caller's; a method says which names it
    understands. One that is the original model at some value of its knobs says so in an attribute
    `zero_shot_at`, a value for each knob.
    """

    quantities: tuple[str, ...]
    """Names that a candidate must have, beside those of the bank that the recipe asks for."""

    knobs: tuple[tuple[str, ...], ...]
    """Names of the knobs; those of one group are solved together, group after group."""

    recipe: Recipe | None
    """The bank that is trained before the method is fitted; None for a method that needs none."""

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """Fit each candidate to the support samples."""
        ...

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """Return what `state` described; `task` gives classifier and scale, and no support."""
        ...


def how_to_load(module: str, options: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines of Python that use what a method keeps, as its cards carry them.

    A method that can be used without this package says so with lines of its own, in an attribute
    `how_to_load`.
    """
    lines: Sequence[str] = getattr(make_method(module, options), "how_to_load", HOW_TO_LOAD_METHOD)
    return lines


def check_module(module: str, trusted: Sequence[str] = ()) -> None:
    """Refuse a module that a head names, unless it is of this package or was imported before.

    To import a module is to run it, and its name may come from anybody's head.

    Args:
        module: its dotted name.
        trusted: more modules that may be imported.

    Raises:
        InputError: it is neither.
    """
    own = module.startswith("safe_ray.") and is_module_name(module)
    if not own and module not in trusted and module not in sys.modules:
        raise InputError(
            f"The head names the module {module!r}, which is not of this package: if you trust it, "
            "import it first (--import on the command line)."
        )


def make_method(module: str, options: Mapping[str, Any]) -> Method:
    """Return the method that a module makes of its options.

    Args:
        module: one that assigns a class, or a function, to the name `METHOD`.
        options: its keyword arguments.

    Raises:
        InputError: there is no such module, it makes no method, or it does not know an option.
    """
    if not is_module_name(module):
        raise InputError(f"The method's module {module!r} is none: give its dotted name.")
    try:
        make = getattr(importlib.import_module(module), CLASS, None)
    except ImportError as error:
        raise InputError(
            f"The method's module {module!r} cannot be imported ({error}): name a module on "
            "Python's path."
        ) from error
    if make is None:
        raise InputError(
            f"The method's module {module!r} makes no method: assign its class to the name {CLASS}."
        )
    try:
        method: Method = make(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"The method of {module!r} refuses its options: {error}.") from error
    return method
