"""Heads behind a URL: one trunk for all tasks of a sweep, as a Ray Serve application.

`catalogue` says which heads there are and notices when they move, `engine` classifies requests of
several tasks at once in plain PyTorch, `gathering` makes one batch of calls that wait, `http`
speaks to people and programs, and `app` puts the two into Ray Serve's deployments.
"""
