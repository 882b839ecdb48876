"""`python -m benchmarks`: measures and prints one table; about three minutes, twice that with peers."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.contenders import Contender
from benchmarks.counts import count_rows
from benchmarks.evaluation import evaluation_rows
from benchmarks.overheads import overhead_rows
from benchmarks.peers import installed_peers
from benchmarks.processes import memory_rows, process_rows
from benchmarks.report import Row, cells, print_table, write_json
from benchmarks.saves import save_rows
from benchmarks.training import LEAN, QUICK, Budget, training_rows

SECTIONS = ("training", "overheads", "evaluation", "processes", "memory", "saves", "counts")


def main(arguments: list[str] | None = None) -> int:
    """Measures what the command line asks for."""
    options = parser().parse_args(arguments)
    found, missing = installed_peers() if options.peers else ([], [])
    for name in missing:
        print(f"{name}: is not installed. Run `make bench-peers`, which installs it.")
    rows = []
    with _one_quiet_thread():
        for row in measured(options, found):
            rows.append(row)
            print("measured:", ", ".join(filter(None, cells(row)[:5])), flush=True)
    print_table(rows, markdown=options.markdown)
    if options.json is not None:
        write_json(rows, options.json)
    return 0


def parser() -> argparse.ArgumentParser:
    """Gives the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks", description="CPU time as ratios to plain loops.")
    result.add_argument("--peers", action="store_true", help="measure the other libraries too")
    result.add_argument("--quick", action="store_true", help="a smoke test: every case, too short to trust a figure")
    result.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    result.add_argument("--markdown", action="store_true", help="print markdown instead of a rich table")
    return result


def measured(options: argparse.Namespace, peers: list[Contender]) -> Iterator[Row]:
    """Measures section by section; what contenders print is caught."""
    quick = options.quick
    budget = QUICK if quick else LEAN if options.peers else Budget()
    sections = {
        "training": lambda: training_rows(budget, peers),
        "overheads": lambda: overhead_rows(budget),
        "evaluation": lambda: evaluation_rows(1 if quick else 7, 640 if quick else 20_000),
        "processes": lambda: process_rows(1 if quick else 4, with_peers=options.peers),
        "memory": lambda: memory_rows(640, (64,)) if quick else memory_rows(20_000),
        "saves": lambda: save_rows(1, 1) if quick else save_rows(100, 7),
        "counts": count_rows,
    }
    for name in SECTIONS:
        if name not in options.only:
            continue
        rows = sections[name]()
        while (row := _silently(rows)) is not None:
            yield row


@contextlib.contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """Lets torch compute on one thread and our loggers speak of errors alone; puts both back."""
    logger, threads = logging.getLogger("trainer_core"), torch.get_num_threads()
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


def _silently(rows: Iterator[Row]) -> Row | None:
    with contextlib.redirect_stdout(io.StringIO()):
        return next(rows, None)


if __name__ == "__main__":
    raise SystemExit(main())
