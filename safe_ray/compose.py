"""Composition of the configuration: YAML files, a user's tree in front, overrides on top.

Hydra's compose API does the work. Its errors become one sentence with the nearest names.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import safe_ray
from safe_ray import job
from safe_ray.config import (
    DatasetConfig,
    MethodConfig,
    SweepConfig,
    groups,
    knobs,
    validate,
    validate_dataset,
    validate_method,
)
from safe_ray.errors import InputError, nearest
from safe_ray.files import is_uri, resolve_path
from safe_ray.outside import LARGEST_YAML, check_plain, check_yaml, is_plain_name, read_file
from safe_ray.own_data import OPTIONS, dataset_at, is_own_setting, looks_like_location
from safe_ray.own_model import with_own_model

PRIMARY = "tune"
DATASETS = "dataset"
METHODS = "method"
RANGE_KEYS = ("low", "high", "log")
# What OmegaConf raises beside its own errors, where values are of types that it does not expect.
_UNREADABLE = (
    OmegaConfBaseException,
    yaml.YAMLError,
    OSError,
    ValueError,
    RecursionError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
)


def packaged_tree() -> Path:
    """Return the folder of the configuration that comes with the package."""
    package = Path(safe_ray.__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@dataclass(frozen=True)
class ConfigTree:
    """The folders that configuration is read from, the first with a file wins."""

    folders: tuple[Path, ...]

    @staticmethod
    def of(config_dir: str | Path | None = None) -> ConfigTree:
        """Return the packaged tree, with a user's in front of it.

        Raises:
            InputError: `config_dir` is not a folder.
        """
        if config_dir is None:
            return ConfigTree((packaged_tree(),))
        folder = resolve_path(config_dir)
        if not folder.is_dir():
            raise InputError(f"--config-dir names {folder}, which is not a folder.")
        return ConfigTree((folder, packaged_tree()))

    def choices(self, group: str) -> list[str]:
        """Return the names of the files of a group."""
        names = {file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")}
        return sorted(names)

    def own_files(self) -> list[Path]:
        """Return the files of a user's tree that are composed; the packaged ones are known."""
        packaged = packaged_tree()
        places = [
            place
            for folder in self.folders
            if folder != packaged
            for place in (folder, *(folder / group for group in groups()))
        ]
        return [file for place in places for file in sorted(place.glob("*.yaml"))]

    def find(self, group: str, name: str) -> Path | None:
        """Return the file of a group, or None."""
        files = [folder / group / f"{name}.yaml" for folder in self.folders]
        return next((file for file in files if file.is_file()), None)


def load_config(
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    own: DatasetConfig | None = None,
) -> SweepConfig:
    """Compose, resolve and check the configuration of a sweep.

    Args:
        overrides: `group=choice` and `group.knob=value`, the later ones win;
            `data=<location>` is a data set that has no YAML file.
        config_dir: a tree like `conf/` whose files go before the packaged ones.
        own: the only data set, in place of one that `data=<location>` names.

    Raises:
        InputError: what is wrong with which setting or file, with the nearest names.
    """
    tree = ConfigTree.of(config_dir)
    if own is None:
        overrides, own = _own_data(tree, overrides)
    else:
        overrides = _alone(own, overrides)
    overrides, changes = _own_methods(overrides)
    composed = compose_tree(tree, overrides)
    try:
        composed.storage = str(_storage(composed.storage))
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        # A number that is none is told with its setting, when the values are checked.
        check_plain(values, finite=False)
    except _UNREADABLE as error:
        raise InputError(f"The configuration cannot be resolved: {_first_line(error)}.") from None
    assert isinstance(values, dict)
    plain: dict[str, Any] = {str(key): value for key, value in values.items()}
    if isinstance(plain.get("backbone"), dict):
        plain["backbone"] = with_own_model(plain["backbone"], overrides)
    is_made_up = plain.get("sweep") is None
    if is_made_up:
        backbone = plain.get("backbone")
        name = backbone.get("name") if isinstance(backbone, dict) else None
        plain["sweep"] = f"{name or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"
    plain |= {METHODS: changes.names} if changes.names is not None else {}
    config = validate({**plain, "datasets": {}, "methods": {}})
    names = [*config.tasks.datasets, *config.evaluation.targets]
    if own is not None and own.name not in names:
        raise InputError(
            f"data={own.path} is the data set {own.name!r}, which tasks.datasets does not name: "
            "add it there, or leave tasks.datasets out."
        )
    datasets = {
        name: own if own is not None and own.name == name else load_dataset(tree, name)
        for name in names
    }
    changes.check(config.method)
    methods = {name: load_method(tree, name, changes.of.get(name, {})) for name in config.method}
    whole = config.model_copy(update={"datasets": datasets, "methods": methods})
    return whole.with_name_made_up() if is_made_up else whole


