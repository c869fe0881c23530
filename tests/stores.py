"""What a store holds, for comparison."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """What a run left beside its record, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "record.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
