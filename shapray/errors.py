"""What goes wrong in a way that a user can mend: each error's message is for them."""


class JobError(ValueError):
    """The job file or one of its inputs is wrong; the message is for the user (exit status 2)."""


class TasksFailed(RuntimeError):
    """Some tasks were set aside, so the stages that need them cannot go on."""


class NetworkError(ValueError):
    """The network is none that can be scored; the message says why, for the user."""


class StorageError(OSError):
    """The run directory cannot be read or written; the message names the file and the cause."""


class ClusterError(RuntimeError):
    """The workers cannot be kept running; the message says what happens to them."""
