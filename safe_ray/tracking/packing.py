"""A head as a folder that MLflow takes for a model: its code is a file, nothing is pickled.

MLmodel, requirements.txt, input_example.json
model_code.py                  `safe_ray.prediction.model_code`
artifacts/head/                the head's two files, the text embeddings of its classes, and
those files of its backbone that nobody else has
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.files import link_or_copy

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

CODE = Path(__file__).parents[1] / "prediction" / "model_code.py"
HEAD = "head"
REQUIRED = ("safe-ray", "mlflow", "torch", "torchvision", "open_clip_torch", "pillow")
"""What a model needs to predict, at the versions that it was made with."""


@dataclass(frozen=True)
class Package:
    """What a model is made of.

    Attributes:
        head: the folder of the head.
        more: other files that go beside the head's, by their names there.
        side: of the example's image, in pixels.
        metadata: what else the model says of itself.
    """

    head: Path
    more: Mapping[str, Path] = field(default_factory=dict)
    side: int = 32
    metadata: Mapping[str, str] = field(default_factory=dict)


def pack(package: Package, folder: Path, scratch: Path, model_id: str, run_id: str) -> None:
    """Write a model's folder, which must not be there yet.

    Args:
        package: what it is made of.
        folder: of the model.
        scratch: an empty folder, which is used meanwhile.
        model_id: MLflow's id of the model.
        run_id: of the run that it comes from.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    staged = scratch / HEAD
    files = {file.name: file for file in package.head.iterdir()} | dict(package.more)
    for name, file in files.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, staged / name)
    with _quiet():
        save_model(
            str(folder),
            python_model=str(CODE),
            artifacts={HEAD: str(staged)},
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=signature(),
            input_example=example(package.side),
            pip_requirements=requirements(),
            metadata=dict(package.metadata),
        )


def signature() -> ModelSignature:
    """Return what a model takes and gives, a row an image."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.binary, "image", required=False),
                ColSpec(DataType.string, "path", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "class", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("top", DataType.integer, 1),
                ParamSpec("alpha", DataType.double, -1.0),
            ]
        ),
    )


def example(side: int) -> pd.DataFrame:
    """Return a table with one image, of one grey."""
    import pandas as pd
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (side, side), (128, 128, 128)).save(content, "PNG")
    return pd.DataFrame({"image": [content.getvalue()]})


def requirements(packages: Sequence[str] = REQUIRED) -> list[str]:
    """Return the installed versions of packages, as pip's requirements."""
    found = []
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            # A build such as 2.9.1+cpu is on no index that everybody has.
            found.append(f"{package}=={version(package).partition('+')[0]}")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back MLflow's advice about models that are written in another way."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
