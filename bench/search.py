"""A search tries 20 times as many candidates a minute as one Train run a candidate under Tune.

The other side is the pattern of Ray's guide to tuning Ray Train's runs: a Tune trial a candidate,
each of which launches a TorchTrainer that reports through TuneReportCallback. It trains open_clip's
AttentionPool2d with torch's AdamW on the same cached maps, in the same batches, for as many epochs.
Both sides have both cores. Each is timed from the call of `Tuner.fit` to its last outcome: Ray has
been started, and the maps are in the store.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from bench.harness import arguments, finish
from bench.sweeps import ReadySweep, ready, two_cores
from safe_ray.search.journal import Journal
from safe_ray.search.searcher import BankSearcher, SearchOptions, Study
from safe_ray.search.tuning import run_trials
from safe_ray.specs import Values
from safe_ray.training.job import BankJob, run_bank
from safe_ray.training.outcome import BankOutcome, CandidateOutcome

_BANK_OF_CHECK = 99


def train_usual(candidate: Values, task_folder: str) -> float:
    """Train one candidate as one would without this package; return its validation accuracy."""
    import torch
    from open_clip.modified_resnet import AttentionPool2d
    from torch.nn import functional

    from safe_ray.heads.optimiser import Schedule
    from safe_ray.training.facts import TaskFacts, load_classifier, load_pooling
    from safe_ray.training.loop import epoch_plan

    folder = Path(task_folder)
    facts, sweep = TaskFacts.load(folder), folder.parents[1]
    epochs = round(candidate["epochs"])
    classifier = load_classifier(folder)
    side = round(facts.tokens**0.5)
    layer = AttentionPool2d(side, facts.width, facts.pooling["num_heads"], classifier.shape[1])
    layer.load_state_dict(load_pooling(sweep))

    def images(samples: tuple[str, ...], views: range) -> torch.Tensor:
        maps = torch.from_numpy(facts.store().read(samples, views)).float()
        return maps.transpose(2, 3).unflatten(3, (side, side)).contiguous()

    def logits(batch: torch.Tensor) -> torch.Tensor:
        return facts.logit_scale * functional.normalize(layer(batch), dim=-1) @ classifier.T

    support = images(facts.support, range(facts.views + 1))
    labels = torch.tensor(facts.support_labels)
    optimiser = torch.optim.AdamW(layer.parameters(), weight_decay=candidate["weight_decay"])
    steps = -(-len(support) // facts.batch_size) * epochs
    schedule = Schedule(candidate["lr"], steps, round(facts.warmup * steps))
    step = 0
    for epoch in range(epochs):
        order, view = epoch_plan(facts.training_seed, epoch, len(support), support.shape[1])
        for batch in order.split(facts.batch_size):
            for group in optimiser.param_groups:
                group["lr"] = schedule.at(step)
            optimiser.zero_grad()
            loss = functional.cross_entropy(logits(support[batch, view[batch]]), labels[batch])
            loss.backward()
            optimiser.step()
            step += 1
    validation = images(facts.validation, range(1))[:, 0]
    with torch.no_grad():
        found = logits(validation).argmax(dim=-1)
    return float((found == torch.tensor(facts.validation_labels)).double().mean())


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train's only worker runs."""
    import ray.train
    import torch

    torch.set_num_threads(1)
    ray.train.report({"accuracy": train_usual(config["candidate"], config["task_folder"])})


