"""Load rows from a file, a folder or the Hub, with texts as they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    DownloadManager,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from huggingface_hub import snapshot_download
from huggingface_hub.utils import HFValidationError

from .csv_files import CsvTable, read_csv
from .json_files import read_json
from .text_files import FileError, TextRecords


TEXT_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
FILE_KINDS = {".parquet": "parquet", **TEXT_KINDS}


def file_kind(path: str | Path) -> str | None:
    """Kind of a file by its name, without `.gz`: `"parquet"`, `"csv"`, `"json"`, or `None`."""
    name = str(path).lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    return FILE_KINDS.get(suffix) if not name.endswith(".gz") or suffix in TEXT_KINDS else None


def read_records(path: str | Path, kind: str | None = None) -> TextRecords:
    """
    Read a CSV, TSV, JSON or JSON Lines file, compressed by gzip or not, without changing a value.

    Args:
        path (`str` or `Path`):
            The file. A CSV file of the original MMLU, without a header, gets the columns `question`, `A`, `B`, ...,
            `answer`, `subject`.
        kind (`str`, *optional*):
            `"csv"` or `"json"`. Defaults to the kind that the name says.

    Returns:
        [`~hf_calib.data.text_files.TextRecords`]

    Raises:
        [`~hf_calib.data.text_files.FileError`]: for a file that cannot be read; it names file, line and column.
    """
    if (kind or file_kind(path)) == "json":
        return read_json(path)
    table = read_csv(path)
    return _mmlu_records(table) if _is_mmlu(table) else table.records()


def _is_mmlu(table: CsvTable) -> bool:
    """Whether every row, also the first, is a question, its options and the letter of the right one."""
    width = len(table.cells[0])
    letters = [chr(ord("A") + place) for place in range(width - 2)]
    return width >= 4 and all(row[-1].strip() in letters for row in table.cells) and "A" not in table.cells[0][:-1]


def _mmlu_records(table: CsvTable) -> TextRecords:
    options = [chr(ord("A") + place) for place in range(len(table.cells[0]) - 2)]
    records = table.records(["question", *options, "answer"])
    if named := re.fullmatch(r"(\w+)_(test|val|dev)", Path(str(table.name).removesuffix(".gz")).stem):
        records.column_names.append("subject")
        for row in records.rows:
            row["subject"] = named[1]
    return records


def load_records(
    path: str | Path, name: str | None = None, split: str | None = None, revision: str | None = None
) -> Dataset | TextRecords:
    """
    Load rows with any columns, those of text files as they are written.

    Arguments and errors are those of [`~hf_calib.load_questions`].
    """
    local = Path(path).expanduser()
    if not local.exists() and (named := re.fullmatch(r"([^:]+):([^:/\\]+)(?::(.+))?", str(path))):
        path, name = named.groups()[:2]
        split = named[3] or split
        local = Path(path).expanduser()
    if local.is_file() or (file_kind(local) and not local.exists()):
        return _load_file(local, path, split)
    if local.is_dir() and any((local / marker).exists() for marker in ("state.json", "dataset_dict.json")):
        return _saved_rows(load_from_disk(str(local)), path, split)
    source = str(local if local.is_dir() else path)
    builder = _builder(source, name, revision)
    if (files := _text_files(builder)) is not None:
        return _load_text(files, source, split)
    builder.download_and_prepare()
    loaded = builder.as_dataset(split=split)
    if isinstance(loaded, DatasetDict):
        loaded = loaded[_only_split(list(loaded), path, split)]
    return loaded


def _saved_rows(loaded: Dataset | DatasetDict, path: str | Path, split: str | None) -> Dataset:
    """Rows of a split of a saved data set, or of slices. One without splits has any name, as a file has."""
    if isinstance(loaded, Dataset):
        if split is None or "[" not in split:
            return loaded
        loaded = DatasetDict({_split_names(split)[0]: loaded})
    if split is None or not set(_split_names(split)) <= set(loaded):
        return loaded[_only_split(list(loaded), path, split)]
    return concatenate_datasets(_slices(loaded, split))


def _builder(path: str, name: str | None, revision: str | None) -> DatasetBuilder:
    """Builder of a folder or a data set on the Hub. Without a connection, one of the files that were read before."""
    try:
        return load_dataset_builder(path, name, revision=revision)
    except OSError:
        # The cache of datasets holds no text files, which are read here.
        if Path(path).is_dir():
            raise
        try:
            files = snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True)
        except (OSError, HFValidationError):
            files = None
        if files is None or not any(file_kind(file) for file in Path(files).rglob("*")):
            raise
        return load_dataset_builder(files, name)


def _only_split(names: Sequence[str], path: str | Path, split: str | None) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        raise ValueError(f"{path}: choose `split` among {', '.join(names)} (got {split!r})")
    return split


def _load_file(file: Path, shown: str | Path, split: str | None) -> Dataset | TextRecords:
    """Load a file as one split, with the name that the caller gives it, so that slices work."""
    kind = file_kind(file)
    if kind is None:
        raise ValueError(
            f"{shown}: unknown file type '{file.suffix}'; use one of {', '.join(FILE_KINDS)} (text also as .gz)"
        )
    if not file.exists():
        raise FileNotFoundError(f"{shown}: no such file")
    split = split or "train"
    if kind == "parquet":
        return load_dataset("parquet", data_files={split.partition("[")[0]: str(file)}, split=split)
    return _sliced({split.partition("[")[0]: read_records(file)}, split)


def _text_files(builder: DatasetBuilder) -> dict[str, list[str]] | None:
    """CSV or JSON files of each split of a folder or a data set on the Hub; `None` if it has others."""
    files = getattr(builder.config, "data_files", None)
    options = {"sep", "delimiter", "names", "column_names", "field"}  # a data card may set them
    if builder.name not in ("csv", "json") or not files:
        return None
    plain = type(builder.config)()
    if any(getattr(builder.config, option, None) != getattr(plain, option, None) for option in options):
        return None
    if not all(file_kind(str(file).partition("?")[0]) for part in files.values() for file in part):
        return None
    return {str(part): list(map(str, names)) for part, names in files.items()}


def _load_text(files: dict[str, list[str]], path: str, split: str | None) -> TextRecords:
    split = split or _only_split(list(files), path, split)
    wanted = _split_names(split)
    if missing := [part for part in wanted if part not in files]:
        raise ValueError(f"{path}: choose `split` among {', '.join(files)} (got {missing[0]!r})")
    parts = {}
    for part in wanted:
        paths = DownloadManager().download(files[part])
        # The name of a downloaded file has no suffix.
        read = [read_records(local, file_kind(file)) for file, local in zip(files[part], paths, strict=True)]
        parts[part] = _joined(read)
    return _sliced(parts, split)


def _split_names(split: str) -> list[str]:
    """Names of the splits in a sum of slices such as `train[:100]+test`."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _slices(parts: Mapping[str, Any], split: str) -> list:
    """Rows of each slice in a sum of them."""
    spec = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in parts.items()})
    return [parts[part.splitname].select(range(part.from_, part.to)) for part in spec]


def _sliced(parts: Mapping[str, TextRecords], split: str) -> TextRecords:
    """Rows of a sum of slices. Those of a single one keep their lines."""
    chosen = _slices(parts, split)
    return chosen[0] if len(chosen) == 1 else _joined(chosen)


def _joined(records: Sequence[TextRecords]) -> TextRecords:
    """Rows of several files or slices, with the columns of all."""
    columns = list(dict.fromkeys(column for each in records for column in each.column_names))
    return TextRecords([row for each in records for row in each.rows], columns)


def to_dataset(records: Dataset | TextRecords, path: str | Path) -> Dataset:
    """Rows as a data set. Only a column of both texts and numbers changes: it becomes text."""
    if isinstance(records, Dataset):
        return records
    columns = {}
    for name in records.column_names:
        values = [row.get(name) for row in records.rows]
        columns[name] = _array(values, name, path)
    return Dataset(pa.table(columns))


def _array(values: list[Any], name: str, path: str | Path) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if any(isinstance(value, (list, dict)) for value in values):
            raise FileError(path, "the values have different types in different rows", column=name) from None
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array
