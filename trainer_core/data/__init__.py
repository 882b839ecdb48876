"""Dataloaders of a run.

    dataset ── columns ── fetching or streaming (with collation, under seeding) ── DataLoader ── reading ── the loop
                               sampling ─┘

A loader is a plain torch DataLoader whose dataset gives whole batches; the loop reads it through `stream`.
"""
