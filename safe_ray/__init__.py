"""SAFE: few-shot fine-tuning of CLIP's attention pooling, searched per task on a Ray cluster."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_ray.backbones.loading import load_backbone as load_backbone
    from safe_ray.classifier.estimator import FewShotClassifier as FewShotClassifier

__version__ = "0.1.0"

# Imported when somebody asks for them, so that `import safe_ray` and `--help` stay quick.
_LATER = {
    "FewShotClassifier": "safe_ray.classifier.estimator",
    "load_backbone": "safe_ray.backbones.loading",
}

__all__ = ["FewShotClassifier", "__version__", "load_backbone"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
