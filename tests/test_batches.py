"""Batches: every row once an epoch, beside others each time, and little padding."""

import random

import pytest

from s3pet.batches import Stream, derive


def rows_of(lengths):
    return [{"input_ids": [index] * length} for index, length in enumerate(lengths)]


def epoch_of(stream, epoch, n_batches):
    return [[row["input_ids"][0] for row in stream(epoch * n_batches + step)] for step in range(n_batches)]


@pytest.mark.parametrize(("n_rows", "size"), [(10, 5), (103, 8), (3, 8), (64, 1)])
def test_streams_visit_every_row_once_an_epoch(n_rows, size):
    draw = random.Random(0)
    rows = rows_of([draw.randint(1, 30) for _ in range(n_rows)])
    stream, n_batches = Stream(rows, size, seed=3), -(-n_rows // min(size, n_rows))
    epochs = [epoch_of(stream, epoch, n_batches) for epoch in range(3)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(n_rows))
        assert sorted(map(len, batches))[1:] == [min(size, n_rows)] * (n_batches - 1), "at most one is smaller"
    assert stream(1) == Stream(rows, size, seed=3)(1), "a function of the step"
    if n_batches > 1:
        assert epochs[0] != epochs[1]
        assert epochs[0] != epoch_of(Stream(rows, size, seed=4), 0, n_batches)


def test_rows_of_a_batch_are_of_like_length_but_not_always_the_same_ones():
    draw = random.Random(1)
    rows = rows_of([round(draw.lognormvariate(3, 0.7)) + 2 for _ in range(1000)])
    stream, widths = Stream(rows, 16, seed=0), []
    for step in range(63):
        lengths = [len(row["input_ids"]) for row in stream(step)]
        widths.append((max(lengths) * len(lengths), sum(lengths), max(lengths)))
    padded, used, _ = (sum(column) for column in zip(*widths, strict=True))
    order = list(range(1000))
    draw.shuffle(order)
    shuffled = [[len(rows[row]["input_ids"]) for row in order[at : at + 16]] for at in range(0, 1000, 16)]
    assert padded / used < 1.5 < 2 < sum(max(lengths) * len(lengths) for lengths in shuffled) / used
    longest = [width for *_, width in widths]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True), "long and short ones take turns"
    neighbours = [
        {frozenset((a, b)) for batch in epoch_of(stream, epoch, 63) for a in batch for b in batch if a < b}
        for epoch in (0, 1)
    ]
    assert len(neighbours[0] & neighbours[1]) / len(neighbours[0]) < 0.15, "rows meet others in another epoch"


def test_derived_seeds_do_not_collide():
    seeds = {derive(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000
