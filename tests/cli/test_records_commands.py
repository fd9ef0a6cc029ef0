"""The verbs key, verify, bundle and merge, by their output and exit codes."""

from __future__ import annotations

import json
import stat
import sys

import pytest
from toy_lens import first_with_words

from whylens.cli import console, main
from whylens.lens import Lens
from whylens.records import Record, verify

PITH = (
    '{"metadata":{"abstract_canon_sha256":"1485dd9a4d4f51ed8d8d1b4d223a325429cc0072dc0b6e8228cf65846756ce6e",'
    '"cross_cats_sorted":[],"license":"http://arxiv.org/licenses/nonexclusive-distrib/1.0/","primary_cat":"cs.CV",'
    '"submitted_at":"2026-05-16T08:39:05Z","title_canon_sha256":'
    '"00bb8fa25e7bb4d3749e5a0e0a3d1521f4695ad245d5d055e8ed0622b41a62f3"},"schema_version":"1.0",'
    '"source":{"id":"2605.16877","kind":"arxiv","version":1}}'
)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process with keys in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.setenv("WHYLENS_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments):
        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setattr(sys, "argv", ["whylens", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def picture(lens, pictures):
    return first_with_words(lens, pictures, seed=1)


@pytest.fixture
def why(lens, picture, tmp_path, monkeypatch):
    """An explanation saved as JSON, with the lens that made it found by any name."""
    monkeypatch.setattr(Lens, "load", staticmethod(lambda source, **options: lens))
    path = tmp_path / "why.json"
    lens.explain(picture, seed=1).save(path)
    return path


def test_the_published_record(run, tmp_path):
    path = tmp_path / "pith.json"
    path.write_text(PITH)
    code, out, _ = run("verify", path)
    assert code == 0
    assert "42fcf4176f9ac9f10a0bad6b5d76976b41df96ef2e21748cc56e33f68d8dc5c7" in out
    assert "IL6PIF3PTLE7CCQLVVVV25UXNN" in out
    assert run("verify", path, "--id", "IL6PIF3P")[0] == 0
    code, out, _ = run("verify", path, "--id", "why:AAAAAAAA")
    assert code == 6
    assert "Does not verify" in out


def test_keys(run, tmp_path):
    code, out, _ = run("key", "new", "ada")
    assert code == 0
    secret = tmp_path / "config" / "keys" / "ada.key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    _, shown, _ = run("key", "show", "ada")
    assert shown.strip() in out
    assert f"ada {shown}".split() == run("key", "list")[1].split()
    code, _, err = run("key", "new", "ada")
    assert code == 2
    assert "never replaced" in err
    assert run("key", "show", "bob")[0] == 2
    assert run("key", "new", "../x")[0] == 2


def test_from_explanation_to_signed_merged_and_repeated_bundle(run, why, picture, tmp_path):
    for name in ("ada", "bob"):
        run("key", "new", name)
    assert run("verify", why)[0] == 0
    first, second, both = tmp_path / "a.zip", tmp_path / "b", tmp_path / "both.zip"
    code, out, err = run("bundle", why, "--out", first, "--picture", picture, "--sign", "ada")
    assert code == 0, err
    assert "1 created" in out
    assert run("bundle", first, "--out", second, "--sign", "bob", "--review", "I agree.")[0] == 0
    assert run("merge", first, second, why, "--out", both)[0] == 0
    assert run("merge", why, second, first, second, "--out", tmp_path / "again.zip")[0] == 0
    assert both.read_bytes() == (tmp_path / "again.zip").read_bytes()
    assert run("verify", both, "--signed-by", "ada", "--id", verify(why).records[0].short())[0] == 0
    before = len(verify(both).bundle.events)
    code, out, err = run("verify", both, "--repeat", "--lens", "any", "--sign", "bob")
    assert code == 0, out + err
    assert "Repeated with the same result" in out
    after = verify(both)
    assert after.ok
    assert [e.kind for e in after.bundle.events].count("repeated-same") == 1
    assert len(after.bundle.events) == before + 1


def test_a_repetition_with_a_difference(run, why, picture, tmp_path, lens):
    from whylens.canonical import indented_json
    from whylens.records import stamp

    content = json.loads(why.read_bytes())
    words = next(iter(content["results"].values()))
    words["phrases"][0]["score"] += 1
    why.write_bytes(indented_json(stamp(content)))
    run("key", "new", "ada")
    out_file = tmp_path / "out.zip"
    arguments = ("verify", why, "--repeat", "--lens", "any", "--picture", picture)
    code, out, _ = run(*arguments, "--sign", "ada", "--out", out_file)
    assert code == 7
    assert "Repeated with 1 differences" in out
    assert words["phrases"][0]["text"] in out
    assert [e.kind for e in verify(out_file).bundle.events] == ["repeated-different"]
    assert run(*arguments, "--relative", "10", "--absolute", "10")[0] == 0
    code, out, _ = run(*arguments, "--json")
    assert code == 7
    assert json.loads(out)["repeated"]["same"] is False
    assert run(*arguments, "--sign", "ada")[0] == 2


def test_tampering_is_located(run, why, tmp_path):
    before = why.read_bytes()
    why.write_bytes(before.replace(b'"seed": 1', b'"seed": 2', 1))
    code, out, _ = run("verify", why)
    assert code == 6
    assert "✗ " in out
    assert run("bundle", why, "--out", tmp_path / "x.zip")[0] == 6
    assert run("merge", why, "--out", tmp_path / "x.zip")[0] == 6
    assert not (tmp_path / "x.zip").exists()
    why.write_bytes(before[:-20])
    assert run("verify", why)[0] == 2


def test_superseding_and_conflicts_are_shown(run, why, lens, picture, tmp_path):
    run("key", "new", "ada")
    for seed in (2, 3):
        lens.explain(picture, seed=seed).save(tmp_path / f"{seed}.json")
        arguments = ("--sign", "ada", "--superseded-by", tmp_path / f"{seed}.json")
        assert run("bundle", why, "--out", tmp_path / f"{seed}.zip", *arguments)[0] == 0
    code, out, _ = run("merge", tmp_path / "2.zip", tmp_path / "3.zip", "--out", tmp_path / "m.zip")
    assert code == 0
    assert "Conflict, both sides kept" in out
    assert "superseded by 2 different records" in out
    code, out, _ = run("verify", tmp_path / "m.zip")
    assert code == 0
    assert "superseded by 2 different records" in out
    code, _, err = run("bundle", tmp_path / "m.zip", "--out", tmp_path / "n.zip", "--sign", "ada")
    assert code == 2
    assert "name one" in err
    name = Record.from_json(verify(why).records[0].data).short()
    assert run("bundle", tmp_path / "m.zip", "--out", tmp_path / "n.zip", "--sign", "ada", "--record", name)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "gone.json"),
        ("verify", "why.json", "--lens", "x"),
        ("verify", "why.json", "--out", "x.zip", "--repeat"),
        ("verify", "why.json", "--signed-by", "nobody"),
        ("verify", "why.json", "--id", "cat"),
        ("bundle", "why.json", "--out", "x.zip", "--review", "no key"),
        ("bundle", "why.json", "--out", "x.zip", "--sign", "nobody"),
        ("bundle", "why.json", "--out", "why.json"),
        ("bundle", "why.json", "--out", "x.zip", "--picture", "gone.png"),
        ("bundle", "why.json"),
        ("merge", "gone.zip", "--out", "x.zip"),
    ],
)
def test_wrong_use_writes_nothing_and_says_why(run, why, monkeypatch, arguments):
    monkeypatch.chdir(why.parent)
    before = why.read_bytes()
    code, _, err = run(*arguments)
    assert code == 2
    assert err.strip()
    assert why.read_bytes() == before
    assert not (why.parent / "x.zip").exists()
