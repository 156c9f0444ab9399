"""The Ray Serve application: `build` is what `serve run` and a RayService import."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from safe_ray.cluster import label_selector
from safe_ray.errors import InputError
from safe_ray.serving.catalogue import read_catalogue, stamp
from safe_ray.serving.engine import AlphaError, Answer, Engine, Request, UnknownTaskError
from safe_ray.serving.gathering import Gathering
from safe_ray.serving.http import (
    UNFIT,
    UNKNOWN,
    UNREADABLE,
    BusyError,
    RefusedError,
    make_app,
)
from safe_ray.serving.loopback import keep_to_loopback
from safe_ray.serving.settings import Settings
from safe_ray.serving.tally import Tally

NAME = "safe-ray"
TRUNK, FRONT = "Trunk", "Front"
_BATCH_SECONDS = 0.002
_TRIES = 5
# A replica that is gone is seen, and made anew, by the next of these looks.
_LOOK_SECONDS = 2.0
_logger = logging.getLogger("ray.serve")


class Trunk:
    """The deployment that has the trunk and the heads.

    Args:
        settings: of the server, as JSON.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        keep_to_loopback()
        self._settings = Settings.from_json(settings)
        if self._settings.gpus == 0:
            torch.set_num_threads(self._settings.cpus)
        entries = read_catalogue(self._settings.heads)
        self._stamp = stamp(self._settings.heads, entries)
        device = torch.device("cuda:0" if self._settings.gpus else "cpu")
        self._engine = Engine(
            entries,
            device,
            self._settings.heads_in_memory,
            self._settings.batch,
            self._settings.trusted,
        )
        self._gathering: Gathering[Request, dict[str, Any]] = Gathering(
            self._work, lambda request: len(request.pixels), self._settings.batch
        )
        self._reloads = 0
        self._remark = ""
        self._watch = asyncio.get_running_loop().create_task(self._watching())

    async def classify(
        self, task: str, pixels: np.ndarray, alpha: float | None, top: int
    ) -> dict[str, Any]:
        """Return what `safe_ray.serving.http.Backend.classify` does, or a `refused` and its kind.

        Args:
            task: of the head.
            pixels: uint8 `[n, 3, S, S]`.
            alpha: instead of the one that validation chose.
            top: how many classes each image gets.
        """
        # An array that arrived may not be written to, and torch would warn of that.
        request = Request(task, torch.from_numpy(pixels.copy()), alpha)
        said = await self._batched(request)
        if "answer" not in said:
            return dict(said)
        answer: Answer = said["answer"]
        head = answer.predictor
        values, places = torch.topk(answer.probabilities, min(top, len(head.class_names)), dim=-1)
        predictions = [
            [{"class": head.class_names[i], "probability": p} for p, i in zip(*row, strict=True)]
            for row in zip(values.tolist(), places.tolist(), strict=True)
        ]
        return {
            "method": head.card["method"].get("title", ""),
            "alpha": head.at.get("alpha"),
            "predictions": predictions,
            "batch": said["batch"],
        }

    @serve.batch(
        max_batch_size=64, batch_wait_timeout_s=_BATCH_SECONDS, max_concurrent_batches=10_000
    )
    async def _batched(self, requests: list[Request]) -> list[dict[str, Any]]:
        """Answer requests of any tasks together; see `Gathering` for those that wait meanwhile."""
        return await self._gathering(requests)

    def _work(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        images = sum(len(request.pixels) for request in requests)
        return [
            _refusal(answer)
            if isinstance(answer, InputError)
            else {"answer": answer, "batch": images}
            for answer in self._engine.classify(requests)
        ]

    async def explain(self, task: str, pixels: np.ndarray, top: int) -> dict[str, Any]:
        """Return what `safe_ray.serving.http.Backend.explain` does, or a `refused` and its kind."""
        try:
            found = await self._gathering.alone(
                self._engine.explain, task, torch.from_numpy(pixels.copy())
            )
        except InputError as error:
            return _refusal(error)
        head = found.predictor
        _, best = torch.topk(found.probabilities, min(top, len(head.class_names)), dim=-1)
        shown = sorted(set(best.flatten().tolist()))
        return {
            "method": head.card["method"].get("title", ""),
            "alpha": head.at.get("alpha"),
            "alphas": list(found.alphas),
            "classes": [head.class_names[place] for place in shown],
            "probabilities": found.probabilities[:, shown].tolist(),
            "original": found.original.tolist(),
            "tuned": found.tuned.tolist(),
            "resize_mode": head.preprocessing.resize_mode,
        }

    async def describe(self) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`."""
        entries = self._engine.entries
        return {
            "tasks": [entry.summary() for entry in entries.values()],
            "preprocessing": self._engine.backbone.preprocessing.to_json(),
            "remark": self._remark,
            "replica": serve.get_replica_context().replica_tag,
            "counts": {
                "tasks": len(entries),
                "heads_in_memory": self._engine.in_memory,
                "head_loads": self._engine.loads,
                "reloads": self._reloads,
            },
        }

    async def class_names(self, task: str) -> dict[str, Any]:
        """Return the `classes` of a task, or a `refused` and its kind."""
        try:
            return {"classes": list(self._engine.entry(task).card["class_names"])}
        except InputError as error:
            return _refusal(error)

    async def _watching(self) -> None:
        """Look now and then whether heads have moved, and serve what is there then."""
        while True:
            await asyncio.sleep(self._settings.reload)
            try:
                await asyncio.to_thread(self._look)
                self._remark = ""
            # Half a sweep, a damaged file, an MLflow that is away: what was served goes on.
            except Exception as error:
                if str(error) != self._remark:
                    _logger.warning("The heads were not read again: %s", error)
                self._remark = str(error)

    def _look(self) -> None:
        found = stamp(self._settings.heads, self._engine.entries)
        if found == self._stamp and not self._remark:
            return
        entries = read_catalogue(self._settings.heads)
        before = {task: entry.digest for task, entry in self._engine.entries.items()}
        self._engine.replace(entries)
        # Of what has been read: what moved meanwhile is seen by the next look.
        self._stamp = stamp(self._settings.heads, entries)
        self._reloads += before != {task: entry.digest for task, entry in entries.items()}


class Front:
    """The deployment that speaks HTTP.

    Args:
        settings: of the server, as JSON.
        trunk: what answers.
    """

    def __init__(self, settings: Mapping[str, Any], trunk: DeploymentHandle) -> None:
        keep_to_loopback()
        self._settings = Settings.from_json(settings)
        self._trunk = trunk

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(_Remote(self._trunk), self._settings)


class _Remote:
    """The replicas of `Trunk`. A request whose replica dies is given to another one."""

    def __init__(self, trunk: DeploymentHandle) -> None:
        self._trunk = trunk

    async def classify(
        self, task: str, pixels: torch.Tensor, alpha: float | None, top: int, tally: Tally
    ) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`."""
        return await self._call("classify", task, pixels.numpy(), alpha, top, tally=tally)

    async def explain(
        self, task: str, pixels: torch.Tensor, top: int, tally: Tally
    ) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`."""
        return await self._call("explain", task, pixels.numpy(), top, tally=tally)

    async def describe(self) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`."""
        return await self._call("describe")

    async def class_names(self, task: str) -> list[str]:
        """See `safe_ray.serving.http.Backend`."""
        return list((await self._call("class_names", task))["classes"])

    async def _call(
        self, method: str, *arguments: Any, tally: Tally | None = None
    ) -> dict[str, Any]:
        for left in reversed(range(_TRIES)):
            try:
                said = await getattr(self._trunk, method).remote(*arguments)
            except BackPressureError as error:
                raise BusyError from error
            except (ActorDiedError, ActorUnavailableError, DeploymentUnavailableError) as error:
                # To classify an image twice does no harm.
                if not left or isinstance(error, DeploymentUnavailableError):
                    sentence = "The server has no replica that could answer: its log says why."
                    raise RefusedError(UNREADABLE, sentence) from error
                if tally is not None:
                    tally.retries.inc()
                continue
            if "refused" in said:
                raise RefusedError(said["kind"], said["refused"])
            return dict(said)
        raise AssertionError("the last try raises or returns")


def _refusal(error: InputError) -> dict[str, Any]:
    kind = UNREADABLE
    if isinstance(error, UnknownTaskError):
        kind = UNKNOWN
    elif isinstance(error, AlphaError):
        kind = UNFIT
    return {"refused": str(error), "kind": kind}


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application.

    Args:
        arguments: the fields of `safe_ray.serving.settings.Settings`; `heads` must be there.

    Raises:
        InputError: a field that there is not, or with a value that may not be.
    """
    settings = Settings.from_json(arguments)
    avoided = label_selector()
    selector = {"label_selector": avoided} if avoided else {}
    # All that the front lets in may wait before the trunk, where it makes large batches.
    most = settings.at_once + settings.queue
    trunk: Any = serve.deployment(
        Trunk,
        name=TRUNK,
        num_replicas=settings.replicas,
        max_ongoing_requests=most,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus, **selector},
        health_check_period_s=_LOOK_SECONDS,
        graceful_shutdown_timeout_s=settings.timeout,
    )
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name=FRONT,
        num_replicas=1,
        max_ongoing_requests=settings.at_once,
        max_queued_requests=settings.queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": settings.front_cpus, **selector},
        health_check_period_s=_LOOK_SECONDS,
        graceful_shutdown_timeout_s=settings.timeout,
    )
    plain = settings.to_json()
    application: serve.Application = front.bind(plain, trunk.bind(plain))
    return application
