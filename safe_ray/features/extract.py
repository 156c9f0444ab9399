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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_ray.cluster import (
    Node,
    beacon,
    is_elastic,
    label_selector,
    leave_out,
    planned_nodes,
)
from safe_ray.errors import BlindNodeError, InputError
from safe_ray.features import plan
from safe_ray.features.decoding import decode_views
from safe_ray.features.folder import prepare_folder, remove_leftovers
from safe_ray.features.inventory import no_progress
from safe_ray.features.precision import PRECISIONS, Precision, resolve_precision
from safe_ray.features.rows import (
    ExtractionRequest,
    Row,
    by_views,
    chunk_tables,
    missing_rows,
    wanted_rows,
)
from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.features.trunk import PartExtractor
from safe_ray.features.trunk import dense_maps as dense_maps
from safe_ray.files import PACKAGE_SCHEME, resolve_path
from safe_ray.job import is_submitted
from safe_ray.progress import Progress
from safe_ray.specs import BackboneSpec

if TYPE_CHECKING:
    from safe_ray.backbones.openclip import Backbone


_MOST_BLIND_NODES = 5


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
    wanted, asked = wanted_rows(requests, views)
    store.check(by_views(wanted), checking)
    if say is not None:
        for damage in store.damage:
            say(f"{damage}; what this run needs of it is extracted again.")
    missing = missing_rows(store, wanted)
    rows = sum(len(row_views) for _, _, _, row_views in missing)
    if rows:
        prepare_folder(store_root, rows * store.bytes_per_row)
        remove_leftovers(store.folder)
    blind = 0
    while missing:
        left = sum(len(row_views) for _, _, _, row_views in missing)
        try:
            _run(requests, missing, left, spec, backbone, store, options, progress)
            missing = []
        except BlindNodeError as error:
            blind += 1
            if blind > _MOST_BLIND_NODES:
                raise
            leave_out(error.node)
            if say is not None:
                say(f"Extraction goes on without one node: {error.sentence}.")
            store.refresh()
            missing = missing_rows(store, wanted)
    if rows:
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


def _run(
    requests: Sequence[ExtractionRequest],
    missing: Sequence[Row],
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

    nodes = planned_nodes()
    # None if every node may do the work, as for Ray Data itself.
    selector = label_selector() or None
    actor_plan = plan.plan_actors([_resources(node) for node in nodes], options.actors)
    actors = actor_plan.actors
    if options.actors == "auto":
        actors = plan.useful_actors(actors, rows)
    batch_size = options.batch_size
    if batch_size == "auto":
        batch_size = plan.plan_batch_size(backbone.preprocessing.size, actor_plan.gpus > 0)
    rows_per_file = options.rows_per_file
    if rows_per_file == "auto":
        rows_per_file = plan.plan_rows_per_file(rows, store.bytes_per_row, batch_size, actors)
    chunks = list(chunk_tables(requests, missing, rows_per_file))
    # The first write of the key is the driver's, so that a folder of parts always has one.
    store.write_key()
    # Ray's annotations know no function that takes keyword arguments.
    decode: Any = decode_views
    most = min(actors, len(chunks))
    # Ray Data brings actors one by one to where nodes may join, and takes them away from there.
    size: dict[str, int] = {"min_size": 1, "max_size": most} if is_elastic() else {"size": most}
    with _quiet_ray_data(nodes if selector or is_elastic() else ()):
        dataset = (
            ray.data.from_arrow(chunks)
            .map_batches(
                decode,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={
                    "preprocessing": backbone.preprocessing.to_json(),
                    "beacon": beacon(),
                },
                num_cpus=actor_plan.decode_cpus,
                label_selector=selector,
            )
            .map_batches(
                PartExtractor,
                batch_size=rows_per_file,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(
                    **size,
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
                    "beacon": beacon(),
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
        blind = BlindNodeError.found_in(str(error))
        if blind is not None:
            raise blind from None
        if isinstance(error.cause, InputError):
            # Ray Data adds lines about its retries to the argument; ours is the first.
            raise InputError(str(error.cause.args[0]).partition("\n")[0]) from None
        raise


def _resources(node: Node) -> dict[str, float]:
    return {"CPU": node.cpus, "GPU": node.gpus}


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


@contextlib.contextmanager
def _quiet_ray_data(only: Sequence[Node]) -> Iterator[None]:
    """Keep Ray Data's bars and messages off the terminal; its log file still has them all.

    A submitted job has no terminal: there the messages stay in its log.

    Args:
        only: the nodes that do the work, or may come to do it, where these are not all that are
            there. Ray Data counts on no others then: what it put in line for them would wait in
            vain.
    """
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    if only:
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            cpu=sum(node.cpus for node in only),
            gpu=sum(node.gpus for node in only),
        )
    # Otherwise an InputError raised on a worker arrives without its type.
    context.raise_original_map_exception = True
    consoles = [
        (handler, handler.level)
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    for handler, _ in () if is_submitted() else consoles:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        for handler, level in consoles:
            handler.setLevel(level)
