"""The arithmetic of pixels in machine code: resizing, as ``resizing`` defines it, and normalising.

The levels are the same as NumPy's. Of a resized image only the window that is wanted is computed. A pixel of it is a
sum over a few neighbours, so most of the work is to bring bytes and weights into place; a processor multiplies them two
at a time for all colours of a pixel at once. Numba does not know vectors, so that step is written for LLVM, its
compiler.

Memory is handed over as addresses, which nothing checks: ``resample`` alone calls what is compiled so.

Shapes: n images, H, W sides of an image in pixels, h, w sides of the window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from distilhash.data.resizing import filters
from distilhash.runtime import compiled

types: Any = numba.types

COLOURS = 4  # of a vector; of three, the last is whatever byte follows, and its result is overwritten


def resample(
    images: NDArray[np.uint8], sides: tuple[int, int], interpolation: str, corners: NDArray[np.int64],
    windows: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Fill ``windows`` (n, h, w, 3), contiguous, from ``images`` (n, H, W, 3): of each, resized to ``sides``, the part
    whose upper left pixel is at ``corners`` (n, 2), which the caller has checked to lie inside.
    """
    images = _readable(images)
    count, height, width = images.shape[:3]
    cubic = interpolation == "bicubic"
    # Vectors read past a pixel's three bytes, so the last row, after which memory may end, is read from a copy.
    last = np.zeros((count, width + 2, images.strides[2]), np.uint8)
    last[:, :width, :3] = images[:, -1]
    across, few, across_bits = _filters(width, sides[1], cubic)
    paired = np.zeros((len(few), few.shape[1] + few.shape[1] % 2), np.int16)
    paired[:, : few.shape[1]] = few
    _resample(
        images.ctypes.data, *images.strides[:3], height, last, *_filters(height, sides[0], cubic), across, paired,
        across_bits, corners, windows,
    )  # fmt: skip


