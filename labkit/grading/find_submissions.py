"""Which submissions lie in a folder, and whose: folders, zips, or what a platform lets download."""

import hashlib
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from labkit.chain import STAGES
from labkit.grading.find_notebooks import notebook_name
from labkit.grading.notebook import IntakeError
from labkit.grading.results import HandedIn
from labkit.grading.roster import CANVAS, MOODLE, Name, read_name, roster_key, without_count
from labkit.grading.unpack import IGNORED, MAX_FILES, names_in_zip
from labkit.grading.untrusted import short_name

ARCHIVES = (".zip", ".rar", ".7z", ".gz", ".tgz", ".tar", ".bz2", ".xz")
# Letters of other scripts that look like Latin ones, lower case.
LOOK_ALIKE = str.maketrans("аеорсухіјѕԁһԛԝɡοαενικρτυχ", "aeopcyxijsdhqwgoaevikptux")
MAX_SLUG = 40
MOST_TOLD = 20  # things that are no submission, in a sentence
# Names of folders that are rather one person's versions and parts than people.
VERSION = re.compile(
    r"(v|ver|version|draft|try|attempt|part|week|lab)?[\s_.-]*\d{0,2}|(19|20)\d\d[\d\s_.-]*|old|new|"
    r"final|copy.*|backup|alt|neu|notebooks?|src|work|runs?|(my)?solutions?",
    re.IGNORECASE,
)
HASHED_NAME = re.compile(r".*-[0-9a-f]{10}")


@dataclass(frozen=True)
class Source:
    """One submission, as it was handed in.

    Attributes:
        student: Name of the folder, or of the zip without its ending; of a platform's download the
            person's name as it stands there.
        paths: Name in the submission → the file; for a folder or zip only that, under "".
        is_zip: Whether it is one zip.
        platform: `canvas` or `moodle`, where one has named it.
        user: That platform's own number for the person.
        prefix: What it expects before the names of files that are given back; the latest one.
        late: Whether the platform says that it is late.
        notes: What is to be known about it, a sentence each.
    """

    student: str
    paths: Mapping[str, Path]
    is_zip: bool = False
    platform: str = ""
    user: str = ""
    prefix: str = ""
    late: bool = False
    notes: tuple[str, ...] = ()

    @property
    def handed_in(self) -> HandedIn:
        """What the platform says of it."""
        return HandedIn(self.platform, self.user, self.prefix, self.late)

    @property
    def path(self) -> Path:
        """The folder or zip, or the first of its files."""
        return next(iter(self.paths.values()))


@dataclass(frozen=True)
class Found:
    """What lies in a folder of submissions.

    Attributes:
        sources: The submissions, by name.
        left_out: A sentence per thing that is none.
        notebooks: Of these, the names of notebooks and archives: somebody's work.
    """

    sources: list[Source]
    left_out: list[str]
    notebooks: list[str]


