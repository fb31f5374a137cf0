"""Every error that a person may see, as one tree.

    TwinpodError                     one clear line: what was wrong, where, what to do
    ├── InputError                   exit 2: the person's input (manifest, flag, data set, tokenizer)
    ├── EnvironmentFault             exit 1: the machine or a service beside us (port, /dev/shm, etcd, package)
    │   ├── Unreachable              retryable: a peer did not answer before its deadline
    │   └── InUse                    retryable: another process has it and may let go
    ├── ProtocolError                a peer said something that its contract forbids
    │   ├── StaleEpoch               a command of an older master; never retried
    │   └── WrongVersion             weights of another version than asked for
    ├── Conflict                     a compare-and-swap found another revision: somebody else wrote; read, then decide
    ├── IntegrityError               bytes that do not have their digest; the source is not used again
    ├── NumericsError                a loss, gradient, log-prob or weight is no finite number: nothing of it is kept
    ├── WeightsGapError              trainer and engine disagree about log-probs (design 8.11)
    └── EngineFault                  retryable: an engine died, hung or refused

Whether an error may be retried is a fact of its class (`retryable`), never a guess at the place that catches it.

Exit codes of our processes, told between them and to people (containers of local mode have 125 and 127, too):

    0    done, or ended when told to
    1    a fault of the machine or of a process beside us
    2    wrong input: no restart can mend it, so nobody restarts; the job is Failed
    3    the master: a half, an engine or the weights failed; it resumes when started again
    4    the master: a newer one has taken over
    143  the master: told to stop; it resumes when started again
"""

from __future__ import annotations

EXIT_FAULT, EXIT_INPUT, EXIT_RETRY, EXIT_STALE, EXIT_STOPPED = 1, 2, 3, 4, 143


class TwinpodError(Exception):
    """Base of all; `str()` is one line for a person. `where`: the field, file or process; `mend`: what to do."""

    exit_code = EXIT_FAULT
    retryable = False

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(self.line())

    def line(self) -> str:
        """One line: `where: what; mend`, without the parts that are empty."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}; {self.mend}" if self.mend else head


class InputError(TwinpodError):
    """The person's input is wrong; nothing was started or written."""

    exit_code = EXIT_INPUT


class EnvironmentFault(TwinpodError):
    """The machine or a service beside us lacks something that the run needs."""


class Unreachable(EnvironmentFault):
    """A peer did not answer before the deadline; asking again is safe."""

    retryable = True


class InUse(EnvironmentFault):
    """Another process works with it."""

    retryable = True


class ProtocolError(TwinpodError):
    """A peer broke its contract."""


class StaleEpoch(ProtocolError):
    """A command or commit of an older job epoch than the newest one known (design 8.5)."""


class WrongVersion(ProtocolError):
    """Weights, or an answer made with them, of another version than asked for."""


class Conflict(TwinpodError):
    """A compare-and-swap lost: the key has another revision than the caller had read."""


class IntegrityError(TwinpodError):
    """Bytes whose digest is not the one that was published with them."""


class NumericsError(TwinpodError):
    """A loss, gradient norm, log-prob or weight that is not finite. The run goes on from its last good state."""


class WeightsGapError(TwinpodError):
    """Mean |logp(trainer) - logp(engine)| on on-policy tokens above the limit: the engine runs other weights (design
    8.11).
    """


class EngineFault(TwinpodError):
    """An inference engine died, hung or refused; its life cycle mends it by a restart."""

    retryable = True
