"""Everything that can go wrong and that a user should read as one line.

GreenTuneError
├── UsageError            what was asked cannot be had; nothing was started     exit code 2
│   ├── ConfigError           a parameter is unknown, out of range or not a number
│   │   └── DoesNotFit            the device has too little memory, whatever is given up
│   ├── HardwareMismatch      the GPU that was asked for is not in this machine
│   ├── DataError             a data set cannot be read, or not for this task
│   ├── ModelError            a base model cannot be had
│   ├── AdapterError          an adapter cannot be had, or is not to be trusted
│   └── StoreError            the tracking server or the study's storage cannot be used
│       └── StoreAway             nobody answers there, for now
│           └── Undelivered           a run went well; what it came to waits on this machine
└── RunFailed             a run was started and failed; what it spent is logged  exit code 1
    ├── TrainingDiverged      the loss is no longer a number
    ├── OutOfMemory           the device is too small for this configuration
    └── MeasurementError      the meter failed: no figure is better than a wrong one

Stopped is a KeyboardInterrupt: Ctrl-C and SIGTERM end a run the same way.

Anything else is a bug and keeps its traceback.
"""

import signal


class GreenTuneError(Exception):
    """Base of all errors that are shown to a user as one line."""

    exit_code = 1


class UsageError(GreenTuneError):
    """What was asked cannot be had; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A parameter is unknown, out of range or not a number."""


class DoesNotFit(ConfigError):
    """The device has too little memory for what was asked, whatever of it may be given up."""


class HardwareMismatch(UsageError):
    """The GPU that was asked for is not in this machine."""


class DataError(UsageError):
    """A data set cannot be read, or does not suit the task."""


class ModelError(UsageError):
    """A base model cannot be had."""


class AdapterError(UsageError):
    """An adapter cannot be had, or is not to be trusted."""


class StoreError(UsageError):
    """The tracking server or the study's storage cannot be used."""


class StoreAway(StoreError):
    """Nobody answers there, for now."""


class Undelivered(StoreAway):
    """A run went well, and what it came to waits on this machine for the store."""


class RunFailed(GreenTuneError):
    """A run was started and failed; the energy that it spent is logged."""


class TrainingDiverged(RunFailed):
    """The loss is no longer a finite number."""


class OutOfMemory(RunFailed):
    """The device has too little memory for this configuration."""


class MeasurementError(RunFailed):
    """The meter failed: no figure is better than a wrong one."""


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, by Ctrl-C or by a signal.

    A KeyboardInterrupt, because every library already lets that one through.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number
