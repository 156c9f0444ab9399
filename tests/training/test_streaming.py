"""Maps that do not fit are streamed: the same head, within a bound on memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.files import read_record, write_record
from safe_ray.poolings import to_json
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.training.facts import POOLING, TaskFacts
from safe_ray.training.job import BankJob, run_bank
from safe_ray.training.outcome import OUTCOME, BankOutcome
from safe_ray.training.streaming import StreamedMaps
from tests.training.tasks import CANDIDATES, VIEWS, device, write_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOKENS, WIDTH, SAMPLES, SAMPLE_VIEWS = 49, 256, 8192, 2
MAP_BYTES = 2 * TOKENS * WIDTH
BUDGET = SAMPLES * SAMPLE_VIEWS * MAP_BYTES // 4

TRAIN = """
import json, sys
from pathlib import Path
import ray, torch
from safe_ray.training.job import BankJob, run_bank

def in_bytes(name):
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0]) * 1024

torch.set_num_threads(1)
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
small, big = (BankJob.from_json(json.loads(text)) for text in sys.argv[1:])
run_bank(small, torch.device("cpu"))  # what the libraries take is there before it is measured
before = in_bytes("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew at what is held now
run_bank(big, torch.device("cpu"))
print(f"grown by {in_bytes('VmHWM:') - before}")
"""


def test_the_streamed_maps_are_those_of_the_store_in_the_order_asked_for(
    tmp_path: Path, ray_cluster: None
) -> None:
    job = write_task(tmp_path)
    facts = TaskFacts.load(job.task_folder)
    row_bytes = 2 * facts.tokens * facts.width
    source = StreamedMaps(job.task_folder, facts.support, device(), budget=24 * row_bytes)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randint(len(facts.support), (size,), generator=generator),
            torch.randint(VIEWS + 1, (size,), generator=generator),
        )
        for size in (8, 0, 5, 1, 7)
    ]
    for (rows, views), maps in zip(batches, source.epoch(batches), strict=True):
        expected = facts.store().read_pairs([facts.support[row] for row in rows], views.tolist())
        np.testing.assert_array_equal(maps.numpy(), expected)


def test_a_streamed_bank_is_the_pinned_one(tmp_path: Path, ray_cluster: None) -> None:
    pinned, streamed = write_task(tmp_path / "a"), write_task(tmp_path / "b", pin="stream")
    for job in (pinned, streamed):
        run_bank(job, device())
    one, other = (BankOutcome.load(job.folder) for job in (pinned, streamed))
    assert one is not None
    assert other is not None
    assert one.candidates == other.candidates
    for candidate in one.candidates:
        heads = [
            load_file(job.folder / str(candidate.fits["safe"].head) / "head.safetensors")
            for job in (pinned, streamed)
        ]
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def write_big_task(root: Path, like: BankJob) -> BankJob:
    """Write a task whose maps are four times as big as the budget, with a small pooling."""
    generator = np.random.default_rng(0)
    support = [f"support-{i}" for i in range(SAMPLES)]
    key = StoreKey("trunk", {"size": 224}, "fp32", "1")
    store = FeatureStore(root / "features", key, TOKENS, WIDTH)
    for first in range(0, SAMPLES, 512):
        part = [(s, view) for s in support[first : first + 512] for view in range(SAMPLE_VIEWS)]
        maps = generator.standard_normal((len(part), TOKENS, WIDTH)).astype(np.float16)
        store.write_part([s for s, _ in part], [view for _, view in part], maps)
    classes, heads, output = 7, 4, 16
    torch.manual_seed(0)
    pooling = {"positional_embedding": torch.randn(TOKENS + 1, WIDTH) / WIDTH**0.5}
    for name, rows in (("q", WIDTH), ("k", WIDTH), ("v", WIDTH), ("c", output)):
        pooling[f"{name}_proj.weight"] = torch.randn(rows, WIDTH) / WIDTH**0.5
        pooling[f"{name}_proj.bias"] = torch.zeros(rows)
    facts = replace(
        TaskFacts.load(like.task_folder),
        store_root=str(root / "features"),
        store_key=key.as_json(),
        tokens=TOKENS,
        width=WIDTH,
        pooling=to_json(AttentionPool(heads)),
        views=SAMPLE_VIEWS - 1,
        support=tuple(support),
        support_labels=tuple(i % classes for i in range(SAMPLES)),
        validation=tuple(support[:8]),
        validation_labels=tuple(i % classes for i in range(8)),
        batch_size=64,
    )
    sweep = root / "sweep"
    text = torch.nn.functional.normalize(torch.randn(classes, output), dim=-1)
    facts.save(sweep / "tasks" / facts.task.id, text)
    save_file(pooling, sweep / POOLING)
    return BankJob(str(sweep), facts.task.id, "safe", 0, ({**CANDIDATES[0], "epochs": 2},))


def set_pin(job: BankJob, pin: str, budget: int) -> None:
    file = job.task_folder / "task.json"
    write_record(file, {**(read_record(file) or {}), "pin": pin, "map_budget": budget})


def test_a_store_of_four_times_the_budget_is_trained_on_within_the_budget(tmp_path: Path) -> None:
    small = write_task(tmp_path / "small", pin="stream", map_budget=2**20)
    big = write_big_task(tmp_path / "big", small)
    heads = []
    grown = {}
    for pin in ("stream", "device"):
        set_pin(big, pin, BUDGET)
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, json.dumps(small.to_json()), json.dumps(big.to_json())],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        grown[pin] = int(re.findall(r"grown by (\d+)", done.stdout)[0])
        heads.append(load_file(big.folder / "candidate-00-safe" / "head.safetensors"))
        for job in (small, big):
            (job.folder / OUTCOME).unlink()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert grown["stream"] < BUDGET
    # The measurement sees maps: pinned, they are all there.
    assert grown["device"] > 4 * BUDGET
