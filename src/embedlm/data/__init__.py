"""Files of texts and records: one `Source` for every form, and what models are trained on."""

from embedlm.data.compression import existing
from embedlm.data.readers import field_texts, read_rows, read_texts, text_source
from embedlm.data.records import Group, Pair, RecordKind, Records, read_records
from embedlm.data.source import Fields, Record, Source

__all__ = [
    "Fields",
    "Group",
    "Pair",
    "Record",
    "RecordKind",
    "Records",
    "Source",
    "existing",
    "field_texts",
    "read_records",
    "read_rows",
    "read_texts",
    "text_source",
]