@dataclass(frozen=True)
class _MethodChanges:
    """What the command line says of methods.

    Attributes:
        names: the methods that it asks for; None leaves them to the files.
        of: settings over those of each method's file, by its name.
    """

    names: Any
    of: Mapping[str, DictConfig]

    def check(self, asked: Sequence[str]) -> None:
        """Refuse a change of a method that is not asked for."""
        other = next((name for name in self.of if name not in asked), None)
        if other is not None:
            raise InputError(
                f"method.{other} changes a method that is not asked for: the methods are "
                f"{', '.join(asked)}.{nearest(other, list(asked))}"
            )


def _own_methods(overrides: Sequence[str]) -> tuple[list[str], _MethodChanges]:
    """Take `method=...` and `method.<name>.<setting>=...` out of the overrides.

    To Hydra, a name that is a folder of files chooses one of them; methods may be several.
    """
    names: Any = None
    changes: dict[str, DictConfig] = {}
    rest = []
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        first, *path = key.split(".")
        if first != METHODS:
            rest.append(text)
            continue
        if not value or len(path) == 1:
            raise InputError(
                f"{text!r} is no setting of a method: write method=<name>, method=[<name>,<name>] "
                "or method.<name>.space.<quantity>=<value>."
            )
        parsed = _parsed(text.lstrip("+"))
        if not path:
            names = parsed
        else:
            own = changes.setdefault(path[0], OmegaConf.create())
            OmegaConf.update(own, ".".join(path[1:]), parsed)
    return rest, _MethodChanges(names, changes)


def _parsed(text: str) -> Any:
    """Return the value of an override by Hydra's grammar, as plain values."""
    try:
        return OverridesParser.create().parse_overrides([text])[0].value()
    except OverrideParseException:
        raise _unreadable(text, text.partition("=")[0]) from None


def load_method(
    tree: ConfigTree, name: str, changes: Mapping[str, Any] | DictConfig | None = None
) -> MethodConfig:
    """Return the checked content of `method/<name>.yaml`, with changes over it.

    Raises:
        InputError: there is no such file, or its content is wrong.
    """
    values = _read_choice(tree, METHODS, name, "method", changes)
    return validate_method(name, values)


def _storage(value: str | None) -> Path:
    """Return the absolute path of the storage folder, which other settings start from.

    Raises:
        InputError: it is a URI.
    """
    if not value:
        return job.default_storage()
    if is_uri(str(value)):
        raise InputError(
            f"storage={value} is not a folder of the file system, and sweeps keep locks and memory "
            "maps in theirs: name a folder, such as a mounted share (only data sets may lie at a "
            "URI)."
        )
    return resolve_path(str(value))


def _own_data(tree: ConfigTree, overrides: Sequence[str]) -> tuple[list[str], DatasetConfig | None]:
    """Take `data=<location>` out of the overrides, and put in what makes it the only data set."""
    locations = [
        value
        for key, _, value in (override.partition("=") for override in overrides)
        if key == "data" and value not in tree.choices("data") and looks_like_location(value)
    ]
    if not locations:
        _check_no_own(overrides)
        return list(overrides), None
    if len(locations) > 1:
        raise InputError(
            f"data= names {len(locations)} locations: give one, and a YAML file in a tree of your "
            "own (--config-dir) for each of several."
        )
    others = [override for override in overrides if override != f"data={locations[0]}"]
    mine = [override for override in others if is_own_setting(override.partition("=")[0])]
    rest = [override for override in others if override not in mine]
    own = dataset_at(locations[0], rest, dict(map(_own_setting, mine)))
    return _alone(own, rest), own