def find_submissions(folder: Path) -> Found:
    """Return the submissions in a folder, which may be what a learning platform lets download.

    Canvas gives loose files, Moodle a folder for each student or loose files as well; their names
    say whose they are. Anything else is a folder or zip for each student. A folder that holds
    nothing but such a download is as good as the download; else it is nobody's, as its zip is.

    Raises:
        IntakeError: it is not a folder, or holds no submission.
    """
    if not folder.is_dir():
        raise IntakeError(
            f"{folder} is not a folder: give the folder that holds one folder or zip per student, "
            "or the unpacked download of Canvas or Moodle"
        )
    sources: list[Source] = []
    aside: list[str] = []
    lost: list[str] = []
    downloads: list[Path] = []
    named: dict[tuple[str, str, str], list[tuple[Name, Path]]] = defaultdict(list)
    texts: dict[tuple[str, str, str], str] = {}
    paths = [p for p in sorted(folder.iterdir()) if p.name[0] != "." and p.name not in IGNORED]
    for path, name in _names_of_platforms(paths).items():
        mode = path.lstat().st_mode
        plain = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
        if name and plain and (name.file or stat.S_ISDIR(mode)) and _fits(name, mode):
            key = (name.platform, name.person, name.user)
            if name.is_text:
                texts[key] = (
                    f"left out: {short_name(name.person)} has typed in a text: read it there"
                )
            else:
                named[key].append((name, path))
        elif plain and _is_download(path):
            downloads.append(path)
        elif stat.S_ISDIR(mode):
            sources.append(Source(_student(path.name), {"": path}))
        elif stat.S_ISREG(mode) and path.suffix.lower() == ".zip":
            sources.append(Source(_student(path.stem), {"": path}, is_zip=True))
        else:
            what = "a link" if stat.S_ISLNK(mode) else "neither a folder nor a zip"
            aside.append(f"left out: {short_name(path.name)} is {what}")
            if notebook_name(path.name) or path.suffix.lower() in ARCHIVES:
                lost.append(short_name(path.name))
    aside += [text for key, text in texts.items() if key not in named]
    sources += [_of_platform(files) for files in named.values()]
    inside = [path for path in downloads if path.is_dir()]
    deeper = Found([], [], [])
    if len(inside) == 1 and not sources:
        downloads.remove(inside[0])
        deeper = find_submissions(inside[0])
    for path in downloads:
        aside.append(
            f"left out: {short_name(path.name)} holds what several people have handed in: give it, "
            "unpacked, as the folder of submissions"
        )
        lost.append(short_name(path.name))
    if sources and all(not source.platform and _is_class(source.path) for source in sources):
        first = short_name(sources[0].path.name)
        raise IntakeError(
            f"in {folder}, several folders or zips in {first} have notebooks of the same name"
            f"{', and so it is with all others' if len(sources) > 1 else ''}: if these are the "
            f"students, give {folder / first}; if all is one student's, leave one of each there"
        )
    if not sources and not deeper.sources:
        why = "; ".join(aside[:MOST_TOLD]) or "it is empty"
        raise IntakeError(
            f"{folder} holds no submission ({why}): expected one folder or one zip per student"
        )
    told_apart = _told_apart(sources) or deeper.sources
    return Found(told_apart, aside + deeper.left_out, lost + deeper.notebooks)


def _names_of_platforms(paths: list[Path]) -> dict[Path, Name | None]:
    """Return what each name says; None where no platform has written it.

    Canvas' number of a file is that file's alone: two that share it have a date or year in their
    names.
    """
    names = {path: read_name(unicodedata.normalize("NFC", path.name)) for path in paths}
    times = Counter((n.user, n.attachment) for n in names.values() if n and n.platform == CANVAS)
    return {
        path: None if name and times[name.user, name.attachment] > 1 else name
        for path, name in names.items()
    }


def _is_class(path: Path) -> bool:
    """Return whether several folders in one hold the same notebook, and it none itself.

    Folders that are called as versions are one person's.
    """
    times: Counter[str] = Counter()
    try:
        if not path.is_dir() or (path / "notebooks").is_dir():
            return False
        if any(map(notebook_name, _names_below(path, "*"))):
            return False
        for child in sorted(path.iterdir()):
            is_zip = child.suffix.lower() == ".zip" and child.is_file()
            if VERSION.fullmatch(child.stem if is_zip else child.name):
                continue
            names = names_in_zip(child) if is_zip else _names_below(child, "**/*")
            own = {notebook_name(PurePosixPath(name).name).removesuffix(".ipynb") for name in names}
            times.update(own & set(STAGES))
    except OSError:  # told when it is taken in
        return False
    return max(times.values(), default=0) > 1


def _names_below(folder: Path, pattern: str) -> list[str]:
    """Return the names of files below a folder, no more than a submission may have."""
    return [path.name for path in islice(folder.glob(pattern), MAX_FILES) if not path.is_symlink()]


def _is_download(path: Path) -> bool:
    """Return whether a folder or zip is what a platform gives for several people, by its names."""
    try:
        if path.is_dir():
            names = [child.name for child in path.iterdir() if child.name not in IGNORED]
        else:
            names = names_in_zip(path)
    except OSError:
        return False
    names = [unicodedata.normalize("NFC", name).strip("/") for name in names]
    tops = {name.split("/")[0] for name in names}
    if len(tops) == 1:  # a zip with all in one folder
        tops = {name.split("/")[1] for name in names if "/" in name}
    found = [name for top in tops if (name := read_name(top)) and _has_numbers(name)]
    people = {(name.platform, name.person) for name in found}
    return len(people) > 1 and 2 * len(found) > len(tops)


