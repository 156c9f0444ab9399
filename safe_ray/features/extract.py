"""Extraction: images through the trunk into the feature store, with Ray Data.

    rows that the store lacks, in chunks of one part each
      -> decode, views          CPU tasks
      -> trunk, write a part    an actor pool; returns the part's name, never the maps

A chunk that was written stays written, so that a run which died goes on with the next one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from safe_ray.cluster import ask_nodes, label_selector, working_nodes
from safe_ray.errors import InputError
from safe_ray.features import plan
from safe_ray.features.inventory import Inventory, no_progress, sample_digest
from safe_ray.features.memory import keep_freed_memory
from safe_ray.features.parts import write_part
from safe_ray.features.store import FeatureStore, StoreKey, prepare_folder, remove_leftovers
from safe_ray.files import PACKAGE_SCHEME, resolve_path
from safe_ray.progress import Progress
from safe_ray.specs import BackboneSpec

if TYPE_CHECKING:
    import torch

    from safe_ray.backbones.openclip import Backbone

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ExtractionOptions:
    """How to extract; but for the precision, none of it changes a map by more than rounding.

    Attributes:
        precision: the trunk's arithmetic. `auto` is bf16 on GPUs that have it, fp16 on others, and
            fp32 on CPUs. Dense maps are stored in float16 in any case.
        batch_size: images a forward pass; `auto` by image size and device.
        rows_per_file: dense maps a part; `auto` is some 32 MiB.
        actors: processes that hold the trunk; `auto` is one a GPU, or as many as the cores feed.
    """

    precision: Precision = "auto"
    batch_size: int | Literal["auto"] = "auto"
    rows_per_file: int | Literal["auto"] = "auto"
    actors: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"features.precision={self.precision} is unknown: give one of "
                f"{', '.join(PRECISIONS)}."
            )
        for name in ("batch_size", "rows_per_file", "actors"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise InputError(
                    f"features.{name}={value} makes no sense: give a number of 1 or more, or auto."
                )


@dataclass(frozen=True)
class ExtractionRequest:
    """Images, and the views of them that are wanted.

    Attributes:
        table: rows with `sample` (see `take_inventory`), `path`, and where the image is.
        views: the views of these images; None for those that `extract` was called with.
        bad: how many images the inventory left out, for the summary.
    """

    table: pa.Table
    views: tuple[int, ...] | None = None
    bad: int = 0

    @classmethod
    def of(cls, inventory: Inventory, views: Sequence[int] | None = None) -> ExtractionRequest:
        """Ask for the sound images of an inventory."""
        return cls(inventory.table, None if views is None else tuple(views), bad=len(inventory.bad))


@dataclass(frozen=True)
class ExtractionSummary:
    """What an extraction did.

    Attributes:
        asked: distinct (sample, view) rows that were asked for.
        reused: of these, how many the store had already.
        extracted: of these, how many went through the trunk now.
        bad: images that the inventory left out.
        seconds: wall-clock time, start-up included.
        folder: the store's folder.
        precision: the trunk's arithmetic, `auto` resolved.
    """

    asked: int
    reused: int
    extracted: int
    bad: int
    seconds: float
    folder: Path
    precision: str

    @property
    def images_per_second(self) -> float:
        """Rows extracted a second, start-up included; 0 when there was nothing to do."""
        return self.extracted / self.seconds if self.extracted else 0.0


def resolve_precision(precision: Precision) -> Precision:
    """Return `fp32`, `bf16` or `fp16`; `auto` is decided by the GPUs that hold the trunk.

    They are those of the cluster if Ray has been started, and all of them can do what is returned;
    without Ray, those that this process sees.
    """
    import ray

    if precision != "auto":
        return precision
    if not ray.is_initialized():
        return _precision_here()
    nodes = [node for node in working_nodes() if plan.holds_trunk_on_gpu(node["Resources"])]
    return least_precision(ask_nodes(_precision_here, nodes))


def least_precision(precisions: Sequence[Precision]) -> Precision:
    """Return what all of several nodes can do, each given by the best of its GPUs' precisions."""
    ascending = ("fp32", "fp16", "bf16")
    return min(precisions, key=ascending.index, default="fp32")


