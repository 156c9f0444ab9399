"""One task from images to a head in this process, with what a sweep does each step with.

    manifest -> episode -> images checked -> dense maps -> banks, one after another -> the best head

All files go into one folder, which nobody needs afterwards. Neither Ray nor MLflow is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from safe_ray.backbones.openclip import load_backbone
from safe_ray.classifier.evidence import Evidence, twins_that_decide
from safe_ray.cluster import ClusterResources, Node, TrialPlan, plan_trials
from safe_ray.config import SweepConfig
from safe_ray.data.manifest import Manifest
from safe_ray.errors import IncompleteError, InputError
from safe_ray.features.alone import extract_alone
from safe_ray.features.extract import open_store
from safe_ray.features.precision import precision_here
from safe_ray.heads.artifact import load_head
from safe_ray.prediction.predictor import Predictor
from safe_ray.progress import Reporter
from safe_ray.search.alone import search_alone
from safe_ray.search.choosing import Choice, choose
from safe_ray.search.groups import described, groups_of
from safe_ray.search.sizing import BankFootprint, automatic_bank_size
from safe_ray.sweep import data
from safe_ray.sweep.caution import as_zero_shot
from safe_ray.sweep.extraction import support_requests
from safe_ray.sweep.images import check_images
from safe_ray.sweep.schedule import group_for
from safe_ray.sweep.tasks import write_tasks
from safe_ray.training.facts import TaskFacts, load_classifier
from safe_ray.training.job import describe_method


@dataclass(frozen=True)
class Trained:
    """What the search of a task came to.

    Attributes:
        predictor: the head at work.
        state: the head's tensors; empty for a method that keeps nothing.
        evidence: what the validation samples say of it.
    """

    predictor: Predictor
    state: Mapping[str, Tensor]
    evidence: Evidence


def train(
    config: SweepConfig,
    manifest: Manifest,
    device: torch.device,
    reporter: Reporter,
    independent: bool = False,
) -> Trained:
    """Search the best head for the one task of a configuration.

    Args:
        config: of one data set, one number of shots, one seed and one method.
        manifest: the data set; its test split is not looked at.
        device: where to compute.
        reporter: is told what is assumed, how far the work is, and what came of it.
        independent: the person has said which images decide, or which belong together.

    Raises:
        InputError: something about the images or the settings that a person can mend.
        IncompleteError: every candidate diverged.
    """
    [task] = config.tasks.tasks()
    # Nobody who chooses has test images to look at.
    sealed = {**manifest.tables, "test": manifest.split("train").slice(0, 0)}
    manifests = {task.dataset: replace(manifest, tables=sealed)}
    episodes = data.draw_episodes(config, manifests)
    for sentence in data.assumptions(config, manifests, episodes):
        reporter.say(sentence)
    images = check_images(config, manifests, episodes, reporter.phase)
    for sentence in images.remarks():
        reporter.say(sentence)
    [checked] = images.tasks
    for sentence in twins_that_decide(checked.support, checked.validation):
        reporter.say(sentence)
    backbone = load_backbone(config.backbone.spec(), device)
    [group] = groups_of(config)
    # Parts that the pooling has not are refused before anything is extracted.
    methods = [described(group, backbone.pooling, tuple(backbone.state))]
    plan = plan_here(device)
    precision = _precision(config, device)
    batch_size = config.features.batch_size
    extract_alone(
        support_requests(config, images.tasks),
        backbone,
        open_store(backbone, config.features.store, precision),
        device,
        None if batch_size == "auto" else batch_size,
        reporter.phase("extracting features"),
    )
    written = write_tasks(config, backbone, manifests, images.tasks, precision, plan, methods)
    facts = written[task.id]
    _check_memory(facts, plan)
    group = group_for(config, facts, group)
    search = config.search
    bank = search.bank
    if bank == "auto":
        footprint = BankFootprint.of([facts], backbone, config.training.batch_size)
        bank = automatic_bank_size(search.candidates, footprint, plan.memory)
    progress = reporter.phase("searching")
    total = group.candidates(search.candidates)
    outcomes = search_alone(
        config.outputs,
        facts,
        group,
        search.candidates,
        bank,
        search.seed,
        device,
        lambda share, left: progress(int(share * total), total, left),
    )
    [method] = group.methods
    choice = choose(str(config.outputs), outcomes, method)
    if choice is None:
        raise IncompleteError(
            f"All {total} candidates diverged: search smaller learning rates, with "
            "settings={'search.lr': {'low': 1e-6, 'high': 1e-3}}."
        )
    evidence = Evidence.of(choice.validation, facts.validation_count, facts.selection, total)
    if choice.winner.folder is not None:
        for sentence in evidence.sentences(independent or checked.episode.source == "val"):
            reporter.say(sentence)
    if search.cautious and choice.winner.folder is not None and not choice.validation.gain_shown:
        choice = as_zero_shot(choice, config.outputs)
        reporter.say("Validation does not show a gain over zero-shot, which takes its place.")
    state, card = _kept(choice, facts)
    classifier = load_classifier(config.outputs / "tasks" / task.id)
    predictor = Predictor.of(card, state, backbone, classifier, choice.winner.at, device)
    return Trained(predictor, state, evidence)


def device_named(name: str | None) -> torch.device:
    """Return a device: the one that was asked for, or a GPU where there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        usable = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
    except RuntimeError:
        usable = False
    if not usable:
        raise InputError(
            f"device is {name!r}: give 'cpu', or 'cuda' where there is a GPU, or None."
        )
    return device


def plan_here(device: torch.device) -> TrialPlan:
    """Return the plan of one trial that has this machine, and of its GPUs one at most."""
    cpus = float(torch.get_num_threads())
    gpus = 1.0 if device.type == "cuda" else 0.0
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    gpu_memory = float(torch.cuda.mem_get_info(device)[1]) if gpus else 0.0
    resources = ClusterResources((Node(cpus, gpus, memory),), gpu_memory)
    return plan_trials(resources, 1, cpus, gpus, 1)


def _precision(config: SweepConfig, device: torch.device) -> str:
    wanted = config.features.precision
    if wanted != "auto":
        return wanted
    return precision_here() if device.type == "cuda" else "fp32"


def _check_memory(facts: TaskFacts, plan: TrialPlan) -> None:
    """Refuse maps that only a sweep can stream.

    Raises:
        InputError: they are larger than the memory for them.
    """
    if facts.pin == "stream":
        size = len(facts.support) * (facts.views + 1) * facts.tokens * facts.width * 2
        raise InputError(
            f"The dense maps of {len(facts.support)} images in {facts.views + 1} views are "
            f"{size / 2**30:.1f} GiB, and {max(plan.memory, plan.host_memory) / 2**31:.1f} GiB of "
            "memory are for them: take fewer shots, set settings={'features.views': 2}, or run "
            "python -m safe_ray.tune, which reads them while it trains."
        )


def _kept(choice: Choice, facts: TaskFacts) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Return what the chosen candidate has left, and its card."""
    folder = choice.winner.folder
    if folder is not None:
        return load_head(folder)
    return {}, {
        **facts.card,
        "method": describe_method(choice.winner.method),
        "knobs": dict(choice.winner.at),
        "hyper_parameters": {},
        "metrics": {},
    }
