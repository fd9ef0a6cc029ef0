from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from whylens.cli import main
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.lens import Atlas, Lens, build_atlas
from whylens.randomness import torch_generator


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from whylens.cli import console

        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["whylens", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def dictionary_of(lens: Lens, layer: str | None = None) -> Dictionary:
    at = lens.classifier if layer is None else lens.classifier.at(layer)
    generator = torch_generator(4, "concepts command")
    decoder = normalize(torch.randn(16, at.width, generator=generator), dim=1)
    return Dictionary(
        decoder,
        decoder,
        DictionarySettings(kind="topk", k=4, bias=False, centre=False),
        origin=Origin.of(at),
        frequency=torch.linspace(0.1, 0.9, 16),
    )


@pytest.fixture
def seeing(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> Lens:
    made = replace(lens, dictionary=dictionary_of(lens), more_dictionaries=(dictionary_of(lens, "stages"),))
    monkeypatch.setattr(Lens, "load", staticmethod(lambda source, **options: made))
    return made


@pytest.fixture
def atlas(seeing: Lens, pictures: list[Path], tmp_path: Path) -> Path:
    """An atlas with one name that is certain to be there."""
    made = build_atlas(seeing, pictures[:24], shown=3, backbone=None)
    latents = list(made.latents)
    place = next(k for k, latent in enumerate(latents) if latent.state != "dead")
    latents[place] = replace(latents[place], name=replace(latents[place].name, name="striped fur", q_value=0.01))
    return Atlas(tuple(latents), made.meta, made.tensors).save(tmp_path / "atlas")


def striped(atlas: Path) -> int:
    return next(latent.index for latent in Atlas.load(atlas).latents if latent.name.name == "striped fur")


def test_an_atlas_is_built_listed_and_its_latents_shown(
    run, seeing: Lens, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "made"
    options = ("--images", pictures[0].parent, "--limit", 30, "--backbone", "none", "--shown", 3)
    code, text, err = run("concepts", "build", "toy", "--out", out, *options)
    assert code == 0, err
    assert "16 latents of the input of fc" in text
    assert "on 30 pictures" in text
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    code, _, err = run("concepts", "build", "toy", "--out", out, *options)
    assert code == 2
    assert "exists already" in err
    code, text, _ = run("concepts", "list", out, "--sort", "number", "--limit", 0, "--json")
    listed = json.loads(text)
    living = [latent for latent in Atlas.load(out).latents if latent.state != "dead"]
    assert [row["index"] for row in listed] == [latent.index for latent in living]
    code, text, _ = run("concepts", "list", out, "--limit", 2)
    assert f"{len(living) - 2} more" in text
    first = living[0]
    code, text, _ = run("concepts", "show", out, first.index)
    assert code == 0
    assert f"Latent {first.index}: {first.title}" in text
    assert first.top[0].source in text
    code, text, _ = run("concepts", "show", out, first.index, "--json")
    assert json.loads(text) == first.to_dict()


def test_a_layer_with_positions_and_a_page_at_once(run, seeing: Lens, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "stages.html"
    code, text, err = run(
        "concepts", "build", "toy", "--images", pictures[0].parent, "--limit", 20, "--layer", "stages", "--out", out
    )
    assert code == 0, err
    assert "output of stages" in text
    assert "Maps: activation map" in text
    assert [p.name for p in tmp_path.iterdir()] == ["stages.html"]
    page = out.read_text(encoding="utf-8")
    assert "enlarged to the picture" in page
    code, _, err = run("concepts", "build", "toy", "--images", pictures[0], "--layer", "stage", "--out", tmp_path / "x")
    assert code == 2
    assert "'stages'" in err


def test_an_interrupted_build_goes_on(
    run, seeing: Lens, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whylens.lens import atlas_building

    real = atlas_building.map_latents

    def interrupted(*arguments: object, **options: object) -> list[str]:
        raise KeyboardInterrupt

    out = tmp_path / "made"
    options = ("--images", pictures[0].parent, "--limit", 12, "--out", out)
    monkeypatch.setattr(atlas_building, "map_latents", interrupted)
    code, _, _ = run("concepts", "build", "toy", *options)
    assert code != 0
    assert not out.exists()
    assert (tmp_path / "made.unfinished" / "read-00000.safetensors").is_file()
    monkeypatch.setattr(atlas_building, "map_latents", real)
    read = []
    from whylens.lens.latents import LatentReader

    whole = LatentReader.read
    monkeypatch.setattr(LatentReader, "read", lambda self, x: (read.append(len(x)), whole(self, x))[1])
    code, _, err = run("concepts", "build", "toy", *options)
    assert code == 0, err
    assert read == []
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_lens_is_listed_without_pictures(run, seeing: Lens) -> None:
    code, text, err = run("concepts", "list", "toy", "--limit", 3)
    assert code == 0, err
    assert "16 latents" in text
    assert "90.0%" in text
    code, text, _ = run("concepts", "list", "toy", "--json")
    assert len(json.loads(text)) == 16
    code, _, err = run("concepts", "list", "toy", "--layer", "stages")
    assert code == 2
    assert "build an atlas" in err


def test_search_by_name_and_by_phrase(run, atlas: Path, encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import whylens.encoders

    monkeypatch.setattr(whylens.encoders, "load_encoder", lambda source, **options: encoder)
    number = striped(atlas)
    code, text, err = run("concepts", "search", atlas, "striped fur", "--json", "--no-phrase")
    assert code == 0, err
    found = json.loads(text)
    assert found["names"][0]["index"] == number
    assert found["phrase"] == []
    code, text, _ = run("concepts", "search", atlas, "grey plant", "--phrase", "--json", "--limit", 4)
    near = json.loads(text)["phrase"]
    assert len(near) == 4
    assert [row["z"] for row in near] == sorted((row["z"] for row in near), reverse=True)
    code, text, _ = run("concepts", "search", atlas, "unheard of")
    assert code == 0
    assert "No latent has 'unheard of'" in text
    assert "Not searched by phrase" in text
    code, _, err = run("concepts", "search", atlas, "unheard of", "--phrase")
    assert code == 2


def test_the_page_is_self_contained_and_escaped(run, atlas: Path, tmp_path: Path) -> None:
    meta = json.loads((atlas / "atlas.json").read_text())
    meta["latents"][0]["name"]["name"] = "<script>alert(1)</script>"
    (atlas / "atlas.json").write_text(json.dumps(meta))
    out = tmp_path / "atlas.html"
    code, text, err = run("concepts", "page", atlas, "--out", out)
    assert code == 0, err
    living = [latent for latent in Atlas.load(atlas).latents if latent.state != "dead"]
    assert f"{len(living)} latents" in text
    page = out.read_text(encoding="utf-8")
    assert page.count('class="card"') == len(living)
    assert page.count("data:image/webp") == len(living)
    assert "<script>alert(1)" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "default-src 'none'" in page
    code, _, err = run("concepts", "page", atlas, "--out", out)
    assert code == 2
    code, text, _ = run("concepts", "page", atlas, "--out", out, "--limit", 2, "--overwrite")
    assert out.read_text(encoding="utf-8").count('class="card"') == 2
    assert f"{len(living) - 2} more living latents" in out.read_text(encoding="utf-8")


def test_one_latent_as_a_page(run, atlas: Path, tmp_path: Path) -> None:
    number = striped(atlas)
    code, _, err = run("concepts", "show", atlas, number, "--out", tmp_path / "one.html")
    assert code == 0, err
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 1
    assert f"striped fur, latent {number}" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "ATLAS", "--sort", "activty"), "'activity'"),
        (("list", "ATLAS", "--class", "unicorn"), "class"),
        (("show", "ATLAS", 99), "from 0 to 15"),
        (("show", "nowhere", 1), "no such folder"),
        (("search", "ATLAS", " "), "at least one word"),
        (("page", "nowhere", "--out", "x.html"), "no such folder"),
    ],
)
def test_bad_input(run, atlas: Path, arguments: tuple[object, ...], message: str) -> None:
    code, _, err = run("concepts", *(atlas if a == "ATLAS" else a for a in arguments))
    assert code == 2
    assert message in err
