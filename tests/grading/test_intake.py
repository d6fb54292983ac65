"""Whatever is handed in ends as plain files and one sentence per thing that is not right."""

import io
import json
import os
import shutil
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from labkit.chain import STAGES
from labkit.grading import find_notebooks, submission, unpack
from labkit.grading.find_notebooks import NotebookFound
from labkit.grading.find_submissions import Source, find_submissions, safe_name
from labkit.grading.grade import reference_notebooks
from labkit.grading.notebook import IntakeError, read_notebook
from labkit.grading.results import AMBIGUOUS, GRADED, INVALID, MISSING, REJECTED
from labkit.grading.student_notebook import with_stubs
from labkit.grading.submission import Intake, take_in
from labkit.grading.untrusted import open_plain
from labkit.workspace import project_root

STAGE = STAGES[0]
Files = dict[str, bytes]


def notebook(*ids: str, source: str = "1") -> bytes:
    """A notebook whose cells carry the names of exercises."""
    cells = [new_code_cell(source, id=f"c{number}") for number in range(len(ids) or 1)]
    for cell, name in zip(cells, ids, strict=False):
        cell.metadata["nbgrader"] = {"grade_id": name}
    return nbformat.writes(new_notebook(cells=cells)).encode()


def reference(*ids: str, source: str = "1") -> NotebookNode:
    return nbformat.reads(notebook(*ids, source=source).decode(), as_version=4)


REFERENCES = {
    "01_data": reference("ex-01-leak", "check-01-leak", "ex-01-statistics"),
    "02_train": reference("ex-02-calibration", "check-02-calibration"),
}


def write_folder(root: Path, files: Files) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, entries: "list[tuple[str | zipfile.ZipInfo, bytes]]") -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # names that come twice are meant
        for name, content in entries:
            archive.writestr(name, content)
    return path


@pytest.fixture
def take_folder(tmp_path: Path) -> Callable[..., Intake]:
    def take(files: Files) -> Intake:
        folder = write_folder(tmp_path / "ada", files)
        return take_in(Source("ada", {"": folder}), tmp_path / "staging", REFERENCES)

    return take


@pytest.fixture
def take_zip(tmp_path: Path) -> Callable[..., Intake]:
    def take(entries: "list[tuple[str | zipfile.ZipInfo, bytes]]") -> Intake:
        path = write_zip(tmp_path / "ada.zip", entries)
        return take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)

    return take


def everything_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


# ---- which submissions there are


def test_folders_and_zips_are_submissions_and_the_rest_is_reported(tmp_path: Path) -> None:
    for name in ("bob", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "ada.ZIP").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "eve").symlink_to("/etc")
    (tmp_path / "mallory.zip").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.zip")
    found = find_submissions(tmp_path)
    sources, left_out = found.sources, found.left_out
    assert [(s.student, s.is_zip) for s in sources] == [("ada", True), ("bob", False)]
    assert left_out == [
        "left out: eve is a link",
        "left out: mallory.zip is a link",
        "left out: notes.txt is neither a folder nor a zip",
        "left out: pipe.zip is neither a folder nor a zip",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ada", "ada.zip"), ("ada", "Ada"), ("Jose\u0301", "jos\u00e9.zip"), ("Straße", "STRASSE"),
        ("Ada", "\u0410da"),  # with a Cyrillic letter
    ],
)  # fmt: skip
def test_names_that_look_alike_are_marked_and_nobody_is_stopped(
    tmp_path: Path, one: str, other: str
) -> None:
    for name in (one, other, "bob"):
        if name.endswith(".zip"):
            (tmp_path / name).write_bytes(b"")
        else:
            (tmp_path / name).mkdir()
    sources = find_submissions(tmp_path).sources
    assert len({source.student for source in sources}) == 3
    assert len({safe_name(source.student) for source in sources}) == 3
    marked = {source.path.name for source in sources if "looks like it" in "".join(source.notes)}
    assert marked == {one, other}


def test_no_submissions_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(IntakeError, match="is not a folder: give the folder"):
        find_submissions(tmp_path / "nowhere")
    with pytest.raises(IntakeError, match="it is empty"):
        find_submissions(tmp_path)
    (tmp_path / "01_data.ipynb").write_bytes(b"{}")
    with pytest.raises(IntakeError, match=r"01_data\.ipynb is neither a folder nor a zip"):
        find_submissions(tmp_path)


def test_a_students_name_is_normalised_and_printable(tmp_path: Path) -> None:
    (tmp_path / "Jose\u0301\n").mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    sources = find_submissions(tmp_path).sources
    assert sorted(source.student for source in sources) == ["Jos\u00e9", "caf_"]
    assert all(source.path.is_dir() for source in sources)


# ---- names that papermill and shells can bear


def test_a_plain_name_stays() -> None:
    for name in ("ada", "Ada.Lovelace_7", "a-b"):
        assert safe_name(name) == name


ODD_NAMES = ["Ada Lovelace", "{x}", "José", "Иван", "李", "a'b\"c", "a\nb", "\udcff", "a/b"]
ODD_NAMES += ["..", ".", "", "-rf", ".hidden", "trailing."]


@pytest.mark.parametrize("name", [*ODD_NAMES, "x" * 300])
def test_any_name_becomes_a_safe_one(name: str) -> None:
    safe = safe_name(name)
    assert safe.isascii()
    assert all(char.isalnum() or char in "._-" for char in safe)
    assert safe[0] not in ".-"
    assert 0 < len(safe) <= 60
    assert safe == safe_name(name)
    assert safe != name


def test_different_students_never_share_a_name() -> None:
    names = ["José", "Jose", "Jose ", "jose", "Иван", "Иваа", "x" * 300, "x" * 301, "a b", "a-b"]
    names += [safe_name(name) for name in ("José", "a b")]  # somebody who is called like that
    assert len({safe_name(name) for name in names}) == len(set(names))


def test_a_name_keeps_what_can_be_read() -> None:
    assert safe_name("José Müller").startswith("Jose-Muller-")


# ---- plain files only, from a folder


def test_a_folder_is_copied_with_usual_permissions(take_folder, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "ada", {"lib/helper.py": b"x = 1"})
    (source / "lib/helper.py").chmod(0o4777)
    before = os.umask(0o077)
    try:
        found = take_folder({"01_data.ipynb": notebook()})
    finally:
        os.umask(before)
    assert found.status == GRADED
    assert found.notes == []
    assert found.folder == tmp_path / "staging"
    taken = found.notebooks[STAGE]
    path = found.folder / "01_data.ipynb"
    assert taken == NotebookFound(path, read_notebook(path))
    assert found.other_files == ["lib/helper.py"]
    assert (found.folder / "lib/helper.py").read_bytes() == b"x = 1"
    assert stat.S_IMODE((found.folder / "lib/helper.py").stat().st_mode) == 0o644
    assert stat.S_IMODE((found.folder / "lib").stat().st_mode) == 0o755
    assert set(found.notebooks) | set(found.problems) == set(STAGES)
    assert found.problems["02_train"].verdict == MISSING
    assert "02_train.ipynb" in found.problems["02_train"].reason


