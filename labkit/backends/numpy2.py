"""Makes Triton's Python stub right with numpy 2; becomes part of `triton_python_backend_utils`.

The stubs in the server's wheel were compiled against numpy 1. With numpy 2 their `as_numpy()` gives
wrong values and their `Tensor(name, array)` an empty buffer, both in silence. DLPack does not
depend on numpy's layout in memory and carries the same bytes right, in both directions. Only
strings cannot cross by DLPack: they are refused in words. A stub that was built on this machine
needs none of this (`labkit triton build`).

The stub puts its classes into this module one by one, by assignment: there they are replaced.
"""

import sys
import types

import numpy as np

NO_STRINGS = (
    "string tensors need a Python stub that was built for this Python and numpy 2: run "
    "`labkit triton build` (needs g++), or install numpy<2"
)


class _NoStrings:
    """What the stub takes for the strings of a request until a model asks for them."""

    def reshape(self, dims):
        return np.full(dims, None, dtype=np.object_)


def deserialize_bytes_tensor(encoded):
    """Stand in for Triton's reader of strings, which would be given wrong bytes."""
    return _NoStrings()


def serialize_byte_tensor(tensor):
    """Stand in for Triton's writer of strings, whose bytes would be lost."""
    raise TypeError(NO_STRINGS)


def _as_numpy(tensor):
    """Return a copy of the tensor's values, which a model may change and keep, as natively."""
    try:
        return np.from_dlpack(tensor).copy()
    except Exception as error:  # of a class that only the stub knows
        if "string" in str(error):
            raise TypeError(NO_STRINGS) from error
        raise


def _tensor_class(native):
    """Return what stands for the stub's `Tensor` class: made from numpy arrays by DLPack."""

    class _Meta(type):
        def __instancecheck__(cls, value):
            return isinstance(value, native)

    class Tensor(metaclass=_Meta):
        """`Tensor(name, array)`: a tensor of a response, or of a request to another model."""

        from_dlpack = staticmethod(native.from_dlpack)

        def __new__(cls, name, array):
            array = np.asarray(array)
            if array.dtype.kind in "OSU":
                raise TypeError(NO_STRINGS)
            array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
            if array.size == 0:  # the stub looks at strides, which numpy sets to 0 here
                sizes = [max(size, 1) for size in array.shape]
                strides = np.empty(sizes, array.dtype).strides
                array = np.empty(array.shape, array.dtype)
                array = np.lib.stride_tricks.as_strided(array, array.shape, strides)
            elif not array.flags.writeable:  # numpy lends no read-only array
                array = array.copy()
            return native.from_dlpack(name, array)

    native.as_numpy = _as_numpy
    return Tensor


class _Utils(types.ModuleType):
    def __setattr__(self, name, value):
        super().__setattr__(name, _tensor_class(value) if name == "Tensor" else value)


sys.modules[__name__].__class__ = _Utils
