"""A decoded image's pixels where they lie, by Apache Arrow's C data interface, through which Pillow lends them.

Pillow keeps RGB in four bytes a pixel; np.asarray would have it write them anew in three, in pieces, and join these.
https://arrow.apache.org/docs/format/CDataInterface.html
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STORED = 4  # bytes of a pixel


class _Array(ctypes.Structure):
    """The interface's ArrowArray."""


_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Lent:
    """Memory of an image in the form that np.asarray asks for; the capsule takes it back when it is gone."""

    def __init__(self, capsule: object, address: int, shape: tuple[int, int, int]) -> None:
        self.capsule = capsule
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": shape, "data": (address, False)}


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of a loaded image in mode RGB that nobody needs any more: its own, which are kept as long as the
    array is, or a copy where they do not lie in one piece.
    """
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):  # Pillow before 11.3; rows in several pieces
        return np.array(image)
    levels: Any = _Array.from_address(_pointer(capsule, b"arrow_array")).children[0].contents
    return np.asarray(_Lent(capsule, levels.buffers[1], (image.height, image.width, _STORED)))[:, :, :3]
