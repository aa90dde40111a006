"""Which wrappers may stand around which: one table, read by `wrap`, by the tests and by the docs.

Wrappers are named by kind (`Wrapper.kind`).  A pair that is not refused here makes sense in that order; what it
means follows from "the inner one is done first": around `grad` the inner one sees the batch last and the gradients
first, around `update` the outer one sees the gradients first.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

AVERAGES = ("EMA", "AnnealedEMA", "SWA")

PLACES = {
    "Accumulate": "update",
    "AnnealedEMA": "update",
    "Clip": "update",
    "Clip by value": "update",
    "Compile": "both",
    "DataParallel": "grad",
    "Dropout": "grad",
    "EMA": "update",
    "Masters": "update",
    "Microbatch": "grad",
    "Precision": "grad",
    "Precision with a scale": "both",
    "Remat": "grad",
    "SWA": "update",
    "SkipNonFinite": "both",
    "Vmap": "both",
}
"""Kind of wrapper -> which half of a step it stands around."""


@attrs.frozen
class Refusal:
    """Kinds that may not stand around others.

    Attributes:
        outer: the kinds that would stand around.
        inner: any of these kinds, next to them or further inside.
        reason: why, and what to do.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    reason: str


_NARROW = (
    "a scale is for float32 parameters, whose gradients would vanish in float16; a model of 16 bits with masters needs "
    "none, so leave one of the two out"
)

_SKIPPED = (
    "the scale leaves out and counts updates that are not finite itself, and goes down by them; use "
    "Precision('float16', limit=...) alone"
)

REFUSALS = (
    Refusal(
        ("Compile",),
        ("Accumulate", *AVERAGES, "Microbatch", "SkipNonFinite"),
        "it decides by counters or values, which a graph cannot; put it around Compile",
    ),
    Refusal(
        ("Vmap",),
        ("Accumulate", *AVERAGES, "Microbatch"),
        "it decides by counters, which all members share; put it around Vmap, where it treats all of them alike",
    ),
    Refusal(
        ("Vmap",),
        ("Masters", "Precision with a scale", "SkipNonFinite"),
        "what it decides is about one run, and members would differ in it; leave it out of sweeps",
    ),
    Refusal(
        ("Clip", "Clip by value"),
        ("Vmap",),
        "its norm would be that of all members together; put it inside of Vmap",
    ),
    Refusal(
        ("Dropout",), ("Compile",), "a graph keeps the probability that it was traced with; put it inside of Compile"
    ),
    Refusal(("Dropout",), ("Vmap",), "all members would have one probability; put it inside of Vmap"),
    Refusal(
        ("Masters", "Precision with a scale", "SkipNonFinite"),
        ("Vmap",),
        "one member would decide for all; leave it out of sweeps, where what is NaN in one member stays in it",
    ),
    Refusal(
        ("Remat", "Vmap", "Compile"),
        ("Compile",),
        "a graph is whole: nothing inside of it can be run again, mapped or compiled once more; put Compile outermost "
        "of them",
    ),
    Refusal(("Compile",), ("Remat",), "a graph plans its memory itself, and draws each mask once; leave Remat out"),
    Refusal(("Vmap",), ("Remat",), "the transforms of torch.func cannot run a part of the forward again; leave it out"),
    Refusal(("Remat",), ("Vmap",), "the transforms of torch.func cannot run a part of the forward again; leave it out"),
    Refusal(
        ("Compile", "Vmap"),
        ("DataParallel",),
        "processes wait for each other in it, which no graph and no map can; put DataParallel around",
    ),
    Refusal(
        ("DataParallel",),
        ("Vmap",),
        "processes exchange one number a metric, and a population has one for each member; sweep in each process alone",
    ),
    Refusal(
        ("Microbatch",),
        ("DataParallel",),
        "a process has its shards of the batch and no whole one to cut; put DataParallel around Microbatch",
    ),
    Refusal(
        ("DataParallel",),
        ("SkipNonFinite",),
        "one process would stop while the others wait for it; put SkipNonFinite around DataParallel",
    ),
    Refusal(
        ("Masters",),
        ("Precision with a scale",),
        _NARROW,
    ),
    Refusal(("Precision with a scale",), ("Masters",), _NARROW),
    Refusal(("SkipNonFinite",), ("Precision with a scale",), _SKIPPED),
    Refusal(("Precision with a scale",), ("SkipNonFinite",), _SKIPPED),
    Refusal(
        ("Clip by value",),
        ("SkipNonFinite", "Precision with a scale"),
        "it makes finite numbers of infinities, and what is inside could not see them; put Clip inside",
    ),
)