def test_links_and_pipes_stay_outside(take_folder, tmp_path: Path) -> None:
    secret = write_folder(tmp_path / "secret", {"key": b"SECRET"})
    folder = write_folder(tmp_path / "ada", {"01_data.ipynb": notebook()})
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "elsewhere").symlink_to(secret)
    (folder / "02_train.ipynb").symlink_to("01_data.ipynb")
    (folder / "gone").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")  # must not block
    os.mkfifo(folder / "03_export.ipynb")
    found = take_folder({})
    assert everything_below(tmp_path / "staging") == ["01_data.ipynb"]
    assert found.notes == [
        "left out: 02_train.ipynb (a link)",
        "left out: 03_export.ipynb (no plain file)",
        "left out: elsewhere (a link)",
        "left out: gone (a link)",
        "left out: passwd (a link)",
        "left out: pipe (no plain file)",
    ]


def test_a_link_that_appears_meanwhile_is_not_followed(
    take_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "ada", {"01_data.ipynb": notebook(), "z": b"z"})

    def swap(root: Path, name: str):
        if name == "z":
            (folder / "z").unlink()
            (folder / "z").symlink_to("/etc/passwd")
        return open_plain(root, name)

    monkeypatch.setattr(unpack, "open_plain", swap)
    found = take_folder({})
    assert everything_below(tmp_path / "staging") == ["01_data.ipynb"]
    assert len(found.notes) == 1
    assert "left out: z (it cannot be read" in found.notes[0]


def test_what_tools_leave_behind_is_left_out_silently(take_folder, tmp_path: Path) -> None:
    junk = [
        ".ipynb_checkpoints/01_data.ipynb",
        ".git/config",
        ".venv/bin/python",
        "._01_data.ipynb",
    ]
    junk += ["lib/__pycache__/a.pyc", "node_modules/x/y.js", "__MACOSX/z", ".DS_Store"]
    write_folder(tmp_path / "ada", dict.fromkeys(junk, b"x"))
    (tmp_path / "ada/.venv/lib").symlink_to("/usr/lib")
    found = take_folder({"01_data.ipynb": notebook()})
    assert everything_below(tmp_path / "staging") == ["01_data.ipynb"]
    assert found.notes == []


def test_odd_names_in_a_folder_are_left_out(take_folder, tmp_path: Path) -> None:
    deep = "/".join("d" * 13) + "/f"
    write_folder(
        tmp_path / "ada",
        {"..\\b": b"", "line\nbreak": b"", "C:evil": b"", deep: b"", "n" * 201: b"", "ok é": b""},
    )
    found = take_folder({"01_data.ipynb": notebook()})
    assert found.other_files == ["ok é"]
    assert len(found.notes) == 5
    assert not any("\n" in note for note in found.notes)
    assert "left out: line\\x0abreak (a control character in its name)" in found.notes
    assert json.dumps(found.notes, ensure_ascii=False).encode()  # no halves of characters


def test_what_windows_leaves_in_names_is_no_matter(take_folder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "ada", {"lab\\02_train.ipynb": notebook()})
    (folder / os.fsdecode(b"\xdcbung 01_data.ipynb")).write_bytes(notebook())
    found = take_folder({"readme.txt": b""})
    assert sorted(found.notebooks) == ["01_data", "02_train"]
    assert found.notebooks["02_train"].path == found.folder / "lab/02_train.ipynb"
    assert json.dumps([found.notes, found.notebooks["01_data"].note]).encode()


def test_a_staging_folder_is_never_mixed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "ada", {"01_data.ipynb": notebook()})
    write_folder(tmp_path / "staging", {"of_bob": b""})
    with pytest.raises(IntakeError, match="not empty"):
        take_in(Source("ada", {"": folder}), tmp_path / "staging", REFERENCES)
    assert everything_below(tmp_path / "staging") == ["of_bob"]


# ---- zips


def entry(name: str, mode: int = 0, **attributes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


HOSTILE = {
    "/etc/cron.d/evil": "an absolute path",
    "//server/share": "an absolute path",
    "C:/evil": "an absolute path",
    "../evil": "a path with `..`",
    "a/../../evil": "a path with `..`",
    "..": "a path with `..`",
    "a\\..\\..\\evil": "a path with `..`",
    "bell\x07": "a control character",
    "x" * 250: "a name that is too long",
    "/".join(["d"] * 20): "folders deep",
}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_zip_cannot_write_elsewhere(take_zip, tmp_path: Path, name: str) -> None:
    found = take_zip([(name, b"evil"), ("01_data.ipynb", notebook())])
    assert everything_below(tmp_path) == ["ada.zip", "staging/01_data.ipynb"]
    assert found.status == GRADED
    assert len(found.notes) == 1
    assert HOSTILE[name] in found.notes[0]


def test_a_name_with_nul_is_left_out(take_zip, tmp_path: Path) -> None:
    """zipfile itself would cut the name there."""
    path = write_zip(tmp_path / "ada.zip", [("aXb", b"1"), ("01_data.ipynb", notebook())])
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    found = take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)
    assert everything_below(tmp_path / "staging") == ["01_data.ipynb"]
    assert found.notes == ["left out: a\\x00b (a control character in its name)"]


@pytest.mark.parametrize(
    ("kind", "why"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "no plain"), (stat.S_IFCHR, "no pl")]
)
def test_links_and_devices_in_a_zip_are_left_out(
    take_zip, tmp_path: Path, kind: int, why: str
) -> None:
    link = entry("02_train.ipynb", kind | 0o777)
    found = take_zip([(link, b"/etc/passwd"), ("01_data.ipynb", notebook())])
    assert everything_below(tmp_path / "staging") == ["01_data.ipynb"]
    assert found.notes == [note for note in found.notes if why in note]
    assert len(found.notes) == 1


