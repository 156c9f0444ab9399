"""The search: one Optuna study a task, one Ray Tune run for all tasks of a sweep."""
