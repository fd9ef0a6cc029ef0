"""The index over many pictures: right counts, safe links, rebuilt from entries after an interruption."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from PIL import Image

from whylens.errors import InputError, StoreError
from whylens.report import (
    append_entry,
    failure_entry,
    index_entry,
    read_entries,
    write_index,
    write_thumbnail,
)
from whylens.report.index import summarise

HOSTILE = "</script><img src=x onerror=alert(1)>\"' & <!--"


class Index(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.unbalanced, self.text = [], [], [], []
        self.feed(text)
        self.close()
        self.unbalanced += self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture
def entries(cat, cup):
    return [
        index_entry(cat, "pages/chelsea.html", "thumbnails/chelsea.jpg", source="a/chelsea.png"),
        index_entry(cup, "pages/coffee.html", "thumbnails/coffee.jpg", source="b/coffee.png"),
        {**index_entry(cat, "pages/other.html", source="c/other.png"), "supported": ["striped fur", "zebra crossing"]},
    ]


@pytest.fixture
def index(entries, tmp_path):
    failures = [failure_entry("d/broken.jpg", ValueError("broken.jpg is damaged or truncated."))]
    return Index(write_index(entries, tmp_path, failures, title="holiday").read_text(encoding="utf-8"))


def test_entries_are_plain_and_name_what_passed(entries):
    assert json.loads(json.dumps(entries)) == entries
    cat, cup, _ = entries
    assert cat["supported"] == ["striped fur", "long whiskers", "pointed ears", "a pink nose", "orange and brown"]
    assert cat["against"] == ["a slender neck"]
    assert (cup["class"], cup["predicted"], cup["contrast"]) == ("coffee mug", "espresso", "espresso")
    assert cup["supported"] == []
    assert cup["tested"]


def test_summary_counts_each_phrase_once_a_picture(entries):
    summary = summarise(entries)
    assert (summary.pictures, summary.with_support, summary.untested) == (3, 2, 0)
    assert summary.phrases[0] == ("striped fur", 2)
    assert dict(summary.phrases)["zebra crossing"] == 1
    assert [text for text, _ in summary.phrases[1:]] == sorted(text for text, _ in summary.phrases[1:])
    cats, cups = summary.classes
    assert (cats.name, cats.pictures, cats.phrases[0]) == ("tabby cat", 2, ("striped fur", 2))
    assert (cups.name, cups.phrases) == ("coffee mug", ())


def test_index_shows_cards_summary_and_failures(index):
    assert index.unbalanced == []
    assert len([a for a in index.all("li") if a.get("class") == "card"]) == 3
    assert {unquote(a["href"]) for a in index.all("a") if a["href"].startswith("./")} == {
        "./pages/chelsea.html",
        "./pages/coffee.html",
        "./pages/other.html",
    }
    for text in ("holiday", "a/chelsea.png", "d/broken.jpg", "broken.jpg is damaged or truncated.", "no thumbnail"):
        assert text in index.words
    assert "no phrase told from chance" in index.words
    assert all(i["alt"] and i["loading"] == "lazy" for i in index.all("img"))
    ids = [a["id"] for _, a in index.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["for"] in ids for a in index.all("label"))
    controls = [a["id"] for tag in ("input", "select") for a in index.all(tag)]
    assert sorted(controls) == sorted(a["for"] for a in index.all("label"))


def test_index_loads_only_what_lies_beside_it(index):
    for tag, attrs in index.elements:
        for name in ("src", "href"):
            assert attrs.get(name, "./").startswith(("./", "#")), (tag, attrs)
    assert not index.all("link")
    policy = next(m["content"] for m in index.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_hostile_names_stay_names(entries, tmp_path):
    bad = {
        **entries[0],
        "source": HOSTILE,
        "class": HOSTILE,
        "predicted": HOSTILE,
        "supported": [HOSTILE],
        "lens": HOSTILE,
    }
    text = write_index([bad], tmp_path, [failure_entry(HOSTILE, HOSTILE)], title=HOSTILE).read_text(encoding="utf-8")
    page = Index(text)
    assert page.unbalanced == []
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_links_survive_special_characters(cat, tmp_path):
    name = "pages/猫 #1? 100% a:b&c.html"
    text = write_index([index_entry(cat, name)], tmp_path).read_text(encoding="utf-8")
    (link,) = [a["href"] for a in Index(text).all("a") if a["href"].startswith("./")]
    assert unquote(link) == f"./{name}"
    assert not set("#?: ") & set(link)


@pytest.mark.parametrize("page", ["/etc/passwd", "../secret.html", "a/../../b.html", "", "a\\b.html"])
def test_paths_outside_the_folder_are_refused(cat, page):
    with pytest.raises(InputError, match="relative path"):
        index_entry(cat, page)


def test_entries_survive_an_interruption(entries, tmp_path):
    path = tmp_path / "run" / "entries.jsonl"
    assert read_entries(path) == ([], [])
    append_entry(path, entries[0])
    append_entry(path, failure_entry("b/coffee.png", OSError("gone")))
    with path.open("ab") as handle:
        handle.write(b'{"status": "explained", "sour')
    results, failures = read_entries(path)
    assert results == [entries[0]]
    assert failures == [{"status": "failed", "source": "b/coffee.png", "error": "gone", "kind": "OSError"}]
    append_entry(path, entries[1])
    results, failures = read_entries(path)
    assert results == [entries[0], entries[1]]
    assert failures == []


def test_non_ascii_and_undecodable_sources_come_back(entries, tmp_path):
    path = tmp_path / "entries.jsonl"
    for source in ("猫/фото é.png", "caf\udce9.png"):
        append_entry(path, {**entries[0], "source": source})
    results, _ = read_entries(path)
    assert [e["source"] for e in results] == ["猫/фото é.png", "caf\udce9.png"]
    write_index(results, tmp_path)


def test_damage_inside_the_entries_is_named(entries, tmp_path):
    path = tmp_path / "entries.jsonl"
    append_entry(path, entries[0])
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(StoreError, match="Line 1"):
        read_entries(path)


def test_index_refuses_to_overwrite_and_is_deterministic(entries, tmp_path):
    first = write_index(entries, tmp_path).read_bytes()
    with pytest.raises(StoreError, match="exists already"):
        write_index(entries[:1], tmp_path)
    assert (tmp_path / "index.html").read_bytes() == first
    assert write_index(entries, tmp_path, overwrite=True).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_thousand_cards_stay_small(entries, tmp_path):
    many = [{**entries[i % 2], "source": f"{i:04d}.jpg", "page": f"pages/{i:04d}.html"} for i in range(1000)]
    text = write_index(many, tmp_path).read_text(encoding="utf-8")
    assert text.count('class="card"') == 1000
    assert len(text) < 2_000_000
    assert "data:image" not in text
    assert re.search(r"content-visibility:\s*auto", text)


def test_empty_runs_have_an_index(tmp_path):
    page = Index(write_index([], tmp_path, [failure_entry("x.jpg", "empty (0 bytes)")]).read_text(encoding="utf-8"))
    assert page.unbalanced == []
    assert "No picture has been explained yet" in page.words
    assert "empty (0 bytes)" in page.words


def test_thumbnails_are_small_jpegs(cat, cup, tmp_path):
    large = write_thumbnail(cat, tmp_path / "t" / "cat.jpg")
    assert Image.open(large).size == (224, 224)
    assert large.stat().st_size < 40_000
    assert Image.open(write_thumbnail(cup, tmp_path / "cup.jpg")).size == (64, 64)
    with pytest.raises(StoreError, match="exists already"):
        write_thumbnail(cat, large)