def test_an_encrypted_entry_is_left_out(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "ada.zip", [("x", b"1"), ("01_data.ipynb", notebook())])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # its flag, in the table of contents
    path.write_bytes(content)
    found = take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)
    assert found.notes == ["left out: x (encrypted)"]
    assert everything_below(tmp_path / "staging") == ["01_data.ipynb"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_bounds_is_left_out(take_zip, method: int) -> None:
    packed = entry("x", compress_type=method)
    found = take_zip([(packed, b"0" * 1000), ("01_data.ipynb", notebook())])
    assert found.notes == ["left out: x (an unusual compression)"]


def test_of_two_entries_of_one_name_the_second_is_left_out(take_zip) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    found = take_zip(
        [
            ("a", b"1"),
            ("./a", b"2"),
            (decomposed, b"1"),
            (composed, b"2"),
            ("01_data.ipynb", notebook()),
        ]
    )
    assert (found.folder / "a").read_bytes() == b"1"
    assert (found.folder / composed).read_bytes() == b"1"
    assert [note.split(" (")[1] for note in found.notes] == ["a second file of this name)"] * 2


def test_a_file_cannot_also_be_a_folder(take_zip) -> None:
    clashing = [("a", b"1"), ("a/b", b"2"), ("a/b/c", b"2"), ("d/e", b"1"), ("d", b"2")]
    found = take_zip([*clashing, (".", b""), ("01_data.ipynb", notebook())])
    assert found.other_files == ["a", "d/e"]
    assert len(found.notes) == 4


def test_folders_in_a_zip_are_no_files(take_zip) -> None:
    folder = entry("notes", stat.S_IFDIR | 0o755)  # not marked by a slash
    found = take_zip(
        [("lib/", b""), (folder, b""), ("notes/a", b"1"), ("01_data.ipynb", notebook())]
    )
    assert found.other_files == ["notes/a"]
    assert found.notes == []


def test_a_zip_bomb_is_stopped_by_what_it_writes(
    take_zip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MAX_FILE_BYTES", 1_000)
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 100)
    found = take_zip([("01_data.ipynb", notebook()), ("bomb", b"0" * 100_000)])
    assert found.status == REJECTED
    assert "bomb with more than" in found.reason
    assert "hand in the notebooks" in found.reason
    assert everything_below(tmp_path / "staging") == []


def test_a_header_that_lies_about_the_size_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MAX_FILE_BYTES", 50_000)
    path = write_zip(tmp_path / "ada.zip", [("bomb", b"0" * 100_000)])
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    found = take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)
    assert found.status == REJECTED
    assert "damaged" in found.reason  # zipfile stops at ten bytes, and the checksum is wrong
    assert everything_below(tmp_path / "staging") == []


@pytest.mark.parametrize(
    ("constant", "value", "sentence"),
    [
        ("MAX_FILES", 3, "got more than 3 files, expected at most 3"),
        ("MAX_TOTAL_BYTES", 2 * 2**20, "got more than 2 MiB, expected at most 2 MiB in all"),
        ("MAX_FILE_BYTES", 2**20, "f0 with more than 1 MiB, expected at most 1 MiB a file"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_limits_hold_for_folders_and_zips(
    take_zip,
    take_folder,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    value: int,
    sentence: str,
    zipped: bool,
) -> None:
    monkeypatch.setattr(unpack, constant, value)
    files = {f"f{number}": b"0" * 1_100_000 for number in range(4)}
    found = take_zip(list(files.items())) if zipped else take_folder(files)
    assert found.status == REJECTED
    assert sentence in found.reason


def test_what_fits_exactly_is_taken(take_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"01_data.ipynb": notebook(), "a": b"12345"}
    monkeypatch.setattr(unpack, "MAX_FILES", 2)
    monkeypatch.setattr(unpack, "MAX_TOTAL_BYTES", sum(map(len, files.values())))
    assert take_folder(files).status == GRADED


def test_a_table_of_contents_that_would_fill_the_memory_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MAX_DIRECTORY_BYTES", 1_000)
    path = write_zip(tmp_path / "ada.zip", [(f"f{number}", b"") for number in range(50)])
    monkeypatch.setattr(zipfile, "ZipFile", None)  # must not be asked
    found = take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)
    assert found.status == REJECTED
    assert "too many entries" in found.reason


def test_a_zip_of_64_bits_is_a_zip_and_hides_no_table_of_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some programs write it, whatever the size."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
    path = write_zip(tmp_path / "ada.zip", [("01_data.ipynb", notebook())])
    assert b"PK\6\7" in path.read_bytes()
    source = Source("ada", {"": path}, is_zip=True)
    assert take_in(source, tmp_path / "one", REFERENCES).status == GRADED
    monkeypatch.setattr(unpack, "MAX_DIRECTORY_BYTES", 20)
    assert "too many entries" in take_in(source, tmp_path / "two", REFERENCES).reason


def shifted(content: bytes) -> bytes:
    """A zip whose first entry would begin before the file does."""
    end = content.rindex(b"PK\5\6") + 16
    (offset,) = struct.unpack("<I", content[end : end + 4])
    return content[:end] + struct.pack("<I", offset + 1) + content[end + 4 :]


def flipped(content: bytes) -> bytes:
    middle = content.index(b"f.txt") + 10
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"Rar!\x1a\x07\x00" + content[:50],
        lambda content: content[: len(content) // 2],
        lambda content: content[20:],
        lambda content: content.replace(b"PK\1\2", b"PK\1\3"),
        lambda content: content.replace(b"f.txt", b"g.txt", 1),  # header and table disagree
        shifted,
        flipped,
    ],
)
def test_a_damaged_zip_is_rejected_with_a_sentence(tmp_path: Path, damage) -> None:
    path = write_zip(tmp_path / "ada.zip", [("f.txt", b"some text\n" * 50)])
    path.write_bytes(damage(path.read_bytes()))
    found = take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)
    assert found.status == REJECTED
    assert "ada.zip is damaged or no zip" in found.reason
    assert "pack the notebooks again" in found.reason
    assert found.problems == {}
    assert everything_below(tmp_path / "staging") == []


def test_names_that_macos_writes_without_saying_their_encoding(take_zip, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "ada.zip", [("cafX1.txt", b"1"), ("01_data.ipynb", notebook())])
    path.write_bytes(path.read_bytes().replace(b"cafX1", "café".encode()))
    found = take_in(Source("ada", {"": path}, is_zip=True), tmp_path / "staging", REFERENCES)
    assert found.other_files == ["café.txt"]


def test_many_notes_are_cut_short(take_zip) -> None:
    found = take_zip([(f"../{number}", b"") for number in range(50)])
    assert len(found.notes) == submission.MAX_NOTES + 1
    assert found.notes[-1] == "30 more files were left out"
    assert "holds no file that can be taken in (a path with `..`)" in found.reason


