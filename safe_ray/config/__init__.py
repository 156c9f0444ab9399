"""The configuration of a sweep, typed and checked; what is chosen by default lies in `conf/`.

Types and bounds live here, default values in the YAML files only.
"""

from safe_ray.config.checking import (
    validate,
    validate_dataset,
    validate_method,
    validate_settings,
)
from safe_ray.config.fields import Flag, FloatRange, Group, IntRange, Name, PositiveInt, Seed
from safe_ray.config.listing import groups, knobs
from safe_ray.config.resuming import REMEMBERED, difference, essentials
from safe_ray.config.settings import DatasetConfig, MethodConfig, TasksConfig, TrackingConfig
from safe_ray.config.sweep import SweepConfig

__all__ = [
    "REMEMBERED",
    "DatasetConfig",
    "Flag",
    "FloatRange",
    "Group",
    "IntRange",
    "MethodConfig",
    "Name",
    "PositiveInt",
    "Seed",
    "SweepConfig",
    "TasksConfig",
    "TrackingConfig",
    "difference",
    "essentials",
    "groups",
    "knobs",
    "validate",
    "validate_dataset",
    "validate_method",
    "validate_settings",
]
