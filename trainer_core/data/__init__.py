"""Dataloaders of a run.

    dataset ── columns ── fetching or streaming (with collation, under seeding) ── DataLoader ── reading ── the loop
                               sampling ─┘

`loaders` puts these together into a plain torch DataLoader; the loop reads it through `reading.stream`.
"""
