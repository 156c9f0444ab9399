"""The HTTP interface: uploads to pixels, and what the heads say to JSON. It knows no Ray."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any, Protocol

import torch
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from safe_ray import __version__
from safe_ray.data.images import BadImageError, decode_image
from safe_ray.data.views import Preprocessing, evaluation_view
from safe_ray.errors import one_line
from safe_ray.serving.limits import Limits
from safe_ray.serving.settings import Settings
from safe_ray.serving.tally import CONTENT_TYPE, Tally

# Nothing but the page itself and this server: no image, name or answer can bring a script along.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
UNKNOWN, UNFIT, UNREADABLE = "unknown", "unfit", "unreadable"
"""Why there is no answer: no such task, an alpha that cannot be, a head that cannot be read."""

_STATUS = {UNKNOWN: 404, UNFIT: 422, UNREADABLE: 503}


class RefusedError(Exception):
    """A backend has no answer.

    Args:
        kind: one of `UNKNOWN`, `UNFIT` and `UNREADABLE`.
        sentence: to say.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(kind, sentence)
        self.kind = kind
        self.sentence = sentence


class BusyError(Exception):
    """A backend has more to do than it takes on."""


class Backend(Protocol):
    """What answers; all values are such as JSON has, but for the pixels."""

    async def classify(
        self, task: str, pixels: torch.Tensor, alpha: float | None, top: int, tally: Tally
    ) -> dict[str, Any]:
        """Return `method`, `alpha`, `batch`, and the `top` classes of each image.

        Raises:
            RefusedError: there is no answer.
            BusyError: nor will there be one now.
        """
        ...

    async def explain(
        self, task: str, pixels: torch.Tensor, top: int, tally: Tally
    ) -> dict[str, Any]:
        """Return what `Explained` has, of one image.

        Raises:
            RefusedError: there is no answer.
            BusyError: nor will there be one now.
        """
        ...

    async def describe(self) -> dict[str, Any]:
        """Return `tasks`, `preprocessing`, the `replica` that says it, and its `counts`."""
        ...

    async def class_names(self, task: str) -> list[str]:
        """Return the classes of a task.

        Raises:
            RefusedError: there is no such task.
        """
        ...


class Probability(BaseModel):
    """A class, and how probable it is."""

    name: str = Field(alias="class")
    probability: float


class Prediction(BaseModel):
    """What is said of one image."""

    image: str = Field(description="The name of its file.")
    classes: list[Probability] = Field(description="The most probable first.")


class Predicted(BaseModel):
    """What is said of all images of a request."""

    task: str
    method: str
    alpha: float | None = Field(description="The blend; null for a method that has none.")
    predictions: list[Prediction]


class Explained(BaseModel):
    """What is said of one image at several blends, and where the poolings look."""

    task: str
    method: str
    alpha: float | None = Field(description="What validation chose; null if there is none.")
    alphas: list[float]
    classes: list[str] = Field(description="Those among the most probable at any alpha.")
    probabilities: list[list[float]] = Field(description="A row for each alpha.")
    original: list[list[float]] = Field(
        description="Rows of weights that add up to 1, or to less where a class token has the rest."
    )
    tuned: list[list[float]]
    resize_mode: str = Field(description="Which part of the image is seen: shortest, longest, ...")


class TaskSummary(BaseModel):
    """A task that is served."""

    task: str
    dataset: str
    shots: int
    seed: int
    backbone: str
    method: str
    alpha: float | None
    classes: int
    digest: str


class Tasks(BaseModel):
    """All tasks that are served."""

    tasks: list[TaskSummary]


class TaskClasses(BaseModel):
    """The classes of a task."""

    task: str
    classes: list[str]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such task; the nearest is named."},
    408: {"model": Problem, "description": "The upload took too long."},
    413: {"model": Problem, "description": "More bytes or images than are taken."},
    422: {"model": Problem, "description": "A file that is no image, or a value that cannot be."},
    429: {"description": "Too much to do: come back after Retry-After seconds."},
    503: {"model": Problem, "description": "The head cannot be read, or nothing is ready yet."},
    504: {"model": Problem, "description": "The answer took too long."},
}
_Top = Annotated[int, Form(ge=1, le=1000, description="How many classes each image gets.")]
_Alpha = Annotated[
    float | None,
    Form(ge=0, le=1, allow_inf_nan=False, description="0 is the original model, 1 the tuned one."),
]


