"""Fifty tasks on one trunk answer at least 3 times as much as a model for each of them.

Both are Ray Serve applications behind the same HTTP interface, with one replica of one thread that
computes. Ours has one trunk, and batches requests whatever their tasks are. The other is how Ray
Serve's documentation has many models served: `@serve.multiplexed` loads a whole model for each task
and keeps as many as it is told, three if nothing is said, and `@serve.batch` batches the requests
of one model. Sixteen clients ask for tasks at random, an image a request. The sides take turns.
The ratio is of requests a second to the other's with three models; with all fifty in memory, which
is fifty trunks, it is told beside that.

    python -m bench.serving        some minutes, so it is no part of `python -m bench`
"""

from __future__ import annotations

import http.client
import io
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ray import serve

from bench.harness import arguments, finish
from bench.sweeps import two_cores
from safe_ray.backbones.openclip import load_backbone
from safe_ray.cluster import connect
from safe_ray.data.prompts import render_prompts
from safe_ray.features.store import StoreKey
from safe_ray.files import digest_json
from safe_ray.heads.artifact import save_head
from safe_ray.poolings import to_json
from safe_ray.prediction.predictor import Predictor
from safe_ray.serving.app import NAME, build
from safe_ray.serving.http import make_app
from safe_ray.serving.settings import Settings
from safe_ray.serving.tally import Tally
from safe_ray.specs import BackboneSpec, MethodGroup, MethodSpec, Task
from safe_ray.training.facts import TaskFacts

TARGET = 3.0
CLASSES = ("apple", "bell", "boat", "cat", "clock", "cloud", "fish", "house", "key", "tree")
PORT = 8719
_LIMIT = 300.0


def write_heads(folder: Path, tasks: int) -> list[Path]:
    """Write heads of the embedded model as a sweep has them, with their text embeddings beside."""
    spec = BackboneSpec(
        "pictogram",
        "pictogram-rn-128",
        "pkg://safe_ray/embedded/pictogram-rn-128.safetensors",
        "pkg://safe_ray/embedded/pictogram-rn-128.json",
    )
    backbone = load_backbone(spec)
    templates = ["a picture of a {}."]
    classifier = backbone.classifier(CLASSES, templates)
    generator = torch.Generator().manual_seed(0)
    heads = []
    for number in range(tasks):
        task = Task(f"task{number}", 2, 1)
        card = {
            "backbone": {**asdict(spec), "digest": backbone.digest},
            "dataset": task.dataset,
            "shots": task.shots,
            "seed": task.seed,
            "class_names": list(CLASSES),
            "templates": templates,
            "prompts_digest": digest_json(render_prompts(CLASSES, templates)),
            "logit_scale": backbone.logit_scale,
            "preprocessing": backbone.preprocessing.to_json(),
            "episode": {},
            "method": {"name": "safe", "title": "SAFE", "module": "safe_ray.methods.tuned"},
            "knobs": {"alpha": 0.5},
            "hyper_parameters": {},
            "metrics": {},
        }
        _facts(task, backbone, card).save(folder / "tasks" / task.id, classifier)
        head = folder / "banks" / task.id
        moved = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in backbone.state.items()
        }
        save_head(head, moved, card)
        heads.append(head)
    return heads


def _facts(task: Task, backbone: Any, card: dict[str, Any]) -> TaskFacts:
    method = MethodSpec("safe", "SAFE", "safe_ray.methods.tuned", {}, {"alpha": (0.0, 1.0)})
    return TaskFacts(
        task=task,
        store_root="features",
        store_key=StoreKey("", {}, "fp32", "1").as_json(),
        tokens=backbone.tokens,
        width=backbone.width,
        pooling=to_json(backbone.pooling),
        logit_scale=backbone.logit_scale,
        views=1,
        support=("one",),
        support_labels=(0,),
        validation=("two",),
        validation_labels=(0,),
        selection="coop",
        folds=0,
        metric="accuracy",
        choose_by="metric",
        batch_size=8,
        warmup=0.0,
        training_seed=1,
        groups=(MethodGroup("safe", (method,), ("lr",)),),
        card=card,
    )


class Models:
    """The deployment of the other side: a whole model for each task.

    Args:
        folders: of the heads, by their tasks.
        most: how many models are kept.
    """

    def __init__(self, folders: dict[str, str], most: int) -> None:
        torch.set_num_threads(1)
        self._folders = folders

        @serve.multiplexed(max_num_models_per_replica=most)
        async def model(task: str) -> Predictor:
            return Predictor.load(Path(folders[task]))

        self._model = model

    async def classify(self, pixels: np.ndarray, top: int) -> dict[str, Any]:
        """Return what the interface asks of a backend."""
        return dict(await self._batched((torch.from_numpy(pixels.copy()), top)))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def _batched(self, asked: list[tuple[torch.Tensor, int]]) -> list[dict[str, Any]]:
        images, tops = [one for one, _ in asked], [top for _, top in asked]
        model = await self._model(serve.get_multiplexed_model_id())
        probabilities = model.probabilities(torch.cat(images))
        values, places = torch.topk(probabilities, tops[0], dim=-1)
        rows = [
            [{"class": model.class_names[i], "probability": p} for p, i in zip(*row, strict=True)]
            for row in zip(values.tolist(), places.tolist(), strict=True)
        ]
        said, first = [], 0
        for some in images:
            predictions = rows[first : first + len(some)]
            first += len(some)
            said.append({"predictions": predictions, "batch": len(rows), "alpha": None})
        return said

    async def describe(self) -> dict[str, Any]:
        """Return what the interface asks of a backend."""
        first = Predictor.load(Path(next(iter(self._folders.values()))))
        return {"preprocessing": first.preprocessing.to_json(), "tasks": [], "remark": ""}


