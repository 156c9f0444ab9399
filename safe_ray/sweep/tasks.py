"""The tasks of a sweep as workers need them, written into its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.cluster import TrialPlan, run_on_node, works_here
from safe_ray.config import SweepConfig
from safe_ray.data.episodes import Episode
from safe_ray.data.manifest import Manifest
from safe_ray.features.extract import open_store
from safe_ray.features.inventory import Inventory
from safe_ray.files import digest_json, replacing
from safe_ray.heads.selection import ChooseBy, automatic_rule
from safe_ray.poolings import to_json
from safe_ray.search.space import task_seed
from safe_ray.specs import ALL_SHOTS, BackboneSpec, MethodGroup
from safe_ray.sweep.images import CheckedTask
from safe_ray.sweep.schedule import views_of
from safe_ray.training.facts import POOLING, TaskFacts
from safe_ray.training.maps import choose_pin, stream_budget


def write_tasks(
    config: SweepConfig,
    backbone: Backbone,
    manifests: Mapping[str, Manifest],
    tasks: Sequence[CheckedTask],
    precision: str,
    plan: TrialPlan,
    groups: Sequence[MethodGroup],
) -> dict[str, TaskFacts]:
    """Write what the workers need into the sweep's folder, and return it by task id."""
    folder = config.outputs
    with replacing(folder / POOLING) as temporary:
        save_file({k: v.contiguous() for k, v in backbone.state.items()}, temporary)
    store = open_store(backbone, config.features.store, precision)
    classifiers = {
        name: _classifier(config, backbone, manifests[name]) for name in config.tasks.datasets
    }
    written = {}
    for checked in tasks:
        task, manifest = checked.task, manifests[checked.task.dataset]
        views = views_of(config, task, len(checked.support.samples))
        facts = TaskFacts(
            task=task,
            store_root=str(config.features.store),
            store_key=store.key.as_json(),
            tokens=store.tokens,
            width=store.width,
            pooling=to_json(backbone.pooling),
            logit_scale=backbone.logit_scale,
            views=views,
            support=tuple(checked.support.samples),
            support_labels=_labels(checked.support),
            validation=tuple(checked.validation.samples),
            validation_labels=_labels(checked.validation),
            selection=checked.selection,
            folds=config.search.folds,
            metric=config.evaluation.metric,
            choose_by=_choose_by(config, checked, len(manifest.classes)),
            batch_size=config.training.batch_size,
            warmup=config.training.warmup,
            training_seed=task_seed(config.search.seed, task.id),
            groups=tuple(groups),
            card=_card(config, backbone, manifest, checked.episode),
            pin=choose_pin(
                config.training.pin,
                len(checked.support.samples)
                * (views + 1)
                * store.bytes_per_row
                // config.training.workers,
                plan.memory,
                plan.host_memory,
            ),
            precision=config.training.precision,
            compiled=config.training.compiled and plan.gpus_per_worker > 0,
            cautious=config.search.cautious,
            map_budget=stream_budget(plan.host_memory or plan.memory),
        )
        facts.save(folder / "tasks" / task.id, classifiers[task.dataset])
        written[task.id] = facts
    return written


def _classifier(config: SweepConfig, backbone: Backbone, manifest: Manifest) -> Tensor:
    """Encode a data set's prompts: here, or on a node with CPUs if this one offers none."""
    arguments = (manifest.prompts, manifest.classes, manifest.ids is None)
    if works_here():
        return backbone.classifier_of(*arguments[:2], distinct=arguments[2])
    encoded = run_on_node(encode_prompts, config.backbone.spec(), *arguments)
    # What Ray hands over cannot be written to.
    return torch.from_numpy(encoded.copy())


def encode_prompts(
    spec: BackboneSpec,
    prompts: Sequence[Sequence[str]],
    classes: Sequence[str],
    distinct: bool,
) -> np.ndarray:
    """Return the classifier of some classes, by a text tower that is loaded for it."""
    text = load_backbone(spec, parts=("text",))
    return text.classifier_of(prompts, classes, distinct=distinct).numpy()


def _choose_by(config: SweepConfig, checked: CheckedTask, classes: int) -> ChooseBy:
    if config.search.choose_by != "auto":
        return config.search.choose_by
    judged = checked.support if checked.selection == "cross" else checked.validation
    return automatic_rule(len(judged.samples), classes)


def _labels(inventory: Inventory) -> tuple[int, ...]:
    return tuple(inventory.table.column("label").to_pylist())


def _card(
    config: SweepConfig, backbone: Backbone, manifest: Manifest, episode: Episode
) -> dict[str, Any]:
    spec = config.backbone
    return {
        "backbone": {
            "name": spec.name,
            "model": spec.model,
            "pretrained": spec.pretrained,
            "model_config": spec.architecture_file,
            "seed": spec.seed,
            "pooling": spec.pooling,
            "digest": backbone.digest,
            "part": backbone.part,
        },
        "dataset": episode.dataset,
        "shots": "all" if episode.shots == ALL_SHOTS else episode.shots,
        "seed": episode.seed,
        "class_names": list(manifest.classes),
        # What else the classes are called, where they are called something else.
        **({"names": [list(own) for own in manifest.names]} if manifest.names else {}),
        **({"called": list(manifest.called)} if manifest.called else {}),
        "templates": list(manifest.templates),
        "prompts": config.data.prompts,
        "prompts_digest": digest_json(manifest.prompts),
        "logit_scale": backbone.logit_scale,
        "preprocessing": asdict(backbone.preprocessing),
        "episode": {
            "convention": config.data.convention,
            "digest": episode.digest,
            "train_digest": episode.train_digest,
            "validation_digest": episode.validation_digest,
        },
    }