def open_store(backbone: Backbone, root: Path, precision: str) -> FeatureStore:
    """Return the store of one backbone's dense maps, `precision` being one that is resolved."""
    from safe_ray.data.views import AUGMENTATION

    key = StoreKey(
        trunk_digest=backbone.trunk_digest,
        preprocessing=backbone.preprocessing.to_json(),
        precision=precision,
        augmentation=AUGMENTATION,
    )
    return FeatureStore(root, key, tokens=backbone.tokens, width=backbone.width)


def extract(
    requests: Sequence[ExtractionRequest],
    views: Sequence[int],
    backbone_spec: BackboneSpec,
    store_root: Path,
    options: ExtractionOptions | None = None,
    progress: Progress = no_progress,
    *,
    backbone: Backbone | None = None,
    checking: Progress = no_progress,
    say: Callable[[str], None] | None = None,
) -> ExtractionSummary:
    """Fill the feature store with what it lacks of `requests`.

    The maps that it has are compared with their checksums first; parts that are damaged are set
    aside, and what they held of `requests` is extracted again. Ray must have been started, unless
    nothing is missing. An image that several requests hold is extracted once.

    Args:
        requests: what is wanted.
        views: the views of requests that name none.
        backbone_spec: the backbone; its files must be visible to every node.
        store_root: the folder of all feature stores; shared by every node.
        options: how to extract.
        progress: called after each part, with rows.
        backbone: the loaded backbone, if the caller has it already.
        checking: called while stored maps are compared with their checksums, with rows.
        say: told of each damaged part, in a sentence, before anything is extracted.

    Raises:
        InputError: the folder is read-only or full, a file is missing on a node, a dense map does
            not fit float16, or the options don't fit the cluster. Parts already written are kept.
    """
    from safe_ray.backbones.openclip import load_backbone

    start = time.monotonic()
    options = options or ExtractionOptions()
    store_root = Path(store_root).absolute()
    spec = _for_any_node(backbone_spec)
    backbone = backbone or load_backbone(spec, parts=("trunk",))
    precision = resolve_precision(options.precision)
    store = open_store(backbone, store_root, precision)
    wanted, asked = _wanted_rows(requests, views)
    store.check(_by_views(wanted), checking)
    if say is not None:
        for damage in store.damage:
            say(f"{damage}; what this run needs of it is extracted again.")
    missing = _missing_rows(store, wanted)
    rows = sum(len(row_views) for _, _, _, row_views in missing)
    if rows:
        prepare_folder(store_root, rows * store.bytes_per_row)
        remove_leftovers(store.folder)
        _run(requests, missing, rows, spec, backbone, store, options, progress)
        store.refresh()
    return ExtractionSummary(
        asked=asked,
        reused=asked - rows,
        extracted=rows,
        bad=sum(request.bad for request in requests),
        seconds=time.monotonic() - start,
        folder=store.folder,
        precision=precision,
    )


# (sample, request, row in its table, views)
_Row = tuple[str, int, int, list[int]]


def _wanted_rows(
    requests: Sequence[ExtractionRequest], views: Sequence[int]
) -> tuple[list[_Row], int]:
    """Each distinct sample once, with all the views that any request wants of it."""
    rows: dict[str, tuple[int, int, dict[int, None]]] = {}
    for number, request in enumerate(requests):
        wanted = dict.fromkeys(views if request.views is None else request.views)
        for row, sample in enumerate(request.table.column("sample").to_pylist()):
            _, _, row_views = rows.setdefault(sample, (number, row, {}))
            row_views.update(wanted)
    listed = [
        (sample, number, row, list(row_views)) for sample, (number, row, row_views) in rows.items()
    ]
    return listed, sum(len(row_views) for *_, row_views in listed)


