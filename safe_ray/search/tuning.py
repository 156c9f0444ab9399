"""The one Ray Tune run of a sweep: each trial trains a bank."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safe_ray.cluster import TrialPlan, beacon, label_selector, leave_out
from safe_ray.job import is_submitted
from safe_ray.search.failures import Failure, blindness_in, death_of, failure_of
from safe_ray.search.searcher import FAILURE, SELECTOR, SHARE, BankSearcher

_SECONDS_BETWEEN_REPORTS = 5.0


def run_trials(
    searcher: BankSearcher,
    plan: TrialPlan,
    workers: int,
    folder: Path,
    train: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> None:
    """Run trials until the searcher has no bank left to hand out.

    Args:
        searcher: hands out the banks and reads their outcomes.
        plan: what each trial reserves, and how many run at once.
        workers: DDP workers of a trial; with one, the trial trains in its own process.
        folder: where Tune keeps its own records; on storage that all nodes see.
        train: what a trial does with the job in its config and with the settings of all trials;
            None trains the bank.

    Neither Tune nor Train tries again what has failed: the searcher hands the bank out anew, to a
    node that may not have been there before, and it goes on from its checkpoint.

    An interruption is raised as KeyboardInterrupt: all that Tune could still save is its record of
    the trials, and nobody reads that.
    """
    if searcher.complete:
        return
    # Tune would otherwise write a line for each trial, and a warning for each of its own hints.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray import tune

    settings = {
        "workers": workers,
        "threads": plan.threads,
        "resources": {"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker},
        "beacon": beacon(),
    }
    started: dict[str, Any] = {}

    class Witness(tune.Callback):
        """Remembers the trials, whose errors Tune writes into files of theirs."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            # Tune pickles its callbacks into a record that nobody reads. Whoever listens here may
            # write to a terminal, which cannot be pickled.
            return tune.Callback, ()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            started[trial.trial_id] = trial

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            started.pop(trial.trial_id, None)

        on_trial_error = on_trial_complete

    def death(trial_id: str) -> Failure:
        return death_of(last_error(started.get(trial_id)))

    searcher.death, searcher.on_blind, searcher.selector = death, leave_out, label_selector
    trainable = tune.with_parameters(train or _train_bank_trial, settings=settings)
    bundle = {"CPU": plan.trial_cpus, "GPU": plan.trial_gpus}

    def place(config: dict[str, Any]) -> Any:
        selector = config[SELECTOR]
        where: dict[str, Any] = {"bundle_label_selector": [selector]} if selector else {}
        return tune.PlacementGroupFactory([bundle], **where)

    tuner = tune.Tuner(
        tune.with_resources(trainable, place),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=plan.concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: _trial_name(trial.config),
            trial_dirname_creator=lambda trial: f"{_trial_name(trial.config)}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[Witness()],
        ),
    )
    try:
        with _hushed():
            tuner.fit()
    except Exception as error:
        # Tune writes files of its own, and ends where it cannot.
        failure = failure_of(error)
        if failure.kind != "disk":
            raise
        searcher.on_failure("", failure)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep back what Tune logs, and what Ray prints, about trials that fail.

    Ray prints on standard output, which belongs to the table. In a submitted job all of it is part
    of the log.
    """
    if is_submitted():
        yield
        return
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


def last_error(trial: Any) -> str:
    """Return what Tune has written about a trial's last error, or "" if it has not.

    Args:
        trial: Tune's; None if its process died before it had begun.
    """
    if trial is None:
        return ""
    try:
        return Path(trial.error_file).read_text().rpartition("Failure #")[2]
    except (OSError, TypeError):
        return ""


def _trial_name(config: dict[str, Any]) -> str:
    from safe_ray.training.job import BankJob

    return BankJob.from_json(config["job"]).name


def _train_bank_trial(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Train one bank, or report why that cannot be done."""
    from ray import tune

    try:
        _train_bank(config, settings)
    except Exception as error:
        blind = blindness_in(error)
        if blind is not None:
            # Tune reports nothing from where its own folder cannot be seen, and keeps the text.
            raise blind from None
        failure = failure_of(error)
        tune.report({FAILURE: failure.to_json(), "finished": 0})
        if not failure.is_final:
            # The next bank gets a process that nothing has happened to.
            raise
        return
    tune.report({"finished": 1})


def _train_bank(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Train one bank: in this process, or with Ray Train's workers."""
    import time

    import torch
    from ray import tune

    from safe_ray.devices import device_of
    from safe_ray.training.distributed import train_with_workers
    from safe_ray.training.facts import TaskFacts
    from safe_ray.training.job import BankJob, run_bank
    from safe_ray.visibility import check_sight

    check_sight(settings["beacon"])
    job = BankJob.from_json(config["job"])
    # Methods that tune no pooling have nothing to share among workers.
    if settings["workers"] > 1 and TaskFacts.load(job.task_folder).group(job.group).trained:
        train_with_workers(
            job,
            settings["workers"],
            settings["resources"],
            settings["threads"],
            config[SELECTOR],
            settings["beacon"],
        )
    else:
        torch.set_num_threads(settings["threads"])
        told = time.monotonic()

        def tell(share: float) -> None:
            nonlocal told
            if time.monotonic() - told >= _SECONDS_BETWEEN_REPORTS:
                told = time.monotonic()
                tune.report({SHARE: share, "finished": 0})

        run_bank(job, device_of(settings["resources"]["GPU"]), on_progress=tell)
