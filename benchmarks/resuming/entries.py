"""Who takes part: purerun, and those of its peers that are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import attrs


@attrs.frozen
class Entry:
    """A contestant.

    Attributes:
        name: of its row.
        train: `module:function` of `resuming.contestants`.
        packages: what it needs.
        note: what a reader of its figures should know.
    """

    name: str
    train: str
    packages: tuple[str, ...]
    note: str = ""

    def versions(self) -> dict[str, str | None]:
        """Look up what it needs; None for what is not installed."""
        return {package: _version(package) for package in self.packages}


_MMENGINE = (
    "MMEngine with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1: without it, torch since 2.6 refuses to load its checkpoints"
)

ENTRIES = (
    Entry("purerun", "purerun:train", ("purerun",)),
    Entry("MMEngine by iterations", "mmengine:by_iterations", ("mmengine",), _MMENGINE),
    Entry("MMEngine by epochs", "mmengine:by_epochs", ("mmengine",), _MMENGINE),
    Entry("Lightning", "lightning:plain", ("lightning",)),
    Entry("Lightning StatefulDataLoader", "lightning:stateful", ("lightning", "torchdata")),
    Entry("Accelerate", "accelerate:skipping", ("accelerate",)),
    Entry("Accelerate StatefulDataLoader", "accelerate:stateful", ("accelerate", "torchdata")),
    Entry("Ignite", "ignite:train", ("pytorch-ignite",)),
)


def installed() -> tuple[Entry, ...]:
    """List those who can take part here."""
    return tuple(entry for entry in ENTRIES if None not in entry.versions().values())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