def usual_trial(config: dict[str, Any]) -> None:
    """One Tune trial: it launches a Train run of one worker."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    config = config["usual"]
    TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.9}),
        run_config=RunConfig(
            name=f"{config['name']}-{config['place']}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    ).fit()


def search_usual(
    sweep: ReadySweep, candidates: Sequence[Values], name: str
) -> tuple[float, list[float]]:
    """Return the seconds to the last outcome, and each candidate's validation accuracy."""
    from ray import tune

    ends: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    (task,) = sweep.facts
    folder = sweep.config.outputs
    configs = [
        {
            "candidate": dict(candidate),
            "task_folder": str(folder / "tasks" / task),
            "storage": str(folder / "usual"),
            "name": name,
            "place": place,
        }
        for place, candidate in enumerate(candidates)
    ]
    tuner = tune.Tuner(
        # The trial only waits; Ray's guide leaves the cores to the workers as well.
        tune.with_resources(usual_trial, {"CPU": 0.1}),
        param_space={"usual": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
        run_config=tune.RunConfig(
            name=name, storage_path=str(folder / "tune-usual"), verbose=0, callbacks=[Clock()]
        ),
    )
    began = time.perf_counter()
    results = tuner.fit()
    ended = [results[index] for index in range(len(results))]
    accuracies = {
        int(each.config["usual"]["place"]): float(each.metrics["accuracy"])
        for each in ended
        if each.config is not None and each.metrics is not None
    }
    return ends[-1] - began, [accuracies[place] for place in range(len(candidates))]


def search_ours(
    sweep: ReadySweep, candidates: int, bank: int, name: str
) -> tuple[float, list[BankOutcome]]:
    """Return the seconds to the last outcome, and the outcomes."""
    folder = sweep.config.outputs.with_name(name)
    folder.mkdir()
    shutil.copytree(sweep.config.outputs / "tasks", folder / "tasks")
    shutil.copyfile(sweep.config.outputs / "pooling.safetensors", folder / "pooling.safetensors")
    (group,) = sweep.groups
    journal = Journal(folder)
    ends: list[float] = []

    def on_bank(_: BankJob, outcome: BankOutcome) -> None:
        journal.record(group.space, outcome)
        ends.append(time.perf_counter())

    began = time.perf_counter()
    searcher = BankSearcher(
        folder,
        [Study.of(facts.task, group) for group in sweep.groups for facts in sweep.facts.values()],
        SearchOptions(
            candidates=candidates,
            bank=bank,
            # One task alone fills two cores with two banks at a time.
            banks_in_flight=sweep.plan.concurrent,
            seed=len(name) * 1000 + int(name[-1]),
            checkpoint_seconds=60.0,
        ),
        on_bank,
    )
    run_trials(searcher, sweep.plan, 1, folder)
    if not searcher.complete or searcher.given_up:
        raise SystemExit(f"the search did not end: {searcher.stopped or searcher.given_up}")
    (outcomes,) = searcher.outcomes.values()
    return ends[-1] - began, outcomes


def tuned_accuracy(candidate: CandidateOutcome) -> float:
    """Return the validation accuracy of a candidate's tuned pooling alone, at alpha = 1."""
    (fit,) = candidate.fits.values()
    return fit.rows["alpha"].accuracy[-1]


def check(sweep: ReadySweep) -> None:
    """Stop unless one candidate ends with the same validation accuracy on both sides."""
    import torch

    torch.set_num_threads(1)
    (task,) = sweep.facts
    (group,) = sweep.groups
    candidate = {"lr": 1e-3, "weight_decay": 0.01, "epochs": 12}
    job = BankJob(str(sweep.config.outputs), task, group.name, _BANK_OF_CHECK, (candidate,))
    run_bank(job, torch.device("cpu"))
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    ours = tuned_accuracy(outcome.candidates[0])
    usual = train_usual(candidate, str(job.task_folder))
    print(f"one candidate on both sides: validation accuracy {ours:.4f}, {usual:.4f}")
    if abs(ours - usual) * len(sweep.facts[task].validation) > 0.5:
        raise SystemExit("the sides do not end with the same validation accuracy")


def main() -> None:
    """Run both searches, one after the other, and compare candidates a minute."""
    quick = arguments(str(__doc__)).quick
    two_cores()
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    rounds, ours_each, bank, usual_each = (1, 2, 2, 1) if quick else (1, 64, 16, 2)
    views = 1 if quick else 8
    epochs = "search.epochs=2" if quick else "search.epochs={low: 10, high: 50, log: true}"
    with tempfile.TemporaryDirectory() as storage:
        sweep = ready(
            Path(storage).resolve(),
            "tasks.datasets=[pictogram_foods]",
            "tasks.shots=[2]",
            "tasks.seeds=[1]",
            f"features.views={views}",
            epochs,
            "sweep=bench",
        )
        print(
            f"not counted: Ray {sweep.ray_seconds:.1f} s, store {sweep.store_seconds:.1f} s",
            flush=True,
        )
        check(sweep)
        ours_seconds, usual_seconds, training, samples = 0.0, 0.0, 0.0, 0
        for turn in range(rounds):
            seconds, outcomes = search_ours(sweep, ours_each, bank, f"ours-{turn}")
            ours_seconds += seconds
            print(f"{ours_each} candidates of ours: {seconds:.1f} s", flush=True)
            training += sum(outcome.seconds for outcome in outcomes)
            sound = [c for o in outcomes for c in o.candidates if not c.failed][:usual_each]
            seconds, accuracies = search_usual(sweep, [c.values for c in sound], f"usual-{turn}")
            usual_seconds += seconds
            samples = outcomes[0].samples
            for candidate, usual in zip(sound, accuracies, strict=True):
                here = tuned_accuracy(candidate)
                if abs(here - usual) * samples > 1.5:
                    raise SystemExit(
                        f"the validation accuracy of {candidate.values} is {here:.4f} here and "
                        f"{usual:.4f} there"
                    )
    ours = 60 * rounds * ours_each / ours_seconds
    usual_rate = 60 * rounds * usual_each / usual_seconds
    busy = training / ours_seconds / sweep.plan.concurrent
    print(
        f"ours: {ours:.0f} candidates a minute ({ours_each} a search, "
        f"{ours_seconds / rounds:.1f} s; the cores train and evaluate {100 * busy:.0f}% of it)\n"
        f"a Train run a candidate: {usual_rate:.1f} a minute ({usual_each} a search, "
        f"{usual_seconds / rounds:.1f} s)\n"
        f"floor: with no start-up at all, {60 * rounds * ours_each * 2 / training:.0f} a minute"
    )
    # So that nothing of Ray's follows the last line.
    ray.shutdown()
    finish(
        "search",
        ours / usual_rate,
        20.0,
        candidates_a_minute=round(ours, 1),
        usual_candidates_a_minute=round(usual_rate, 2),
        candidates_a_search=ours_each,
    )


if __name__ == "__main__":
    main()
