"""Verdicts: what the causes that an experiment has found mean for the kind of code that was examined."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

from purerun.doctor.experiment import Cause, Evidence
from purerun.doctor.finding import CHANCE, COMPLETE, EDGES, MONOID, PURE, Finding, found
from purerun.doctor.lines import own_beginning

Subject: TypeAlias = Literal["data", "source", "step", "hook", "metric"]
"""What was examined: functions that a Loader keys, an iterable of one's own, a model or a loss, a hook, a metric."""


class Verdict(NamedTuple):
    """What one kind of cause means: `{name}` stands for the generator or the memory."""

    law: str
    message: str
    remedy: str


_FRESH = (
    "gives something else at each call, with the same arguments and at the same key: it reads a clock or the system's "
    "entropy, or makes a generator without a seed"
)
_UNKEYED = "draws from `{name}`, a generator that no key reaches"

_VERDICTS: dict[tuple[Subject, str], Verdict] = {
    ("data", "generator"): Verdict(
        CHANCE,
        _UNKEYED + ": read again, the same samples come out different",
        "draw from the `chance` that a batch_transform is given, or from a global generator (torch.rand, "
        "np.random.rand, random.random), which the Loader puts at a key for each sample",
    ),
    ("data", "memory"): Verdict(
        CHANCE,
        "remembers in `{name}` what came before: read again, the same samples come out different",
        "let a sample depend on its index, and on chance from the Loader's key, alone",
    ),
    ("data", "fresh"): Verdict(
        CHANCE,
        _FRESH,
        "seed the generator with torch.initial_seed(), which is the key of the sample, or draw from the global ones",
    ),
    ("source", "generator"): Verdict(
        CHANCE,
        _UNKEYED + ": the same epoch read again is another",
        "give random access to a pr.Loader(dataset, shuffle=True), or make the generator anew from (epoch, position)",
    ),
    ("source", "memory"): Verdict(
        CHANCE,
        "remembers in `{name}`: the same epoch read again is another",
        "begin each `__iter__` anew, or give `seek(epoch, position)`; a pr.Loader(dataset) has it",
    ),
    ("source", "fresh"): Verdict(CHANCE, _FRESH, "let what comes be a function of (epoch, position)"),
    ("step", "generator"): Verdict(
        COMPLETE,
        _UNKEYED,
        "draw from torch's global generator (torch.rand_like): the step puts it at the key of the iteration",
    ),
    ("step", "memory"): Verdict(
        COMPLETE,
        "remembers in `{name}`, which no state carries",
        "keep it in a buffer of the model (`self.register_buffer(...)` in `__init__`), or compute it from the batch",
    ),
    ("step", "fresh"): Verdict(
        PURE,
        f"{_FRESH}, or the device has no deterministic kernel for it",
        "draw from torch's global generator; measure time in a sink",
    ),
    ("hook", "generator"): Verdict(
        EDGES,
        _UNKEYED,
        'draw from a key of the state: pr.Key.of(int(state["seed"]), "name", int(state["iter"])).generator()',
    ),
    ("hook", "memory"): Verdict(
        EDGES,
        "remembers in `{name}`, which no state carries",
        "keep it in a slot of the state: make it in `slots`, declare it in `writes`, read it from the state and write "
        "it with state.replace(...)",
    ),
    ("hook", "fresh"): Verdict(EDGES, _FRESH, "what looks at a clock is a sink: pr.watch(states, ...)"),
    ("metric", "generator"): Verdict(MONOID, _UNKEYED, "let the score depend on outputs and batches alone"),
    ("metric", "memory"): Verdict(
        MONOID,
        "remembers in `{name}`, beside its tally",
        "count into the tally: make the entry in `init`, and return it from `update` and `merge`",
    ),
    ("metric", "fresh"): Verdict(MONOID, _FRESH, "let the score depend on outputs and batches alone"),
}


def to_blame(evidence: Evidence) -> list[Cause]:
    """List what no step, hook or metric may do: what makes it give something else, and what each call changes.

    What only the first call has changed may be a cache; but purerun refuses to run a module that has one
    in a plain attribute.

    >>> idle = [Cause("memory", name, always=name == "log") for name in ("log", "cache")]
    >>> [cause.name for cause in to_blame(Evidence(differs=False, idle=tuple(idle)))]
    ['log']
    """
    remembers = (each for each in evidence.idle if each.of_module or (each.kind == "memory" and each.always))
    return [*evidence.causes, *remembers]


def verdicts(part: str, subject: Subject, causes: Iterable[Cause], *things: Any) -> list[Finding]:
    """Make a finding of each cause.

    Args:
        part: of the recipe.
        subject: what kind of code it is.
        causes: what was found.
        things: where to point when no line was found: the first that begins in the user's code.
    """
    return [_verdict(part, subject, cause, things) for cause in causes]


def _verdict(part: str, subject: Subject, cause: Cause, things: tuple[Any, ...]) -> Finding:
    law, message, remedy = _VERDICTS[subject, cause.kind]
    line = cause.line or own_beginning(*things)
    return found(part, law, message.format(name=cause.name), line, remedy)