def _has_numbers(name: Name) -> bool:
    """Return whether a name has a platform's numbers, and no date or count of somebody's own."""
    return name.platform == MOODLE or min(len(name.user or "100"), len(str(name.attachment))) > 2


def _fits(name: Name, mode: int) -> bool:
    """Return whether a platform gives something of that name: Canvas gives files only."""
    return name.platform == MOODLE or not stat.S_ISDIR(mode)


def _of_platform(files: list[tuple[Name, Path]]) -> Source:
    """Return what one person has handed in on a platform; of the same name the latest counts."""
    first = files[0][0]
    late = any(name.late for name, _ in files)
    notes, latest = [], {}
    given = {name.file for name, _ in files}
    counted = [(*_own_name(name, given), name.attachment, path) for name, path in files]
    for file, _, _, path in sorted(counted, key=lambda entry: entry[1:3]):
        if file and file in latest:
            notes.append(f"{short_name(file)} was handed in again: the latest counts")
        latest[file or path.name] = path
    folders = [path for name, path in files if not name.file]
    if len(files) == 1 and folders:
        latest = {"": folders[0]}
    return Source(
        _student(first.person),
        latest,
        platform=first.platform,
        user=first.user,
        prefix=_writable(max((name for name, _ in files), key=lambda n: n.attachment).prefix),
        late=late,
        notes=tuple(notes),
    )


def _own_name(name: Name, given: Container[str]) -> tuple[str, int]:
    """Return a file's own name, and how often it was handed in before, as Canvas counts.

    A student's names may end in a number as well. It is Canvas' where the name without it was given
    too, is that of a notebook of the lab, or of a module, which cannot be imported with it.
    """
    file, count = without_count(name.file)
    is_notebook = notebook_name(file).removesuffix(".ipynb") in STAGES
    if name.platform == CANVAS and (file in given or is_notebook or file.endswith(".py")):
        return file, count
    return name.file, 0


def _student(name: str) -> str:
    """Return a student's name as every system would write it, on one line."""
    return "".join(char if char.isprintable() else "_" for char in roster_key(name)) or "_"


def _writable(name: str) -> str:
    """Return a name in which bytes that are no UTF-8, and cannot be written, are replaced."""
    return re.sub("[\ud800-\udfff]", "_", name)


def _told_apart(sources: list[Source]) -> list[Source]:
    """Return the submissions by name, each under one of its own; nobody is stopped for another.

    Of the same name, the platform's number or a zip's own name is added; those that only look
    alike keep theirs. Both kinds are marked, but for those of one name who are anonymous.
    """
    same = Counter(source.student for source in sources)
    alike = Counter(look(source.student) for source in sources)
    found, taken = [], set()
    for source in sources:
        name, notes = source.student, list(source.notes)
        if same[name] > 1 and (source.user or not source.path.is_dir()):
            name = _student(f"{name} ({source.user or source.path.name})")
        if alike[look(source.student)] > 1 and not (source.user and same[source.student] > 2):
            notes.append("another submission has the same name or one that looks like it: "
                         "see whose is whose")  # fmt: skip
        while name in taken:
            name += "'"
        taken.add(name)
        found.append(replace(source, student=name, notes=tuple(notes)))
    return sorted(found, key=lambda source: (source.student.casefold(), source.student))


def look(name: str) -> str:
    """Return what a name looks like: the same for Ada, ada and Аda with a Cyrillic letter."""
    plain = unicodedata.normalize("NFKD", name.casefold().translate(LOOK_ALIKE))
    return "".join(char for char in plain if not unicodedata.combining(char)).strip()


def safe_name(student: str) -> str:
    """Return a folder name for a student: ASCII letters, digits, `.`, `_` and `-`; always the same.

    Papermill formats braces in paths, and shells trip over blanks and quotes. Different students
    get different names: where a character had to go, part of a hash is appended.
    """
    decomposed = unicodedata.normalize("NFKD", student).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", decomposed)[:MAX_SLUG].strip("-.")
    if slug and slug == student and not HASHED_NAME.fullmatch(student):
        return student
    digest = hashlib.sha256(student.encode(errors="backslashreplace")).hexdigest()
    return f"{slug or 'student'}-{digest[:10]}"
