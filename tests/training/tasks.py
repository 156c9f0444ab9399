"""A small task on disk, as the driver of a sweep writes it: random maps, a real feature store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.heads.blending import alpha_grid
from safe_ray.poolings import to_json
from safe_ray.specs import MethodGroup, MethodSpec, Task
from safe_ray.training.facts import POOLING, TaskFacts
from safe_ray.training.job import BankJob
from tests.heads.test_bank import CLASSES, GRID, NAMES, POOL, WIDTH, classifier, layer, state_of

TASK = Task("shapes", 3, 1)
VIEWS = 2
CANDIDATES = (
    {"lr": 1e-3, "weight_decay": 0.01, "epochs": 4},
    {"lr": 3e-4, "weight_decay": 0.1, "epochs": 7},
    {"lr": 2e-3, "weight_decay": 0.0, "epochs": 2},
)
SAFE = MethodSpec("safe", "SAFE", "safe_ray.methods.tuned", {}, {"alpha": alpha_grid(11)})
GROUP = MethodGroup("safe", (SAFE,), NAMES)


def write_task(root: Path, **changes: Any) -> BankJob:
    """Write a sweep's folder with one task of 19 support and 14 validation samples."""
    sweep = root / "sweep"
    generator = np.random.default_rng(0)
    support = [f"support-{i}" for i in range(19)]
    validation = [f"validation-{i}" for i in range(14)]
    key = StoreKey("trunk", {"size": 96}, "fp32", "1")
    store = FeatureStore(root / "features", key, GRID * GRID, WIDTH)
    samples = [(s, view) for s in support for view in range(VIEWS + 1)]
    samples += [(s, 0) for s in validation]
    maps = generator.standard_normal((len(samples), GRID * GRID, WIDTH)).astype(np.float16)
    store.write_part([s for s, _ in samples], [view for _, view in samples], maps)
    facts = TaskFacts(
        task=TASK,
        store_root=str(root / "features"),
        store_key=key.as_json(),
        tokens=GRID * GRID,
        width=WIDTH,
        pooling=to_json(POOL),
        logit_scale=20.0,
        views=VIEWS,
        support=tuple(support),
        support_labels=tuple(i % CLASSES for i in range(19)),
        validation=tuple(validation),
        validation_labels=tuple(i % CLASSES for i in range(14)),
        selection="coop",
        folds=3,
        metric="accuracy",
        choose_by="metric",
        batch_size=8,
        warmup=0.1,
        training_seed=5,
        groups=(GROUP,),
        card={
            "backbone": {"name": "tiny"},
            "dataset": "shapes",
            "shots": 3,
            "seed": 1,
            "class_names": [f"class {i}" for i in range(CLASSES)],
            "templates": ["{}"],
            "logit_scale": 20.0,
            "preprocessing": {},
            "episode": {"digest": "0"},
        },
    )
    replace(facts, **changes).save(sweep / "tasks" / TASK.id, classifier())
    save_file({k: v.contiguous() for k, v in state_of(layer(0)).items()}, sweep / POOLING)
    return BankJob(str(sweep), TASK.id, "safe", 0, CANDIDATES)


def device() -> torch.device:
    return torch.device("cpu")
