"""The job folder: where everything of a job lies, and how it is read. Readers trust the ledger, never a glob of data/."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from workers import storage

REUSED = "plan/reused.parquet"  # row_id, and the folder of the job that holds the row's result


def block_name(name: str) -> str:
    """The block that a ledger file (`<block>.parquet`) or a data file (`<block>-<part>.parquet`) belongs to."""
    base = name.rsplit("/", 1)[-1].removesuffix(".parquet").removesuffix(".pending")
    return base.rsplit("-", 1)[0] if "/status=" in name else base


def kind_of(spec: Mapping[str, Any]) -> str:
    """The kind of a job, with its mode, of the spec in job.json: restore, weights/sample."""
    return f"{spec['kind']}/{spec['mode']}" if spec.get("mode") else str(spec["kind"])


@dataclass(frozen=True)
class JobFolder:
    """One job's folder, local or on an object store. `uri` is absolute."""

    uri: str

    @property
    def fs(self) -> AbstractFileSystem:
        return storage.filesystem(self.uri)[0]

    @property
    def path(self) -> str:
        return storage.filesystem(self.uri)[1]

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def join(self, *parts: str) -> str:
        """Path inside the filesystem of something in the folder."""
        return storage.join(self.path, *parts)

    def join_uri(self, *parts: str) -> str:
        """URI of something in the folder."""
        return storage.join(self.uri, *parts)

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.join(name)))

    @property
    def finished(self) -> bool:
        return self.exists("_SUCCESS")

    def read_bytes(self, name: str) -> bytes:
        """A whole file of the folder. Raises FileNotFoundError."""
        data = self.fs.cat_file(self.join(name))
        assert isinstance(data, bytes)
        return data

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder, or None where there is none."""
        try:
            return json.loads(self.fs.cat_file(self.join(name)))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        storage.write_atomic(self.fs, self.join(name), json.dumps(value, indent=1, default=str).encode())

    def files(self, *parts: str, suffix: str = ".parquet") -> list[str]:
        """Paths relative to the folder of the files below one of its folders, sorted."""
        root = self.join(*parts)
        try:
            found = self.fs.find(root)
        except FileNotFoundError:
            return []
        base = self.path.rstrip("/") + "/"
        return sorted(name[name.index(base) + len(base) :] if base in name else name for name in map(str, found) if name.endswith(suffix))

    def generations(self) -> list[int]:
        """Numbers of the generations that have a plan: 0, then one a `calotype retry`."""
        return sorted({int(name.split("/")[1].removeprefix("gen-")) for name in self.files("plan") if name.startswith("plan/gen-")})

    def read_table(self, names: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table | None:
        """The rows of some Parquet files of the folder (paths relative to it), or None for no files."""
        fs, _ = storage.arrow_filesystem(self.uri)
        tables = []
        for name in names:
            with fs.open_input_file(self.join(name)) as source:
                file = pq.ParquetFile(source)
                wanted = None if columns is None else [c for c in columns if c in file.schema_arrow.names]
                tables.append(file.read(columns=wanted))
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def planned(self, generation: int = 0, columns: Sequence[str] | None = None) -> pa.Table:
        """The plan of a generation: every input column of every row that it runs."""
        table = self.read_table(self.files("plan", f"gen-{generation}"), columns)
        if table is None:
            raise FileNotFoundError(f"{self.uri} has no plan for generation {generation}")
        return table

    def planned_rows(self, generation: int, row_ids: pa.ChunkedArray) -> pa.Table:
        """The inputs of some rows of a generation; one plan file in memory at a time."""
        wanted = row_ids.combine_chunks()
        parts = []
        for name in self.files("plan", f"gen-{generation}"):
            table = self.read_table([name])
            assert table is not None
            parts.append(table.filter(pc.is_in(table["row_id"], value_set=wanted)))  # pyright: ignore[reportAttributeAccessIssue]
        return pa.concat_tables(parts)

    def committed_files(self, generation: int) -> list[str]:
        """Data files of a generation that belong to a committed ledger file (or, in a finished folder, that _manifest.json lists)."""
        listed = self.read_json("_manifest.json") if self.finished else None
        if listed is not None:
            return [f["path"] for g in listed["generations"] if g["generation"] == generation for f in g["files"]]
        committed = {block_name(name) for name in self.ledger_files(generation)}
        return [name for name in self.files("data", f"gen-{generation}") if block_name(name) in committed]

    def ledger_files(self, generation: int) -> list[str]:
        """Committed ledger files of a generation (never the .pending ones)."""
        return [n for n in self.files("ledger", f"gen-{generation}") if not n.endswith(".pending.parquet")]

    def reused(self) -> dict[str, list[str]]:
        """The ids of the rows that this job takes from earlier ones, by the URI of the folder that holds their results."""
        table = self.read_table([REUSED]) if self.exists(REUSED) else None
        found: dict[str, list[str]] = {}
        for row in table.to_pylist() if table is not None else ():
            found.setdefault(row["folder"], []).append(row["row_id"])
        return found

    def results(self, columns: Sequence[str] | None = None) -> pa.Table:
        """One row a planned row that has ended: its last generation's outputs with `status` and `generation`.

        Columns: those of data/ (or the given ones), plus `row_id`, `status` ("ok" | "failed"), `generation` (int32). Void copies are left out.
        """
        listed = self.read_json("_manifest.json") if self.finished else None
        void = {(v["path"], i) for v in (listed or {}).get("void", []) for i in v["row_ids"]}
        wanted = None if columns is None else list(dict.fromkeys(["row_id", *columns]))
        parts = []
        for generation in self.generations():
            for name in self.committed_files(generation):
                table = self.read_table([name], wanted)
                assert table is not None
                table = table.drop_columns([c for c in ("status", "generation") if c in table.column_names])
                if any(path == name for path, _ in void):
                    keep = [(name, i) not in void for i in table["row_id"].to_pylist()]
                    table = table.filter(pa.array(keep, pa.bool_()))
                status = "failed" if "/status=failed/" in name else "ok"
                table = table.append_column("status", pa.array([status] * len(table), pa.string()))
                parts.append(table.append_column("generation", pa.array([generation] * len(table), pa.int32())))
        if not parts:
            return pa.table(
                {"row_id": pa.array([], pa.string()), "status": pa.array([], pa.string()), "generation": pa.array([], pa.int32())}
            )
        table = pa.concat_tables(parts, promote_options="default")
        if len(self.generations()) > 1:  # the last generation of a row holds
            order = pc.sort_indices(table, sort_keys=[("generation", "descending")])  # pyright: ignore[reportAttributeAccessIssue]
            seen: set[str] = set()
            keep_indices = []
            for index, row_id in zip(order.to_pylist(), table["row_id"].take(order).to_pylist(), strict=True):
                if row_id not in seen:
                    seen.add(row_id)
                    keep_indices.append(index)
            table = table.take(pa.array(sorted(keep_indices), pa.int64()))
        return table


def jobs(output: str) -> Iterator[JobFolder]:
    """The job folders directly below an output folder, by name."""
    fs, path = storage.filesystem(output)
    base = str(storage.local_path(output)) if storage.scheme(output) == "file" else output
    for found in sorted(map(str, fs.ls(path, detail=False) if fs.isdir(path) else ())):
        folder = JobFolder(storage.join(base, found.rstrip("/").rsplit("/", 1)[-1]))
        if folder.exists("job.json"):
            yield folder
