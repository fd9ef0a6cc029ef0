"""Citations: the id and hash in BibTeX and LaTeX, with nothing that would break a document."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess

import pytest
from record_zoo import make_explanation

from whylens.records import Record, citation
from whylens.records.citation import latex
from whylens.types import ClassScore


def record_of(name, contrast=None):
    base = make_explanation()
    target = dataclasses.replace(base.target, name=name)
    return Record.from_explanation(dataclasses.replace(base, target=target, contrast=contrast))


def test_both_name_the_record():
    record = record_of("tabby cat", ClassScore(5, "dog", 1.0, 0.1))
    bibtex, line = citation(record, year=2026)
    assert bibtex.startswith(f"@misc{{why-{record.code[:12]},\n")
    assert "title = {Why {tabby cat} rather than {dog}? " in bibtex
    assert "year = {2026}" in bibtex
    assert record.id in bibtex
    assert record.sha256 in bibtex
    assert record.id in line
    assert record.sha256 in re.sub(r"\\allowbreak ", "", line)
    assert "year" not in citation(record)[0]


@pytest.mark.parametrize("name", ["a_b & 50% #1 $x$ ~^", "{", "}}{", "\\end{document}", "line\nbreak\x00", "café 猫"])
def test_class_names_cannot_break_out(name):
    for text in citation(record_of(name)):
        bare = re.sub(r"\\[{}]", "", text)
        depth = 0
        for character in bare:
            depth += (character == "{") - (character == "}")
            assert depth >= 0
        assert depth == 0
        assert "\\end{document}" not in text
        assert "\x00" not in text


def test_escapes():
    assert latex("a_b&c%") == r"a\_b\&c\%"
    assert latex("\\{") == r"\textbackslash{}\{"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_the_line_compiles(tmp_path):
    _, line = citation(record_of('a_b & 50% #1 $x$ ~^ <>" {}\\'))
    (tmp_path / "t.tex").write_text(f"\\documentclass{{article}}\\begin{{document}}{line}\\end{{document}}")
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