def _readable(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images themselves, or a copy where colours, pixels and rows do not follow each other in memory, or where a
    vector would read past the next row, too.
    """
    count, height, width, _ = images.shape
    _, row, pixel, colour = images.strides
    if width > 1 and colour == 1 and pixel in (3, COLOURS) and row >= pixel * (width - 1) + 3:
        return images
    copy = np.zeros((count, height, width + 2, COLOURS), np.uint8)[:, :, :width, :3]
    copy[:] = images
    return copy


_filters = compiled(filters)


def _filtering(step: int) -> Any:
    """For compiled code, filtered(one, other, weights, pairs, bits, target, distance): COLOURS levels at ``target``,
    the sum over 2 * ``pairs`` pixels that begin at ``one``, an address, and lie ``step`` bytes apart, of each times its
    weight (int16, at ``weights``), over 2^bits, rounded; and those of ``other``, ``distance`` bytes further on.
    """
    byte, short, word = ir.IntType(8), ir.IntType(16), ir.IntType(32)
    lines, colours = 2, range(COLOURS)
    values = lines * 2 * COLOURS  # of two pixels in each line
    # Of two pixels' bytes: the first colour of one and of the other, the second colour of one, ...
    neighbours = [place for colour in colours for place in (colour, min(colour + step, 2 * COLOURS - 1))]

    def vector(kind: Any, count: int) -> Any:
        return ir.VectorType(kind, count)

    @intrinsic  # type: ignore[untyped-decorator]
    def filtered(
        typing: Any, one: Any, other: Any, weights: Any, pairs: Any, bits: Any, target: Any, distance: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *sources, weights, pairs, bits, target, distance = arguments

            def read(kind: Any, start: Any, index: Any, size: int) -> Any:
                address = builder.add(start, builder.mul(index, start.type(size)))
                return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

            def picked(places: list[int], one: Any, other: Any = None) -> Any:
                return builder.shuffle_vector(one, other or one, ir.Constant(vector(word, len(places)), places))

            def everywhere(value: Any) -> Any:
                lone = builder.insert_element(ir.Constant(vector(word, 1), ir.Undefined), value, word(0))
                return picked([0] * (lines * COLOURS), lone)

            total = cgutils.alloca_once(builder, vector(word, lines * COLOURS))
            builder.store(everywhere(builder.lshr(builder.shl(word(1), bits), word(1))), total)
            with cgutils.for_range(builder, pairs) as loop:
                two = [read(vector(byte, 2 * COLOURS), source, loop.index, 2 * step) for source in sources]
                levels = picked([*neighbours, *(2 * COLOURS + place for place in neighbours)], *two)
                factors = builder.bitcast(everywhere(read(word, weights, loop.index, 4)), vector(short, values))
                # Written so that compilers find the one instruction that multiplies int16 and adds each pair.
                products = builder.mul(
                    builder.zext(levels, vector(word, values)), builder.sext(factors, vector(word, values))
                )
                sums = builder.add(
                    picked(list(range(0, values, 2)), products), picked(list(range(1, values, 2)), products)
                )
                builder.store(builder.add(builder.load(total), sums), total)
            level = builder.ashr(builder.load(total), everywhere(bits))
            for sign, bound in ((">", 0), ("<", 255)):
                limit = ir.Constant(level.type, [bound] * (lines * COLOURS))
                level = builder.select(builder.icmp_signed(sign, level, limit), level, limit)
            found = builder.trunc(level, vector(byte, lines * COLOURS))
            for line in range(lines):
                part = picked([line * COLOURS + colour for colour in colours], found)
                builder.store(part, builder.inttoptr(target, part.type.as_pointer()), align=1)
                target = builder.add(target, distance)
            return context.get_dummy_value()

        place = types.int64
        return types.void(place, place, place, types.int64, types.int32, place, types.int64), emit

    return filtered


_of_three, _of_four = _filtering(3), _filtering(4)


@compiled
def _resample(
    source: int, image: int, row: int, pixel: int, height: int, last: Any, down: Any, down_weights: Any, down_bits: int,
    across: Any, paired: Any, across_bits: int, corners: Any, windows: Any,
) -> None:  # fmt: skip
    """``image``, ``row`` and ``pixel`` are distances in memory, bytes; ``last`` (n, W + 2, pixel) is the last row of
    each image; the filters are those of a column and of a row, with an even number of weights (``paired``).
    """
    count, high, wide = windows.shape[:3]
    length, taps, pairs = 3 * wide, down_weights.shape[1], paired.shape[1] // 2
    bits = np.int32(across_bits)
    sums = np.empty(length, np.int32)
    for number in range(count):
        top, left = corners[number]
        low = down[top]
        firsts, weights = across[left : left + wide], paired.ctypes.data + 4 * pairs * left
        start, end = source + number * image, last[number].ctypes.data
        # The rows that the window needs, filtered along, two at a time; a byte between them takes what follows the last
        # pixel.
        rows = np.empty((down[top + high - 1] + taps - low + 1, length + 1), np.uint8)
        done = 0
        for y in range(high):
            first = down[top + y] - low
            while done < first + taps:
                one = start + (low + done) * row if low + done < height - 1 else end
                other = start + (low + done + 1) * row if low + done + 1 < height - 1 else end
                into = rows[done].ctypes.data
                if pixel == COLOURS:
                    for x in range(wide):
                        at = COLOURS * firsts[x]
                        _of_four(one + at, other + at, weights + 4 * pairs * x, pairs, bits, into + 3 * x, length + 1)
                else:
                    for x in range(wide):
                        at = 3 * firsts[x]
                        _of_three(one + at, other + at, weights + 4 * pairs * x, pairs, bits, into + 3 * x, length + 1)
                done += 2
            sums[:] = 1 << down_bits >> 1
            for tap in range(taps):
                weight = np.int32(down_weights[top + y, tap])
                levels = rows[first + tap]
                for i in range(length):
                    sums[i] += weight * np.int32(levels[i])
            found = windows[number, y].reshape(length)
            for i in range(length):
                found[i] = min(max(sums[i] >> down_bits, 0), 255)


@compiled
def normalise(levels: Any, mean: Any, scale: Any, numbers: Any) -> None:
    """Fill ``numbers`` (rows, values), float32, with (levels - mean) * scale: levels of the same shape, uint8, and a
    mean and a scale of each value of a row.
    """
    rows, values = levels.shape
    for row in range(rows):
        for i in range(values):
            numbers[row, i] = (np.float32(levels[row, i]) - mean[i]) * scale[i]
