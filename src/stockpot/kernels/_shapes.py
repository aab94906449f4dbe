"""Array types with named axes, for annotations: jaxtyping's where it is installed (tests check them), else Any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
else:
    try:
        from jaxtyping import Float, Float64
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item: object) -> Any:
                return Any

        Float = Float64 = _Unchecked

__all__ = ["Float", "Float64"]