def test_an_archive_that_was_not_opened_is_told_before_everything_else(take_folder) -> None:
    many = {f"{number}\n": b"" for number in range(30)}
    found = take_folder({"01_data.ipynb": notebook(), **many, "rest.7z": b"7z"})
    assert submission.unopened(found.notes) == found.notes[:1]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_it_is_rejected(take_zip, take_folder, tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "ada").mkdir()
    found = take_zip([("a/", b"")]) if zipped else take_folder({})
    assert found.status == REJECTED
    assert "holds no file" in found.reason


def test_no_notebook_at_all_is_rejected_and_says_what_was_expected(take_folder) -> None:
    found = take_folder({"essay.txt": b"", "unknown.ipynb": notebook()})
    assert found.status == REJECTED
    assert "01_data.ipynb to 10_pipeline.ipynb" in found.reason
    assert found.sha256


# ---- one and the same submission


def test_folder_and_zip_and_a_folder_in_it_have_one_hash(tmp_path: Path) -> None:
    files = {"notebooks/01_data.ipynb": notebook(), "a.py": b"1", "b/é.txt": b"2"}
    plain = write_folder(tmp_path / "plain", files)
    nested = write_folder(tmp_path / "nested/hand-in/lab", files).parents[1]
    entries = sorted(files.items(), reverse=True)
    zipped = write_zip(tmp_path / "z.zip", [*entries, ("__MACOSX/x", b"x"), ("lib/", b"")])
    top = write_zip(tmp_path / "t.zip", [(f"Ada L/{name}", content) for name, content in entries])
    found = [
        take_in(
            Source("ada", {"": path}, path.suffix == ".zip"), tmp_path / f"s{number}", REFERENCES
        )
        for number, path in enumerate([plain, nested, zipped, top])
    ]
    assert len({one.sha256 for one in found}) == 1
    assert len(found[0].sha256) == 64
    assert found[1].folder == tmp_path / "s1/hand-in/lab"
    assert found[3].folder == tmp_path / "s3/Ada L"
    assert all(one.other_files == ["a.py", "b/é.txt"] for one in found)
    assert all(STAGE in one.notebooks for one in found)


def test_another_byte_or_name_is_another_hash(tmp_path: Path) -> None:
    variants: list[Files] = [
        {"01_data.ipynb": notebook(), "a": b"1"},
        {"01_data.ipynb": notebook(), "a": b"2"},
        {"01_data.ipynb": notebook(), "b": b"1"},
        {"01_data.ipynb": notebook()},
    ]
    found = set()
    for number, files in enumerate(variants):
        folder = write_folder(tmp_path / str(number), files)
        found.add(take_in(Source("a", {"": folder}), tmp_path / f"s{number}", REFERENCES).sha256)
    assert len(found) == 4


# ---- which notebook is which


def test_the_exact_name_wins_over_everything_else(take_folder) -> None:
    files = {"01_data.ipynb": notebook(source="mine")}
    files |= {"01_data (1).ipynb": notebook("ex-01-leak", "check-01-leak")}
    files |= {"old/copy/01_data.ipynb": notebook(source="old")}
    found = take_folder(files)
    assert found.notebooks[STAGE].path == found.folder / "01_data.ipynb"
    why = "was ignored: worked on, too, but this one has the right name or lies less deep"
    told = [f"{name} {why}" for name in ("old/copy/01_data.ipynb", "01_data (1).ipynb")]
    assert found.notebooks[STAGE].note == "; ".join(told)
    assert found.other_files == ["01_data (1).ipynb", "old/copy/01_data.ipynb"]


def test_the_folder_notebooks_counts_like_the_root(take_folder) -> None:
    one, other = notebook(source="1"), notebook(source="2")
    found = take_folder({"notebooks/01_data.ipynb": one, "lib/01_data.ipynb": other})
    assert found.notebooks[STAGE].path == found.folder / "notebooks/01_data.ipynb"


def test_of_others_the_shallowest_counts(take_folder) -> None:
    one, other = notebook(source="1"), notebook(source="2")
    found = take_folder({"a/b/01_data.ipynb": one, "z/01_data.ipynb": other, "x": b""})
    assert found.notebooks[STAGE].path == found.folder / "z/01_data.ipynb"


@pytest.mark.parametrize("places", [("", "notebooks/"), ("one/", "two/")])
def test_equally_good_ones_are_ambiguous_unless_equal(tmp_path: Path, places) -> None:
    for content, name in ((b"1", "same"), (b"2", "other")):
        files = {f"{places[0]}01_data.ipynb": notebook(source="1"), "x": b""}
        files[f"{places[1]}01_data.ipynb"] = notebook(source=content.decode())
        folder = write_folder(tmp_path / name, files)
        found = take_in(Source("ada", {"": folder}), tmp_path / f"s-{name}", REFERENCES)
        if name == "same":
            assert found.notebooks[STAGE].path == found.folder / f"{places[0]}01_data.ipynb"
        else:
            assert found.problems[STAGE].verdict == AMBIGUOUS
            assert all(f"{place}01_data.ipynb" in found.problems[STAGE].reason for place in places)
            assert found.status == GRADED  # the other stages may be fine


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("01 data (1).ipynb", "01_data"),
        ("01_data-Copy1.ipynb", "01_data"),
        ("Lab01_data_final.ipynb", "01_data"),
        ("01_Data.ipynb", "01_data"),
        ("01_data.IPYNB", "01_data"),
        ("1-data.ipynb", "01_data"),
        ("Assignment7_02_train.ipynb", "02_train"),
        ("2024 lab 03 ada.ipynb", "03_export"),
        ("lab8.ipynb", "08_report"),
        ("7 (2).ipynb", "07_tune"),
        ("04 copy 2.ipynb", "04_quantize"),
    ],
)
def test_a_renamed_notebook_is_recognised_by_its_number(take_folder, name: str, stage: str) -> None:
    found = take_folder({name: notebook()})
    note = f"found as {name}; hand it in as {stage}.ipynb"
    path = found.folder / name
    assert found.notebooks == {stage: NotebookFound(path, read_notebook(path), note)}


@pytest.mark.parametrize(
    "name", ["data.ipynb", "lab 1 2.ipynb", "2024.ipynb", "09.ipynb", "0.ipynb"]
)
def test_a_name_that_says_nothing_is_not_guessed(take_folder, name: str) -> None:
    found = take_folder({name: notebook()})
    assert found.notebooks == {}
    assert found.status == REJECTED