class Front:
    """The same HTTP interface, before the other side."""

    def __init__(self, settings: dict[str, Any], models: Any) -> None:
        self._settings, self._models = Settings.from_json(settings), models

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self, self._settings)

    async def classify(
        self, task: str, pixels: torch.Tensor, alpha: float | None, top: int, tally: Tally
    ) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`."""
        asked = self._models.options(multiplexed_model_id=task).classify
        return {"method": "SAFE", **await asked.remote(pixels.numpy(), top)}

    async def explain(self, *_: Any) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`; nobody asks for it here."""
        raise NotImplementedError

    async def class_names(self, task: str) -> list[str]:
        """See `safe_ray.serving.http.Backend`; nobody asks for it here."""
        raise NotImplementedError

    async def describe(self) -> dict[str, Any]:
        """See `safe_ray.serving.http.Backend`."""
        return dict(await self._models.describe.remote())


def other_side(settings: Settings, folders: dict[str, str], most: int) -> serve.Application:
    """Return the application of the other side."""
    at_once = settings.at_once + settings.queue
    models: Any = serve.deployment(
        Models,
        name=f"Models{most}",
        max_ongoing_requests=at_once,
        ray_actor_options={"num_cpus": 0},
    )
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name=f"Front{most}",
        max_ongoing_requests=at_once,
        ray_actor_options={"num_cpus": 0},
    )
    application: serve.Application = front.bind(settings.to_json(), models.bind(folders, most))
    return application


@dataclass(frozen=True)
class Measured:
    """What came of some seconds of load."""

    rate: float
    p50: float
    p99: float
    errors: int


def load(prefix: str, tasks: list[str], clients: int, seconds: float, seed: int) -> Measured:
    """Have clients ask for tasks at random, one request after another, and each once at least."""
    body, headers = _request()
    latencies: list[float] = []
    errors = 0
    start = time.perf_counter()

    def work(number: int) -> None:
        nonlocal errors
        draw = random.Random(1000 * seed + number)
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=_LIMIT)
        while True:
            begun = time.perf_counter()
            connection.request(
                "POST", f"{prefix}/v1/tasks/{draw.choice(tasks)}:predict", body, headers
            )
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                latencies.append(time.perf_counter() - begun)
            else:
                errors += 1
            if time.perf_counter() - start >= seconds:
                break

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    at = np.quantile(latencies, (0.5, 0.99)) if latencies else (np.inf, np.inf)
    return Measured(len(latencies) / took, 1e3 * float(at[0]), 1e3 * float(at[1]), errors)


def _request() -> tuple[bytes, dict[str, str]]:
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(picture, "JPEG")
    head = b'--mark\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    body = head + picture.getvalue() + b"\r\n--mark--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=mark"}


@contextmanager
def running(applications: dict[str, serve.Application]) -> Iterator[None]:
    """Have all applications run, each under its own prefix."""
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
    try:
        for name, application in applications.items():
            serve.run(application, name=name, route_prefix=f"/{name}")
        yield
    finally:
        serve.shutdown()


def main() -> None:
    """Measure all sides, in turns."""
    quick = arguments(str(__doc__)).quick
    two_cores()
    count, clients, seconds, rounds = (4, 2, 1.0, 1) if quick else (50, 16, 12.0, 3)
    with tempfile.TemporaryDirectory() as folder:
        heads = write_heads(Path(folder), count)
        settings = Settings(heads=tuple(map(str, heads)), timeout=_LIMIT, at_once=64)
        names = [f"task{number}-2shot-seed1" for number in range(count)]
        folders = dict(zip(names, map(str, heads), strict=True))
        connect(None, 2, [Path(folder)])
        sides = {
            NAME: build(settings.to_json()),
            "three": other_side(settings, folders, 3),
            "all": other_side(settings, folders, count),
        }
        found: dict[str, list[Measured]] = {name: [] for name in sides}
        with running(sides):
            for name in sides:
                # What is loaded once is loaded before anything is timed.
                for task in names:
                    load(f"/{name}", [task], 1, 0.0, 0)
            for turn in range(rounds):
                for name in sides:
                    one = load(f"/{name}", names, clients, seconds, turn)
                    found[name].append(one)
                    print(
                        f"{name:<9} {one.rate:7.1f} requests a second, p50 {one.p50:6.0f} ms, "
                        f"p99 {one.p99:6.0f} ms, {one.errors} errors",
                        flush=True,
                    )
    rates = {name: statistics.median(one.rate for one in some) for name, some in found.items()}
    finish(
        "serving",
        rates[NAME] / rates["three"],
        TARGET,
        ratio_with_all_models_in_memory=round(rates[NAME] / rates["all"], 2),
        requests_a_second={name: round(rate, 1) for name, rate in rates.items()},
        p50_ms={n: round(statistics.median(o.p50 for o in some)) for n, some in found.items()},
        p99_ms={n: round(statistics.median(o.p99 for o in some)) for n, some in found.items()},
        errors=sum(one.errors for some in found.values() for one in some),
    )


if __name__ == "__main__":
    main()
