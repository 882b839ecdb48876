"""The console: the plan before a run, its progress, and how it ended.

It is a plugin like any other: it can be blocked, and its failure ends no run. It has no step hooks; a clock refreshes
what is shown from the trainer's counters. Only the main rank shows anything.

    standard output is     shown
    a terminal             rows that stay, and two live lines below them (`terminal`)
    a notebook's cell      a table that is brought up to date (`notebook`)
    a file or a pipe       one line a row, and a sign of life (`plaintext`)
"""

from trainer_core.console.plugin import Console as Console
from trainer_core.console.plugin import ConsoleSettings as ConsoleSettings