def test_exercises_say_more_than_a_name(take_folder) -> None:
    found = take_folder(
        {
            "final.ipynb": notebook("ex-01-leak", "check-01-leak"),  # two of three
            "01.ipynb": notebook(),
            "01_data-Copy1.ipynb": notebook("ex-02-calibration", "check-02-calibration"),
            "03.ipynb": notebook("ex-01-statistics"),  # one of three is too few
        }
    )
    names = {stage: one.path.name for stage, one in found.notebooks.items()}
    assert names == {
        "01_data": "final.ipynb",
        "02_train": "01_data-Copy1.ipynb",
        "03_export": "03.ipynb",
    }
    assert all(one.note for one in found.notebooks.values())


def test_a_notebook_with_several_stages_is_none_of_them(take_folder) -> None:
    both = notebook("ex-01-leak", "check-01-leak", "ex-02-calibration", "check-02-calibration")
    assert take_folder({"01_all.ipynb": both}).notebooks == {}


def test_several_renamed_ones_are_ambiguous_unless_equal(tmp_path: Path) -> None:
    for second, verdict in ((notebook(source="1"), GRADED), (notebook(source="2"), AMBIGUOUS)):
        files = {"01 a.ipynb": notebook(source="1"), "01 b.ipynb": second}
        folder = write_folder(tmp_path / verdict, files)
        found = take_in(Source("ada", {"": folder}), tmp_path / f"s{verdict}", REFERENCES)
        if verdict == GRADED:
            assert found.notebooks[STAGE].path.name == "01 a.ipynb"
        else:
            reason = found.problems[STAGE].reason
            assert found.problems[STAGE].verdict == AMBIGUOUS
            assert "got 2 notebooks" in reason
            assert "01 a.ipynb, 01 b.ipynb" in reason


def test_a_renamed_notebook_is_recognised_by_the_projects_own(tmp_path: Path) -> None:
    content = notebook("ex-03-fold", "check-03-fold", "ex-03-batch", "check-03-batch")
    folder = write_folder(tmp_path / "ada", {"mine.ipynb": content})
    found = take_in(Source("ada", {"": folder}), tmp_path / "staging", reference_notebooks())
    assert found.notebooks["03_export"].note


BROKEN = {
    "empty": b"",
    "binary": b"\x00\xff\xfe",
    "half": b'{"cells": [',
    "list": b"[]",
    "no notebook": b'{"a": 1}',
    "deep": b'{"nbformat": 4, "cells": ' + b"[" * 100_000,
    "deep but closed": b'{"nbformat":4,"cells":' + b"[" * 900 + b"]" * 900 + b"}",
    "huge number": b'{"nbformat": ' + b"1" * 5_000 + b"}",
    "another version": b'{"nbformat": 9}',
    "cells of another type": b'{"nbformat": 4, "cells": [1]}',
    "old and damaged": b'{"nbformat": 3, "worksheets": 1}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["01_data.ipynb", "01.ipynb"])
def test_what_is_no_notebook_is_a_verdict_not_a_crash(take_folder, content: bytes, name) -> None:
    found = take_folder({name: content})
    assert found.problems[STAGE].verdict == INVALID
    assert found.problems[STAGE].reason.startswith(name)
    assert len(found.problems[STAGE].reason) < 700
    assert "\n" not in found.problems[STAGE].reason
    assert found.status == GRADED


def test_a_notebook_that_is_too_large_is_invalid(
    take_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = notebook(source="#" * 5_000)
    monkeypatch.setattr(read_notebook, "__defaults__", (4_096,))
    reason = take_folder({"01_data.ipynb": big}).problems[STAGE].reason
    assert "01_data.ipynb is larger than" in reason
    assert "clear its outputs" in reason


def test_an_old_notebook_is_converted(take_folder) -> None:
    v3 = nbformat.v3.new_notebook(
        worksheets=[nbformat.v3.new_worksheet(cells=[nbformat.v3.new_code_cell(input="x = 1")])]
    )
    stream = io.StringIO()
    nbformat.write(v3, stream)
    found = take_folder({"01_data.ipynb": stream.getvalue().encode()})
    assert found.notebooks[STAGE].note == ""


def test_a_practice_notebook_that_is_handed_in_too_is_a_further_file(tmp_path: Path) -> None:
    folder = tmp_path / "class" / "ada"
    shutil.copytree(project_root() / "notebooks", folder)
    found = take_in(Source("ada", {"": folder}), tmp_path / "staging", reference_notebooks())
    assert sorted(found.notebooks) == sorted(STAGES)
    assert found.problems == {}
    assert "09_operate.ipynb" in found.other_files


# ---- as learning platforms and mail programs give it


def test_canvas_loose_files_are_grouped_by_person(tmp_path: Path) -> None:
    files = {
        "smithjane_12345_67890_01_data.ipynb": notebook(source="1"),
        "smithjane_12345_67891_01_data-1.ipynb": notebook(source="2"),
        "smithjane_12345_67892_02_train.ipynb": notebook(),
        "leeann_LATE_222_333_01_data.ipynb": notebook(),
        "notes.ipynb": notebook(),
        "readme.txt": b"",
    }
    write_folder(tmp_path / "class", files)
    write_zip(tmp_path / "class" / "khan_444_555_lab.zip", [("01_data.ipynb", notebook())])
    found = find_submissions(tmp_path / "class")
    told = [(s.student, s.user, s.prefix, s.late) for s in found.sources]
    assert told == [
        ("khan", "444", "khan_444_555_", False),
        ("leeann", "222", "leeann_LATE_222_333_", True),
        ("smithjane", "12345", "smithjane_12345_67892_", False),
    ]
    assert found.notebooks == ["notes.ipynb"]
    assert len(found.left_out) == 2
    jane = take_in(found.sources[2], tmp_path / "jane", REFERENCES)
    assert sorted(jane.notebooks) == ["01_data", "02_train"]
    assert read_notebook(jane.notebooks["01_data"].path).cells[0].source == "2"
    assert any("handed in again" in note for note in jane.notes)
    assert "01_data" in take_in(found.sources[0], tmp_path / "khan", REFERENCES).notebooks


def test_canvas_files_without_names_are_grouped_by_person(tmp_path: Path) -> None:
    files = {
        "anon_aB3xY_67890_01_data.ipynb": notebook(),
        "anon_aB3xY_67891_02_train.ipynb": notebook(),
        "LATE_anon_9kQzP_67892_01_data-1.ipynb": notebook(),
    }
    sources = find_submissions(write_folder(tmp_path / "class", files)).sources
    assert [(s.student, s.user, s.prefix, s.late, sorted(s.paths)) for s in sources] == [
        ("anon_9kQzP", "", "LATE_anon_9kQzP_67892_", True, ["01_data.ipynb"]),
        ("anon_aB3xY", "", "anon_aB3xY_67891_", False, ["01_data.ipynb", "02_train.ipynb"]),
    ]


@pytest.mark.parametrize("inside", ["", "download/"])
def test_the_download_itself_is_no_student(tmp_path: Path, inside: str) -> None:
    names = ["doejane_123_456_01_data.ipynb", "leeann_222_457_01_data.ipynb"]
    place = tmp_path / "class"
    write_folder(place / "submissions", {name: notebook() for name in names})
    packed = write_zip(
        place / "submissions.zip", [(f"{inside}{name}", notebook()) for name in names]
    )
    found = find_submissions(place)
    assert [source.student for source in found.sources] == ["doejane", "leeann"]
    assert found.sources[0].path.parent == place / "submissions"
    assert found.notebooks == ["submissions.zip"]
    (place / "khan_333_458_01_data.ipynb").write_bytes(notebook())
    found = find_submissions(place)
    assert [source.student for source in found.sources] == ["khan"]
    assert found.notebooks == ["submissions", "submissions.zip"]
    write_folder(tmp_path / "only", {"s.zip": packed.read_bytes()})
    with pytest.raises(IntakeError, match=r"s\.zip holds what several people have handed in"):
        find_submissions(tmp_path / "only")


def test_a_students_own_files_may_be_called_as_a_platform_would(tmp_path: Path) -> None:
    files = {"01_data.ipynb": notebook(), "02.ipynb": notebook(), "03.ipynb": notebook()}
    files |= {"run_100_200_log.txt": b"", "try_100_201_log.txt": b""}
    write_folder(tmp_path / "ada", files)
    write_zip(tmp_path / "bea.zip", list(files.items()))
    assert [source.student for source in find_submissions(tmp_path).sources] == ["ada", "bea"]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([f"lab-0{n}.ipynb" for n in range(1, 9)], [f"lab-0{n}.ipynb" for n in range(1, 9)]),
        (["lab-1.ipynb", "lab-2.ipynb"], ["lab-1.ipynb", "lab-2.ipynb"]),
        (["data-2024.csv", "lab.ipynb"], ["data-2024.csv", "lab.ipynb"]),
        (["data.csv", "data-1.csv", "lab.ipynb"], ["data.csv", "lab.ipynb"]),
        (["01_data-2.ipynb", "02_train-1.ipynb.txt"], ["01_data.ipynb", "02_train.ipynb.txt"]),
        (["utils-1.py", "lab.ipynb"], ["lab.ipynb", "utils.py"]),
    ],
    ids=str,
)
def test_only_a_number_that_canvas_has_added_is_taken_from_a_name(
    tmp_path: Path, given: list[str], taken: list[str]
) -> None:
    files = {f"doejane_123_45{n}_{name}": name.encode() for n, name in enumerate(given)}
    (source,) = find_submissions(write_folder(tmp_path / "class", files)).sources
    assert sorted(source.paths) == taken


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("smithjo_late_12345_678_lab.zip", ("smithjo", "12345", "smithjo_late_", True)),
        ("anon_aB3xY_LATE_67890_lab.zip", ("anon_aB3xY", "", "anon_aB3xY_LATE_67890_", True)),
        ("smith_12_100_lab.zip", ("smith", "12", "smith_12_100_", False)),
        ("m\udcfcller_123_4567_lab.zip", ("m_ller", "123", "m_ller_123_4567_", False)),
        ("weiss_123_4567_\udcdcbung.zip", ("weiss", "123", "weiss_123_4567_", False)),
    ],
)
def test_canvas_names_in_their_rarer_forms(
    tmp_path: Path, name: str, about: tuple[str, str, str, bool]
) -> None:
    (tmp_path / name).write_bytes(zipped(("01_data.ipynb", notebook())))
    (source,) = find_submissions(tmp_path).sources
    assert (source.student, source.user, source.late) == (about[0], about[1], about[3])
    assert source.prefix.startswith(about[2])
    assert source.platform == "canvas"
    assert list(take_in(source, tmp_path / "staging", REFERENCES).notebooks) == ["01_data"]


