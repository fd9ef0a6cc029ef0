"""Write the cards of the built-in weights from their measured figures.

python training/cards.py
"""

from __future__ import annotations

import json
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src/whylens"
LENSES = PACKAGE / "lens/data"
ENCODER = PACKAGE / "encoders/data/tiny"

PLAIN_NETWORK = """A plain residual CNN ({architecture}, {parameters:,} parameters, ReLU, batch norm, global average, linear head) for
64 x 64 pictures of 100 classes; fp16 weights."""

PLAIN_RECIPE = """`training/train_classifier.py`
(SGD with Nesterov momentum, cosine schedule, label smoothing 0.1, random crops, mirror, mild colour, progressive
resizing, the last epochs on unscaled crops), on the CPU."""

BCOS_NETWORK = """A B-cos twin of `builtin:tiny-imagenet` ({architecture}, {parameters:,} parameters, exponent 2, ReLU gates, batch norm
without centring, a classifier on every position before the global average) for 64 x 64 pictures of 100 classes; six input
channels, no mean or standard deviation, sigmoid outputs; fp16 weights. Its logits are exact sums of what pixels and
concepts contribute."""

BCOS_RECIPE = """`training/train_bcos.py`
(filters of the plain classifier to begin with, Adam, cosine schedule, binary cross-entropy with uniform off-labels, random
crops, mirror, mild colour, progressive resizing, the last epochs on unscaled crops), on the CPU."""

LENS_CARD = """# Card: the built-in lens `{name}`

Written by `training/cards.py` from `figures.json`.

## Classifier (`builtin:{name}`)

{network}

| measured | value |
|---|---|
| top-1 on the 2,500 validation pictures, as shipped | {val_top1:.2%} |
| epochs (picture side) | {epochs} |

Data: 100 of the 200 classes of Tiny ImageNet, 500 training pictures each. Recipe: {recipe}

## Lens

| measured | value |
|---|---|
| pictures that the maps were fitted on / held out | {pictures:,} / {held_out:,} |
| held-out R2, features to encoder | {r2:.3f} |
| held-out mean cosine | {cosine:.3f} |
| held-out R2, encoder to features | {reverse_r2:.3f} |
| phrases | {phrases:,} |
| phrases dropped | {dropped} |

Fitted by `training/build_lens.py` on training pictures and on pictures of the 100 other classes, which the classifier
never saw. Phrases: the class descriptors and the `everyday` bank without class names and without words that the
encoder never learnt.

{dictionary}## Limits

- 100 classes, 64 x 64 pixels: a picture of anything else gets one of the 100 names all the same.
- The encoder is small ([its card](../../../encoders/data/tiny/card.md)); words are no finer than what it learnt.
- Trained on a part of ImageNet, with its biases; its terms allow non-commercial research.
"""

ENCODER_CARD = """# Card: the built-in image-text encoder `builtin:tiny`

Written by `training/cards.py` from `figures.json`.

An image tower (residual CNN {image}) and a text tower (transformer over {words:,} known words, {text}) into a space of
{output} dimensions; fp16 weights, pictures of {size} x {size}.

| measured, class names hidden | value | chance |
|---|---|---|
| right class of the 100 from its descriptors, validation pictures | {top100:.2%} | 1 % |
| right class of 20 unseen ones (index 0, 5, ..., 95), by an encoder trained without them | {top20} | 5 % |
| phrases measured in pixels (colours, light): mean area under the ROC curve | {auc:.3f} | 0.5 |

Data: 50,000 training pictures of the 100 built-in classes and 20,000 of the 100 others; at least 24 descriptors for
each class, written for this project; colours, brightness and contrast measured in each picture; {synonyms} synonyms that
only the text tower saw. Recipe: `training/train_encoder.py` (sigmoid loss for each phrase, softmax loss over classes as
means of random halves of their phrases, synonym pairs), {epochs}. The image tower began with the convolutions of an
earlier training of the built-in classifier (65.2 % top-1), the text tower with that of the left-out run ({left_out_epochs}, from scratch).

## Limits

- Its image tower began as a sister of the built-in classifier (same architecture, data and seed), so that classifier's
  aligner looks better than one between strangers would, and what both overlook cannot be named.
- Descriptors belong to classes: what they say is usual for the class, not checked in each picture. Only colours and
  light were measured in the picture itself.
- Words that it never learnt are refused with the nearest known ones; it cannot count, read, or understand negation.
- It was trained on Tiny ImageNet, whose terms allow non-commercial research.
"""