def _by_views(wanted: Sequence[_Row]) -> list[tuple[list[str], tuple[int, ...]]]:
    """The samples of which the same views are wanted, with these views."""
    samples: dict[tuple[int, ...], list[str]] = {}
    for sample, _, _, views in wanted:
        samples.setdefault(tuple(views), []).append(sample)
    return [(alike, views) for views, alike in samples.items()]


def _missing_rows(store: FeatureStore, wanted: Sequence[_Row]) -> list[_Row]:
    absent: dict[str, list[int]] = {}
    for samples, alike in _by_views(wanted):
        for sample, view in store.missing(samples, alike):
            absent.setdefault(sample, []).append(view)
    return [
        (sample, number, row, absent[sample])
        for sample, number, row, _ in wanted
        if sample in absent
    ]


def _run(
    requests: Sequence[ExtractionRequest],
    missing: Sequence[_Row],
    rows: int,
    spec: BackboneSpec,
    backbone: Backbone,
    store: FeatureStore,
    options: ExtractionOptions,
    progress: Progress,
) -> None:
    import ray
    import ray.data

    from safe_ray.devices import device_of

    nodes = [node["Resources"] for node in working_nodes()]
    # None if every node may do the work, as for Ray Data itself.
    selector = label_selector() or None
    actor_plan = plan.plan_actors(nodes, options.actors)
    batch_size = options.batch_size
    if batch_size == "auto":
        batch_size = plan.plan_batch_size(backbone.preprocessing.size, actor_plan.gpus > 0)
    rows_per_file = options.rows_per_file
    if rows_per_file == "auto":
        rows_per_file = plan.plan_rows_per_file(
            rows, store.bytes_per_row, batch_size, actor_plan.actors
        )
    chunks = list(_chunks(requests, missing, rows_per_file))
    # The first write of the key is the driver's, so that a folder of parts always has one.
    store.write_key()
    # Ray's annotations know no function that takes keyword arguments.
    decode: Any = decode_views
    with _quiet_ray_data(nodes if selector else ()):
        dataset = (
            ray.data.from_arrow(chunks)
            .map_batches(
                decode,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"preprocessing": backbone.preprocessing.to_json()},
                num_cpus=actor_plan.decode_cpus,
                label_selector=selector,
            )
            .map_batches(
                PartExtractor,
                batch_size=rows_per_file,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(
                    size=min(actor_plan.actors, len(chunks)),
                    # One call writes its part while the other has the trunk.
                    max_concurrent_calls_per_actor=2,
                    enable_true_multi_threading=True,
                ),
                fn_constructor_kwargs={
                    "spec": asdict(spec),
                    "trunk_digest": backbone.trunk_digest,
                    "folder": str(store.folder),
                    "precision": store.key.precision,
                    "batch_size": batch_size,
                    "threads": actor_plan.threads,
                    "device": str(device_of(actor_plan.gpus)),
                },
                num_cpus=actor_plan.cpus,
                num_gpus=actor_plan.gpus or None,
                label_selector=selector,
            )
        )
        _consume(dataset, rows, progress)


def _consume(dataset: Any, rows: int, progress: Progress) -> None:
    import ray.exceptions

    done = 0
    first: float | None = None
    progress(0, rows, None)
    try:
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=0
        ):
            now = time.monotonic()
            done += int(batch["rows"].sum())
            # Measured from the start of the first part: the actors' own start-up is not repeated.
            began = now - float(batch["seconds"].max())
            first = began if first is None else min(first, began)
            progress(done, rows, (now - first) / done * (rows - done))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            # Ray Data adds lines about its retries; ours is the first.
            raise InputError(str(error.cause).partition("\n")[0]) from None
        raise


def _chunks(
    requests: Sequence[ExtractionRequest], missing: Sequence[_Row], size: int
) -> Iterator[pa.Table]:
    """Tables of images whose views are `size` rows together; only the last may be smaller."""
    chunk: list[_Row] = []
    room = size
    for sample, number, row, views in missing:
        rest = views
        while rest:
            chunk.append((sample, number, row, rest[:room]))
            taken = len(rest[:room])
            rest, room = rest[taken:], room - taken
            if room == 0:
                yield _chunk_table(requests, chunk)
                chunk, room = [], size
    if chunk:
        yield _chunk_table(requests, chunk)


