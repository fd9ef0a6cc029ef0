"""One self-contained HTML page for one explanation."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from PIL import Image

from whylens.canonical import canonical_json
from whylens.registry import register_writer
from whylens.report import figures, maps, pages, traces, units, view
from whylens.report import sentences as answers
from whylens.report.record import encode, to_record
from whylens.store import atomic_file
from whylens.types import Explanation

# Below this many pixels a side, enlarging shows the pixels as they are: that is what the classifier saw.
SMALL_PICTURE = 128


def render_html(explanation: Explanation) -> str:
    """The page as text: the same explanation gives the same text.

    It asks for nothing over the network, works without JavaScript, and holds the record.
    """
    script, policy = pages.script("theme.js", "explanation.js")
    runner_up = answers.against_runner_up(explanation)
    main = answers.headline(explanation)
    content = to_record(explanation)
    record_name = f"{PurePath(explanation.provenance.image_name).stem or 'picture'}.whylens.json"
    return (
        pages.environment()
        .get_template("explanation.html.j2")
        .render(
            e=explanation,
            script=script,
            script_policy=policy,
            picture_uri=figures.data_uri(figures.png_bytes(explanation.picture)),
            pixelated=max(explanation.picture.shape[:2]) <= SMALL_PICTURE,
            predicted=explanation.prediction.top[0] if explanation.prediction.top else explanation.target,
            sentence=None if main is None else answers.answer(explanation, main),
            runner_up_sentence=None if runner_up is None else answers.answer(explanation, runner_up),
            main=main,
            runner_up=runner_up,
            tested=any(
                p.supported is not None for w in explanation.results.values() for p in (*w.phrases, *w.suppressing)
            ),
            classes=view.prediction_rows(explanation),
            margin=view.margin(explanation),
            sections=view.sections(explanation),
            unit_table=units.unit_table,
            maps=maps.map_figures(explanation),
            under_uri=_under(explanation)
            if explanation.maps or explanation.phrase_maps or explanation.concept_maps
            else "",
            phrase_maps=maps.phrase_maps(explanation),
            measuring=maps.measuring_cost(explanation),
            chart=maps,
            ramp=figures.ramp_css(),
            signed=figures.signed_css(),
            traces=traces.trace_tables(explanation),
            measured=view.measured(explanation),
            faithfulness=view.faithfulness_rows(explanation),
            record=pages.embedded_json(canonical_json(content).decode("utf-8")),
            record_name=record_name,
            identity=view.identity(content["record"], record_name),
        )
    )


def _under(explanation: Explanation) -> str:
    """The picture that lies under every map; it is repeated for each, so that large ones are compressed."""
    if max(explanation.picture.shape[:2]) <= SMALL_PICTURE:
        return figures.data_uri(figures.png_bytes(explanation.picture))
    return figures.data_uri(figures.jpeg_bytes(Image.fromarray(explanation.picture), 85), "image/jpeg")


@register_writer(".html")
def write_html(explanation: Explanation, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the page, atomically.

    Raises:
        StoreError: when ``path`` exists and ``overwrite`` is false, or cannot be written.
    """
    target = Path(path)
    data = encode(render_html(explanation))
    with atomic_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return target
