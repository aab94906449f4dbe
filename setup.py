"""The one part that needs a compiler: the CPU's arithmetic in C. Without a compiler torch does it, to the same bits."""

from setuptools import Extension, setup

NATIVE = "src/stockpot/kernels/native"

setup(
    ext_modules=[
        Extension(
            "stockpot.kernels._compiled",
            sources=[f"{NATIVE}/native.c"],
            depends=[f"{NATIVE}/{name}.h" for name in ("lanes", "loops", "low_rank", "trim", "undefine")],
            # No product is fused with a sum: the bits must not depend on what the machine can fuse.
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
            libraries=["m"],
            optional=True,
        )
    ]
)