_CHUNK_SCHEMA = pa.schema(
    [
        ("sample", pa.string()),
        ("path", pa.string()),
        ("views", pa.list_(pa.int16())),
        ("image", pa.large_binary()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


def _chunk_table(requests: Sequence[ExtractionRequest], chunk: Sequence[_Row]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _CHUNK_SCHEMA.names}
    for sample, number, row, views in chunk:
        table = requests[number].table
        columns["sample"].append(sample)
        columns["views"].append(views)
        for name in ("path", "image", "file", "offset", "length"):
            present = name in table.column_names
            columns[name].append(table.column(name)[row].as_py() if present else None)
    return pa.table(columns, schema=_CHUNK_SCHEMA)


def decode_views(chunk: pa.Table, preprocessing: dict[str, Any]) -> dict[str, np.ndarray]:
    """Decode each image of `chunk` once and make the views that are wanted of it.

    Returns:
        `sample` and `view` of each row, and its `pixels`, uint8 `[n, 3, S, S]`.

    Raises:
        InputError: a file is gone, is not an image, or changed since the inventory.
    """
    import torch

    from safe_ray.data.images import BadImageError, decode_image
    from safe_ray.data.locations import first_line
    from safe_ray.data.sources import ImageSource
    from safe_ray.data.views import Preprocessing, make_view

    # Views are single images; threads would only contend with the trunk for cores.
    torch.set_num_threads(1)
    recipe = Preprocessing.from_json(preprocessing)
    samples: list[str] = []
    views: list[int] = []
    pixels = np.empty(
        (sum(map(len, chunk["views"].to_pylist())), 3, recipe.size, recipe.size), np.uint8
    )
    for row in chunk.to_pylist():
        source = ImageSource(row["image"], row["file"], row["offset"] or 0, row["length"])
        name = source.name or row["path"] or row["sample"]
        try:
            encoded = source.read()
            if sample_digest(encoded) != row["sample"]:
                raise InputError(f"{name} changed while it was being read: run the command again.")
            image = decode_image(encoded)
        except OSError as error:
            raise InputError(
                f"{name} cannot be read on the node that extracts it ({first_line(error)}): "
                "keep images where every node sees them."
            ) from error
        except BadImageError as error:
            raise InputError(
                f"{name} is not a sound image ({error}): repair or remove it, or leave such images "
                "out with data.skip_bad=true."
            ) from error
        for view in row["views"]:
            pixels[len(samples)] = make_view(image, recipe, row["sample"], view).numpy()
            samples.append(row["sample"])
            views.append(view)
    return {"sample": np.array(samples), "view": np.array(views, np.int16), "pixels": pixels}


class PartExtractor:
    """The actor: holds the trunk, and turns each batch of views into one part of the store."""

    def __init__(
        self,
        spec: dict[str, Any],
        trunk_digest: str,
        folder: str,
        precision: str,
        batch_size: int,
        threads: int,
        device: str,
    ) -> None:
        import threading

        self._folder = Path(folder)
        self._trunk_lock = threading.Lock()
        self._precision = precision
        self._batch_size = batch_size
        self._threads = threads
        self._device = device
        self._problem: InputError | None = None
        keep_freed_memory()
        # Raised by the first call: an exception here would only say that the actor died.
        try:
            self._backbone = _load_trunk(BackboneSpec(**spec), trunk_digest, device, threads)
        except InputError as error:
            self._problem = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write one part; return its `path`, `rows`, and the `seconds` that it took."""
        import torch

        if self._problem is not None:
            raise self._problem
        start = time.monotonic()
        with self._trunk_lock:
            # OpenMP counts threads per calling thread, and Ray calls from several.
            torch.set_num_threads(self._threads)
            maps = dense_maps(
                self._backbone, batch["pixels"], self._precision, self._batch_size, self._device
            )
        path = write_part(self._folder, batch["sample"].tolist(), batch["view"].tolist(), maps)
        return {
            "path": np.array([path.name]),
            "rows": np.array([len(maps)]),
            "seconds": np.array([time.monotonic() - start]),
        }


def dense_maps(
    backbone: Backbone, pixels: np.ndarray, precision: str, batch_size: int, device: str
) -> np.ndarray:
    """Run the trunk over uint8 pixels `[n, 3, S, S]`; return float16 `[n, L, C]`.

    Every forward pass takes `batch_size` images, the last one padded: kernels choose their order of
    summation by the shape, and a row's last bit would otherwise depend on how many came with it.
    (It still depends on the batch size, the number of threads and the device.)
    """
    import torch

    out: np.ndarray | None = None
    for start in range(0, len(pixels), batch_size):
        rows = pixels[start : start + batch_size]
        block = np.zeros((batch_size, *pixels.shape[1:]), np.uint8)
        block[: len(rows)] = rows
        try:
            tokens = run_trunk(backbone, torch.from_numpy(block), precision, torch.device(device))
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"The trunk has no memory on its device for {batch_size} images at once: "
                f"give features.batch_size={max(1, batch_size // 2)} or less."
            ) from error
        halves = tokens[: len(rows)].cpu().numpy()
        if out is None:
            out = np.empty((len(pixels), *halves.shape[1:]), np.float16)
        out[start : start + len(rows)] = halves
    if out is None:
        raise ValueError("There are no pixels to run the trunk over.")
    return out


def run_trunk(
    backbone: Backbone, pixels: torch.Tensor, precision: str, device: torch.device
) -> torch.Tensor:
    """Run the trunk, which is on `device`, over uint8 pixels `[n, 3, S, S]` from anywhere.

    Returns:
        float16 `[n, L, C]` on the device.
    """
    import torch

    from safe_ray.data.views import normalise
    from safe_ray.devices import full_precision

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with (
        torch.inference_mode(),
        full_precision(),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        moved = pixels.to(device, memory_format=torch.channels_last)
        images = normalise(moved, backbone.preprocessing)
        tokens = backbone.trunk(images.contiguous(memory_format=torch.channels_last))
        return tokens.to(torch.float16)


def _load_trunk(spec: BackboneSpec, digest: str, device: str, threads: int) -> Backbone:
    import torch

    from safe_ray.backbones.openclip import load_backbone

    torch.set_num_threads(threads)
    backbone = load_backbone(spec, device=device, parts=("trunk",))
    if backbone.trunk_digest != digest:
        raise InputError(
            f"The weights of backbone {spec.name} differ between the nodes of the cluster: give "
            "every node the same file."
        )
    backbone.trunk.to(memory_format=torch.channels_last)
    return backbone


def _for_any_node(spec: BackboneSpec) -> BackboneSpec:
    """The spec with its files' paths made absolute; packages are found by each node itself."""

    def absolute(text: str | None) -> str | None:
        if text is None or text.startswith(PACKAGE_SCHEME):
            return text
        path = resolve_path(text)
        return str(path.absolute()) if path.exists() else text

    return replace(
        spec, pretrained=absolute(spec.pretrained), model_config=absolute(spec.model_config)
    )


def _precision_here() -> Precision:
    """Return the best precision that all GPUs of this node have; `fp32` without any."""
    import torch

    def of(device: int) -> Precision:
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    return least_precision([of(device) for device in range(torch.cuda.device_count())])


@contextlib.contextmanager
def _quiet_ray_data(only: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Keep Ray Data's bars and messages off the terminal; its log file still has them all.

    Args:
        only: resources of the nodes that do the work, where these are not all. Ray Data counts on
            no others then: what it put in line for them would wait in vain.
    """
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    if only:
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            cpu=sum(node.get("CPU", 0.0) for node in only),
            gpu=sum(node.get("GPU", 0.0) for node in only),
        )
    # Otherwise an InputError raised on a worker arrives without its type.
    context.raise_original_map_exception = True
    consoles = [
        (handler, handler.level)
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    for handler, _ in consoles:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        for handler, level in consoles:
            handler.setLevel(level)
