"""What a user can do wrong.

Every class here ends in one line on the terminal and exit code 2, with no traceback: the message says what is
wrong, where, and what to do about it. Our own mistakes are never caught as these.
"""

from __future__ import annotations


class UserError(Exception):
    """The user's input is wrong. The message is one line: what, where, what to do."""


class RecipeError(UserError):
    """A recipe that is missing, malformed, or asks for something that cannot be run."""


class DataError(UserError):
    """A data file that is missing or malformed, or a sample that nothing can be learned from."""


class ModelError(UserError):
    """A model folder that is missing or holds something other than a vision-language model."""


class RunError(UserError):
    """A run that cannot start or go on: a name that is taken, a run with no checkpoint, a full disk, a used port."""


class Fault(Exception):  # noqa: N818 (the word for it)
    """Something around a run has failed: a process, a node, a time limit. A restart may go well. One line."""
