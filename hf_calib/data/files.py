"""Load rows from a file, a folder or the Hub, with texts as they are written."""

import json
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict, Features, ReadInstruction, Value, load_dataset, load_from_disk


FILE_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}

# Columns of a CSV file that may hold numbers. All others are read as text, so that 007, NA and 1.50 stay as they are.
NUMERIC_COLUMNS = ("answer", "cop", "preference_probability")


def load_rows(
    path: str | Path, name: str | None = None, split: str | None = None, revision: str | None = None
) -> Dataset:
    """Load rows with any columns; arguments and errors as in [`~hf_calib.load_questions`]."""
    local = Path(path).expanduser()
    if not local.exists() and (named := re.fullmatch(r"([^:]+):([^:/\\]+)(?::(.+))?", str(path))):
        path, name = named.groups()[:2]
        split = named[3] or split
        local = Path(path).expanduser()
    if local.is_file() or (local.suffix.lower() in FILE_BUILDERS and not local.exists()):
        loaded = _load_file(local, path, split)
    elif local.is_dir() and any((local / marker).exists() for marker in ("state.json", "dataset_dict.json")):
        loaded = load_from_disk(str(local))
    else:
        loaded = load_dataset(str(local if local.is_dir() else path), name, split=split, revision=revision)
    if isinstance(loaded, DatasetDict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            raise ValueError(f"{path}: choose `split` among {', '.join(loaded)} (got {split!r})")
        loaded = loaded[split]
    return loaded


def _load_file(file: Path, shown: str | Path, split: str | None) -> Dataset:
    """Load a file as one split, with the name that the caller gives it, so that slices work."""
    builder = FILE_BUILDERS.get(file.suffix.lower())
    if builder is None:
        raise ValueError(f"{shown}: unknown file type '{file.suffix}'; use one of {', '.join(FILE_BUILDERS)}")
    if not file.exists():
        raise FileNotFoundError(f"{shown}: no such file")
    split = split or "train"
    name = split.partition("[")[0]
    options = _csv_options(file) if builder == "csv" else {}
    loaded = load_dataset(builder, data_files={name: str(file)}, split=split, **options)
    # Arrow's JSON reader converts texts that look like dates.
    if builder == "json" and "timestamp[" in str(loaded.features.arrow_schema):
        rows = _json_rows(file)
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows)})
        return Dataset.from_list([row for part in parts for row in rows[part.from_ : part.to]])
    return loaded


def _csv_options(file: Path) -> dict:
    """Options of the CSV reader of datasets: columns are text, except numbers, and only an empty cell is missing."""
    reading = {"sep": "\t" if file.suffix.lower() == ".tsv" else ",", "keep_default_na": False, "na_values": [""]}
    header = pd.read_csv(file, nrows=0, **reading).columns
    numbers = pd.read_csv(file, usecols=[column for column in header if column in NUMERIC_COLUMNS], **reading).dtypes
    kinds = {column: {"i": "int64", "f": "float64"}.get(dtype.kind, "string") for column, dtype in numbers.items()}
    return {**reading, "features": Features({column: Value(kinds.get(column, "string")) for column in header})}


def _json_rows(file: Path) -> list[dict]:
    """Rows of a JSON Lines file, or of a file with one list of objects."""
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]
