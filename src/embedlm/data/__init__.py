"""Files of texts and records: one `Source` for every form, and what models are trained on."""

from embedlm.data.compression import existing
from embedlm.data.readers import field_texts, read_rows, read_texts, text_source
from embedlm.data.records import Group, Pair, RecordKind, Records, read_records
from embedlm.data.source import Fields, Record, Source
from embedlm.data.training_record import Document, TrainingRecord, training_records
from embedlm.data.writers import RECORD_FORMS, check_form, record_lines

__all__ = [
    "RECORD_FORMS",
    "Document",
    "Fields",
    "Group",
    "Pair",
    "Record",
    "RecordKind",
    "Records",
    "Source",
    "TrainingRecord",
    "check_form",
    "existing",
    "field_texts",
    "read_records",
    "read_rows",
    "read_texts",
    "record_lines",
    "text_source",
    "training_records",
]
