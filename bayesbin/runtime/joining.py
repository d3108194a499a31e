"""Joining: several programs of one network as one program of all their draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayesbin.core.canonical import pack_words, unpack_words
from bayesbin.runtime.program import Constant, DrawnSite, Program, Site, StoredSite


def join(programs: Sequence[Program]) -> Program:
    """The program of the draws of all programs, one after another.

    They share inputs, steps and outputs, and the shapes of their numbers. Numbers that several of them have
    alike are kept once.

    :raises ValueError: for programs of different networks, or none.
    """
    if not programs:
        raise ValueError("expected at least one program to join; got none.")
    first = programs[0]
    if len(programs) == 1:
        return first
    for other in programs[1:]:
        _require_alike(first, other)
    counts = [program.num_draws for program in programs]
    constants = {
        name: _joined_constants(name, [program.constants[name] for program in programs], counts)
        for name in first.constants
    }
    sites = {
        name: _joined_sites([program.sites[name] for program in programs], counts)
        for name in first.sites
    }
    return Program(first.inputs, constants, sites, first.steps, first.outputs, sum(counts))


def with_constants(program: Program, data: dict[str, np.ndarray]) -> Program:
    """The program with other constants, each with a row for each draw, (S, *shape).

    :raises ValueError: for a constant that the program does not have, or of another shape or type.
    """
    changed = dict(program.constants)
    for name, rows in data.items():
        old = program.constants.get(name)
        expected = None if old is None else ((program.num_draws, *old.shape), old.data.dtype)
        if expected != (rows.shape, rows.dtype):
            raise ValueError(
                f"expected {name!r} as {expected or 'no constant'}; got {(rows.shape, rows.dtype)}."
            )
        changed[name] = Constant(rows, np.arange(program.num_draws))
    return Program(
        program.inputs, changed, program.sites, program.steps, program.outputs, program.num_draws
    )


def _require_alike(first: Program, other: Program) -> None:
    for what in ("inputs", "steps", "outputs"):
        if getattr(first, what) != getattr(other, what):
            raise ValueError(f"expected programs of one network to join; their {what} differ.")
    for what in ("constants", "sites"):
        shapes = [
            {name: each.shape for name, each in getattr(program, what).items()}
            for program in (first, other)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"expected programs of one network to join; their {what} differ.")


def _rows(rows: np.ndarray | None, count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int64) if rows is None else rows


def _joined_constants(name: str, parts: Sequence[Constant], counts: Sequence[int]) -> Constant:
    if len({(part.dtype, part.levels) for part in parts}) > 1:
        raise ValueError(f"expected programs of one network to join; {name!r} differs in type.")
    data, rows = _stacked([[part.data] for part in parts], [p.rows for p in parts], counts)
    return Constant(data[0], rows, parts[0].levels)


def _joined_sites(parts: Sequence[Site], counts: Sequence[int]) -> Site:
    rows = [part.rows for part in parts]
    if all(isinstance(part, DrawnSite) for part in parts):
        drawn = [part for part in parts if isinstance(part, DrawnSite)]
        (mode, flip), where = _stacked([[p.mode, p.flip] for p in drawn], rows, counts)
        keys = np.concatenate([part.keys for part in drawn])
        return DrawnSite(parts[0].shape, mode, flip, keys, where)
    stored = [_stored(part, count) for part, count in zip(parts, counts, strict=True)]
    (bits,), where = _stacked([[each.bits] for each in stored], [s.rows for s in stored], counts)
    return StoredSite(parts[0].shape, bits, where)


def _stored(site: Site, count: int) -> StoredSite:
    """A site with the signs of each draw, the bits beyond a row's inputs being 0."""
    if isinstance(site, DrawnSite):
        words = np.stack([site.words(draw) for draw in range(count)])
        return StoredSite(site.shape, words, np.arange(count))
    clean = [pack_words(unpack_words(bits, site.shape)) for bits in site.bits]
    return StoredSite(site.shape, np.stack(clean), site.rows)


def _stacked(
    parts: Sequence[Sequence[np.ndarray]],
    rows: Sequence[np.ndarray | None],
    counts: Sequence[int],
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The different rows of several arrays at once, and which of them each draw has; None: all the first.

    :param parts: for each program, arrays (R, ...) that share their rows.
    """
    known: dict[tuple[bytes, ...], int] = {}
    kept: list[list[np.ndarray]] = [[] for _ in parts[0]]
    where: list[np.ndarray] = []
    for arrays, chosen, count in zip(parts, rows, counts, strict=True):
        place = np.empty(len(arrays[0]), dtype=np.int64)
        for row in range(len(arrays[0])):
            key = tuple(array[row].tobytes() for array in arrays)
            if key not in known:
                known[key] = len(known)
                for many, array in zip(kept, arrays, strict=True):
                    many.append(array[row])
            place[row] = known[key]
        where.append(place[_rows(chosen, count)])
    stacked = [np.stack(many) for many in kept]
    return stacked, None if len(known) == 1 else np.concatenate(where)
