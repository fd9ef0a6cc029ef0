"""Planted scenes: pictures whose attributes can be changed one at a time, so that true causal effects are measured."""

from whylens.planted.captions import Caption, captions
from whylens.planted.effects import COLUMNS, Effects, EffectTable, measure_effects
from whylens.planted.organisms import (
    load_organism,
    load_scene_encoder,
    organism_card,
    organism_names,
    scene_encoder_card,
)
from whylens.planted.phrases import HELD_OUT_COMBINATIONS, ScenePhrase, scene_phrases, text_pairs
from whylens.planted.rendering import MASKS, Rendering, render, render_batch
from whylens.planted.rules import RULES, SPLITS, Drawn, Rule, draw, get_rule
from whylens.planted.scene import ATTRIBUTES, CARRIERS, Scene, sample_scene
from whylens.planted.shapley import ShapleyValues, shapley_values
from whylens.planted.sheet import contact_sheet

__all__ = [
    "ATTRIBUTES",
    "CARRIERS",
    "COLUMNS",
    "HELD_OUT_COMBINATIONS",
    "MASKS",
    "RULES",
    "SPLITS",
    "Caption",
    "Drawn",
    "EffectTable",
    "Effects",
    "Rendering",
    "Rule",
    "Scene",
    "ScenePhrase",
    "ShapleyValues",
    "captions",
    "contact_sheet",
    "draw",
    "get_rule",
    "load_organism",
    "load_scene_encoder",
    "measure_effects",
    "organism_card",
    "organism_names",
    "render",
    "render_batch",
    "sample_scene",
    "scene_encoder_card",
    "scene_phrases",
    "shapley_values",
    "text_pairs",
]
