"""The error of data on disk: files, lists and tables that are not what was expected."""

from __future__ import annotations


class DataError(ValueError):
    """Data that a user can mend. The message names file, value and expectation."""
