"""Lines for citing an explanation in a paper."""

from __future__ import annotations

from whylens.records.record import Record

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
}


def citation(record: Record, *, year: int | None = None) -> tuple[str, str]:
    r"""A BibTeX entry and a LaTeX line that cite a record.

    Args:
        record: what is cited.
        year: of the entry; the record has no date of its own, so it is left out by default.

    Returns:
        (BibTeX, LaTeX). The LaTeX line needs no package; the hash may be broken anywhere by ``\allowbreak``.
    """
    if record.understood:
        target = latex(str(record.content["target"]["name"]))
        contrast = record.content["contrast"]
        question = f"Why {{{target}}}" + (f" rather than {{{latex(str(contrast['name']))}}}" if contrast else "") + "?"
        title = f"{question} Explanation of an image classifier's decision"
        made_with = f"whylens {latex(str(record.content['versions'].get('whylens', '')))}".strip()
    else:
        title, made_with = "Record", "whylens"
    fields = {"title": f"{{{title}}}", "howpublished": f"{{{made_with}, record \\texttt{{{record.id}}}}}"}
    if year is not None:
        fields["year"] = f"{{{year:04d}}}"
    fields["note"] = f"{{sha256 \\texttt{{{record.sha256}}}}}"
    body = ",\n".join(f"  {key} = {value}" for key, value in fields.items())
    bibtex = f"@misc{{{record.short(12).replace(':', '-')},\n{body}\n}}"
    broken = "\\allowbreak ".join(record.sha256[i : i + 16] for i in range(0, 64, 16))
    return bibtex, f"Explanation \\texttt{{{record.id}}} ({made_with}; sha256 \\texttt{{{broken}}})"


def latex(text: str) -> str:
    """Text with the characters escaped that LaTeX and BibTeX read otherwise; control characters become spaces."""
    return "".join(_LATEX.get(c, c if c.isprintable() else " ") for c in text)
