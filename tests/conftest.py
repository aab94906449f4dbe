"""For all tests: the shapes that the kernels state are checked at every call."""

import jaxtyping

jaxtyping.install_import_hook(["stockpot.kernels._rows"], "beartype.beartype")