@pytest.mark.parametrize("names", [("2026_01_15_01_data", "2026_02_03_02_train"),
                                   ("week_1_01_data", "week_2_02_train")])  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_a_students_own_numbers_are_no_platforms(
    tmp_path: Path, names: tuple[str, str], packed: bool
) -> None:
    files = {f"{name}.ipynb": notebook() for name in names}
    place = write_folder(tmp_path / "class", {})
    if packed:
        place.mkdir()
        write_zip(place / "ada.zip", list(files.items()))
    else:
        write_folder(place / "ada", files)
    (source,) = find_submissions(place).sources
    assert source.student == "ada"
    found = take_in(source, tmp_path / "staging", REFERENCES)
    assert sorted(found.notebooks) == ["01_data", "02_train"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_one_level_too_high_is_no_student(tmp_path: Path, packed: bool) -> None:
    for name in ("ada", "bob"):
        if packed:
            (tmp_path / "all").mkdir(exist_ok=True)
            write_zip(tmp_path / "all" / f"{name}.zip", [("01_data.ipynb", notebook())])
        else:
            write_folder(tmp_path / "all" / name / "notebooks", {"01_data.ipynb": notebook()})
    with pytest.raises(IntakeError, match=r"if these are the students, give .*/all;"):
        find_submissions(tmp_path)
    assert len(find_submissions(tmp_path / "all").sources) == 2
    write_folder(tmp_path / "all" / "notebooks", {"01_data.ipynb": notebook()})
    assert [source.student for source in find_submissions(tmp_path).sources] == ["all"]


def test_two_versions_are_one_students(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "ada" / "lab", {"01_data.ipynb": notebook()}).parent
    write_zip(place / "lab.zip", [("01_data.ipynb", notebook())])
    assert [source.student for source in find_submissions(tmp_path).sources] == ["ada"]
    write_folder(tmp_path / "ada" / "v2", {"01_data.ipynb": notebook()})
    write_folder(tmp_path / "ada" / "2026-11-30", {"01_data.ipynb": notebook()})
    assert [source.student for source in find_submissions(tmp_path).sources] == ["ada"]


def test_a_class_in_folders_by_section_is_no_class_of_sections(tmp_path: Path) -> None:
    for name in ("A/ada", "A/bob", "B/eve", "B/joe"):
        write_folder(tmp_path / name, {"01_data.ipynb": notebook()})
    with pytest.raises(IntakeError, match=r"if these are the students, give .*/A;"):
        find_submissions(tmp_path)
    write_folder(tmp_path / "zoe", {"01_data.ipynb": notebook()})
    assert len(find_submissions(tmp_path).sources) == 3


@pytest.mark.parametrize("name", ["practical_2026_2027_{}.zip", "lab1_2026_1103_{}.zip"])
def test_years_in_everybodys_names_are_no_numbers_of_a_platform(tmp_path: Path, name: str) -> None:
    for student in ("Ada", "Bob"):
        write_zip(tmp_path / name.format(student), [("01_data.ipynb", notebook())])
    sources = find_submissions(tmp_path).sources
    assert [source.student for source in sources] == [name.format(s)[:-4] for s in ("Ada", "Bob")]


def test_of_one_name_the_file_with_the_highest_number_counts(tmp_path: Path) -> None:
    for number in (999, 1000):
        (tmp_path / f"doejane_123_{number}_lab.zip").write_text(str(number))
    (source,) = find_submissions(tmp_path).sources
    assert [path.read_text() for path in source.paths.values()] == ["1000"]


def test_who_has_only_typed_in_a_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "Jane Doe_12_assignsubmission_onlinetext_").mkdir()
    write_folder(tmp_path / "Zoe_13_assignsubmission_file_", {"01_data.ipynb": notebook()})
    (tmp_path / "Zoe_13_assignsubmission_onlinetext_").mkdir()
    assert find_submissions(tmp_path).left_out == [
        "left out: Jane Doe has typed in a text: read it there"
    ]


