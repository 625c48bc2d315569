"""The errors of data on disk: files, lists and tables that are not what was expected, or not there."""

from __future__ import annotations

from panolib.errors import UserError


class DataError(UserError, ValueError):
    """Data that a user can mend. The message names file, value and expectation."""


class MissingData(UserError, FileNotFoundError):
    """A data set that a run needs is not on this machine."""
