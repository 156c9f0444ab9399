"""What the tests share: a tiny CLIP, a tiny data set, a configuration for them, a local Ray."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

from safe_ray.specs import BackboneSpec, DatasetSpec

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_TRAIN_V2_ENABLED="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nice by themselves, and would starve beside the other tests.
os.environ.setdefault("RAY_worker_niceness", "0")
for hijacker in ("RAY_ADDRESS", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(hijacker, None)


# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests that take many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    # Files with slow tests come first: a long one at the end would leave the other processes idle.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


TINY_MODEL = "safe-ray-test-tiny"
TINY_IMAGE_SIZE = 64
SOME_SHAPES = ("purple ring", "red circle", "black cross")
SPLIT_SIZES = {"train": 8, "val": 4, "test": 6}

Box = tuple[float, float, float, float]
Draw = Callable[[ImageDraw.ImageDraw, Box, str], None]


def _cross(draw: ImageDraw.ImageDraw, box: Box, colour: str) -> None:
    left, top, right, bottom = box
    draw.line((left, top, right, bottom), fill=colour, width=7)
    draw.line((left, bottom, right, top), fill=colour, width=7)


def _triangle(draw: ImageDraw.ImageDraw, box: Box, colour: str) -> None:
    left, top, right, bottom = box
    draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)


SHAPES: dict[str, tuple[str, Draw]] = {
    "red circle": ("red", lambda draw, box, colour: draw.ellipse(box, fill=colour)),
    "green square": ("green", lambda draw, box, colour: draw.rectangle(box, fill=colour)),
    "blue triangle": ("blue", _triangle),
    "black cross": ("black", _cross),
    "purple ring": ("purple", lambda draw, box, colour: draw.ellipse(box, outline=colour, width=6)),
}


def draw_shape(class_name: str, variant: int) -> bytes:
    """Return a PNG, 80 wide and 72 high, of the shape at a place, size and ground of its own."""
    seed = hashlib.sha256(f"{class_name}/{variant}".encode()).digest()
    rng = random.Random(seed)
    ground = tuple(rng.randint(200, 255) for _ in range(3))
    image = Image.new("RGB", (80, 72), ground)
    size = rng.uniform(26, 44)
    left, top = rng.uniform(2, 78 - size), rng.uniform(2, 70 - size)
    colour, draw = SHAPES[class_name]
    draw(ImageDraw.Draw(image), (left, top, left + size, top + size), colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_backbone(folder: Path) -> BackboneSpec:
    """Return a ModifiedResNet CLIP with random weights: 64 px, C=512, 8 heads, grid 2x2, D=64."""
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": TINY_IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    }
    file = folder / f"{TINY_MODEL}.json"
    file.write_text(json.dumps(config))
    return BackboneSpec(name="tiny", model=TINY_MODEL, pretrained=None, model_config=str(file))


def write_weights(backbone: BackboneSpec, folder: Path) -> Path:
    """Return a file of the backbone's weights, as plain open_clip reads it."""
    import open_clip
    import torch
    from open_clip.factory import add_model_config
    from safetensors.torch import save_file

    add_model_config(backbone.model_config)
    torch.manual_seed(0)
    file = folder / "tiny.safetensors"
    save_file(open_clip.create_model(TINY_MODEL).state_dict(), file)
    return file


def write_dataset(folder: Path) -> DatasetSpec:
    """Return 5 classes of coloured shapes in one Parquet file: 8 train, 4 val, 6 test a class."""
    rows = []
    for name in SHAPES:
        variant = 0
        for split, count in SPLIT_SIZES.items():
            for _ in range(count):
                rows.append(
                    {
                        "image": draw_shape(name, variant),
                        "class_name": name,
                        "split": split,
                        "path": f"{name.replace(' ', '_')}/{variant:03d}.png",
                        "style": "drawn",
                        "source": "drawn by the tests",
                        "licence": "CC0-1.0",
                    }
                )
                variant += 1
    file = folder / "shapes.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return DatasetSpec(
        name="shapes", format="parquet", path=str(file), templates=("a drawing of a {}.",)
    )


def write_config_dir(root: Path, backbone: BackboneSpec, dataset: DatasetSpec) -> None:
    """Fill a folder for `--config-dir`: backbone `tiny`, data set `shapes`, target `some_shapes`.

    The target has the test images of three of the five shapes.
    """
    rows = pq.read_table(dataset.path).to_pylist()
    some = [row for row in rows if row["split"] == "test" and row["class_name"] in SOME_SHAPES]
    pq.write_table(pa.Table.from_pylist(some), root / "some_shapes.parquet")
    target = {
        "format": "parquet",
        "path": str(root / "some_shapes.parquet"),
        "target_of": dataset.name,
        "options": {"classes": list(SOME_SHAPES)},
    }
    for group, name, content in (
        (
            "backbone",
            "tiny",
            {
                "name": backbone.name,
                "model": backbone.model,
                "pretrained": backbone.pretrained,
                "model_config": backbone.model_config,
            },
        ),
        (
            "dataset",
            "shapes",
            {
                "name": dataset.name,
                "format": dataset.format,
                "path": dataset.path,
                "templates": list(dataset.templates),
            },
        ),
        ("dataset", "some_shapes", target),
    ):
        file = root / group / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2))


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def tiny_config_dir(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_backbone: BackboneSpec,
    tiny_dataset: DatasetSpec,
) -> Path:
    root = tmp_path_factory.mktemp("conf")
    write_config_dir(root, tiny_backbone, tiny_dataset)
    return root


@pytest.fixture(scope="session")
def stored_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of feature stores for whole sweeps: maps are made once for all test processes.

    It is for sweeps whose test is about something else than extraction.
    """
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "stored-maps"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one local Ray with two CPUs for the whole session."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()