def test_anonymous_participants_do_not_all_look_alike(tmp_path: Path) -> None:
    for number in (12, 13, 14):
        name = f"Participant_{number}_assignsubmission_file_"
        write_folder(tmp_path / name, {"01_data.ipynb": notebook()})
    sources = find_submissions(tmp_path).sources
    assert [source.student for source in sources] == [f"Participant ({n})" for n in (12, 13, 14)]
    assert not [note for source in sources for note in source.notes]


def test_a_folder_keeps_its_name_beside_its_zip(tmp_path: Path) -> None:
    write_folder(tmp_path / "ada", {"01_data.ipynb": notebook()})
    write_zip(tmp_path / "ada.zip", [("01_data.ipynb", notebook())])
    sources = find_submissions(tmp_path).sources
    assert [source.student for source in sources] == ["ada", "ada (ada.zip)"]


def test_a_date_in_the_name_of_a_zip_is_no_number_of_a_platform(tmp_path: Path) -> None:
    write_zip(tmp_path / "smith_2026_11_lab.zip", [("01_data.ipynb", notebook())])
    (source,) = find_submissions(tmp_path).sources
    assert (source.student, source.platform) == ("smith_2026_11_lab", "")


@pytest.mark.parametrize("loose", [False, True])
def test_moodle_folders_and_loose_files_are_grouped_by_person(tmp_path: Path, loose: bool) -> None:
    place = tmp_path / "class"
    place.mkdir()
    packed = [("lab/01_data.ipynb", notebook())]
    for name, user in (("Jane Doe", "31415"), ("Zoë O'Neil", "92653")):
        prefix = f"{name}_{user}_assignsubmission_file_"
        if not loose:
            (place / prefix).mkdir()
        write_zip(place / (f"{prefix}lab.zip" if loose else f"{prefix}/lab.zip"), packed)
        (place / f"{name}_{user}_assignsubmission_onlinetext_").mkdir()
    sources = find_submissions(place).sources
    assert [(s.student, s.user) for s in sources] == [
        ("Jane Doe", "31415"),
        ("Zoë O'Neil", "92653"),
    ]
    assert sources[0].prefix == "Jane Doe_31415_assignsubmission_file_"
    found = take_in(sources[1], tmp_path / "staging", REFERENCES)
    assert (found.status, list(found.notebooks)) == (GRADED, ["01_data"])


