"""What the compiled loops share: what numba does not offer of LLVM, and the threads they run on."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def fused(context, a, b, c):
    """a * b + c in fp32, rounded once. The loops use it only where torch's own code does."""
    signature = types.float32(types.float32, types.float32, types.float32)
    return signature, lambda context, builder, signature, arguments: builder.fma(*arguments)


@intrinsic
def bits_of(context, a):
    """The bits of an fp32 number as int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], ir.IntType(32)
    )


@intrinsic
def float_of(context, a):
    """The fp32 number of int32 bits."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], ir.FloatType()
    )


@intrinsic
def wide_vectors(context):
    """Let LLVM use 512 bit vectors in the function that calls this. Where a machine has them, LLVM holds back to 256
    by default: a choice made for the first of them, whose clock fell. Means nothing elsewhere."""

    def generate(context, builder, signature, arguments):
        # llvmlite checks attributes against a list of names; this one is a text of LLVM's own.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def copy_eight(context, target, at, source, begin):
    """target[at : at + 8] = source[begin : begin + 8] for arrays of 32 bit numbers, as one load and one store."""

    def generate(context, builder, signature, arguments):
        def pointer(place):
            array = context.make_array(signature.args[place])(context, builder, arguments[place])
            first = builder.gep(array.data, [arguments[place + 1]])
            return builder.bitcast(first, ir.VectorType(ir.IntType(32), 8).as_pointer())

        builder.store(builder.load(pointer(2), align=4), pointer(0), align=4)
        return context.get_dummy_value()

    return types.none(target, types.intp, source, types.intp), generate


def share_out(run: Callable[[int, int], None], first: int, last: int, threads: int) -> None:
    """run(a, b) for consecutive parts of [first, last), one part per thread; the last part in the calling thread.

    Plain threads that release the GIL: OpenMP's would spin between calls and take the cores from the forward passes.
    """
    cuts = [first + k * (last - first) // threads for k in range(threads + 1)]
    *others, own = itertools.pairwise(cuts)
    waiting = [_pool(threads - 1).submit(run, a, b) for a, b in others]
    run(*own)
    for other in waiting:
        other.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="normal")
