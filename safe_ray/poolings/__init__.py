"""Poolings: one file a family of towers, found by looking at the tower itself.

A module of this package that defines `POOLING` is a family. One that lies elsewhere is named by
`backbone.pooling=<module>`; nothing else has to know of it. Plain PyTorch: importable in a
notebook without Ray, MLflow or Optuna.
"""

from safe_ray.poolings.base import Cut, Pooling, find_pooling, from_json, pool_each, to_json

__all__ = ["Cut", "Pooling", "find_pooling", "from_json", "pool_each", "to_json"]
