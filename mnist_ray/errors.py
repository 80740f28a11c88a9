"""Every error that a user can cause, each with the exit code that a script sees.

0 done; 1 a bug (the traceback is kept); 2 usage or config; 3 data or checkpoint; 4 storage;
5 cluster or token; 6 conflict; 7 the run failed; 129/130/143 signals.
"""


class MnistRayError(Exception):
    """An error whose message is one line: the setting, its value, the rule, what to do.

    Attributes:
      trace: the traceback of the user's own code that caused it; None for any other cause.
    """

    exit_code = 1
    trace: str | None = None


class ConfigError(MnistRayError):
    """A setting, option or config file breaks a rule."""

    exit_code = 2


class DataError(MnistRayError):
    """Training or test data is missing, damaged or does not fit the settings."""

    exit_code = 3


class OtherVersionError(DataError):
    """A table was written by a version with other columns."""


class CheckpointError(MnistRayError):
    """A checkpoint is missing, damaged or belongs to another model."""

    exit_code = 3


class StorageError(MnistRayError):
    """A storage can't be reached, read or written."""

    exit_code = 4


class ClusterError(MnistRayError):
    """A Ray cluster can't be reached, refuses the token or lacks what the job needs."""

    exit_code = 5


class ConflictError(MnistRayError):
    """The name already exists with another config or content."""

    exit_code = 6


class RunFailedError(MnistRayError):
    """A run ended without a result, for example because its loss is not finite."""

    exit_code = 7


class NetworkFailedError(RunFailedError):
    """The user's own network raised an error in training; a restart would not help."""