def _alone(own: DatasetConfig, overrides: Sequence[str]) -> list[str]:
    """Return overrides that make it the only data set, unless they say otherwise."""
    keys = {override.partition("=")[0] for override in overrides}
    chosen = [] if "tasks" in keys else ["tasks=own"]
    named = [] if "tasks.datasets" in keys else [f"tasks.datasets=['{own.name}']"]
    return [*chosen, *overrides, *named]


def _check_no_own(overrides: Sequence[str]) -> None:
    """Refuse what has a meaning for images of one's own, and only for them."""
    keys = {override.partition("=")[0] for override in overrides}
    mine = next(filter(is_own_setting, sorted(keys)), None)
    if mine is not None:
        raise InputError(
            f"{mine} is a setting of images of your own: add data=<location>, or write it into the "
            f"YAML file of the data set, in the folder {DATASETS} of your --config-dir."
        )
    if "tasks=own" in overrides and "tasks.datasets" not in keys:
        raise InputError(
            "tasks=own needs images of your own: name where they are with data=<location>, or data "
            "sets with tasks.datasets=[...]."
        )


def _own_setting(text: str) -> tuple[str, Any]:
    """Return the key and the value of a setting of images of one's own."""
    key, equals, value = text.partition("=")
    if not equals or key == OPTIONS:
        raise InputError(f"{text!r} has no value: write {key}=<value>.")
    try:
        parsed = OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException:
        if value.startswith(("[", "{")):
            raise _unreadable(text, key) from None
        # A template, a delimiter or the name of a column, with characters that mean something.
        return key, value
    if parsed.is_sweep_override():
        return key, value
    return key, parsed.value()


def load_dataset(tree: ConfigTree, name: str) -> DatasetConfig:
    """Return the checked content of `dataset/<name>.yaml`.

    Raises:
        InputError: there is no such file, or its content is wrong.
    """
    return validate_dataset(name, _read_choice(tree, DATASETS, name, "tasks.datasets"))


def _text_of(file: Path) -> str:
    """Return the text of a YAML file that is safe to be made into values.

    Raises:
        OSError, ValueError: see `safe_ray.outside`.
    """
    return check_yaml(read_file(file, 4 * LARGEST_YAML))


def _read_choice(
    tree: ConfigTree,
    group: str,
    name: str,
    setting: str,
    changes: Mapping[str, Any] | DictConfig | None = None,
) -> dict[str, Any]:
    """Return the content of a group's file that a setting names, with changes over it."""
    # A name is one of a file in the folder, and no way out of it.
    file = tree.find(group, name) if is_plain_name(name) else None
    if file is None:
        known = tree.choices(group)
        raise InputError(
            f"{setting} names {name!r}, and there is no file {group}/{name}.yaml in "
            f"{' or '.join(str(folder) for folder in tree.folders)}."
            + (nearest(name, known) or f" There are: {', '.join(known)}.")
        )
    try:
        content = OmegaConf.load(io.StringIO(_text_of(file)))
        if changes and isinstance(content, DictConfig):
            content = OmegaConf.merge(content, changes)
        values = OmegaConf.to_container(content, resolve=True, throw_on_missing=True)
        check_plain(values)
    except _UNREADABLE as error:
        raise InputError(f"{file} cannot be read: {_first_line(error)}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold settings such as `format: parquet`.")
    return {str(key): value for key, value in values.items()}


