"""The fitted bundle that explains one classifier."""

from whylens.lens.fitting import fit
from whylens.lens.lens import DEFAULT_METHODS, RUNNER_UP, EncoderReference, Lens
from whylens.lens.storage import built_in_lenses

__all__ = ["DEFAULT_METHODS", "RUNNER_UP", "EncoderReference", "Lens", "built_in_lenses", "fit"]
