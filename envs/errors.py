"""The exception tree.

TrialrunError
├── ConfigError            exit 2   a recipe, override or combination that cannot work
│   ├── TemplateError      exit 2   a chat template that cannot be used
│   └── DataFileError      exit 2   a task or data file with a wrong or missing field
├── MissingError           exit 3   a path, run, episode or server that is not there
├── PolicyError                     the model's own mistake: becomes an observation, never a crash
├── EpisodeError                    an episode that contradicts itself
├── StoreError                      a run directory that cannot be read or written
├── InfraError                      an infrastructure failure; not caused by the policy
│   ├── ToolServerError             the tool server is unreachable, restarted or refused
│   │   └── ServerFullError         it is full now; nothing was started
│   ├── SandboxError                the sandboxed child could not be started or died
│   │   └── SandboxFullError        it has no room for a child now; nothing was started
│   ├── TeacherError                a teacher's endpoint refused or did not reply
│   ├── ScoringError                a scorer or a simulated user gave no result
│   ├── EngineError                 the inference engine failed; its worker must be replaced
│   ├── LearnerError                a learner rank failed or its ranks disagree
│   │   └── NonFiniteError          a logit, loss or gradient is not finite; nothing was changed
│   └── WeightSyncError             a weight push missed its deadline or its handshake
├── DeadlineError                   a wait for another process or service timed out
└── IsolationError         exit 1   the kernel cannot provide the required isolation
"""

from enum import StrEnum


class TrialrunError(Exception):
    """Root of every error that this project raises on purpose.

    Errors are picklable; `exit_code` is the exit code of the CLI.
    """

    exit_code = 1


class ConfigError(TrialrunError):
    exit_code = 2


class TemplateError(ConfigError):
    pass


class DataFileError(ConfigError):
    pass


class MissingError(TrialrunError):
    exit_code = 3


class PolicyErrorKind(StrEnum):
    """Mistakes that a policy can make in one turn."""

    MALFORMED_JSON = "malformed_json"
    UNCLOSED_TAG = "unclosed_tag"
    UNKNOWN_TOOL = "unknown_tool"
    WRONG_ARGUMENTS = "wrong_arguments"
    TOO_LONG = "too_long"
    TOO_MANY_CALLS = "too_many_calls"
    NO_ACTION = "no_action"


class PolicyError(TrialrunError):
    """A turn that is not valid; `kind` is recorded, and the message is shown to the policy."""

    def __init__(self, kind: PolicyErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


class EpisodeError(TrialrunError):
    pass


class StoreError(TrialrunError):
    pass


class InfraError(TrialrunError):
    pass


class ToolServerError(InfraError):
    pass


class ServerFullError(ToolServerError):
    """A full tool server; the same request may be sent again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class SandboxError(InfraError):
    pass


class SandboxFullError(SandboxError):
    """No file, descriptor, process or memory is left for one more session: others must end."""


class TeacherError(InfraError):
    pass


class ScoringError(InfraError):
    """No score: the episode gets no reward, rather than one of zero."""


class EngineError(InfraError):
    pass


class LearnerError(InfraError):
    pass


class LearnerLostError(LearnerError):
    """A rank of the learner died or does not answer; the ranks can be started anew."""


class NonFiniteError(LearnerError):
    pass


class WeightSyncError(InfraError):
    pass


class DeadlineError(TrialrunError):
    pass


class IsolationError(TrialrunError):
    pass


def first_cause(errors: BaseExceptionGroup) -> BaseException:
    """Return the first plain exception inside the exception group of a task group."""
    inner = errors.exceptions[0]
    return first_cause(inner) if isinstance(inner, BaseExceptionGroup) else inner
