"""The one kind of error that the tools show to a person."""

from __future__ import annotations


class DevError(RuntimeError):
    """Its message is for the person at the terminal: what was expected, what was got, what to do."""
