"""A hundred damaged folders: each is refused, or read as its own library reads it."""

from tests.persistence import fuzz


def test_damaged_folders_are_refused_or_read_alike(tmp_path):
    said = []
    counts = fuzz.run(100, root=tmp_path / "folders", report=said.append)
    faults = [line for line in said if line.startswith(fuzz.FAULTS)]
    assert not faults, "\n".join(faults)
    assert sum(counts.values()) >= 100
    refused = [line for line in said if line.startswith("refused")]
    assert len(refused) > 10
