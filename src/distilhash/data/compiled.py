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
    last = np.zeros((count, width + 2, COLOURS), np.uint8)
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
    """For compiled code, filtered(source, weights, pairs, bits, target): COLOURS levels at ``target``, the sum over
    2 * ``pairs`` pixels that begin at ``source`` and lie ``step`` bytes apart, of each times its weight (int16, at
    ``weights``), over 2^bits, rounded.
    """
    byte, short, word = ir.IntType(8), ir.IntType(16), ir.IntType(32)
    whole, pair = ir.VectorType(word, COLOURS), ir.VectorType(word, 2 * COLOURS)
    # Of both pixels' bytes: the first colour of one and of the other, the second colour of one, ...
    places = [place for colour in range(COLOURS) for place in (colour, min(colour + step, 2 * COLOURS - 1))]

    @intrinsic  # type: ignore[untyped-decorator]
    def filtered(
        typing: Any, source: Any, weights: Any, pairs: Any, bits: Any, target: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, weights, pairs, bits, target = arguments

            def read(kind: Any, start: Any, index: Any, distance: int) -> Any:
                address = builder.add(start, builder.mul(index, start.type(distance)))
                return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

            def picked(vector: Any, places: list[int]) -> Any:
                return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(word, len(places)), places))

            def everywhere(value: Any) -> Any:
                return picked(builder.insert_element(ir.Constant(whole, ir.Undefined), value, word(0)), [0] * COLOURS)

            total = cgutils.alloca_once(builder, whole)
            builder.store(everywhere(builder.lshr(builder.shl(word(1), bits), word(1))), total)
            with cgutils.for_range(builder, pairs) as loop:
                # Written so that compilers find the one instruction that multiplies int16 and adds each pair.
                levels = picked(read(ir.VectorType(byte, 2 * COLOURS), source, loop.index, 2 * step), places)
                two = builder.bitcast(everywhere(read(word, weights, loop.index, 4)), ir.VectorType(short, 2 * COLOURS))
                products = builder.mul(builder.zext(levels, pair), builder.sext(two, pair))
                sums = builder.add(picked(products, [0, 2, 4, 6]), picked(products, [1, 3, 5, 7]))
                builder.store(builder.add(builder.load(total), sums), total)
            level = builder.ashr(builder.load(total), everywhere(bits))
            for sign, bound in ((">", 0), ("<", 255)):
                limit = ir.Constant(whole, [bound] * COLOURS)
                level = builder.select(builder.icmp_signed(sign, level, limit), level, limit)
            found = builder.trunc(level, ir.VectorType(byte, COLOURS))
            builder.store(found, builder.inttoptr(target, found.type.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int32, types.int64), emit

    return filtered


_of_three, _of_four = _filtering(3), _filtering(4)


@compiled
def _resample(
    source: int, image: int, row: int, pixel: int, height: int, last: Any, down: Any, down_weights: Any, down_bits: int,
    across: Any, paired: Any, across_bits: int, corners: Any, windows: Any,
) -> None:  # fmt: skip
    """``image``, ``row`` and ``pixel`` are distances in memory, bytes; ``last`` (n, W + 2, COLOURS) is the last row of
    each image; the filters are those of a column and of a row, with an even number of weights (``paired``).
    """
    count, high, wide = windows.shape[:3]
    length, taps, pairs = 3 * wide, down_weights.shape[1], paired.shape[1] // 2
    bits = np.int32(across_bits)
    sums = np.empty(length, np.int32)
    for number in range(count):
        top, left = corners[number]
        low = down[top]
        firsts, beside = across[left : left + wide], paired.ctypes.data + 4 * pairs * left
        # The rows that the window needs, filtered along; a byte between them takes what follows the last pixel.
        rows = np.empty((down[top + high - 1] + taps - low, length + 1), np.uint8)
        done = 0
        for y in range(high):
            first = down[top + y] - low
            while done < first + taps:
                line, step = source + number * image + (low + done) * row, pixel
                if low + done == height - 1:
                    line, step = last[number].ctypes.data, COLOURS
                into = rows[done].ctypes.data
                if step == COLOURS:
                    for x in range(wide):
                        _of_four(line + COLOURS * firsts[x], beside + 4 * pairs * x, pairs, bits, into + 3 * x)
                else:
                    for x in range(wide):
                        _of_three(line + 3 * firsts[x], beside + 4 * pairs * x, pairs, bits, into + 3 * x)
                done += 1
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
