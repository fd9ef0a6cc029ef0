"""Coverage-guided fuzzing of the record, event and bundle readers: they may refuse bytes, never fail otherwise.

    pip install atheris && python tests/fuzz/fuzz_records.py -max_total_time=60

Not collected by pytest, because atheris has no wheels for every platform.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["whylens.records", "whylens.canonical"]):
    from whylens.errors import WhylensError
    from whylens.records import Event, Record, read_zip

READERS = (Record.from_json, Event.from_json, read_zip)


def read(data: bytes) -> None:
    """The first byte chooses the reader; any error but a WhylensError is a finding."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except WhylensError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
