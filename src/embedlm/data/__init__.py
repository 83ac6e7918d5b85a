"""Files of texts and records: one `Source` for every form, and what models are trained on."""

from embedlm.data.compression import existing
from embedlm.data.records import Group, Pair, RecordKind, Records, read_records
from embedlm.data.source import Fields, Record, Source, read_rows, read_texts

__all__ = [
    "Fields",
    "Group",
    "Pair",
    "Record",
    "RecordKind",
    "Records",
    "Source",
    "existing",
    "read_records",
    "read_rows",
    "read_texts",
]
