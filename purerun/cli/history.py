"""Commands that compute a run again: `verify`, `rewind`, `fork`, `why` and `seen`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from purerun.cli.exits import DONE, FAILED, say
from purerun.cli.replayed import RecipeFile, command, opened
from purerun.cli.runs import Settings
from purerun.cli.table import table
from purerun.cli.values import Place, whole

if TYPE_CHECKING:
    from purerun.history import Finding

At = Annotated[int, whole()]


def verify(
    run: Place,
    /,
    *,
    recipe: RecipeFile = None,
    samples: Annotated[int | None, whole(1)] = None,
    seed: Annotated[int | None, whole(0)] = None,
) -> int:
    """Compute a run again from checkpoint to checkpoint, and compare every bit.

    A line for each; the exit code is 1 if one does not agree, or cannot be checked.

    Args:
        run: The directory of the run.
        recipe: Its recipe file; the one of the run's name unless given.
        samples: Check so many segments only, chosen by chance.
        seed: Of that chance; the run's own unless given.
    """
    from purerun.history import verify as verified

    _, value = opened(run, recipe)
    count = wrong = unknown = 0
    for finding in verified(run, value, samples=samples, seed=seed):
        sys.stdout.write(_told(finding) + "\n")
        sys.stdout.flush()
        count, unknown = count + 1, unknown + (not finding.checked)
        wrong += finding.checked and not finding.agrees
    wrongs = f"{wrong} of {count} do not agree" if wrong else ""
    unknowns = f"{unknown} of {count} cannot be checked" if unknown else ""
    sys.stdout.write((", ".join(filter(None, (wrongs, unknowns))) or f"all {count} agree") + "\n")
    return FAILED if wrong or unknown else DONE


def rewind(run: Place, /, *, at: At, recipe: RecipeFile = None) -> None:
    """Take a run back to an earlier iteration.

    Later checkpoints stay until the run goes on; the command for that is printed.

    Args:
        run: The directory of the run.
        at: The iteration.
        recipe: Its recipe file; the one of the run's name unless given.
    """
    from purerun.history import rewind as rewound

    file, value = opened(run, recipe)
    manifest = rewound(run, value, at)
    say(f"{run} stands at iteration {at} again, digest {manifest.digest}; later checkpoints go when it goes on:")
    sys.stdout.write(command(file, value, run, manifest) + "\n")


def fork(run: Place, /, *, at: At, work_dir: Place, settings: Settings = None, recipe: RecipeFile = None) -> None:
    """Begin a new run with the state that another one had.

    The command that goes on with it is printed.

    Args:
        run: The directory of the other run.
        at: The iteration.
        work_dir: The directory of the new run.
        settings: PATH=VALUE: change a value of the recipe. Can be repeated.
        recipe: The recipe file; the one of the other run's name unless given.
    """
    from purerun.history import fork as forked

    file, value = opened(run, recipe)
    manifest = forked(run, value, at, work_dir, settings or ())
    say(f"{work_dir} begins at iteration {at} of {run}, digest {manifest.digest}; it goes on with:")
    sys.stdout.write(command(file, value, work_dir, manifest) + "\n")


def why(run: Place, /, *, at: At, recipe: RecipeFile = None) -> None:
    """List the samples of an iteration with their losses, computed again.

    Args:
        run: The directory of the run.
        at: The iteration; the first one is 1.
        recipe: Its recipe file; the one of the run's name unless given.
    """
    from purerun.history import why as asked

    _, value = opened(run, recipe)
    found = asked(run, value, at)
    report = "  ".join(f"{name} {number:.6g}" for name, number in found.report.items())
    sys.stdout.write(f"iteration {found.iter}, epoch {found.epoch}: {len(found.samples)} samples\n")
    sys.stdout.write(f"the whole batch in training: {report}\n")
    if found.trouble:
        sys.stdout.write(f"no losses of single samples: {found.trouble}\n")
    else:
        sys.stdout.write(
            "each sample alone, at the state before, in evaluation mode (no dropout, running statistics):\n"
        )
    rows = ([_or_dash(each.index), str(each.position), _or_dash(each.loss)] for each in found.samples)
    sys.stdout.write(table(["sample", "position", "loss"], rows))


def seen(run: Place, /, *, sample: Annotated[int, whole()], recipe: RecipeFile = None) -> None:
    """List when a sample was trained on, up to where the run stands; no data is read.

    Args:
        run: The directory of the run.
        sample: Its index in the dataset.
        recipe: The recipe file; the one of the run's name unless given.
    """
    from purerun.history import seen as sightings

    _, value = opened(run, recipe)
    found = list(sightings(run, value, sample))
    if not found:
        sys.stdout.write(f"sample {sample} was never trained on\n")
        return
    rows = ([str(each.epoch), str(each.iter), str(each.position)] for each in found)
    sys.stdout.write(table(["epoch", "iter", "position"], rows))


def _told(finding: Finding) -> str:
    if finding.since is None:
        return f"{finding.until:>10}  {finding.why}"
    way = f"{finding.since or 'seed':>10} -> {finding.until:<10}"
    if finding.agrees:
        return f"{way}  agrees"
    if not finding.checked:
        return f"{way}  cannot be checked  {finding.why}"
    return f"{way}  DIFFERS  {'; '.join(filter(None, (finding.leaf, finding.why)))}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
