"""Reports: one HTML page, the JSON record, a folder, a notebook fragment, a terminal view, an index over many pictures.

Importing this room registers the writers that `Explanation.save` and notebooks use.
"""

from whylens.report.folder import write_folder
from whylens.report.html import render_html, write_html
from whylens.report.index import (
    append_entry,
    failure_entry,
    index_entry,
    read_entries,
    write_index,
    write_thumbnail,
)
from whylens.report.notebook import render_fragment
from whylens.report.record import load_record, to_record, write_record
from whylens.report.sentences import Sentence, Verdict, answer, headline, verdict
from whylens.report.terminal import TerminalLine, TerminalView, terminal_line

__all__ = [
    "Sentence",
    "TerminalLine",
    "TerminalView",
    "Verdict",
    "answer",
    "append_entry",
    "failure_entry",
    "headline",
    "index_entry",
    "load_record",
    "read_entries",
    "render_fragment",
    "render_html",
    "terminal_line",
    "to_record",
    "verdict",
    "write_folder",
    "write_html",
    "write_index",
    "write_record",
    "write_thumbnail",
]
