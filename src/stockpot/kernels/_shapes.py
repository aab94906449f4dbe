"""Array types with named axes, for annotations: jaxtyping's where it is loaded already (tests check them), else Any."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float, Float64
else:

    class _Unchecked:
        def __class_getitem__(cls, item: object) -> Any:
            return Any

    Float = Float64 = _Unchecked

__all__ = ["Float", "Float64"]
