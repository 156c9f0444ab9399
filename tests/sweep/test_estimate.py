"""What a sweep needs is counted exactly where it can be, and timed where it cannot."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from safe_ray.backbones.openclip import load_backbone, weights_at_hand
from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.features.extract import open_store
from safe_ray.specs import BackboneSpec
from safe_ray.sweep import data
from safe_ray.sweep import estimate as estimation
from safe_ray.sweep.estimate import Estimate, estimate, wanted_views


def config_for(folder: Path, config_dir: Path, *overrides: str) -> SweepConfig:
    settings = ["backbone=tiny", "tasks.datasets=[shapes]", "tasks.shots=[2]", "tasks.seeds=[1]"]
    return load_config([*settings, "features.views=3", f"storage={folder}", *overrides], config_dir)


def estimated(config: SweepConfig, samples: dict[tuple[str, str], str] | None = None) -> Estimate:
    manifests = data.read_manifests(config)
    episodes = data.draw_episodes(config, manifests)
    wanted = wanted_views(config, manifests, episodes)
    return estimate(config, wanted, samples or {}, episodes, seconds=0.05)


def test_maps_that_are_missing_are_counted(tmp_path: Path, tiny_config_dir: Path) -> None:
    config = config_for(tmp_path, tiny_config_dir)
    needs = estimated(config)
    # Support in 1 + 3 views; 2 validation and 6 test images a class in one.
    assert needs.maps == needs.missing == 5 * (2 * 4 + 2 + 6)
    assert needs.bytes_per_map == 4 * 512 * 2
    assert needs.bytes == needs.missing * needs.bytes_per_map
    assert not list(tmp_path.iterdir())


def test_what_the_store_has_is_not_counted_again(tmp_path: Path, tiny_config_dir: Path) -> None:
    config = config_for(tmp_path, tiny_config_dir)
    manifest = data.read_manifests(config)["shapes"]
    tested = manifest.split("test").column("path").to_pylist()[:3]
    samples = {("shapes", path): f"{number:032x}" for number, path in enumerate(tested)}
    backbone = load_backbone(config.backbone.spec(), parts=())
    store = open_store(backbone, config.features.store, "fp32")
    maps = np.zeros((2, store.tokens, store.width), np.float16)
    store.write_part(list(samples.values())[:2], [0, 0], maps)
    needs = estimated(config, samples)
    assert needs.maps - needs.missing == 2


def test_one_image_in_two_places_is_one_map(tmp_path: Path, tiny_config_dir: Path) -> None:
    config = config_for(tmp_path, tiny_config_dir)
    manifest = data.read_manifests(config)["shapes"]
    tested = manifest.split("test").column("path").to_pylist()[:3]
    samples = {("shapes", path): "0" * 32 for path in tested}
    assert estimated(config).maps - estimated(config, samples).maps == 2


def test_training_is_counted_in_candidates_times_images(
    tmp_path: Path, tiny_config_dir: Path
) -> None:
    settings = ("search.candidates=3", "search.epochs=10")
    plain = estimated(config_for(tmp_path, tiny_config_dir, *settings))
    assert plain.steps == 3 * 10 * 10
    cross = (*settings, "search.validation=cross", "search.folds=4")
    assert estimated(config_for(tmp_path, tiny_config_dir, *cross)).steps == 5 * plain.steps
    ranged = ("search.candidates=3", "search.epochs={low: 5, high: 15, log: false}")
    assert estimated(config_for(tmp_path, tiny_config_dir, *ranged)).steps == plain.steps
    assert plain.search_seconds * plain.steps_per_second == pytest.approx(plain.steps)
    assert plain.extraction_seconds > 0


def test_weights_are_at_hand_or_would_be_downloaded(
    tmp_path: Path, tiny_backbone: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    far = BackboneSpec("far", "RN50", "yfcc15m")
    assert weights_at_hand(tiny_backbone)
    assert not weights_at_hand(far)
    folder = tmp_path / "models--timm--resnet50_clip.yfcc15m"
    for file in ("refs/main", "snapshots/abc/open_clip_model.safetensors"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("abc")
    assert weights_at_hand(far)
    with pytest.raises(InputError, match="has no tag"):
        weights_at_hand(BackboneSpec("far", "RN50", "opnai"))


def test_without_the_weights_the_rest_is_estimated_all_the_same(
    tmp_path: Path, tiny_config_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimation, "weights_at_hand", lambda spec: False)
    config = config_for(tmp_path, tiny_config_dir)
    needs = estimated(config)
    assert not needs.at_hand
    assert needs.missing == needs.maps > 0
    assert needs.maps_per_second > 0