def compose_tree(tree: ConfigTree, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the composed configuration, its interpolations not yet resolved.

    Raises:
        InputError: an override or a file that cannot be read, with the nearest names.
    """
    readable = [_readable(text) for text in overrides]
    for text, parsed in readable:
        _check(text, parsed, tree)
    for file in tree.own_files():
        try:
            _text_of(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {_first_line(error)}.") from None
    try:
        with _searching(tree.folders):
            return compose(PRIMARY, [_addable(text) for text, _ in readable])
    except (HydraException, *_UNREADABLE) as error:
        where = " and ".join(str(folder) for folder in tree.folders)
        raise InputError(
            f"The configuration in {where} cannot be composed: {_first_line(error)}."
        ) from None


@contextmanager
def _searching(folders: Sequence[Path]) -> Iterator[None]:
    """Let Hydra read from the folders, in this order.

    Hydra's public initialisers take one folder and put further ones behind it, where a user's
    files would never win over the packaged ones.
    """
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        path.append("safe_ray", f"file://{folder}")
    # Hydra keeps the defaults of its own settings as structured configurations.
    path.append("schema", "structured://")
    GlobalHydra.instance().clear()
    # Where Hydra's readers of YAML files register themselves.
    Plugins.instance()
    Hydra.create_main_hydra2("safe_ray", path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def _readable(text: str) -> tuple[str, Override]:
    """Parse an override; a value that Hydra's grammar refuses is taken as plain text."""
    parser = OverridesParser.create()
    try:
        return text, parser.parse_overrides([text])[0]
    except OverrideParseException:
        pass
    key, equals, value = text.partition("=")
    is_text = any(knob.path == key and _holds_text(knob.type) for knob in knobs())
    if equals and is_text and not value.startswith(("'", '"', "[", "{")):
        quoted = f"{key}='{_escape(value)}'"
        return quoted, parser.parse_overrides([quoted])[0]
    if not equals and text in groups():
        raise InputError(
            f"{text!r} has no value: write {text}=<choice> or {text}.<knob>=<value> (--help lists "
            "them)."
        )
    if not equals and any(knob.path == text for knob in knobs()):
        raise InputError(f"{text!r} has no value: write {text}=<value>.")
    if not equals:
        raise InputError(
            f"{text!r} is not an override: write group=choice or group.knob=value (--help lists "
            f"them).{nearest(text, _settable())}"
        )
    raise _unreadable(text, key)


def _unreadable(text: str, key: str) -> InputError:
    return InputError(
        f"The value of {text!r} cannot be read: lists are written [a,b], and text with special "
        f"characters in quotes, such as {key}='\"...\"'."
    )


def _addable(text: str) -> str:
    """Let an override set a knob that a user's own file leaves out."""
    key = text.lstrip("+").partition("=")[0]
    return text if key in groups() else f"++{text.lstrip('+')}"


def _check(text: str, override: Override, tree: ConfigTree) -> None:
    """Refuse names that do not exist before Hydra does, in words that help."""
    key = override.key_or_group
    if key.startswith("hydra"):
        raise InputError(f"{text!r}: Hydra's own settings have no effect here; leave it out.")
    if override.is_sweep_override():
        several = text.partition("=")[2]
        raise InputError(f"{text!r} has several values: a list is written {key}=[{several}].")
    if key == DATASETS:
        raise InputError(f"{text!r}: data sets are chosen by name with tasks.datasets=[...].")
    if key in groups() and override.package is None:
        choice = override.value()
        known = tree.choices(key)
        if override.is_delete() or not isinstance(choice, str) or choice not in known:
            name = text.partition("=")[2]
            raise InputError(
                f"There is no {key}={name}."
                + (nearest(name, known) or f" The choices are: {', '.join(known)}.")
                + f" (--help lists the knobs {key}.<knob>.)"
            )
        return
    types: dict[str, str] = {knob.path: knob.type for knob in knobs()}
    owner, _, end = key.rpartition(".")
    inside_range = end in RANGE_KEYS and "{low" in types.get(owner, "")
    if override.package is not None or (key not in types and not inside_range):
        raise InputError(
            f"There is no setting {text.partition('=')[0].lstrip('+')!r}."
            + (nearest(key, _settable()) or " --help lists all of them.")
        )
    if override.is_delete():
        raise InputError(f"{text!r}: settings cannot be removed; give {key} another value.")
    if key not in types:
        return
    wanted = types[key]
    value = override.value()
    # Hydra would merge a mapping or a list into the default, and fail in its own words.
    wrong_mapping = isinstance(value, dict) and (
        "{low" not in wanted or not {str(name) for name in value} <= set(RANGE_KEYS)
    )
    if wrong_mapping or (isinstance(value, list) and "list" not in wanted):
        raise InputError(f"{key} is {text.partition('=')[2]}, and must be {wanted}.")


def _settable() -> list[str]:
    return [*groups(), *(knob.path for knob in knobs())]


def _holds_text(type_name: str) -> bool:
    return "text" in type_name or "folder" in type_name


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
