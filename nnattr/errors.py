"""Every error that nnattr raises, in one tree.

::

    NnattrError
    ├── ArchError      the model's structure is unknown, unproven or lacks what was asked for
    ├── TaskError      prompts, answers or positions cannot be used as given
    ├── MetricError    a metric cannot be computed or returned the wrong shape
    ├── BackendError   the place where the job ran (or should have run) failed
    │   └── TooLargeError   the job was too large for it, and a smaller one may pass
    ├── ResultError    a result cannot be read, combined or saved
    └── ArgumentError  an argument is of a wrong type, or not one of the values that are expected

A message says what was given, what was expected and what to do next. Errors of nnsight, NDIF,
httpx and huggingface_hub are mapped to these at the seam where they arise, with the original as
``__cause__``.
"""

from __future__ import annotations


class NnattrError(Exception):
    """The base of every error nnattr raises on purpose."""


class ArchError(NnattrError):
    """The model's structure is unknown, could not be proven, or lacks the site asked for."""


class TaskError(NnattrError):
    """Prompts, answers or positions that cannot be used as given."""


class MetricError(NnattrError):
    """A metric that cannot be computed on this task, or that returned the wrong shape."""


class BackendError(NnattrError):
    """The place where the job ran, or should have run, failed."""


class TooLargeError(BackendError):
    """A job was too large for where it ran: its memory, its time, its messages."""


class ResultError(NnattrError):
    """A result that cannot be read, combined or saved."""


class ArgumentError(NnattrError):
    """An argument of a wrong type, or one that is not among the values that are expected."""