def describe(epochs: list[dict[str, int]]) -> str:
    sides = dict.fromkeys(row["side"] for row in epochs)
    parts = ", ".join(f"{sum(row['side'] == side for row in epochs)} at {side} px" for side in sides)
    return f"{len(epochs)} epoch{'s' if len(epochs) > 1 else ''} ({parts})"


def main() -> None:
    write_lens_card("tiny-imagenet", PLAIN_NETWORK, PLAIN_RECIPE)
    if (LENSES / "tiny-imagenet-bcos/figures.json").is_file():
        write_lens_card("tiny-imagenet-bcos", BCOS_NETWORK, BCOS_RECIPE)
    write_encoder_card()


def write_lens_card(name: str, network: str, recipe: str) -> None:
    home = LENSES / name
    figures = json.loads((home / "figures.json").read_text())
    arguments = json.loads((home / "classifier.json").read_text())["arguments"]
    lens = figures["lens"]
    dropped = ", ".join(f"{count} {why}" for why, count in lens["phrases_dropped"].items() if count) or "none"
    (home / "card.md").write_text(
        LENS_CARD.format(
            name=name,
            network=network.format(
                architecture=f"widths {arguments['widths']}, blocks {arguments['blocks']}",
                parameters=figures["parameters"],
            ),
            recipe=recipe,
            val_top1=figures["val_top1"],
            epochs=describe(figures["epochs"]),
            dropped=dropped,
            dictionary=dictionary_part(home),
            **{k: lens[k] for k in ("pictures", "held_out", "r2", "cosine", "reverse_r2", "phrases")},
        ),
        encoding="utf-8",
    )


def dictionary_part(home: Path) -> str:
    """What was measured of the dictionaries that ship with a lens."""
    files = sorted(home.glob("dictionary*/dictionary.json"))
    if not files:
        return ""
    described = [json.loads(file.read_text()) for file in files]
    columns = [
        {
            "measured": d["origin"]["layer"] or f"features ({d['origin']['features']})",
            "latents, active at once": f"{d['settings']['latents']}, {d['settings']['k']}",
            "vectors, pictures": f"{d['report']['vectors']:,} of {d['report']['pictures']['used']:,}",
            "held-out R2": f"{d['report']['r2']:.3f}",
            "dead, always on": f"{d['report']['dead']:.1%}, {d['report']['always_on']:.1%}",
            "top-1 without it, with it in place": f"{d['report']['fidelity']['accuracy']:.2%}, "
            f"{d['report']['fidelity']['accuracy_replaced']:.2%}",
            "pictures that keep their class": f"{d['report']['fidelity']['agreement']:.1%}",
        }
        for d in described
    ]
    rows = [f"| {name} | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0]]
    rows.insert(1, "|---" * (len(columns) + 1) + "|")
    return "## Dictionaries\n\n" + "\n".join(rows) + "\n\n"


def write_encoder_card() -> None:
    encoder = json.loads((ENCODER / "figures.json").read_text())
    shape = json.loads((ENCODER / "encoder.json").read_text())
    left_out = encoder.get("left_out")
    synonyms = sum(
        bool(line.strip()) and not line.startswith("#")
        for line in (Path(__file__).parent / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    )
    (ENCODER / "card.md").write_text(
        ENCODER_CARD.format(
            image=f"widths {shape['image']['widths']}, blocks {shape['image']['blocks']}",
            words=len(shape["words"]),
            text=f"width {shape['text']['width']}, {shape['text']['layers']} layers",
            output=shape["image"]["output"],
            size=shape["size"],
            top100=encoder["top1_of_100_from_descriptors"],
            top20="not measured" if left_out is None else f"{left_out['top1_of_20_from_descriptors']:.2%}",
            auc=encoder["pixel_phrases_mean_auc"],
            synonyms=synonyms,
            epochs=describe(encoder["epochs"]),
            left_out_epochs="" if left_out is None else describe(left_out["epochs"]),
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
