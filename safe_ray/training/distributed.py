"""A bank trained by several workers: Ray Data delivers the shards, Ray Train runs DDP.

Each worker holds a part of the support set, with no row dropped to make the parts equal, and
computes its part of every global batch; DistributedDataParallel averages the gradients, so that
the result does not depend on the number of workers.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from safe_ray.heads.bank import Bank
from safe_ray.training.checkpoint import pack, unpack
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob, run_bank, support_shard
from safe_ray.training.loop import Found, SupportShard
from safe_ray.training.maps import resident_maps
from safe_ray.visibility import check_sight

_ROWS_AT_ONCE = 64
_READER_CPUS = 0.05
_NOTICED_SECONDS = 6.0


class LostNodeError(Exception):
    """A node went away while its workers trained a bank."""


class DataParallel:
    """The loop under `torch.distributed`, with the process group that is already set up."""

    def __init__(self, device: torch.device) -> None:
        self.world_size = torch.distributed.get_world_size()
        self.is_first = torch.distributed.get_rank() == 0
        self._device = device

    def share(self, find: Callable[[], Found], run: str) -> Found:
        """See `Parallel`: the first worker looks, and sends the others JSON and plain tensors."""
        found = find() if self.is_first else None
        tensors: dict[str, Tensor] = {}
        note: dict[str, Any] = {}
        if found is not None:
            about = None
            if found.state is not None:
                tensors, about = pack(found.state)
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            note = {"run": run, "finished": found.finished, "state": about, "shapes": shapes}
        note = json.loads(self._send(json.dumps(note).encode()))
        self._agree(note["run"] == run)
        if found is not None:
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor.to(self._device), src=0)
            return found
        for name, shape in note["shapes"].items():
            # Weights and moments are float32, whatever a step computes in.
            arrived = torch.empty(shape, device=self._device)
            torch.distributed.broadcast(arrived, src=0)
            tensors[name] = arrived.cpu()
        state = None if note["state"] is None else unpack(tensors, note["state"])
        return Found(note["finished"], state)

    def _send(self, content: bytes) -> bytes:
        """Return the first worker's bytes on every worker."""
        length = torch.tensor([len(content)], device=self._device)
        torch.distributed.broadcast(length, src=0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        data = data.to(self._device)
        torch.distributed.broadcast(data, src=0)
        return data.cpu().numpy().tobytes()

    def _agree(self, mine: bool) -> None:
        """Raise on every worker if one of them differs, so that none is left waiting."""
        differing = self.sum(torch.tensor([float(not mine)], device=self._device))
        if differing.item() > 0:
            raise RuntimeError(
                f"{int(differing)} of {self.world_size} workers would train something else than "
                "the first one: they do not see the same files of the task on the sweep's storage."
            )

    def wrap(self, bank: Bank) -> nn.Module:
        """Return the bank under DistributedDataParallel."""
        return DistributedDataParallel(
            bank,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor summed over the workers."""
        torch.distributed.all_reduce(tensor)
        return tensor


def support_keys(facts: TaskFacts) -> pa.Table:
    """Return the support set as a table of position, sample digest and label."""
    return pa.table(
        {
            "position": pa.array(range(len(facts.support)), pa.int64()),
            "sample": pa.array(facts.support, pa.string()),
            "label": pa.array(facts.support_labels, pa.int64()),
        }
    )


def shard_edges(total: int, workers: int) -> list[int]:
    """Return where parts of `total` rows begin, and the end; they differ by one row at most."""
    return [total * worker // workers for worker in range(workers + 1)]


def train_with_workers(
    job: BankJob,
    workers: int,
    resources: dict[str, float],
    threads: int,
    selector: dict[str, str] | None = None,
    beacon: dict[str, Any] | None = None,
) -> None:
    """Train a bank under Ray Train's TorchTrainer and wait for its end.

    Workers whose nodes are taken away with notice are replaced, and go on from the last checkpoint;
    any other end of a worker ends the training, for the caller to try again.

    Args:
        job: which bank; its outcome lands in its folder.
        workers: how many DDP workers.
        resources: what each worker reserves, such as `{"CPU": 4, "GPU": 1}`.
        threads: torch's threads in each worker.
        selector: what keeps the work on some of the nodes, as `cluster.label_selector` makes it.
        beacon: by which workers know that they see the storage, as `cluster.beacon` makes it.

    Raises:
        LostNodeError: a node has gone without notice.
    """
    import ray.data
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    class UnequalShards(ray.train.DataConfig):
        """Gives every worker its part of the keys, and drops none to make the parts equal."""

        def configure(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
            return [{"support": part.iterator()} for part in parts]

    facts = TaskFacts.load(job.task_folder)
    keys = support_keys(facts)
    where: dict[str, Any] = {"label_selector": selector} if selector else {}
    # A worker that streams reads its own part of every epoch; it is told no more than its rank.
    edges = [0] if facts.pin == "stream" else shard_edges(keys.num_rows, workers)
    # Cut here: once the workers hold their CPUs, none may be left for a task that cuts.
    parts = [
        ray.data.from_arrow(keys.slice(first, last - first)).map_batches(
            functools.partial(_read_maps, task_folder=str(job.task_folder), beacon=beacon),
            batch_size=_ROWS_AT_ONCE,
            num_cpus=_READER_CPUS,
            **where,
        )
        for first, last in itertools.pairwise(edges)
    ]
    use_gpu = resources.get("GPU", 0) > 0
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job.to_json(), "threads": threads, "beacon": beacon},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=600),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources, **where
        ),
        datasets={"support": parts[0]} if parts else {},
        dataset_config=UnequalShards() if parts else None,
        run_config=ray.train.RunConfig(
            # No timestamp: a restarted trial goes on with the run of the same name.
            name=f"{job.name}-{job.digest[:8]}",
            storage_path=str(job.folder / "train"),
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    before = _live_nodes()
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        # The others notice first that a worker is gone, and say no more than that.
        if _lost(before):
            raise LostNodeError("a node has gone under the training") from error
        raise


def _live_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _lost(before: set[str], seconds: float = _NOTICED_SECONDS) -> bool:
    """Whether any of the nodes is gone, which Ray may take a moment to notice."""
    deadline = time.monotonic() + seconds
    while before <= _live_nodes():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
    return True


def _read_maps(
    batch: dict[str, np.ndarray], task_folder: str, beacon: dict[str, Any] | None
) -> dict[str, np.ndarray]:
    """Replace the keys of a batch of support samples by their dense maps."""
    check_sight(beacon)
    facts = TaskFacts.load(Path(task_folder))
    samples = [str(sample) for sample in batch["sample"]]
    maps = facts.store().read(samples, range(facts.views + 1))
    return {"position": batch["position"], "label": batch["label"], "maps": maps}


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    check_sight(config["beacon"])
    torch.set_num_threads(config["threads"])
    device = get_device()
    job = BankJob.from_json(config["job"])
    facts = TaskFacts.load(job.task_folder)
    if facts.pin == "stream":
        context = ray.train.get_context()
        edges = shard_edges(len(facts.support), context.get_world_size())
        rank = context.get_world_rank()
        rows = range(edges[rank], edges[rank + 1])
        shard = support_shard(job.task_folder, facts, device, rows)
    else:
        shard = _collect(ray.train.get_dataset_shard("support"), facts, device)
    run_bank(job, device, shard, DataParallel(device))
    ray.train.report({"finished": 1})


def _collect(iterator: Any, facts: TaskFacts, device: torch.device) -> SupportShard:
    """Read the worker's shard once and keep it."""
    positions = [np.zeros(0, np.int64)]
    labels = [np.zeros(0, np.int64)]
    maps = [np.zeros((0, facts.views + 1, facts.tokens, facts.width), np.float16)]
    for batch in iterator.iter_batches(batch_size=None):
        positions.append(np.asarray(batch["position"]))
        labels.append(np.asarray(batch["label"]))
        maps.append(np.asarray(batch["maps"]))
    return SupportShard(
        resident_maps(np.concatenate(maps), facts.pin, device),
        torch.from_numpy(np.concatenate(labels)).to(device),
        torch.from_numpy(np.concatenate(positions)).to(device),
        len(facts.support),
    )
