"""Records: an explanation that can be cited by an id, checked byte by byte, signed, passed on, merged and repeated."""

from whylens.records.archive import DEFAULT_LIMITS, Container, Limits, read_container, read_zip, write_bundle, zip_bytes
from whylens.records.bundle import Bundle, Conflict, bundle_explanation, bundle_plain, merge, with_picture
from whylens.records.citation import citation
from whylens.records.errors import KeyStoreError, RecordError
from whylens.records.events import EVENT_KINDS, Event
from whylens.records.files import stamp
from whylens.records.findings import Finding, Level
from whylens.records.keys import PublicKey, SigningKey, config_folder, list_keys, new_key, public_key, signing_key
from whylens.records.reading import read_json
from whylens.records.record import Record
from whylens.records.repeat import Difference, Repetition, Tolerance, find_lens, repeat
from whylens.records.verify import Verification, verify

__all__ = [
    "DEFAULT_LIMITS",
    "EVENT_KINDS",
    "Bundle",
    "Conflict",
    "Container",
    "Difference",
    "Event",
    "Finding",
    "KeyStoreError",
    "Level",
    "Limits",
    "PublicKey",
    "Record",
    "RecordError",
    "Repetition",
    "SigningKey",
    "Tolerance",
    "Verification",
    "bundle_explanation",
    "bundle_plain",
    "citation",
    "config_folder",
    "find_lens",
    "list_keys",
    "merge",
    "new_key",
    "public_key",
    "read_container",
    "read_json",
    "read_zip",
    "repeat",
    "signing_key",
    "stamp",
    "verify",
    "with_picture",
    "write_bundle",
    "zip_bytes",
]
