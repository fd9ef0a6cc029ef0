"""Heat maps over pictures; importing this room registers its methods."""

from whylens.maps.base import MapMethod
from whylens.maps.view import View

# Every file of methods is imported here, once, so that its methods are registered. One line a file.

__all__ = ["MapMethod", "View"]
