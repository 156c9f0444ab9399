"""Which methods a sweep runs, and which of them share a bank of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from safe_ray.config import FloatRange, IntRange, MethodConfig, SweepConfig
from safe_ray.errors import InputError, nearest
from safe_ray.heads.blending import alpha_grid
from safe_ray.methods.base import Method, Recipe, make_method
from safe_ray.poolings.base import QUERIES, Pooling, select_parameters
from safe_ray.search.space import Quantity, SearchSpace
from safe_ray.specs import MethodGroup, MethodSpec, Range
from safe_ray.training.members import HOLDING, QUANTITIES


@dataclass(frozen=True)
class Group:
    """Methods that are fitted to the same candidates.

    Attributes:
        methods: in the order in which they were asked for.
        recipe: what is trained for them, or None.
        space: what is searched; the first method's score decides.
    """

    methods: tuple[MethodSpec, ...]
    recipe: Recipe | None
    space: SearchSpace

    @property
    def name(self) -> str:
        """Of its first method."""
        return self.methods[0].name

    def candidates(self, wanted: int) -> int:
        """Return how many candidates there are for each task: one if nothing is searched."""
        return wanted if self.space.is_searched else 1


def groups_of(config: SweepConfig) -> tuple[Group, ...]:
    """Return the methods of a sweep, those that can be fitted to the same candidates together.

    These have the same recipe and search the same; what else is fixed for one of them is fixed for
    all, and means nothing to the others.

    Raises:
        InputError: a method's module cannot be used, or its file names a quantity or a knob that
            the method does not know, or lacks one.
    """
    groups: list[Group] = []
    for name in config.method:
        group = _group(config, name, config.methods[name])
        for place, other in enumerate(groups):
            quantities = _shared(other, group)
            if quantities is not None:
                space = replace(other.space, quantities=quantities)
                groups[place] = replace(
                    other, methods=(*other.methods, *group.methods), space=space
                )
                break
        else:
            groups.append(group)
    return tuple(groups)


def _shared(one: Group, other: Group) -> dict[str, Quantity] | None:
    """Return the quantities of candidates that serve both, or None if none do."""
    if one.recipe != other.recipe:
        return None
    mine, theirs = one.space.quantities, other.space.quantities
    if any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
        return None
    together = {**mine, **theirs}
    alone = mine.keys() ^ theirs.keys()
    # What only one of them searches would be another space to the other.
    return None if any(isinstance(together[name], Range) for name in alone) else together


def described(group: Group, pooling: Pooling, names: Sequence[str]) -> MethodGroup:
    """Return a group as workers need it.

    Args:
        group: the methods.
        pooling: what is tuned.
        names: the names of its parameters.

    Raises:
        InputError: the recipe names a part that the pooling has not.
    """
    recipe = group.recipe
    trained = () if recipe is None else select_parameters(pooling, _parts(recipe), names)
    low_rank = recipe is not None and recipe.low_rank
    if low_rank and QUERIES in trained:
        raise InputError(
            f"The method {group.name!r} has updates of low rank, which change matrices, and "
            f"training.parameters=[{QUERIES}] trains none: give it other parts, or choose safe."
        )
    return MethodGroup(group.name, group.methods, trained, low_rank)


def _parts(recipe: Recipe) -> Sequence[str] | str:
    return "all" if recipe.parameters == ("all",) else recipe.parameters


def _group(config: SweepConfig, name: str, file: MethodConfig) -> Group:
    method = make_method(file.module, file.options)
    recipe = method.recipe
    if recipe is not None and recipe.parameters == ("all",):
        wanted = config.training.parameters
        recipe = replace(recipe, parameters=("all",) if wanted == "all" else tuple(wanted))
    quantities = _quantities(config, name, file, method)
    knobs = _knobs(config, name, file, method)
    spec = MethodSpec(name, file.title or name, file.module, dict(file.options), knobs)
    return Group((spec,), recipe, SearchSpace(quantities, knobs, name))


def _quantities(
    config: SweepConfig, name: str, file: MethodConfig, method: Method
) -> dict[str, Quantity]:
    """Return what the method's candidates are made of: `search.*`, and over it the file's."""
    found: dict[str, Quantity] = {}
    if method.recipe is not None:
        found = {each: as_range(getattr(config.search, each)) for each in QUANTITIES}
    known = (*found, *method.quantities)
    _refuse_unknown(name, "space", file.space, known)
    found |= {each: as_range(value) for each, value in file.space.items()}
    held = next((each for each in HOLDING if found.get(each, 0.0) != 0.0), None)
    if method.recipe is not None and method.recipe.low_rank and held is not None:
        raise InputError(
            f"The method {name!r} has updates of low rank, which {held} cannot hold: set "
            f"search.{held}=0.0, or method.{name}.space.{held}=0.0."
        )
    missing = [each for each in method.quantities if each not in found]
    if missing:
        raise InputError(
            f"The method {name!r} lacks space.{missing[0]}: give it a number, or a range to search "
            "with low and high, in its file."
        )
    return found


def _knobs(
    config: SweepConfig, name: str, file: MethodConfig, method: Method
) -> dict[str, tuple[float, ...]]:
    known = [knob for group in method.knobs for knob in group]
    _refuse_unknown(name, "knobs", file.knobs, known)
    missing = [knob for knob in known if knob not in file.knobs]
    if missing:
        raise InputError(
            f"The method {name!r} lacks knobs.{missing[0]}: give it a number, a list of numbers to "
            "choose from, or search.alpha, in its file."
        )
    return {knob: _grid(config, file.knobs[knob]) for knob in known}


def _grid(config: SweepConfig, values: str | float | tuple[float, ...]) -> tuple[float, ...]:
    if not isinstance(values, str):
        return values if isinstance(values, tuple) else (float(values),)
    alpha = config.search.alpha
    if not isinstance(alpha, FloatRange):
        return (float(alpha),)
    return tuple(
        value
        for value in alpha_grid(config.search.alpha_points)
        if alpha.low - 1e-9 <= value <= alpha.high + 1e-9
    )


def as_range(value: Quantity | FloatRange | IntRange) -> Quantity:
    """Return a setting as the value that travels."""
    if isinstance(value, FloatRange | IntRange):
        return Range(value.low, value.high, value.log, isinstance(value, IntRange))
    return value


def _refuse_unknown(
    name: str, where: str, given: Mapping[str, object], known: list[str] | tuple[str, ...]
) -> None:
    unknown = next((each for each in given if each not in known), None)
    if unknown is not None:
        raise InputError(
            f"The method {name!r} has {where}.{unknown}, which it does not know."
            + (nearest(unknown, known) or f" It knows: {', '.join(known) or 'none'}.")
        )


def for_task(group: Group, shots: float, most_epochs: int | None = None) -> Group:
    """Return a group whose space depends on no task any more.

    Args:
        group: the methods.
        shots: support images a class, on average.
        most_epochs: the longest schedule of a bank; None leaves it to the group's space.
    """
    space = group.space.for_shots(shots)
    # Without a bank, epochs are those of a method that goes over features, in no time.
    if most_epochs is not None and group.recipe is not None:
        space = space.with_most("epochs", most_epochs)
    return replace(group, space=space)