def zipped(*entries: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def test_a_zip_inside_is_opened_once(take_zip) -> None:
    inner = zipped(("01_data.ipynb", notebook()), ("deep.zip", zipped(("x", b""))))
    found = take_zip([("lab.zip", inner)])
    assert list(found.notebooks) == ["01_data"]
    assert any("deep.zip (a zip in a zip that was in" in note for note in found.notes)


def test_the_limits_hold_for_what_a_zip_inside_holds(
    take_zip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MAX_FILES", 3)
    inner = zipped(*((f"{n}.txt", b"") for n in range(5)))
    assert take_zip([("lab.zip", inner)]).status == REJECTED


def test_a_damaged_zip_inside_costs_itself_only(take_folder) -> None:
    found = take_folder({"01_data.ipynb": notebook(), "extra.zip": b"PK no zip"})
    assert list(found.notebooks) == ["01_data"]
    assert any("extra.zip is damaged or no zip" in note for note in found.notes)


def test_a_damaged_zip_beside_loose_files_costs_itself_only(tmp_path: Path) -> None:
    write_folder(tmp_path / "class", {"doejane_123_457_extra.zip": b"PK no zip"})
    (source,) = find_submissions(tmp_path / "class").sources
    assert take_in(source, tmp_path / "alone", REFERENCES).status == REJECTED
    write_folder(tmp_path / "class", {"doejane_123_456_01_data.ipynb": notebook()})
    (source,) = find_submissions(tmp_path / "class").sources
    found = take_in(source, tmp_path / "staging", REFERENCES)
    assert list(found.notebooks) == ["01_data"]
    assert any("extra.zip is damaged or no zip" in note for note in found.notes)


SOLVED = "def leaked(a, b):\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
STUB = with_stubs(SOLVED, "ex-01-leak")
HANDED_OUT, MINE = (notebook("ex-01-leak", source=source) for source in (STUB, "def leaked(): 2"))


@pytest.mark.parametrize(
    ("files", "chosen", "note"),
    [
        ({"mine/01_data.ipynb": MINE, "out.zip": zipped(("01_data.ipynb", HANDED_OUT))},
         "mine/01_data.ipynb", "out/01_data.ipynb was ignored: its exercises are as handed out"),
        ({"mine/01_data.ipynb": MINE, "old.zip": zipped(("01_data.ipynb", notebook()))},
         "mine/01_data.ipynb", "old/01_data.ipynb was ignored: it came in a zip beside this"),
        ({"01_data.ipynb": HANDED_OUT, "Copy of 01_data.ipynb": MINE},
         "Copy of 01_data.ipynb", "; 01_data.ipynb was ignored: its exercises are as handed out"),
        ({"01_data.ipynb": HANDED_OUT, "sub/01_data.ipynb": MINE},
         "sub/01_data.ipynb", "01_data.ipynb was ignored: its exercises are as handed out"),
        ({"01_data.ipynb": HANDED_OUT, "lab.zip": zipped(("01_data.ipynb", MINE))},
         "lab/01_data.ipynb", "01_data.ipynb was ignored: its exercises are as handed out"),
        ({"01_data.ipynb": HANDED_OUT, "x.txt": b""}, "01_data.ipynb", ""),
    ],
)  # fmt: skip
def test_a_copy_of_what_was_handed_out_is_in_nobodys_way(
    tmp_path: Path, files: Files, chosen: str, note: str
) -> None:
    folder = write_folder(tmp_path / "ada", files | {"readme.txt": b""})
    references = {"01_data": reference("ex-01-leak", source=SOLVED)}
    found = take_in(Source("ada", {"": folder}), tmp_path / "staging", references)
    assert list(found.notebooks) == ["01_data"], found.problems["01_data"]
    one = found.notebooks["01_data"]
    assert one.path == found.folder / chosen
    assert note in one.note and bool(note) == bool(one.note)


def test_an_archive_that_is_not_opened_is_named(take_folder) -> None:
    assert "lab.rar, which was not opened" in take_folder({"lab.rar": b"Rar!"}).reason


def test_backslashes_in_a_zip_are_folders(take_zip) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = "lab\\notebooks\\01_data.ipynb"
    assert list(take_zip([(info, notebook())]).notebooks) == ["01_data"]


@pytest.mark.parametrize(
    "name", ["01_data.ipynb.txt", "01_data.ipynb.json", "01_data.ipynb.download",
             "01_data.ipynb (1).txt", "01_data (1).ipynb.txt", "01_data.ipynb.txt.txt",
             "01_data.ipynb(1)", "01_data.ipynb ", "01_data.ipynb.bak", "01_data.json",
             "01_data.txt", "01_data"],
)  # fmt: skip
def test_what_browsers_and_mail_add_to_a_name_is_no_matter(take_folder, name: str) -> None:
    found = take_folder({name: notebook()})
    assert found.notebooks[STAGE].note == f"found as {name}; hand it in as 01_data.ipynb"


@pytest.mark.parametrize("other", ["01_data (1).ipynb", "final/01_data.ipynb", "01_data.ipynb.bak"])
def test_what_cannot_be_read_hides_no_good_copy(take_folder, other: str) -> None:
    found = take_folder({"01_data.ipynb": b"", other: notebook()})
    assert found.notebooks[STAGE].path == found.folder / other
    assert "01_data.ipynb was ignored: it cannot be read" in found.notebooks[STAGE].note


def test_an_older_version_beside_a_notebook_is_ignored_with_a_note(take_folder) -> None:
    found = take_folder({"01_data.ipynb": notebook(source="new"), "01_data.ipynb.bak": notebook()})
    assert found.notebooks[STAGE].path == found.folder / "01_data.ipynb"
    assert "01_data.ipynb.bak was ignored: worked on, too" in found.notebooks[STAGE].note


def test_what_was_only_run_again_is_no_other_version(take_folder) -> None:
    again = nbformat.reads(notebook().decode(), as_version=4)
    again.cells[0].execution_count = 7
    given = nbformat.v4.new_code_cell("profile = 1", metadata={"tags": ["injected-parameters"]})
    again.cells.insert(0, given)
    files = {"01_data.ipynb": notebook(), "run/01_data.ipynb": nbformat.writes(again).encode()}
    assert take_folder(files).notebooks[STAGE].note == ""


def test_what_is_no_notebook_under_a_notebooks_name_is_none(take_folder) -> None:
    found = take_folder({"run/logs/01_data.txt": b"read", "results/01_data.json": b"{}"})
    assert found.status == REJECTED


def test_a_damaged_notebook_under_another_ending_is_told(take_folder) -> None:
    found = take_folder({"01_data.txt": notebook()[:90]})
    assert found.problems[STAGE].verdict == INVALID
    assert "01_data.txt is not JSON" in found.problems[STAGE].reason


@pytest.mark.parametrize(
    "name",
    ["ada_123_4567_\\tmp\\elsewhere.zip", "ada_123_4567_..\\..\\elsewhere.zip",
     "Ada_1234_assignsubmission_file_..\\elsewhere.zip"],
)  # fmt: skip
def test_the_name_of_a_zip_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    place = write_folder(tmp_path / "class", {name: zipped(("01_data.ipynb", notebook()))})
    (source,) = find_submissions(place).sources
    found = take_in(source, tmp_path / "staging" / "ada", REFERENCES)
    assert found.status == REJECTED
    assert not list(tmp_path.rglob("01_data.ipynb"))
    assert not Path("/tmp/elsewhere").exists()


def test_a_packed_notebook_is_named(take_folder) -> None:
    found = take_folder({"01_data.ipynb.gz": b"x", "02_train.ipynb": notebook()})
    assert any("01_data.ipynb.gz (an archive that is not opened" in note for note in found.notes)


def test_a_note_about_a_long_name_keeps_its_end(take_folder) -> None:
    found = take_folder({f"{'deep' * 30}/lab.zip": b"no zip", "01_data.ipynb": notebook()})
    assert submission.unopened(found.notes)


def test_a_notebook_without_names_is_known_by_its_functions(take_folder) -> None:
    source = "def leaked(a, b):\n    pass\ndef channel_statistics(p):\n    pass"
    found = take_folder({"my lab.ipynb": notebook(source=source)})
    assert list(found.notebooks) == ["01_data"]
    assert "known by its functions (channel_statistics, leaked)" in found.notebooks[STAGE].note


def test_many_candidates_are_looked_into_once_and_only_the_chosen_one_is_kept(
    take_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{place}/01_data.ipynb": HANDED_OUT for place in "abc"}
    files |= {f"mine {n}.ipynb": notebook("ex-01-leak", "ex-01-statistics") for n in range(3)}
    reads: list[str] = []

    def counting(path: Path) -> Any:
        reads.append(path.name)
        return read_notebook(path)

    monkeypatch.setattr(find_notebooks, "read_notebook", counting)
    found = take_folder(files)
    assert found.notebooks[STAGE].path == found.folder / "a/01_data.ipynb"
    assert sorted(reads) == sorted([Path(name).name for name in files] + ["01_data.ipynb"])


def test_reading_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "ada", {"01_data.ipynb": notebook()})
    source = Source("ada", {"": folder})
    good = submission.take_in_time(source, tmp_path / "a", REFERENCES)
    assert (good.status, good.folder) == (GRADED, tmp_path / "a")

    def endless(*arguments: object) -> None:
        while True:
            pass

    monkeypatch.setattr(submission, "take_in", endless)
    slow = submission.take_in_time(source, tmp_path / "b", REFERENCES, limit_s=0.5)
    assert (slow.status, "was not read after 0.5 s" in slow.reason) == (REJECTED, True)