_CLIPPED = (
    "it takes more gradients than those that are clipped; put the clipping before it: "
    "pr.optim.chain(clip=pr.optim.ClipNorm(...), ...)"
)

SEARCHES = {
    "Accumulate": "the batches of a window are gone when it is full; make the batch larger instead",
    "Clip": _CLIPPED,
    "Clip by value": _CLIPPED,
    "Compile": "it decides by the values that it finds, which a graph cannot; leave Compile out",
    "DataParallel": "it asks for further gradients of the shards, which nobody sends; choose another optimizer",
    "Precision with a scale": "the losses that it looks at itself are not scaled; use Precision('bfloat16')",
    "SkipNonFinite": "what it finds on its way is not seen from outside; leave SkipNonFinite out",
    "Vmap": "it takes each member another number of looks; use SGD, Adam, AdamW, Adagrad or RMSprop",
}
"""Kinds that may not stand around an optimizer which searches along a line (LBFGS), with the reasons."""


def reason(inner: str, outer: str) -> str | None:
    """Say why one kind may not stand around another; None if it may.

    >>> reason("Accumulate", "EMA") is None, reason("EMA", "Compile")
    (True, 'it decides by counters or values, which a graph cannot; put it around Compile')
    """
    if (inner == outer and inner in PLACES) or {inner, outer} in _TWINS:
        return "there is one of its kind already, and they would share a slot; wrap once with it"
    return next((each.reason for each in REFUSALS if inner in each.inner and outer in each.outer), None)


_TWINS = ({"EMA", "AnnealedEMA"}, {"Clip", "Clip by value"}, {"Precision", "Precision with a scale"})
"""Kinds that are one thing in two ways."""


def check(inside: Sequence[str], outer: str, *, searches: bool = False) -> None:
    """Refuse a wrapper that makes no sense around what is inside already.

    Args:
        inside: the kinds that are there.
        outer: the kind of the wrapper.
        searches: whether the optimizer searches along a line.

    Raises:
        ValueError: it does not; with the reason.
    """
    if searches and outer in SEARCHES:
        raise ValueError(f"expected no {outer} around an optimizer that searches along a line: {SEARCHES[outer]}")
    for inner in inside:
        if why := reason(inner, outer):
            raise ValueError(f"expected no {outer} around {inner}: {why}")


def table() -> str:
    r"""Write the table of orders as Markdown, the inner wrapper at the left; the docs hold it.

    >>> print(table()[:47])
    | inside \ outside | Accumulate | AnnealedEMA |
    """
    notes: list[str] = []
    lines = [f"| inside \\ outside | {' | '.join(PLACES)} |", f"|{'---|' * (len(PLACES) + 1)}"]
    for inner in PLACES:
        marks = [_mark(reason(inner, outer), notes) for outer in PLACES]
        lines.append(f"| {inner} | {' | '.join(marks)} |")
    told = [f"{place}. {why[0].upper()}{why[1:]}." for place, why in enumerate(notes, 1)]
    return "\n".join([*lines, "", *told])


def _mark(why: str | None, notes: list[str]) -> str:
    if why is None:
        return "yes"
    if why not in notes:
        notes.append(why)
    return str(notes.index(why) + 1)
