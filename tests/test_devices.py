"""What runs on a GPU, on one that is not there: its tensors have a shape and a device, no values.

Fake tensors refuse an operation on two devices, as real ones do. Of a training step they show all
but the backward pass, which needs a real GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from safe_ray.backbones.openclip import load_backbone
from safe_ray.devices import cpu_capabilities, device_of, full_precision, has_instructions, indexed
from safe_ray.features.trunk import dense_maps, run_trunk
from safe_ray.heads.bank import Bank
from safe_ray.heads.blending import sum_alpha_row
from safe_ray.heads.optimiser import BankOptimiser, Schedule
from safe_ray.heads.step import AutogradStep
from safe_ray.heads.sums import KnobSums
from safe_ray.methods import knobs
from safe_ray.methods.base import TaskData, make_method
from safe_ray.methods.features import MappedFeatures
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.specs import BackboneSpec, MethodGroup, MethodSpec, Point
from safe_ray.sweep.testing import _classified
from safe_ray.training import judging
from safe_ray.training.facts import TaskFacts, load_classifier, load_pooling
from safe_ray.training.judging import judge_candidates
from safe_ray.training.loop import (
    LoopOptions,
    SingleProcess,
    SupportShard,
    _plan_epoch,
    _Running,
    _train_epoch,
    begin,
)
from safe_ray.training.maps import Pin, resident_maps
from safe_ray.training.members import Member
from tests.heads.test_bank import CLASSES, GRID, NAMES, POOL, WIDTH, classifier, layer, state_of
from tests.training.tasks import CANDIDATES, write_task

GPU = torch.device("cuda", 0)
SAMPLES = 11


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Tensors of any device in here are fake; what was made before it counts as on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.fixture(autouse=True)
def pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to pin what lies on a GPU, as torch does; without a GPU it can pin nothing."""

    def pin_memory(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            raise RuntimeError(f"cannot pin {tensor.device}: only dense CPU tensors can be pinned")
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)


HEAD = state_of(layer(0))
MAPS = np.zeros((SAMPLES, 2, GRID * GRID, WIDTH), np.float16)


def test_a_process_that_reserved_a_gpu_computes_on_its_first_one() -> None:
    assert device_of(1) == device_of(0.25) == torch.device("cuda:0")
    assert device_of(0) == torch.device("cpu")


