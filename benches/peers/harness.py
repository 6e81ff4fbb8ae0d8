"""Rows of a comparison: who competes, how a round is run, what a row says.

A row is a file in `rows/` with a function `rows(bench)` that returns a list of `Row`. The
harness knows no row by name: to add one, add a file.
"""

import os
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Measure:
    """One run: seconds, a figure of quality, and whatever else is worth keeping."""

    seconds: float
    quality: float | None = None
    extra: dict = field(default_factory=dict)


@dataclass
class Row:
    """A comparison of contenders on the same input.

    `contenders` maps a name to a function of the round (0, 1, ..) that runs once. The one
    called `peer` is what the others are compared with. `targets` maps a contender to the
    ratio it should reach. `note` says what was measured, in full sentences.
    """

    name: str
    title: str
    note: str
    peer: str
    contenders: dict[str, Callable[[int], Measure]]
    targets: dict[str, float] = field(default_factory=dict)
    quality: str = ""
    warm_up: bool = True


@dataclass
class Scaling:
    """A table of one contender over sizes: `points` maps a label to (size, function)."""

    name: str
    title: str
    note: str
    points: dict[str, tuple[float, Callable[[int], Measure]]]


@dataclass
class Bench:
    """What rows are given: places, threads and sizes."""

    binaries: Path
    scratch: Path
    threads: int
    rounds: int

    def ours(self, *args) -> str:
        """Runs one of our binaries and returns what it prints."""
        program, *rest = [str(arg) for arg in args]
        command = [str(self.binaries / program), *rest]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


def clock(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def cpu() -> float:
    """CPU seconds used so far by this process and by those it has waited for.

    On a machine that others use too, wall time says how long they let us wait; differences of
    this say how much work was done.
    """
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def median(values) -> float:
    return statistics.median(values)


def run_row(row: Row, rounds: int, say: Callable[[str], None]) -> dict:
    """Runs all contenders in every round, each round in another order, and sums up."""
    names = list(row.contenders)
    taken: dict[str, list[Measure]] = {name: [] for name in names}
    if row.warm_up:
        for name in names:
            row.contenders[name](0)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            measure = row.contenders[name](turn)
            taken[name].append(measure)
            say(f"{row.name} {turn + 1}/{rounds} {name}: {measure.seconds:.4g} s")
    peers = [m.seconds for m in taken[row.peer]]
    lines = []
    for name in names:
        seconds = [m.seconds for m in taken[name]]
        qualities = [m.quality for m in taken[name] if m.quality is not None]
        keys = taken[name][0].extra
        lines.append({
            "contender": name,
            "seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds)},
            "quality": median(qualities) if qualities else None,
            # Each round's ratio compares neighbours in time; their median is the row's ratio.
            "ratio": median([peer / own for peer, own in zip(peers, seconds)]),
            "target": row.targets.get(name),
            "extra": {key: median([m.extra[key] for m in taken[name]]) for key in keys},
        })
    return {
        "kind": "row", "name": row.name, "title": row.title, "note": row.note,
        "peer": row.peer, "quality": row.quality, "rounds": rounds, "lines": lines,
    }


def run_scaling(table: Scaling, rounds: int, say: Callable[[str], None]) -> dict:
    """Runs every point in every round."""
    taken: dict[str, list[Measure]] = {label: [] for label in table.points}
    for turn in range(rounds):
        for label, (_, work) in table.points.items():
            taken[label].append(work(turn))
            say(f"{table.name} {turn + 1}/{rounds} {label}: {taken[label][-1].seconds:.4g} s")
    lines = []
    for label, (size, _) in table.points.items():
        seconds = [m.seconds for m in taken[label]]
        keys = taken[label][0].extra
        lines.append({
            "label": label, "size": size,
            "seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds)},
            "extra": {key: median([m.extra[key] for m in taken[label]]) for key in keys},
        })
    return {
        "kind": "scaling", "name": table.name, "title": table.title, "note": table.note,
        "rounds": rounds, "lines": lines,
    }


def machine() -> dict:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                vectors = [v for v in ("avx512f", "avx2") if v in line.split()]
                break
        else:
            vectors = []
    except OSError:
        vectors = []
    return {
        "processor": model, "vectors": vectors[:1], "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }
