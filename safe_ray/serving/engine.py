"""One trunk and many heads: requests of several tasks are classified together, without Ray."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_ray.errors import InputError, nearest
from safe_ray.features.trunk import run_trunk
from safe_ray.heads.blending import alpha_grid
from safe_ray.methods.features import MappedFeatures
from safe_ray.poolings.base import HeadState
from safe_ray.prediction.predictor import Predictor
from safe_ray.serving.catalogue import Entry

ALPHAS = alpha_grid(21)
"""At which `Engine.explain` classifies, beside the alpha that validation chose."""


class UnknownTaskError(InputError):
    """No head of such a task is served."""


class AlphaError(InputError):
    """An alpha that a head cannot have."""


@dataclass(frozen=True, eq=False)
class Request:
    """Images that one head shall classify.

    Attributes:
        task: of the head.
        pixels: uint8 `[n, 3, S, S]`, as `safe_ray.data.views.evaluation_view` makes them.
        alpha: instead of the one that validation chose.
    """

    task: str
    pixels: Tensor
    alpha: float | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a head says.

    Attributes:
        predictor: the head, at the alpha that was asked for.
        logits: float32 `[n, classes]` on the CPU.
    """

    predictor: Predictor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Calibrated, float32 `[n, classes]`."""
        return torch.softmax(self.logits / self.predictor.temperature, -1)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a head says of one image at several alphas, and where it looks.

    Attributes:
        predictor: the head, at the alpha that validation chose.
        alphas: in rising order, with the chosen one; empty for a method that has none.
        probabilities: `[alphas, classes]`, or `[1, classes]` where there is no alpha.
        original: `[h, w]`, the shares in which places count in what the original pooling returns.
        tuned: the same of the tuned pooling.
    """

    predictor: Predictor
    alphas: tuple[float, ...]
    probabilities: Tensor
    original: Tensor
    tuned: Tensor


