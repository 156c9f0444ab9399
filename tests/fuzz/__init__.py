"""Hostile files: every reader of what comes from outside, given damaged and malicious input.

A reader is one entry of `tests.fuzz.readers.READERS`. `python -m tests.fuzz` (`make fuzz`) runs a
hundred thousand cases, the test suite two thousand.
"""
