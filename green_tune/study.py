"""One Optuna study in its database: which trial is next, whose it is, and what became of it.

It owns a trial's life there: proposed, leased to a worker, told; or lost with its worker and tried
again. What a trial trains, what it may spend and where its run is, it does not know: its caller
says what a lost trial had come to, and which proposals are too dear.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import optuna
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from green_tune import encoding, samplers, secrecy, storage, store, worker
from green_tune.errors import ConfigError, StoreError
from green_tune.space import Space

log = logging.getLogger(__name__)
T = TypeVar("T")

OBJECTIVES = ("val_loss", "emissions_kg")
ATTEMPTS = 3  # of one trial; what takes its worker with it three times would do so for ever
REFUSALS = 8  # proposals in a row that are too dear, before the sweep ends
AWAY = (SQLAlchemyError, OptunaError, StoreError)

# Attributes of a trial in the study; optuna-dashboard shows them.
WORKER, RUN, IMPUTED, REASON = "worker", "run_id", "imputed", "reason"
RETRY_OF, RETRIED_TRIAL, ATTEMPT = "retry_of", "retry_of_trial", "attempt"
ASKED = "asked_for"  # of a trial that no sampler proposed
AGAIN, TOO_DEAR = "tried_again", samplers.TOO_DEAR  # of failed trials that do not count
RESULT_OF = "result_of_trial"  # of a trial that was taken for lost and ended well
IDENTITY, PARENT, START = "identity", "parent_run", "start_trials"  # of the study

Refuse = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial came to: both objectives, and what the sampler is to take for them instead.

    `imputed` is for a trial that was ended before its schedule: what it would have reached.
    """

    val_loss: float  # nats
    emissions_kg: float
    imputed: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that this worker is to run; `retry_of` is the run of an attempt that was cut off."""

    number: int
    values: Mapping[str, Any]
    retry_of: str = ""
    live: optuna.Trial = field(repr=False)
    lease: ExitStack = field(repr=False)


Settle = Callable[[str], Outcome | None]


class Study:
    """A study that any number of workers on any machines share."""

    def __init__(
        self, study: optuna.Study, url: str, space: Space, *, proposes: bool = True
    ) -> None:
        self._study = study
        self._url = url
        self._space = space
        self._proposes = proposes  # else it runs what is queued, and nothing more

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self._study.study_name

    @property
    def parent_run(self) -> str:
        """The run under which all of its trials are; empty before there is one."""
        return str(_patiently(lambda: self._study.user_attrs).get(PARENT, ""))

    def adopt(self, run_id: str, instead_of: str = "") -> str:
        """The run under which all trials are: this one, unless another worker was faster."""
        with self._locked():
            if self.parent_run in ("", instead_of):
                _patiently(lambda: self._study.set_user_attr(PARENT, run_id))
            return self.parent_run

    def missing(self, total: int) -> int:
        """How many trials the study lacks; those that other workers are at are taken as there."""
        return max(0, total - sum(_counts(trial) for trial in self._trials()))

    def others(self) -> list[str]:
        """The workers that have a trial under way, this process excepted."""
        running = self._trials(TrialState.RUNNING)
        found = dict.fromkeys(str(trial.user_attrs.get(WORKER, "")) for trial in running)
        alive = [each for each in found if each and not worker.is_dead(each)]
        return [each for each in alive if each != worker.this()]

    def failures(self) -> list[str] | None:
        """Why each trial failed, if all that ended did; None where one went well."""
        ended = self._trials()
        if any(trial.state == TrialState.COMPLETE for trial in ended):
            return None
        failed = [t for t in ended if t.state == TrialState.FAIL and _counts(t)]
        return [str(trial.user_attrs.get(REASON, "")) for trial in failed]

    def enqueue(self, proposals: Iterable[Mapping[str, Any]]) -> int:
        """Trials to be run before the sampler proposes any, each once, whoever asks for it.

        Those that were too dear are queued again, for a larger budget. Returns how many there are
        of such trials in all.
        """
        params = [encoding.encode(values, self._space) for values in proposals]
        with self._locked():
            return _patiently(lambda: self._enqueue(params))

    def claim(self, total: int, settle: Settle, refuse: Refuse) -> Trial | str:
        """The next trial for this worker, or why there is none: empty when all are there.

        Before that, what dead workers have left is settled: `settle` is given the run of such a
        trial and says what it had come to, if it had ended. `refuse` is given a proposal's values,
        and says why it must not be started; given none, why nothing can be.
        """
        with self._locked():
            _patiently(lambda: self._settle_lost(settle))
            why = ""
            for _ in range(REFUSALS):
                if not self.missing(total):
                    return ""
                if nothing_left := refuse({}):
                    return nothing_left
                if not (self._proposes or self._has_queued()):
                    return why
                trial = self._ask()
                why = refuse(trial.values)
                if not why:
                    return trial
                if self._put_back(trial):
                    return why  # it would only be next again
                self._close(trial, {TOO_DEAR: True, REASON: why})
            return why

    def note(self, trial: Trial, run_id: str) -> None:
        """Says which run is the trial's: whoever finds it lost looks there."""
        _patiently(lambda: trial.live.set_user_attr(RUN, run_id))

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """The trial is done; its result outlasts a database that is away for minutes.

        Also if the trial was taken for lost meanwhile: then it is kept beside it.
        """
        values = [outcome.val_loss, outcome.emissions_kg]
        notes = {IMPUTED: list(outcome.imputed)} if outcome.imputed else {}
        with trial.lease:
            try:
                _patiently(lambda: self._tell(trial.live, values, notes))
            except (ValueError, UpdateFinishedTrialError):
                with self._locked():
                    _patiently(lambda: self._keep(trial, values, notes))

    def fail(self, trial: Trial, why: str) -> None:
        """The trial has no result, by its own fault: it counts, and is not tried again."""
        self._close(trial, {REASON: secrecy.hide(why)})

    def give_up(self, trial: Trial, why: str, settle: Settle) -> None:
        """This worker ends; its trial is told if it had come to an end before, else tried again.

        Whoever is stopped does not wait for a database that is away: the next worker does it then.
        """
        try:
            with trial.lease, storage.locked(self._url):
                self._settle(self._frozen(trial), settle, why)
        except AWAY as error:
            log.warning("trial %d is left to the next worker: %s", trial.number, _kind(error))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, or all."""
        wanted = states or None
        return _patiently(lambda: self._study.get_trials(deepcopy=False, states=wanted))

    def _enqueue(self, proposals: Iterable[dict[str, Any]]) -> int:
        trials = self._study.get_trials(deepcopy=False)
        there = {t.user_attrs.get(ASKED) for t in trials if not t.user_attrs.get(TOO_DEAR)}
        for params in proposals:
            if (asked := json.dumps(params, sort_keys=True)) not in there:
                self._study.enqueue_trial(params, user_attrs={ASKED: asked})
            there.add(asked)
        return len(there - {None})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as lock:
            _patiently(lambda: lock.enter_context(storage.locked(self._url)))
            yield

    def _ask(self) -> Trial:
        live = _patiently(self._study.ask)
        with ExitStack() as lease:  # what fails on the way must not be kept alive by heartbeats
            _patiently(lambda: live.set_user_attr(WORKER, worker.this()))
            lease.enter_context(storage.Lease(self._study, live._trial_id))
            return Trial(
                number=live.number,
                values=_patiently(lambda: encoding.suggest(live, self._space)),
                retry_of=str(live.user_attrs.get(RETRY_OF, "")),
                live=live,
                lease=lease.pop_all(),
            )

    def _tell(
        self, live: optuna.Trial, values: Sequence[float] | None, notes: Mapping[str, Any]
    ) -> None:
        for name, value in notes.items():
            live.set_user_attr(name, value)
        self._study.tell(live, values, None if values else TrialState.FAIL)

    def _keep(self, trial: Trial, values: Sequence[float], notes: Mapping[str, Any]) -> None:
        """The result as a trial of its own; its second attempt is called off if it can be.

        Nothing is to do where another worker has settled it, or only an answer was lost before.
        """
        trials = self._study.get_trials(deepcopy=False)
        done = (t for t in trials if t.state == TrialState.COMPLETE)
        if any(trial.number in (t.number, t.user_attrs.get(RESULT_OF)) for t in done):
            return
        log.warning("trial %d was taken for lost; its result is kept beside it", trial.number)
        for other in trials:
            waits = other.state == TrialState.WAITING
            if waits and other.user_attrs.get(RETRIED_TRIAL) == trial.number:
                self._note(other, {AGAIN: True, REASON: "the attempt before it ended after all"})
                self._set_state(other, TrialState.FAIL)
        was = self._frozen(trial)
        kept = optuna.trial.create_trial(
            values=list(values),
            params=was.params,
            distributions=was.distributions,
            user_attrs={**was.user_attrs, **notes, AGAIN: False, RESULT_OF: trial.number},
        )
        self._study.add_trial(kept)

    def _close(self, trial: Trial, notes: Mapping[str, Any]) -> None:
        with trial.lease, suppress(ValueError, UpdateFinishedTrialError):  # it was taken for lost
            _patiently(lambda: self._tell(trial.live, None, notes))

    def _settle_lost(self, settle: Settle) -> None:
        """What dead workers left running: told where it had ended, else given back."""
        for trial in self._lost():
            self._settle(trial, settle, "its worker died")

    def _settle(self, trial: FrozenTrial, settle: Settle, why: str) -> None:
        outcome = settle(str(trial.user_attrs.get(RUN, "")))
        if outcome is None:
            self._give_back(trial, why)
            return
        with suppress(ValueError, UpdateFinishedTrialError):  # it was alive after all, and told
            if outcome.imputed:
                self._note(trial, {IMPUTED: list(outcome.imputed)})
            self._study.tell(trial.number, [outcome.val_loss, outcome.emissions_kg])

    def _lost(self) -> list[FrozenTrial]:
        late = storage.lost(self._study)  # by their leases; one here may only have been suspended
        over = {t.number: t for t in late if not worker.is_alive(t.user_attrs.get(WORKER, ""))}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if worker.is_dead(str(trial.user_attrs.get(WORKER, ""))):  # on this machine: at once
                over[trial.number] = trial
        return [over[number] for number in sorted(over)]

    def _give_back(self, trial: FrozenTrial, why: str) -> None:
        """Fails a trial and queues it again. Each step can be done twice: a kill may fall between.

        Only what the next attempt needs is handed on; figures and run are the first one's. What
        was queued and never began has its params still to come.
        """
        attempt = int(trial.user_attrs.get(ATTEMPT, 1))
        again = attempt < ATTEMPTS
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if again and params and not self._is_queued(trial.number):
            notes = {
                RETRY_OF: trial.user_attrs.get(RUN) or trial.user_attrs.get(RETRY_OF, ""),
                RETRIED_TRIAL: trial.number,
                ATTEMPT: attempt + 1,
            }
            self._study.enqueue_trial(params, user_attrs=notes)
        with suppress(ValueError, UpdateFinishedTrialError):  # by the worker itself, this moment
            self._note(trial, {AGAIN: again, REASON: secrecy.hide(why)})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _put_back(self, trial: Trial) -> bool:
        """Leaves a trial that was queued, and is too dear now, where it was in the queue."""
        was = self._frozen(trial)
        if "fixed_params" not in was.system_attrs:
            return False
        with trial.lease:
            _patiently(lambda: self._set_state(was, TrialState.WAITING))
        return True

    def _has_queued(self) -> bool:
        return bool(self._trials(TrialState.WAITING))

    def _is_queued(self, number: int) -> bool:
        trials = self._study.get_trials(deepcopy=False)
        return any(trial.user_attrs.get(RETRIED_TRIAL) == number for trial in trials)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._study._storage.get_trial(trial.live._trial_id)

    def _note(self, trial: FrozenTrial, notes: Mapping[str, Any]) -> None:
        for name, value in notes.items():
            self._study._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _set_state(self, trial: FrozenTrial, state: TrialState) -> None:
        self._study._storage.set_trial_state_values(trial._trial_id, state)


def open_study(  # noqa: PLR0913 - what a study is, each by its name
    where: str | Study,
    name: str,
    space: Space,
    *,
    identity: Mapping[str, str],
    sampler: str = "",
    seed: int = 0,
    start: int = samplers.START,
    first: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
) -> Study:
    """The study of that name, made or joined, in the database at a URL, or in that of a study.

    `identity` is what must be equal for two trials to be compared in it; `first` gives the values
    of the trials that a new study begins with, and `start` how many are known before a model has
    its say; what of them is not given is spread evenly. Without a sampler it has only a queue.

    Raises:
        ConfigError: a study of this name searched something else.
        StoreError: the storage cannot be used; once it could be, it is waited for.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if isinstance(where, Study):
        url, opened = where._url, where._study._storage
    else:
        url, opened = where, storage.open_storage(where)

    def joined() -> tuple[Study, int]:
        with storage.locked(url):
            found = optuna.create_study(
                storage=opened,
                study_name=name,
                directions=["minimize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
            _check_same(found, identity)
            study = Study(found, url, space, proposes=bool(sampler))
            if START not in found.user_attrs:
                _begin(found, max(study.enqueue(first()), start))
            return study, int(found.user_attrs[START])

    study, start = _patiently(joined)
    study._study.sampler = samplers.make(sampler or "random", space, seed=seed, start=start)
    return study


def _begin(found: optuna.Study, start: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found.set_metric_names(list(OBJECTIVES))
    found.set_user_attr(START, start)


def _check_same(study: optuna.Study, identity: Mapping[str, str]) -> None:
    if len(study.directions) != len(OBJECTIVES) or any(
        d.name != "MINIMIZE" for d in study.directions
    ):
        raise ConfigError(
            f"study {study.study_name} has other objectives than {' and '.join(OBJECTIVES)}; give "
            "another study name"
        )
    before = study.user_attrs.get(IDENTITY)
    if before is None:
        if study.get_trials(deepcopy=False):
            raise ConfigError(
                f"study {study.study_name} was made by another program; give another study name"
            )
        study.set_user_attr(IDENTITY, dict(identity))
        return
    for name in {**before, **identity}:
        if (was := before.get(name)) != (now := identity.get(name)):
            raise ConfigError(
                f"study {study.study_name} was made with {name}={was}, now it is {now}; "
                "give the same, or another study name"
            )


def _counts(trial: FrozenTrial) -> bool:
    """Queued trials are still to come; those that are tried again, or never began, do not count."""
    if trial.state == TrialState.WAITING:
        return False
    return not (trial.user_attrs.get(AGAIN) or trial.user_attrs.get(TOO_DEAR))


def _patiently(call: Callable[[], T]) -> T:
    """Calls until the database answers; an error's own text may hold a part of a password."""

    def away(error: Exception) -> str:
        if not isinstance(error, AWAY) or isinstance(error, UpdateFinishedTrialError):
            return ""
        return f"the study's storage does not answer: {_kind(error)}"

    return store.patiently(call, away)


def _kind(error: Exception) -> str:
    """Our own line where it is one; a library's may hold a password."""
    return str(error) if isinstance(error, StoreError) else type(error).__name__
