"""Hyper-parameters as functions of progress.

A schedule is a value that maps counters (finished epochs and iterations) to an affine map of the base value of a
hyper-parameter: `value = scale * base + shift`.  Nothing is remembered: iteration 1,000,000 is asked for like
iteration 10, and going on from a checkpoint needs the counters alone.

**Windows.**  A schedule acts from counter value `begin` until before `end`, and its own step `s` counts from
`begin`.  Before, it does nothing; after, its result holds, also through a gap until another begins.

**Several schedules** of one hyper-parameter give what MMEngine's give: at each counter value each one whose window is
open moves the current value once, in list order.  Ones that only scale (no floor, no restart) are simply
multiplied.  Where one that does not overlaps others of the same counter, the recursion is followed step by step
(once; its rows are kept, 24 bytes for each step of the overlap).

**By epoch and by iteration together.**  How iterations and epochs interleave depends on the length of an epoch,
which counters do not tell.  So each counter's schedules are composed by themselves, and then these functions in list
order.  That is what MMEngine gives wherever it does not matter: the schedules only scale, or one has ended when the
other first moves (a warm-up within the first epoch).  Otherwise the list order says what is meant: a warm-up before
a cosine with a floor warms up the base value, one after it warms up the cosine's value (MMCV 1.x's meaning).
`schedule.by_iter(epoch_length)` turns a schedule by epoch into one by iteration, and the recursion is exact again.

**Names.**  MMEngine: `eta_min` is `floor`, `eta_min_ratio` is `floor_ratio`, `T_max` and `total_steps` are `period`,
`start_factor` is `start`, `restart_weights` is `weights`, `eta_max` is `peak`, `by_epoch=False` is `by="iter"`, and
`convert_to_iter_based=True` is `.by_iter(epoch_length)`.  A warm-up of MMCV 1.x over W iterations with ratio r is
`Constant(r)`, `Linear(r)` or `Geometric(r)` with `end=W + 1, by="iter"`, last in the list.

To add a schedule, add a class with its formula to `scaling.py` (it multiplies) or `floored.py` (it goes to a floor).
"""

from purerun.schedule.affine import IDENTITY, Affine
from purerun.schedule.compose import Plan, compose, values
from purerun.schedule.floored import Cosine, CosineRestart, FlatCosine, LinearAnnealing, Polynomial
from purerun.schedule.onecycle import OneCycle
from purerun.schedule.scaling import (
    Constant,
    Cyclic,
    Exponential,
    Freeze,
    Geometric,
    Inverse,
    Linear,
    MultiStep,
    Step,
)
from purerun.schedule.window import Schedule

__all__ = [
    "IDENTITY",
    "Affine",
    "Constant",
    "Cosine",
    "CosineRestart",
    "Cyclic",
    "Exponential",
    "FlatCosine",
    "Freeze",
    "Geometric",
    "Inverse",
    "Linear",
    "LinearAnnealing",
    "MultiStep",
    "OneCycle",
    "Plan",
    "Polynomial",
    "Schedule",
    "Step",
    "compose",
    "values",
]
