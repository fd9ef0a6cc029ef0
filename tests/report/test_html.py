"""The page: self-contained, safe, complete, accessible and the same every time."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from whylens.errors import StoreError
from whylens.records import Record, citation, verify
from whylens.report import figures, pages, render_fragment, render_html, sentences, to_record
from whylens.types import HeatMap, Words

VOID = {"meta", "img", "br", "input", "link", "hr", "source", "area", "base", "col", "embed", "track", "wbr"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`<!-- {{ 7*7 }} --> & \u2028 javascript:x"


class Page(HTMLParser):
    """Elements in order with their attributes and text; unbalanced tags are collected."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.unbalanced, self.text = [], [], [], []
        self.scripts = []
        self.feed(text)
        self.close()
        self.unbalanced += self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"attribute twice in {tag}: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module", params=["cat", "cup"])
def explanation(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def text(explanation):
    return render_html(explanation)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def hostile(cat):
    """An explanation in which every free text is an attack."""
    bad = dataclasses.replace(cat.results["faithtrace"].phrases[0], text=HOSTILE, group=HOSTILE)
    words = dataclasses.replace(
        cat.results["faithtrace"],
        method=HOSTILE,
        protocol=HOSTILE,
        settings={HOSTILE: HOSTILE},
        phrases=(bad,),
        suppressing=(dataclasses.replace(bad, score=-1.0),),
        notes=(HOSTILE,),
    )
    name = dataclasses.replace(cat.target, name=HOSTILE)
    trace = cat.traces["fact"]
    trace = dataclasses.replace(
        trace,
        protocol=HOSTILE,
        contributions=tuple(dataclasses.replace(c, name=HOSTILE) for c in trace.contributions),
        remainders={HOSTILE: 1.0},
    )
    provenance = dataclasses.replace(
        cat.provenance,
        image_name=HOSTILE,
        classifier=HOSTILE,
        lens=HOSTILE,
        device=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    return dataclasses.replace(
        cat,
        prediction=dataclasses.replace(cat.prediction, top=(name, *cat.prediction.top[1:])),
        target=name,
        results={HOSTILE: words},
        maps={HOSTILE: dataclasses.replace(cat.maps["fei"], protocol=HOSTILE)},
        traces={HOSTILE: trace},
        faithfulness={HOSTILE: 0.5},
        provenance=provenance,
        notes=(HOSTILE,),
    )


def test_nothing_is_loaded_from_anywhere(text, page):
    for tag, attrs in page.elements:
        for name in ("src", "srcset", "poster", "data", "background", "action"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
        assert attrs.get("href", "#").startswith("#"), (tag, attrs)
    assert not page.all("link")
    assert not page.all("base")
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?://|//cdn|fetch\(|XMLHttpRequest|WebSocket", text)


def test_the_policy_forbids_requests_and_allows_exactly_our_script(text, page):
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_the_page_is_well_formed(page):
    assert page.unbalanced == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        for name in ("aria-labelledby", "for", "data-copy"):
            assert attrs.get(name, ids[0]) in ids, (tag, attrs)
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids
    assert page.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" and "width=device-width" in m["content"] for m in page.all("meta"))
    assert [tag for tag, _ in page.elements].count("main") == 1
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_pictures_have_alternatives_and_tables_have_captions_and_scopes(explanation, text, page):
    every = page.all("img")
    decorative = [image for image in every if image.get("aria-hidden") == "true"]
    assert len(decorative) == len(explanation.maps)
    assert all(image["alt"] == "" for image in decorative)
    images = [image for image in every if image not in decorative]
    assert len(images) == 1 + len(explanation.maps)
    assert all(len(image["alt"]) > 20 for image in images)
    assert text.count("<caption") == text.count("<table")
    assert all("scope" in attrs for attrs in page.all("th"))
    assert all(attrs.get("type") == "button" for attrs in page.all("button"))


def test_everything_that_was_found_is_on_the_page(explanation, page):
    words = page.words
    for result in explanation.results.values():
        for phrase in (*result.phrases, *result.suppressing):
            assert phrase.text in words
        assert all(note in words for note in result.notes)
    for result in (*explanation.results.values(), *explanation.maps.values(), *explanation.traces.values()):
        assert result.protocol in words
    for score in explanation.prediction.top:
        assert score.name in words
        assert f"{score.logit:.2f}" in words
    p = explanation.provenance
    for value in (p.classifier_fingerprint, p.lens_fingerprint, p.image_hash, p.pixels_hash, p.classifier, p.lens):
        assert value in words
    assert f"{p.peak_memory_mb:.1f} MB" in words
    assert "Seed" in words
    for trace in explanation.traces.values():
        assert all(c.name in words for c in trace.contributions)
        assert all(name in words for name in trace.remainders)


def test_supported_and_unsupported_rows_say_so_in_words(cat):
    text = render_html(cat)
    every = [p for w in cat.results.values() for p in (*w.phrases, *w.suppressing)]
    assert text.count('class="supported"') == sum(p.supported for p in every)
    assert text.count('class="unsupported"') == sum(not p.supported for p in every)
    row = re.search(r"<tr[^>]*><th[^>]*>a soft blanket.*?</tr>", text, re.DOTALL).group(0)
    assert "not distinguishable from chance" in row
    row = re.search(r"<tr[^>]*><th[^>]*>vertical lines.*?</tr>", text, re.DOTALL).group(0)
    assert "not clearly present" in row


def test_bars_have_the_length_of_their_numbers(cat):
    text = render_html(cat)
    row = re.search(r"<tr[^>]*><th[^>]*>long whiskers.*?</tr>", text, re.DOTALL).group(0)
    bars = [(float(s), float(w)) for s, w in re.findall(r"--s:([\d.]+)%;--w:([\d.]+)%", row)]
    assert bars[0] == pytest.approx((0, 100 * 1.377 / 1.842), abs=0.01)
    assert bars[1] == pytest.approx((50, 50 * 2.6 / 4), abs=0.01)
    assert bars[2] == pytest.approx((50, 50 * 1.42 / 1.91), abs=0.01)
    assert bars[3] == pytest.approx((0, 100 * -np.log10(0.003) / 3), abs=0.01)
    assert bars[4] == pytest.approx((0, 74), abs=0.01)
    mark = float(re.search(r'<b style="--s:([\d.]+)%', row).group(1))
    assert mark == pytest.approx(100 * -np.log10(0.05) / 3, abs=0.01)
    against = re.search(r"<tr[^>]*><th[^>]*>a slender neck.*?</tr>", text, re.DOTALL).group(0)
    start, width = (float(v) for v in re.findall(r"--s:([\d.]+)%;--w:([\d.]+)%", against)[2])
    assert start + width == pytest.approx(50, abs=0.02)


def test_the_embedded_record_is_the_record(explanation, text, page):
    block = re.search(r'<script type="application/json" id="record">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(block) == json.loads(json.dumps(to_record(explanation)))


@pytest.mark.parametrize("render", [render_html, render_fragment], ids=["page", "fragment"])
def test_hostile_texts_stay_texts(cat, render):
    bad = hostile(cat)
    text = render(bad)
    page, plain = Page(text), Page(render(cat))
    assert page.unbalanced == []
    assert len(page.all("script")) == len(plain.all("script"))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert "javascript:" not in " ".join(a.get("href", "") for _, a in page.elements)
    assert "{{ 7*7 }}" in page.words
    if render is render_html:
        block = json.loads(page.scripts[-1])
        assert block["results"][HOSTILE]["phrases"][0]["text"] == HOSTILE
        assert block["provenance"]["image_name"] == HOSTILE


def test_control_characters_and_direction_overrides_are_replaced_but_kept_in_the_record(cat):
    name = "cat\u202egnp.exe\x1b[31m\x00.png"
    shown = dataclasses.replace(cat, provenance=dataclasses.replace(cat.provenance, image_name=name))
    page = Page(render_html(shown))
    assert not re.search("[\u202e\x1b\x00]", page.words)
    assert json.loads(page.scripts[-1])["provenance"]["image_name"] == name


def test_the_same_explanation_gives_the_same_bytes(cat, tmp_path):
    cat.save(tmp_path / "a.html")
    cat.save(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert render_fragment(cat) == render_fragment(cat) == cat._repr_html_()


def test_refuses_to_overwrite_unless_told(cat, tmp_path):
    path = tmp_path / "why.html"
    path.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        cat.save(path)
    assert path.read_text() == "mine"
    cat.save(path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["why.html"]


def test_a_failing_write_leaves_nothing(cat, tmp_path, monkeypatch):
    import pathlib

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    for name in ("why.html", "why.json", "folder"):
        with pytest.raises(StoreError, match="No space left"):
            cat.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_no_phrases_and_no_words_are_said_honestly(cat):
    empty = Words("faithtrace", "words/x", {}, 281, None, ())
    none = render_html(dataclasses.replace(cat, results={"faithtrace": empty}, maps={}, traces={}, faithfulness={}))
    assert "This method returned no phrase" in Page(none).words
    assert Page(none).unbalanced == []
    silent = Page(render_html(dataclasses.replace(cat, results={})))
    assert "Evidence in words" not in silent.words
    assert silent.unbalanced == []


def test_untested_phrases_are_labelled_and_the_sentence_says_so(cat):
    words = cat.results["faithtrace"]
    untested = tuple(dataclasses.replace(p, supported=None, p_value=None, control_z=None) for p in words.phrases)
    shown = dataclasses.replace(cat, results={"f": dataclasses.replace(words, phrases=untested, suppressing=())})
    page = Page(render_html(shown))
    assert "No control was run" in page.words
    assert page.words.count("not tested") == len(untested)
    assert "because of" not in page.words
    assert "Phrases are tested" not in page.words


def test_non_ascii_phrases_and_file_names(cat, tmp_path):
    words = cat.results["faithtrace"]
    phrases = tuple(
        dataclasses.replace(words.phrases[0], text=t)
        for t in ("полосатая шерсть", "縞模様の毛皮", "نوارهای سیاه", "poil rayé")
    )
    shown = dataclasses.replace(
        cat,
        results={"f": dataclasses.replace(words, phrases=phrases)},
        provenance=dataclasses.replace(cat.provenance, image_name="猫 фото é #1?.png"),
    )
    path = tmp_path / "猫 фото é #1.html"
    shown.save(path)
    page = Page(path.read_text(encoding="utf-8"))
    assert all(p.text in page.words for p in phrases)
    assert "猫 фото é #1?.png" in page.words


def test_undecodable_file_names_can_be_written(cat, tmp_path):
    name = "caf\udce9.png"
    shown = dataclasses.replace(cat, provenance=dataclasses.replace(cat.provenance, image_name=name))
    shown.save(tmp_path / "why.html")
    page = Page((tmp_path / "why.html").read_bytes().decode("utf-8"))
    assert "caf\N{REPLACEMENT CHARACTER}.png" in page.words
    assert json.loads(page.scripts[-1])["provenance"]["image_name"] == name


def test_more_phrases_than_a_page_should_hold_are_counted(cat):
    words = cat.results["faithtrace"]
    many = tuple(dataclasses.replace(words.phrases[0], text=f"phrase {i:04d}") for i in range(300))
    page = Page(render_html(dataclasses.replace(cat, results={"f": dataclasses.replace(words, phrases=many)})))
    assert "phrase 0199" in page.words
    assert "phrase 0200" not in page.words
    assert "100 further phrases are in the record" in page.words
    assert len(json.loads(page.scripts[-1])["results"]["f"]["phrases"]) == 300


def test_sentences_name_only_supported_phrases(cat, cup):
    for explanation in (cat, cup):
        for words in explanation.results.values():
            sentence = sentences.answer(explanation, words)
            named = {s.text for s in sentence.spans if s.kind in ("for", "against")}
            assert named <= {p.text for p in (*words.phrases, *words.suppressing) if p.supported}
    main, other = sentences.headline(cat), sentences.against_runner_up(cat)
    assert str(sentences.answer(cat, main)) == (
        "It said tabby cat because of “striped fur”, “long whiskers”, “pointed ears”, “a pink nose” and 1 more; "
        "“a slender neck” spoke against it."
    )
    assert str(sentences.answer(cat, other)) == (
        "It said tabby cat rather than Egyptian cat because of “striped fur” and “a round face”; "
        "“large ears” spoke for Egyptian cat."
    )
    assert str(sentences.answer(cup, sentences.headline(cup))) == (
        "No supporting phrase passed the control, so there is no tested evidence in words "
        "for coffee mug rather than espresso."
    )
    assert str(sentences.answer(cup, cup.results["text_to_concept"])) == (
        "For every picture alike, “a handle” speaks for coffee mug rather than espresso."
    )
    assert sentences.against_runner_up(cup) is None


def test_only_suppressing_evidence(cat):
    words = cat.results["faithtrace"]
    only = dataclasses.replace(words, phrases=words.phrases[5:])
    text = str(sentences.answer(cat, only))
    assert text.startswith("No supporting phrase passed the control")
    assert text.endswith("; against it speaks “a slender neck”.")


def channel(value):
    value /= 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def luminance(colour):
    red, green, blue = (channel(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "mute", "for", "against", "neutral"])
@pytest.mark.parametrize("ground", ["bg", "panel"])
def test_text_colours_reach_contrast_aa(theme, name, ground):
    palette = (pages.TEMPLATES / "palette.css").read_text()
    block = re.search(rf"set {theme} %}}(.*?){{% endset", palette, re.DOTALL).group(1)
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", block))
    light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_overlay_is_brightest_where_the_map_is_highest():
    picture = np.full((32, 40, 3), 120, np.uint8)
    heat = np.zeros((32, 40), np.float32)
    heat[8:16, 20:30] = 3.0
    drawn = figures.overlay(picture, heat).astype(float).sum(axis=2)
    factor = drawn.shape[0] // 32
    assert drawn.shape == (32 * factor, 40 * factor)
    top, left = np.unravel_index(drawn.argmax(), drawn.shape)
    assert 8 <= top / factor < 16
    assert 20 <= left / factor < 30
    assert drawn[0, 0] < drawn.max() / 2


@pytest.mark.parametrize("array", [np.zeros((8, 8)), np.full((8, 8), np.nan), np.full((8, 8), -2.0)])
def test_flat_and_broken_maps_are_drawn_flat(cat, array):
    drawn = figures.overlay(np.full((64, 64, 3), 90, np.uint8), array.astype(np.float32))
    assert np.ptp(drawn.reshape(-1, 3), axis=0).max() == 0
    shown = dataclasses.replace(cat, maps={"m": HeatMap("m", "map/m", {}, 281, None, array.astype(np.float32))})
    assert Page(render_html(shown)).unbalanced == []


def test_ramp_rises_in_luminance():
    values = figures.ramp(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(values) > 0).all()


def test_fragment_has_scoped_styles_and_no_script(cat):
    fragment = render_fragment(cat)
    page = Page(fragment)
    assert page.unbalanced == []
    assert not page.all("script")
    assert not [a for _, a in page.elements if "id" in a]
    style = re.search(r"<style>(.*?)</style>", fragment, re.DOTALL).group(1)
    assert all(rule.strip().startswith(".whylens-why") for rule in style.split("}") if rule.strip())
    assert all(i["src"].startswith("data:") and i["alt"] for i in page.all("img"))
    assert "It said tabby cat because of" in page.words


def test_the_page_names_its_record_and_how_to_check_and_cite_it(cat):
    text = render_html(cat)
    record = Record.from_explanation(cat)
    for id_, value in (("h-id", record.id), ("h-record", record.sha256)):
        assert (
            f'<code id="{id_}">{value}</code><button type="button" class="needs-js no-print" data-copy="{id_}"' in text
        )
    shown = dict(re.findall(r'<pre id="(h-\w+)" tabindex="0">(.*?)</pre>', text, re.DOTALL))
    bibtex, latex = citation(record)
    assert html.unescape(shown["h-verify"]) == f"whylens verify chelsea.whylens.json --id {record.id}"
    assert html.unescape(shown["h-bibtex"]) == bibtex
    assert html.unescape(shown["h-latex"]) == latex
    for id_ in shown:
        assert f'data-copy="{id_}"' in text


def test_the_page_itself_can_be_verified(cat, tmp_path):
    cat.save(tmp_path / "why.html")
    found = verify(tmp_path / "why.html", expected_id=Record.from_explanation(cat).id)
    assert found.ok, found.failures


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script with")
def test_the_download_is_the_record_byte_by_byte(cat, tmp_path):
    name = HOSTILE + "\\u003c \\\\u0026 \\"
    explanation = dataclasses.replace(
        cat, notes=(name,), provenance=dataclasses.replace(cat.provenance, seed=2**60 + 1)
    )
    block = re.search(r'id="record">(.*?)</script>', render_html(explanation), re.DOTALL).group(1)
    function = re.search(
        r"function unescaped.*?\n    }\n", (pages.TEMPLATES / "explanation.js").read_text(encoding="utf-8"), re.DOTALL
    ).group(0)
    (tmp_path / "block").write_text(block, encoding="utf-8")
    program = (
        f"{function}\nconst fs=require('fs');const d={json.dumps(str(tmp_path))};"
        "fs.writeFileSync(d+'/why.json',unescaped(fs.readFileSync(d+'/block','utf8'))+'\\n')"
    )
    subprocess.run(["node", "-e", program], check=True, timeout=60)
    found = verify(tmp_path / "why.json", expected_id=Record.from_explanation(explanation).id)
    assert found.ok, found.failures
