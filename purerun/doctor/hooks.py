"""Examining hooks: is each a function of the state that writes what it declares?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from purerun.doctor.effects import brought
from purerun.doctor.experiment import experiment
from purerun.doctor.finding import EDGES, Finding, found
from purerun.doctor.lines import Line, own_beginning
from purerun.doctor.trace import watch
from purerun.doctor.verdicts import to_blame, verdicts
from purerun.hooks import Hook, Validate
from purerun.loop import Hook as LoopHook
from purerun.state import State, missing
from purerun.testing import LawBroken, check_hooks_write_only_declared, snapshot

_REMEDY = "declare it in `writes`, or leave it; effects on anything but the state belong into a sink"


def standing(state: State, hooks: Sequence[LoopHook]) -> tuple[State, State]:
    """Make two states at which hooks may be called: after an iteration within an epoch, and after an epoch.

    Args:
        state: to begin with, with a report of the step.
        hooks: all of the run, whose slots are made; scores are stood in for by numbers.
    """
    for hook in hooks:
        state = state.replace(missing(hook.slots(state), state))
    judged = {name for hook in hooks if isinstance(hook, Validate) for name in hook.slots(state)["scores"]}
    scores = {name: leaf for name, leaf in state["scores"].items() if name in judged}
    return (
        state.replace(iter=1, scores=_numbers(scores, 0.5, 1)),
        state.replace(iter=2, epoch=1, cursor=0, scores=_numbers(scores, 0.25, 2)),
    )


def _numbers(scores: dict[str, Tensor], score: float, iter: int) -> dict[str, Tensor]:
    return {name: torch.full_like(leaf, score if leaf.is_floating_point() else iter) for name, leaf in scores.items()}


def examine_hook(part: str, hook: Hook, states: tuple[State, State]) -> Iterator[Finding]:
    """Examine one hook at two states, one after the other and again."""
    evidence = experiment(lambda: [hook(state.hold()) for state in states], [hook])
    causes = to_blame(evidence)
    yield from verdicts(part, "hook", causes, type(hook).__call__, hook)
    try:
        check_hooks_write_only_declared(hook, states[0].hold())
    except LawBroken as broken:
        line = _writing(hook, states[0], broken.leaf)
        # Other bits in what it declares are explained by what it remembers.
        if line is not None or not causes:
            line = line or own_beginning(type(hook).__call__, hook)
            yield found(part, EDGES, f"{broken.cause} (`{broken.leaf}`)", line, _REMEDY)


def _writing(hook: Hook, state: State, leaf: str) -> Line | None:
    """Find the line that writes a leaf: of the state that is given, of the process, or of the state given back."""
    given = state.hold()
    for act in (hook, hook.start):
        line = watch(lambda act=act: act(given), lambda: snapshot.of_state(given) | snapshot.of_process()).get(leaf)
        if line is None and leaf.partition("/")[0] not in hook.writes:
            line = brought(lambda act=act: act(state.hold()), state, leaf)
        if line is not None:
            return line
    return None
