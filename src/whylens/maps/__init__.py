"""Heat maps over pictures; importing this room registers its methods."""

from whylens.maps.base import MapMethod
from whylens.maps.bcos import Bcos
from whylens.maps.cam import GradCam, LayerCam
from whylens.maps.controls import Edges, RandomMap
from whylens.maps.deeplift import DeepLift
from whylens.maps.extremal import ExtremalPerturbation
from whylens.maps.fei import FEI
from whylens.maps.gradients import Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from whylens.maps.guided import GuidedBackprop
from whylens.maps.igos import IgosPlusPlus
from whylens.maps.perturbation import Occlusion, Rise
from whylens.maps.transformers import AttentionRollout, LeGrad
from whylens.maps.view import View

# Every file of methods is imported here, once, so that its methods are registered. One line a file.

__all__ = [
    "FEI",
    "AttentionRollout",
    "Bcos",
    "DeepLift",
    "Edges",
    "ExtremalPerturbation",
    "GradCam",
    "Gradient",
    "GuidedBackprop",
    "IgosPlusPlus",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCam",
    "LeGrad",
    "MapMethod",
    "Occlusion",
    "RandomMap",
    "Rise",
    "SmoothGrad",
    "View",
]