def make_app(backend: Backend, settings: Settings) -> FastAPI:
    """Return the application.

    Args:
        backend: what answers.
        settings: the limits.
    """
    app = FastAPI(
        title="safe_ray",
        version=__version__,
        description="Few-shot tuned CLIP heads: images in, classes and probabilities out.",
        docs_url=None,
        redoc_url=None,
    )
    tally = Tally()
    reader = _Reader(backend, settings)
    app.add_middleware(Limits, most_bytes=settings.most_bytes, timeout=settings.timeout)
    _add_errors(app)

    @app.middleware("http")
    async def counted(request: Request, call_next: Any) -> Response:
        start = time.monotonic()
        status = 500
        tally.under_way.inc()
        try:
            response: Response = await call_next(request)
            status = response.status_code
            response.headers["X-Content-Type-Options"] = "nosniff"
            return response
        finally:
            tally.under_way.dec()
            route = getattr(request.scope.get("route"), "path", "none")
            tally.requests.labels(route, status).inc()
            tally.seconds.labels(route).observe(time.monotonic() - start)

    @app.post(
        "/v1/tasks/{task}:predict",
        response_model=Predicted,
        responses=_PROBLEMS,
        summary="Classify images",
    )
    async def predict(
        task: str, images: Annotated[list[UploadFile], File()], top: _Top = 5, alpha: _Alpha = None
    ) -> Any:
        pixels = await reader.pixels(images)
        said = await backend.classify(task, pixels, alpha, top, tally)
        tally.images.inc(len(images))
        tally.batches.observe(said["batch"])
        named = zip(images, said["predictions"], strict=True)
        return {
            "task": task,
            "method": said["method"],
            "alpha": said["alpha"],
            "predictions": [{"image": _name(one), "classes": classes} for one, classes in named],
        }

    @app.post(
        "/v1/tasks/{task}:explain",
        response_model=Explained,
        responses=_PROBLEMS,
        summary="Classify one image at every alpha, and say where it is looked at",
    )
    async def explain(task: str, image: Annotated[UploadFile, File()], top: _Top = 5) -> Any:
        pixels = await reader.pixels([image])
        said = await backend.explain(task, pixels, top, tally)
        tally.images.inc()
        return {"task": task, **said}

    @app.get("/v1/tasks", response_model=Tasks, summary="List the tasks")
    async def tasks() -> Any:
        return {"tasks": (await backend.describe())["tasks"]}

    @app.get(
        "/v1/tasks/{task}",
        response_model=TaskClasses,
        responses={404: _PROBLEMS[404]},
        summary="List the classes of a task",
    )
    async def classes(task: str) -> Any:
        return {"task": task, "classes": await backend.class_names(task)}

    @app.get("/healthz", summary="Whether heads answer")
    async def healthz() -> dict[str, Any]:
        found = await backend.describe()
        problem = {"remark": found["remark"]} if found["remark"] else {}
        return {"status": "ok", "version": __version__, "tasks": len(found["tasks"]), **problem}

    @app.get("/metrics", response_class=Response, summary="Counts, for Prometheus")
    async def metrics() -> Response:
        found = await backend.describe()
        return Response(tally.text(found["replica"], found["counts"]), media_type=CONTENT_TYPE)

    for path, file in (("/", "page.html"), ("/docs", "reference.html")):
        app.add_api_route(path, _page(file), include_in_schema=False, response_class=HTMLResponse)
    return app


def _page(file: str) -> Any:
    content = files("safe_ray.serving").joinpath(file).read_text("utf-8")
    headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}

    async def page() -> HTMLResponse:
        return HTMLResponse(content, headers=headers)

    return page


def _add_errors(app: FastAPI) -> None:
    """Let every refusal be a sentence in `error`."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": one_line(error.sentence)}, _STATUS[error.kind])

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        said = "There is too much to do at the moment: try again in a second."
        return JSONResponse({"error": said}, 429, {"Retry-After": "1"})

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "The server failed at this request: its log says why."}, 500)

    @app.exception_handler(StarletteHTTPException)
    async def http(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "body"
        said = f"The field {name!r} is not right: {first['msg'][:1].lower()}{first['msg'][1:]}."
        return JSONResponse({"error": one_line(said)}, 422)


class _Reader:
    """Uploads to pixels, on as many threads as there are cores."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._backend = backend
        self._settings = settings
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._preprocessing: Preprocessing | None = None

    async def pixels(self, images: Sequence[UploadFile]) -> torch.Tensor:
        """Return uint8 `[n, 3, S, S]`.

        Raises:
            HTTPException: more images than are taken, or one that is none.
        """
        if len(images) > self._settings.most_images:
            raise HTTPException(
                413,
                f"The request has {len(images)} images, and {self._settings.most_images} at most "
                "are taken: send several requests.",
            )
        if self._preprocessing is None:
            found = await self._backend.describe()
            self._preprocessing = Preprocessing.from_json(found["preprocessing"])
        loop = asyncio.get_running_loop()
        work = [
            loop.run_in_executor(self._threads, self._decode, await one.read(), self._preprocessing)
            for one in images
        ]
        results = await asyncio.gather(*work)
        for one, result in zip(images, results, strict=True):
            if isinstance(result, str):
                raise HTTPException(422, f"The image {_name(one)!r} cannot be used: {result}.")
        return torch.stack([one for one in results if isinstance(one, torch.Tensor)])

    def _decode(self, data: bytes, preprocessing: Preprocessing) -> torch.Tensor | str:
        try:
            image = decode_image(data, most_pixels=self._settings.most_pixels)
            return evaluation_view(image, preprocessing)
        except BadImageError as error:
            return str(error)


def _name(image: UploadFile) -> str:
    return one_line(image.filename or "image")[:200]
