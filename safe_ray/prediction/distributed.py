"""The same stream over a Ray cluster: actors that each hold the model, some batches ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from safe_ray.errors import InputError
from safe_ray.prediction.classifying import Classified
from safe_ray.prediction.images import Picture
from safe_ray.prediction.pictures import batches

_IN_FLIGHT = 2


class Worker:
    """The actor: reads, decodes and classifies the batches that it is sent."""

    def __init__(
        self, folder: str, device: str, alpha: float | None, trusted: Sequence[str]
    ) -> None:
        from safe_ray.prediction.models import load_model

        if device == "cpu":
            # An actor for each CPU: their threads would only contend.
            torch.set_num_threads(1)
        self._problem: InputError | None = None
        try:
            self._model = load_model(Path(folder), torch.device(device), alpha, trusted)
        except InputError as error:
            self._problem = error

    def classify(self, pictures: Sequence[Picture]) -> tuple[list[str | None], Any]:
        """Return why each image could not be read, and the logits of the others."""
        from safe_ray.prediction.classifying import classified

        if self._problem is not None:
            raise self._problem
        [done] = classified(self._model, pictures, len(pictures))
        return list(done.errors), done.logits.numpy()


def classified_on_cluster(
    folder: Path,
    pictures: Iterable[Picture],
    batch: int,
    alpha: float | None,
    trusted: Sequence[str] = (),
) -> Iterator[Classified]:
    """Classify images in their order on all GPUs of the cluster, or on all CPUs if it has none.

    The actors read the images themselves: these lie where every node sees them. What is in memory
    is `_IN_FLIGHT` batches an actor. A batch whose actor dies goes to it again when Ray has started
    it elsewhere.

    Args:
        folder: of the head or the bundle, which every node sees, too.
        pictures: the images.
        batch: how many go together.
        alpha: see `load_model`.
        trusted: see `load_model`.

    Raises:
        InputError: the cluster has nothing to compute on, or see `load_model`.
    """
    import ray

    from safe_ray.cluster import label_selector, working_nodes

    nodes = working_nodes()
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    cpus = int(sum(node["Resources"].get("CPU", 0) for node in nodes))
    count = gpus or cpus
    if not count:
        raise InputError("The cluster has no CPU and no GPU to classify on: add a node.")
    actor = ray.remote(
        num_cpus=1 if cpus >= count else 0,
        num_gpus=1 if gpus else 0,
        max_restarts=-1,
        max_task_retries=-1,
        label_selector=label_selector(),
    )(Worker)
    device = "cuda:0" if gpus else "cpu"
    workers: list[Any] = [actor.remote(str(folder), device, alpha, trusted) for _ in range(count)]
    waiting: deque[tuple[Sequence[Picture], Any]] = deque()
    try:
        for number, some in enumerate(batches(pictures, batch)):
            waiting.append((some, workers[number % count].classify.remote(some)))
            if len(waiting) >= _IN_FLIGHT * count:
                yield _received(*waiting.popleft())
        while waiting:
            yield _received(*waiting.popleft())
    finally:
        for worker in workers:
            ray.kill(worker)


def _received(pictures: Sequence[Picture], answer: Any) -> Classified:
    import ray
    from ray.exceptions import RayTaskError

    try:
        errors, logits = ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    return Classified(pictures, errors, torch.from_numpy(logits.copy()))
