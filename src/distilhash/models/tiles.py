"""The transforms of ``winograd`` in machine code: maps to tiles, tiles to maps.

A tile is 4x4 pixels, and every transform is one small constant matrix, applied to the rows of a tile and then to its
columns. PyTorch would write each intermediate sum to memory; here they stay in registers and in the first cache. Numba
does not know vectors, so the one step that all consists of is written for LLVM, its compiler: vectors of a few
channels, read from given places, combined by the matrix, written to others.

Memory is handed over as addresses, which nothing checks: ``winograd`` gives contiguous tensors of the shapes said here.

Shapes: N images, C channels, H, W sides of the map in pixels, TY = ceil(H / 4), TX = ceil(W / 4) tiles; a band is one
row of tiles, number n * TY + ty for image n; B bands of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

from distilhash.runtime import compiled

types: Any = numba.types

LANES = 8  # channels in one vector, which compilers split where registers are shorter

Matrix = tuple[tuple[float, ...], ...]

# Lavin and Gray's F(4, 3) at the points 0, 1, -1, 2, -2 and infinity.
INPUT: Matrix = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
OUTPUT: Matrix = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
# A gradient of the output: the transpose, which looks at the four inner ones of six rows.
UPSTREAM: Matrix = tuple((0, *column, 0) for column in zip(*OUTPUT, strict=True))


def _combination(matrix: Matrix) -> Any:
    """For compiled code, combine(sources, destinations, offset, one): a vector at each of the sources, which are
    addresses, and from them by ``matrix`` one for each of the destinations. All are ``offset`` bytes further on, and of
    the type of ``one``.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def combine(typing: Any, sources: Any, destinations: Any, offset: Any, one: Any) -> tuple[Any, Callable[..., Any]]:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            scalar = context.get_value_type(one)
            vector = ir.VectorType(scalar, LANES)
            size = context.get_abi_sizeof(scalar)

            def place(addresses: Any, number: int) -> Any:
                address = builder.add(builder.extract_value(addresses, number), arguments[2])
                return builder.inttoptr(address, vector.as_pointer())

            read = {}
            for column in range(len(matrix[0])):
                if any(row[column] for row in matrix):
                    read[column] = builder.load(place(arguments[0], column), align=size)
            for number, row in enumerate(matrix):
                total = ir.Constant(vector, [0.0] * LANES)
                for column, factor in enumerate(row):
                    if factor:
                        constant = ir.Constant(vector, [float(factor)] * LANES)
                        term = builder.fmul(read[column], constant, flags=("contract", "nsz"))
                        total = builder.fadd(total, term, flags=("contract", "nsz"))
                builder.store(total, place(arguments[1], number), align=size)
            return context.get_dummy_value()

        inputs, outputs = (types.UniTuple(types.intp, count) for count in (len(matrix[0]), len(matrix)))
        return types.void(inputs, outputs, types.intp, one), emit

    return combine


_of_input, _of_upstream, _of_output = _combination(INPUT), _combination(UPSTREAM), _combination(OUTPUT)


def _inlined(function: Callable[..., Any]) -> Any:
    """For compiled code alone."""
    return numba.njit(function)


@_inlined
def _six(start: int, step: int) -> tuple[int, int, int, int, int, int]:
    return start, start + step, start + 2 * step, start + 3 * step, start + 4 * step, start + 5 * step


@_inlined
def _analyse(sources: Any, targets: Any, length: int, step: int, upstream: bool, one: float) -> None:
    """Six runs of ``length`` bytes to six, a vector of ``step`` bytes at a time."""
    for offset in range(0, length, step):
        if upstream:
            _of_upstream(sources, targets, offset, one)
        else:
            _of_input(sources, targets, offset, one)


@compiled
def gather(
    source: int, tiles: int, lines: int, first: int, bands: int, height: int, width: int, channels: int, size: int,
    upstream: bool, one: float,
) -> None:  # fmt: skip
    """From ``source``, a map (N, H, W, C), write ``tiles`` (36, B * TX, C): the windows of 6x6 pixels around the tiles,
    transformed by INPUT, or the tiles themselves, by UPSTREAM. ``lines`` is (7, 4 * TX + 2, C) of zeros, of which the
    inner pixels of the first six rows are overwritten; ``size`` is that of a number in bytes, and ``one`` a number.
    """
    down, across = (height + 3) // 4, (width + 3) // 4
    pixel = channels * size
    row, line, plane = width * pixel, (4 * across + 2) * pixel, bands * across * pixel
    zeros = lines + 6 * line  # rows above and below the map
    tile = tiles
    for band in range(first, first + bands):
        top = 4 * (band % down) - 1
        start = source + (band // down * height + top) * row
        window = (
            start if top >= 0 else zeros,
            start + row,
            start + 2 * row if top + 2 < height else zeros,
            start + 3 * row if top + 3 < height else zeros,
            start + 4 * row if top + 4 < height else zeros,
            start + 5 * row if top + 5 < height else zeros,
        )
        _analyse(window, _six(lines + pixel, line), row, LANES * size, upstream, one)
        for column in range(across):
            for y in range(6):
                pixels = _six(lines + y * line + 4 * column * pixel, pixel)
                _analyse(pixels, _six(tile + 6 * y * plane, plane), pixel, LANES * size, upstream, one)
            tile += pixel


@compiled
def scatter(
    tiles: int, target: int, lines: int, first: int, bands: int, height: int, width: int, channels: int, size: int,
    one: float,
) -> None:  # fmt: skip
    """From ``tiles`` (36, B * TX, C) write these bands of ``target``, a map (N, H, W, C), transformed by OUTPUT.

    ``lines`` is (7, 4 * TX + 2, C) of anything, and is overwritten.
    """
    down, across = (height + 3) // 4, (width + 3) // 4
    pixel = channels * size
    row, line, plane = width * pixel, (4 * across + 2) * pixel, bands * across * pixel
    nowhere = lines + 6 * line  # rows below the map
    tile = tiles
    for band in range(first, first + bands):
        for column in range(across):
            for y in range(6):
                begin = lines + y * line + 4 * column * pixel
                pixels = (begin, begin + pixel, begin + 2 * pixel, begin + 3 * pixel)
                for offset in range(0, pixel, LANES * size):
                    _of_output(_six(tile + 6 * y * plane, plane), pixels, offset, one)
            tile += pixel
        top = 4 * (band % down)
        start = target + (band // down * height + top) * row
        rows = (
            start,
            start + row if top + 1 < height else nowhere,
            start + 2 * row if top + 2 < height else nowhere,
            start + 3 * row if top + 3 < height else nowhere,
        )
        for offset in range(0, row, LANES * size):
            _of_output(_six(lines, line), rows, offset, one)
