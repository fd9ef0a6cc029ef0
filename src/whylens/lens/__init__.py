"""The fitted bundle that explains one classifier."""

from whylens.lens.atlas import Atlas, Latent
from whylens.lens.atlas_building import build_atlas
from whylens.lens.fitting import fit
from whylens.lens.lens import DEFAULT_METHODS, RUNNER_UP, EncoderReference, Lens
from whylens.lens.storage import built_in_lenses

__all__ = [
    "DEFAULT_METHODS",
    "RUNNER_UP",
    "Atlas",
    "EncoderReference",
    "Latent",
    "Lens",
    "build_atlas",
    "built_in_lenses",
    "fit",
]