class Engine:
    """A trunk, and the heads that were used last.

    Its methods may be called from several threads; what computes should be called from one.

    Args:
        entries: the heads, by their tasks.
        device: where to compute.
        heads: how many are kept in memory.
        batch: how many images pass the trunk together.
        trusted: see `Predictor.load`.

    Raises:
        InputError: none of the heads can be used; the first one's reason.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        device: torch.device | None = None,
        heads: int = 64,
        batch: int = 32,
        trusted: Sequence[str] = (),
    ) -> None:
        self._entries = dict(entries)
        self._device = device or torch.device("cpu")
        self._most = heads
        self._batch = batch
        self._trusted = tuple(trusted)
        # By task and digest, the one that was used last at the end.
        self._kept: OrderedDict[tuple[str, str], Predictor] = OrderedDict()
        self._lock = threading.Lock()
        self.loads = 0
        self.backbone = self._first().backbone

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The heads that are served, by their tasks."""
        return self._entries

    @property
    def in_memory(self) -> int:
        """How many heads are in memory."""
        return len(self._kept)

    def entry(self, task: str) -> Entry:
        """Return what is known of the head of a task.

        Raises:
            UnknownTaskError: there is none.
        """
        entry = self._entries.get(task)
        if entry is None:
            near = nearest(task, self._entries)
            raise UnknownTaskError(f"There is no task {task!r} here.{near} /v1/tasks lists all.")
        return entry

    def replace(self, entries: Mapping[str, Entry]) -> None:
        """Serve these from now on; what is being computed ends with the heads that it began with.

        Raises:
            InputError: one was trained on another backbone; nothing has changed then.
        """
        for entry in entries.values():
            digest = entry.card["backbone"].get("digest")
            if digest != self.backbone.digest:
                raise InputError(
                    f"The head in {entry.folder} is of a backbone with the digest {digest}, and "
                    f"this server has {self.backbone.digest}: start another server for it."
                )
        with self._lock:
            self._entries = dict(entries)
            current = {(task, entry.digest) for task, entry in entries.items()}
            for key in [key for key in self._kept if key not in current]:
                del self._kept[key]

    def classify(self, requests: Sequence[Request]) -> list[Answer | InputError]:
        """Classify what all requests ask for in one pass of the trunk, and each with its head.

        Returns:
            For each request its answer, or why there is none: an `UnknownTaskError`, an
            `AlphaError`, or that the head cannot be read.
        """
        heads = [self._head(request) for request in requests]
        rows: dict[int, range] = {}
        parts: list[Tensor] = []
        for place, (request, head) in enumerate(zip(requests, heads, strict=True)):
            if isinstance(head, Predictor):
                start = sum(map(len, parts))
                parts.append(request.pixels)
                rows[place] = range(start, start + len(request.pixels))
        if not parts:
            return [head for head in heads if not isinstance(head, Predictor)]
        features = self._features(torch.cat(parts))
        answers: list[Answer | InputError] = []
        together = self._by_head(requests, heads)
        logits: dict[int, Tensor] = {}
        for places in together:
            head = heads[places[0]]
            assert isinstance(head, Predictor)
            some = torch.tensor([row for place in places for row in rows[place]])
            with torch.no_grad():
                found = head.fitted.logits(features.rows(some), head.at).float().cpu()
            logits |= dict(zip(places, found.split([len(rows[p]) for p in places]), strict=True))
        for place, head in enumerate(heads):
            answers.append(Answer(head, logits[place]) if isinstance(head, Predictor) else head)
        return answers

    def explain(self, task: str, pixels: Tensor) -> Explanation:
        """Classify one image at many alphas, in one pass of the trunk, and say where it is seen.

        Args:
            task: of the head.
            pixels: uint8 `[1, 3, S, S]`.

        Raises:
            InputError: there is no such task, its head cannot be read, or its pooling cannot say
                where it looks.
        """
        from safe_ray.methods.attention import look_at

        head = self._predictor(task)
        maps = run_trunk(self.backbone, pixels, "fp32", self._device)
        pooling, original = self.backbone.pooling, self.backbone.state
        seen = look_at(maps, head.fitted, head.at, pooling, original, self._device)
        chosen = head.at.get("alpha")
        alphas = () if chosen is None else tuple(sorted({*ALPHAS, chosen}))
        heads = [head] if chosen is None else [head.with_alpha(alpha) for alpha in alphas]
        features = MappedFeatures(maps.unsqueeze(1), pooling, original, self._device)
        with torch.no_grad():
            logits = torch.cat([one.fitted.logits(features, one.at).float().cpu() for one in heads])
        probabilities = torch.softmax(logits / head.temperature, -1)
        return Explanation(head, alphas, probabilities, seen.original[0], seen.tuned[0])

    def _first(self) -> Predictor:
        problem: InputError | None = None
        for entry in self._entries.values():
            try:
                first = Predictor.load(entry.folder, self._device, trusted=self._trusted)
            except InputError as error:
                problem = problem or error
                continue
            self._keep((entry.task, entry.digest), first)
            return first
        raise problem or InputError("There is no head to serve: name a sweep that keeps some.")

    def _keep(self, key: tuple[str, str], head: Predictor) -> None:
        with self._lock:
            self.loads += 1
            self._kept[key] = head
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def _predictor(self, task: str) -> Predictor:
        entry = self.entry(task)
        key = (task, entry.digest)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        head = Predictor.load(
            entry.folder, self._device, trusted=self._trusted, backbone=self.backbone
        )
        self._keep(key, head)
        return head

    def _head(self, request: Request) -> Predictor | InputError:
        try:
            head = self._predictor(request.task)
        except InputError as error:
            return error
        if request.alpha is None or request.alpha == head.at.get("alpha"):
            return head
        try:
            return head.with_alpha(request.alpha)
        except InputError as error:
            return AlphaError(str(error))

    @staticmethod
    def _by_head(
        requests: Sequence[Request], heads: Sequence[Predictor | InputError]
    ) -> list[list[int]]:
        """Return the places of the requests that one head answers at one alpha, together."""
        groups: dict[tuple[str, float | None], list[int]] = {}
        for place, (request, head) in enumerate(zip(requests, heads, strict=True)):
            if isinstance(head, Predictor):
                groups.setdefault((request.task, head.at.get("alpha")), []).append(place)
        return list(groups.values())

    def _features(self, pixels: Tensor) -> _Shared:
        maps = [
            run_trunk(self.backbone, some, "fp32", self._device)
            for some in pixels.split(self._batch)
        ]
        return _Shared(
            torch.cat(maps).unsqueeze(1), self.backbone.pooling, self.backbone.state, self._device
        )


class _Shared(MappedFeatures):
    """Features of all requests; what the original pooling returns is computed once for all."""

    def rows(self, some: Tensor) -> _Rows:
        """Return the features of some samples."""
        part = MappedFeatures(self._maps[some], self._pooling, self._original_head, self._device)
        return _Rows(self, part, some)


@dataclass(frozen=True, eq=False)
class _Rows:
    whole: _Shared
    part: MappedFeatures
    some: Tensor

    @property
    def original(self) -> Tensor:
        """See `Features`."""
        return self.whole.original[self.some]

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        """See `Features`."""
        return self.part.pooled(heads)