def test_a_device_is_named_as_its_tensors_name_it() -> None:
    assert indexed(torch.device("cuda")) == torch.device("cuda:0")
    assert indexed(torch.device("cuda:1")) == torch.device("cuda:1")
    assert indexed(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
@pytest.mark.parametrize("pin", ["device", "host"])
def test_maps_arrive_on_the_gpu_wherever_they_lie(
    fake: FakeTensorMode, pin: Pin, name: str
) -> None:
    source = resident_maps(MAPS, pin, torch.device(name))
    (batch,) = source.epoch([(torch.tensor([4, 0]), torch.tensor([1, 0]))])
    assert batch.device == GPU
    assert batch.shape == (2, GRID * GRID, WIDTH)


class OnlyForward:
    """A step's losses whose gradient nobody can ask for here."""

    def __init__(self, losses: Tensor) -> None:
        self._losses = losses

    def sum(self) -> OnlyForward:
        return self

    def backward(self) -> None:
        pass

    def detach(self) -> Tensor:
        return self._losses.detach()


class WithoutBackward(SingleProcess):
    """Runs the bank, and leaves out the one thing that needs a real GPU."""

    def wrap(self, bank: Bank) -> nn.Module:
        class Wrapped(nn.Module):
            def forward(self, *arguments: Tensor) -> Any:
                return OnlyForward(bank(*arguments))

        return Wrapped()


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("pin", ["device", "host"])
def test_an_epoch_of_training_keeps_to_the_gpu(
    fake: FakeTensorMode, pin: Pin, precision: torch.dtype | None
) -> None:
    members = [Member(1e-3, 0.1, 2), Member(1e-4, 0.0, 3, include=(True,) * 7 + (False,) * 4)]
    options = LoopOptions(4, 0.1, 5, NAMES, precision)
    shard = SupportShard(
        resident_maps(MAPS, pin, GPU),
        torch.zeros(SAMPLES, dtype=torch.int64, device=GPU),
        torch.arange(SAMPLES, device=GPU),
        SAMPLES,
    )
    running = _Running.start(
        members,
        begin(HEAD, 2),
        classifier().to(GPU),
        POOL,
        20.0,
        options,
        WithoutBackward(),
    )
    assert isinstance(running.step, AutogradStep)
    with _disable_current_modes():
        batches = _plan_epoch(replace(shard, positions=torch.arange(SAMPLES)), options, 0)
    losses = _train_epoch(
        running,
        batches,
        shard,
        torch.ones(2, SAMPLES),
        [Schedule(1e-3, 6, 1), Schedule(1e-4, 9, 1)],
        first_step=0,
        world_size=1,
    )
    assert losses.device == GPU
    assert losses.shape == (2,)


def test_an_update_and_what_it_goes_on_from_keep_to_the_gpu(fake: FakeTensorMode) -> None:
    bank = Bank([HEAD, HEAD], POOL, NAMES, classifier().to(GPU), 20.0)
    optimiser = BankOptimiser(bank, [0.1, 0.0])
    for parameter in bank.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step([1e-3, 1e-4])
    for parameter in bank.parameters():
        assert parameter.device == GPU


def test_pooling_and_alpha_rows_keep_to_the_gpu(fake: FakeTensorMode) -> None:
    maps = torch.from_numpy(MAPS)[:, 0]
    pooled = pool_with_heads([HEAD] * 3, POOL, maps, GPU)
    assert pooled.device == GPU
    labels = torch.zeros(SAMPLES, dtype=torch.int64)
    sums = sum_alpha_row(
        pooled, pooled[0], classifier().to(GPU), labels.to(GPU), 20.0, (0.0, 0.5, 1.0)
    )
    assert [tuple(head.class_correct.shape) for head in sums] == [(3, CLASSES)] * 3
    assert all(head.nll.device.type == "cpu" for head in sums)


def spec_of(module: str, grids: Mapping[str, tuple[float, ...]], **options: str) -> MethodSpec:
    name = "-".join((module, *options.values()))
    return MethodSpec(name, name, f"safe_ray.methods.{module}", options, grids)


ALPHAS = (0.0, 0.5, 1.0)
KERNEL = {"beta": (1.0, 5.0), "lambda": (0.1, 1.0)}
CACHE = {"beta": (5.5,), "gamma": (1.0,)}
JUDGED = (
    spec_of("zero_shot", {}),
    spec_of("tuned", {"alpha": ALPHAS}, blend="features"),
    spec_of("tuned", {"alpha": ALPHAS}, blend="logits"),
    spec_of("tuned", {"alpha": ALPHAS}, blend="weights"),
    spec_of("adapted", KERNEL, features="original", adapter="kernel"),
    spec_of("adapted", {"alpha": ALPHAS, **KERNEL}, features="safe", adapter="kernel"),
    spec_of("adapted", {}, features="original", adapter="ss_text"),
)
# Whatever counts labels is left out: the shapes that follow from values are unknown here.
TESTED = (
    *JUDGED,
    spec_of("adapted", CACHE, features="original", adapter="cache"),
    spec_of("adapted", {"alpha": ALPHAS, **CACHE}, features="safe", adapter="cache"),
)


@pytest.mark.parametrize("spec", TESTED, ids=lambda spec: spec.name)
def test_what_a_method_keeps_classifies_test_samples_on_the_gpu(
    fake: FakeTensorMode, spec: MethodSpec
) -> None:
    features = MappedFeatures(torch.from_numpy(MAPS), POOL, HEAD, GPU)
    labels = torch.zeros(SAMPLES, dtype=torch.int64, device=GPU)
    task = TaskData(features, labels, classifier().to(GPU), 20.0, HEAD, [HEAD])
    method = make_method(spec.module, spec.options)
    [fitted] = method.fit(task, [{}])
    read = {name: tensor.cpu() for name, tensor in fitted.state().items()}
    at = {name: values[0] for name, values in spec.knobs.items()}
    logits = method.load(read, task).logits(features, at)
    assert logits.device == GPU
    assert logits.shape == (SAMPLES, CLASSES)
    columns = torch.tensor([2, 0], device=GPU)
    for found in _classified(logits, columns):
        assert found.device == torch.device("cpu")
        assert found.shape == (SAMPLES,)


@pytest.mark.parametrize("selection", ["coop", "cross"])
@pytest.mark.parametrize("spec", JUDGED, ids=lambda spec: spec.name)
def test_judging_keeps_to_the_gpu(
    fake: FakeTensorMode,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spec: MethodSpec,
    selection: str,
) -> None:
    def figures_of(sums: KnobSums, at: Sequence[Mapping[str, float]], rule: Any) -> list[Point]:
        """Figures need values: these are any."""
        assert all(tensor.device == torch.device("cpu") for tensor in vars(sums).values())
        return [Point(0.5, 0.5, 1.0, 0, 0, 0.5) for _ in at]

    def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
        """So does a temperature."""
        assert logits.device == labels.device == torch.device("cpu")
        return 1.0

    monkeypatch.setattr(knobs, "figures_of", figures_of)
    monkeypatch.setattr(judging, "fit_temperature", fit_temperature)
    with _disable_current_modes():
        job = write_task(tmp_path, selection=selection)
        facts, original = TaskFacts.load(job.task_folder), load_pooling(Path(job.sweep))
        text = load_classifier(job.task_folder)
    members = 1 + (facts.folds if selection == "cross" else 0)
    heads = [dict(original) for _ in range(members * len(CANDIDATES))]
    group = MethodGroup(spec.name, (spec,), NAMES)
    judged = judge_candidates(facts, group, CANDIDATES, heads, original, text.to(GPU))
    assert [list(found) for found in judged] == [[spec.name]] * len(CANDIDATES)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_trunk_keeps_to_the_gpu(
    fake: FakeTensorMode, tiny_backbone: BackboneSpec, precision: str
) -> None:
    with _disable_current_modes():
        backbone = load_backbone(tiny_backbone, parts=("trunk",))
    backbone.trunk.to(GPU)
    size = backbone.preprocessing.size
    pixels = torch.zeros(3, 3, size, size, dtype=torch.uint8)
    maps = run_trunk(backbone, pixels, precision, GPU)
    assert maps.device == GPU
    assert maps.dtype == torch.float16
    assert maps.shape == (3, backbone.tokens, backbone.width)


def test_the_trunk_computes_fp32_without_tf32(tiny_backbone: BackboneSpec) -> None:
    """A GPU's dense maps have the same key in the store as a CPU's."""
    backbone = load_backbone(tiny_backbone, parts=("trunk",))
    seen = []

    def look(*_: Any) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

    backbone.trunk.register_forward_pre_hook(look)
    before = torch.backends.cudnn.allow_tf32
    size = backbone.preprocessing.size
    dense_maps(backbone, np.zeros((1, 3, size, size), np.uint8), "fp32", 1, "cpu")
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_full_precision_ends_when_something_fails() -> None:
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("precision", "capabilities", "has"),
    [
        ("fp32", {}, True),
        ("bf16", {"avx512_f": True, "avx512_bf16": True}, True),
        ("bf16", {"amx_bf16": True, "avx512_bf16": False}, True),
        ("bf16", {"neon": True, "bf16": True}, True),
        ("bf16", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ("fp16", {"avx512_bf16": True, "avx512_fp16": False}, False),
        ("fp16", {"neon": True, "fp16_arith": True}, True),
        ("bf16", None, True),
    ],
)
def test_a_precision_needs_instructions_of_the_cpu(
    precision: str, capabilities: dict[str, Any] | None, has: bool
) -> None:
    assert has_instructions(precision, capabilities) is has


def test_the_instructions_are_those_that_torch_names() -> None:
    """A name that torch does not know would refuse every CPU that has what it stands for."""
    capabilities = cpu_capabilities()
    assert capabilities is not None
    on_x86 = capabilities["architecture"] == "x86_64"
    assert ({"avx512_bf16", "amx_bf16"} if on_x86 else {"bf16"}) <= capabilities.keys()
