"""Gradebooks: the points of the results, in three layouts, and nothing that a spreadsheet runs."""

from __future__ import annotations

import csv
import io
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from factory import STAGES, make_class, make_record, make_result

from labkit.grading.class_page import write_class_page
from labkit.grading.gradebook import write_gradebooks
from labkit.grading.results import FAILED, REJECTED, HandedIn, Result
from labkit.grading.roster import RosterError, read_roster

TITLE = "Triton lab"


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, strict=True))


def table(path: Path) -> dict[str, dict[str, str]]:
    header, *rows = rows_of(path)
    assert all(len(row) == len(header) for row in rows)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def roster(folder: Path, text: str) -> Path:
    path = folder / "roster.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_are_the_results_numbers(tmp_path: Path) -> None:
    results = make_class(12)
    write_gradebooks(tmp_path, results, TITLE)
    found = table(tmp_path / "gradebook.csv")
    assert list(found) == sorted(found, key=str.casefold)
    for result in results:
        row = found[result.student]
        assert float(row["total"]) == result.points
        assert float(row["maximum"]) == result.maximum == 100
        assert row["status"] == result.status
        assert [float(row[item.id]) for item in result.items] == [i.points for i in result.items]
        for record in result.stages:
            assert row[f"{record.stage} verdict"] == record.verdict
        assert row["carried"] == "; ".join(result.carried())


def test_only_stages_that_a_notebook_ran_without_are_carried(tmp_path: Path) -> None:
    stages = [
        make_record("02_train", accepted=False),
        make_record("03_export", "missing", accepted=False, used_reference=["checkpoint.pt"]),
        make_record("04_quantize", "error", accepted=False, used_reference=["model.onnx"]),
    ]
    write_gradebooks(tmp_path, [make_result("ada", stages=stages)], TITLE)
    assert table(tmp_path / "gradebook.csv")["ada"]["carried"] == "03_export"


def test_same_results_give_same_bytes_however_fast_and_in_any_order(tmp_path: Path) -> None:
    results = make_class(15)
    first = [path.read_bytes() for path in write_gradebooks(tmp_path / "a", results, TITLE)]
    again = [
        replace(
            result,
            timings={"total": 9.0},
            stages=[replace(record, seconds=1.0, cpu_s=2.0) for record in result.stages],
            environment={"cpu": "another"},
        )
        for result in results
    ]
    random.Random(1).shuffle(again)
    second = [path.read_bytes() for path in write_gradebooks(tmp_path / "b", again, TITLE)]
    assert first == second
    changed = [replace(results[0], points=results[0].points - 1), *results[1:]]
    third = [path.read_bytes() for path in write_gradebooks(tmp_path / "c", changed, TITLE)]
    assert first[0] != third[0]


def test_lines_end_as_rfc_4180_says(tmp_path: Path) -> None:
    for path in write_gradebooks(tmp_path, make_class(5), TITLE):
        content = path.read_bytes()
        assert content.endswith(b"\r\n")
        assert content.count(b"\n") == content.count(b"\r\n")
        assert not content.startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\n=", "＝"])
def test_no_cell_becomes_a_formula(tmp_path: Path, start: str) -> None:
    name = start + "cmd|' /C calc'!A0"
    note = "=HYPERLINK(1)"
    people = roster(tmp_path, "student,name,email,id\nbob,=1+1,@b,-1\n")
    results = [make_result(name, notes=[note]), make_result("bob")]
    for path in write_gradebooks(tmp_path, results, "=title", read_roster(people, TITLE)):
        for row in rows_of(path):
            for cell in row:
                assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝")), (path.name, cell)
                assert "\n" not in cell
    names = {row[0] for row in rows_of(tmp_path / "gradebook.csv")}
    assert any(cell.startswith("'") and "calc" in cell for cell in names)


def test_commas_quotes_and_foreign_letters_survive(tmp_path: Path) -> None:
    name = 'Łukasz "the, one" 李'
    write_gradebooks(tmp_path, [make_result(name)], TITLE)
    assert table(tmp_path / "gradebook.csv")[name]["total"] == "100"


def test_a_folder_name_that_is_not_utf8_is_written_all_the_same(tmp_path: Path) -> None:
    write_gradebooks(tmp_path, [make_result("caf\udce9")], TITLE)
    assert "caf?" in table(tmp_path / "gradebook.csv")


def test_canvas_layout(tmp_path: Path) -> None:
    people = roster(tmp_path, "student,name,email,id\nada,Ada Lovelace,ada@uni.example,1815\n")
    results = [make_result("ada", 0.5), make_result("bob", 1.0)]
    write_gradebooks(tmp_path, results, TITLE, read_roster(people, TITLE))
    header, possible, *rows = rows_of(tmp_path / "canvas.csv")
    assert header == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", TITLE]
    assert "Points Possible" in possible[0]
    assert possible[5] == "100"
    assert rows == [
        ["Ada Lovelace", "", "1815", "ada@uni.example", "", "50"],
        ["bob", "", "", "bob", "", "100"],
    ]


def test_a_student_cannot_set_the_highest_points_on_canvas(tmp_path: Path) -> None:
    write_gradebooks(tmp_path, [make_result("x Points Possible", 0.1)], TITLE)
    named = [row[0] for row in rows_of(tmp_path / "canvas.csv")]
    assert sum("Points Possible" in cell for cell in named) == 1


def test_moodle_layout(tmp_path: Path) -> None:
    people = roster(tmp_path, "student,name,email,id\nada,Ada Lovelace,ada@uni.example,1815\n")
    result = make_result("ada", 0.5, stages=[make_record(stage) for stage in STAGES])
    write_gradebooks(tmp_path, [result], TITLE, read_roster(people, TITLE))
    header, row = rows_of(tmp_path / "moodle.csv")
    assert header == ["Username", "ID number", "Email address", TITLE, f"{TITLE} (Feedback)"]
    assert row[:4] == ["ada", "1815", "ada@uni.example", "50"]
    assert row[4].startswith("50 of 100 points. 01_data: 4/8, ran.")


def test_the_comment_for_moodle_holds_nothing_that_a_student_wrote(tmp_path: Path) -> None:
    stages = [make_record("01_data", "error", reason="<script>x</script>", notes=["<script>"])]
    write_gradebooks(tmp_path, [make_result("ada", stages=stages, notes=["<script>"])], TITLE)
    assert "<script>" not in (tmp_path / "moodle.csv").read_text(encoding="utf-8")


def test_points_that_are_not_to_be_trusted_are_not_imported(tmp_path: Path) -> None:
    people = roster(tmp_path, "student\nada\nbob\neve\nzoe\n")
    results = [
        make_result("ada"),
        make_result("bob", 0.0, status=FAILED, reason="The disk was full."),
        make_result("eve", 0.0, status=REJECTED, reason="No notebook."),
    ]
    write_gradebooks(tmp_path, results, TITLE, read_roster(people, TITLE))
    for file, column in (("canvas.csv", 5), ("moodle.csv", 3)):
        given = {row[0]: row[column] for row in rows_of(tmp_path / file)}
        assert {name: given[name] for name in ("ada", "bob", "eve")} == {
            "ada": "100", "bob": "", "eve": "",
        }  # fmt: skip
        assert "zoe" not in given
    comments = {row[0]: row[4] for row in rows_of(tmp_path / "moodle.csv")[1:]}
    assert comments["ada"] and not comments["bob"] and not comments["eve"]
    found = table(tmp_path / "gradebook.csv")
    assert found["bob"]["status"] == "failed"
    assert found["bob"]["notes"] == "The disk was full."
    assert found["zoe"]["status"] == "no submission"
    assert (found["zoe"]["total"], found["zoe"]["maximum"]) == ("0", "100")
    assert found["zoe"]["02.accuracy"] == "0"


def test_names_match_however_the_system_writes_accents(tmp_path: Path) -> None:
    people = roster(tmp_path, "student,name\nJos\u00e9,José García\n")
    write_gradebooks(tmp_path, [make_result("Jose\u0301")], TITLE, read_roster(people, TITLE))
    assert rows_of(tmp_path / "canvas.csv")[2][0] == "José García"
    assert "no submission" not in (tmp_path / "gradebook.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,email\nAda,a@b\n", "has the columns name, email"),
        ("student name\nada Ada\n", "expected student"),
        ("", "(none)"),
        ("student\nada\nbob\nada\n", "names ada twice, again in row 4"),
        ("student,name\n,Ada\n", "no student in row 2"),
        ('student\n"ada\n', "cannot be read"),
        ("student,exempt\nada,ja\n", "row 2: got 'ja' under exempt, expected yes, or nothing"),
        ("Student,ID,SIS User ID\nAda,1.01E+16,A\n", "1.01E+16, which a spreadsheet has rounded"),
        ("Student,ID,SIS User ID\nAda,12.000,A\n", "got the number 12.000, expected digits only"),
        ("Student;ID;SIS User ID\nAda;12,345;A\n", "got the number 12,345, expected digits only"),
        ("student,id\nada,1.2E+07\n", "1.2E+07, which a spreadsheet has rounded"),
    ],
)
def test_an_unclear_roster_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = roster(tmp_path, content)
    with pytest.raises(RosterError) as refused:
        read_roster(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_roster_of_latin1_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "roster.csv"
    path.write_bytes("student\nJosé\n".encode("latin-1"))
    with pytest.raises(RosterError, match="UTF-8"):
        read_roster(path)
    with pytest.raises(RosterError, match="cannot be read"):
        read_roster(tmp_path / "none.csv")


def test_a_roster_as_excel_saves_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "roster.csv"
    path.write_bytes(b"\xef\xbb\xbfStudent,Name\r\n ada ,Ada\r\n,\r\n\r\n")
    assert [person.name for person in read_roster(path).people] == ["Ada"]


@pytest.mark.parametrize(
    ("content", "platform"),
    [
        ("sep=;\r\nstudent;name\r\nada;Ada\r\n", ""),
        ("\n\nstudent,name\nada,Ada\n", ""),
        (
            'Student;ID;SIS Login ID;Section;"Lab 1, data, train, export (99)"\nAda;1;a;A;\n',
            "canvas",
        ),
        ("First name;Last name;Email address;Quiz: a, b, c, d (Real)\nAda;;a@x;1\n", "moodle"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_roster_is_read_whatever_separates_its_cells(
    tmp_path: Path, content: str, platform: str, encoding: str
) -> None:
    (tmp_path / "roster.csv").write_bytes(content.encode(encoding))
    people = read_roster(tmp_path / "roster.csv")
    assert ([person.name for person in people.people], people.platform) == (["Ada"], platform)


def test_numbers_that_a_program_has_made_decimal_are_the_same_numbers(tmp_path: Path) -> None:
    export = CANVAS.replace(",1815,", ",1815.0,").replace(",1788,", ",18150.0,")
    people = read_roster(roster(tmp_path, export))
    found = people.of(make_result("x", handed_in=handed_in("canvas", "18150")))
    assert found is not None and found.name == "Byron, George"
    assert [person.user for person in people.people] == ["1815", "18150"]


def test_a_canvas_export_without_most_columns_is_one(tmp_path: Path) -> None:
    export = 'Student,ID,Lab (99)\n Points Possible,,8\n"Lovelace, Ada",101,EX\n'
    people = read_roster(roster(tmp_path, export))
    assert people.platform == "canvas"
    assert [(p.name, p.user, p.exempt) for p in people.people] == [("Lovelace, Ada", "101", True)]


@pytest.mark.parametrize(
    "content",
    ["student,email,id,Points (10)\nada,a@x.example,777,\nbob,b@x.example,778,\n",
     "student,id,section,exempt,Lab (10)\nada,777,A,0.0,\nbob,778,B,,\n"],
)  # fmt: skip
def test_an_own_roster_is_not_taken_for_canvas(tmp_path: Path, content: str) -> None:
    people = read_roster(roster(tmp_path, content))
    assert (people.platform, [person.id for person in people.people]) == ("", ["777", "778"])
    found = people.find("ada", "778")  # on a platform that is not the roster's
    assert found is not None and found.student == "ada"


def test_letters_of_an_institutions_number_are_no_exponent(tmp_path: Path) -> None:
    people = read_roster(roster(tmp_path, "student,id\nada,20E1234\nbob,17e0123\n"))
    assert [person.id for person in people.people] == ["20E1234", "17e0123"]


def test_canvas_is_known_by_how_it_writes_names(tmp_path: Path) -> None:
    export = 'Student,ID,Section\n"Lovelace, Ada",101,A\n"Byron, George",102,A\n'
    people = read_roster(roster(tmp_path, export))
    assert (people.platform, [p.user for p in people.people]) == ("canvas", ["101", "102"])


def test_moodles_numbers_are_read_in_any_language(tmp_path: Path) -> None:
    content = "Identifier,Status\n参加者12345,-\nTeilnehmer/in 67,-\n"
    people = read_roster(roster(tmp_path, content))
    assert [person.user for person in people.people] == ["12345", "67"]


def test_an_own_roster_may_have_sections(tmp_path: Path) -> None:
    content = "student,name,email,id,section\nada,Ada Example,ada@x.example,7001,A\n"
    people = read_roster(roster(tmp_path, content))
    (ada,) = people.people
    assert (people.platform, ada.name, ada.id, ada.user) == ("", "Ada Example", "7001", "")
    assert ada.section == "A"


def test_two_people_of_one_name_stop_nobody(tmp_path: Path) -> None:
    content = "First name,Last name,ID number,Email address\nJane,Doe,1,j1@x\nJane,Doe,2,j2@x\n"
    people = read_roster(roster(tmp_path, content))
    assert [person.id for person in people.people] == ["1", "2"]
    assert people.find("Jane Doe", "") is None  # which of them is not clear
    twice = CANVAS.replace('"Byron, George",1788,s-2', '"Lovelace, Ada",1815,s-1')
    excused = twice.replace("george@uni.example,B,,", "george@uni.example,B,EX,")
    (ada,) = read_roster(roster(tmp_path, excused)).people  # in two sections
    assert ada.exempt


def test_excused_from_an_assignment_of_another_name_is_told(tmp_path: Path) -> None:
    export = CANVAS.replace("Current Score", "Lab 4 (4712)")
    export = export.replace("ada@uni.example,A,,", "ada@uni.example,A,EX,1")
    assert "has EX in 1 rows" in read_roster(roster(tmp_path, export), "Lab 5").note
    assert read_roster(roster(tmp_path, export), "Lab 3").note == ""


def test_a_platforms_number_is_no_id_of_the_institution(tmp_path: Path) -> None:
    results = [make_result("ada"), make_result("eve", handed_in=handed_in("moodle", "125"))]
    people = read_roster(roster(tmp_path, "student,name,id\nada,Ada,7001\n"))
    write_gradebooks(tmp_path, results, TITLE, people)
    found = table(tmp_path / "gradebook.csv")
    assert (found["ada"]["id"], found["eve"]["id"]) == ("7001", "")


def test_an_empty_class_gives_headers_only(tmp_path: Path) -> None:
    none: list[Result] = []
    write_gradebooks(tmp_path, none, TITLE)
    assert len(rows_of(tmp_path / "gradebook.csv")) == 1


# ---- as platforms export it

CANVAS = """Student,ID,SIS User ID,SIS Login ID,Section,Lab 3 (4711),Current Score
    Points Possible,,,,,100.0,(read only)
"Lovelace, Ada",1815,s-1,ada@uni.example,A,,
"Byron, George",1788,s-2,george@uni.example,B,,
"Student, Test",99,,,A,,
"""
MOODLE = """Identifier,Full name,ID number,Email address,Status,Grade,\
Maximum Grade,Last modified (grade)
Participant 31415,Jane Doe,8,jane@x.example,"Submitted, 2 hours late",-,100,"Monday, 9 March 2026"
Participant 92653,Zoë Sample,9,zoe@x.example,No submission,-,100,-
"""


def handed_in(platform: str, user: str, prefix: str = "", late: bool = False) -> HandedIn:
    return HandedIn(platform, user, prefix, late)


def test_canvas_export_is_a_roster_and_points_possible_no_student(tmp_path: Path) -> None:
    people = roster(tmp_path, CANVAS)
    results = [make_result("lovelaceada", handed_in=handed_in("canvas", "1815"))]
    write_gradebooks(tmp_path, results, TITLE, read_roster(people, TITLE))
    found = table(tmp_path / "gradebook.csv")
    assert list(found) == ["Byron, George", "lovelaceada"]
    assert found["Byron, George"]["status"] == "no submission"
    assert found["lovelaceada"]["name"] == "Lovelace, Ada"
    assert rows_of(tmp_path / "canvas.csv")[2:] == [
        ["Lovelace, Ada", "1815", "s-1", "ada@uni.example", "A", "100"]
    ]


SPLIT = CANVAS.replace("Student,", "LastName,FirstName,", 1).replace(
    "Points Possible,", "Points Possible,,"
)
SPLIT = SPLIT.replace('"Lovelace, Ada"', "Lovelace,Ada").replace('"Byron, George"', "Byron,George")
SPLIT = SPLIT.replace('"Student, Test"', "Student,Test")
SEMICOLONS = "\n".join(";".join(row) for row in csv.reader(io.StringIO(CANVAS)))


@pytest.mark.parametrize("export", [SPLIT, SEMICOLONS])
def test_canvas_export_is_read_in_all_its_forms(tmp_path: Path, export: str) -> None:
    people = read_roster(roster(tmp_path, export))
    assert people.platform == "canvas"
    assert [(p.user, p.id, p.section) for p in people.people] == [
        ("1815", "s-1", "A"), ("1788", "s-2", "B"),
    ]  # fmt: skip
    assert people.of(make_result("lovelaceada")) == people.people[0]


@pytest.mark.parametrize(
    ("more", "assignment", "exempt"),
    [
        ("", "", True),
        ("", "Another", True),
        ("Lab 4 (4712)", "", False),
        ("Lab 4 (4712)", "lab 3", True),
        ("Lab 4 (4712)", "Lab 4", False),
    ],
)
def test_who_is_excused_on_canvas_is_exempt(
    tmp_path: Path, more: str, assignment: str, exempt: bool
) -> None:
    export = CANVAS.replace("Current Score", more or "Current Score")
    export = export.replace("ada@uni.example,A,,", "ada@uni.example,A,EX,1")
    people = read_roster(
        roster(tmp_path, export.replace("example,B,,", "example,B,1,")), assignment
    )
    assert [person.exempt for person in people.people] == [exempt, False]


def test_moodles_worksheet_without_names_is_a_roster(tmp_path: Path) -> None:
    path = roster(
        tmp_path,
        "Identifier,Status,Grade,Maximum Grade,Last modified (grade),Exempt\n"
        "Participant 31415,1 day late,-,100,-,\nParticipant 92653,Submitted,-,100,-,x\n",
    )
    people = read_roster(path).people
    assert [(p.user, p.shown, p.late, p.exempt) for p in people] == [
        ("31415", "Participant 31415", True, False),
        ("92653", "Participant 92653", False, True),
    ]


@pytest.mark.parametrize("name", ["Ada Lovelace", "Lovelace Ada", "lovelaceada", "Lovelace, Ada"])
def test_a_person_is_found_by_name_in_any_order(tmp_path: Path, name: str) -> None:
    people = read_roster(roster(tmp_path, CANVAS))
    person = people.of(make_result(name))
    assert person is not None and person.user == "1815"
    assert people.of(make_result("somebody else")) is None


@pytest.mark.parametrize(("user", "found"), [("1815", True), ("", True), ("111", False)])
def test_no_grade_goes_to_a_namesake(tmp_path: Path, user: str, found: bool) -> None:
    people = roster(tmp_path, CANVAS)
    result = make_result("lovelaceada", handed_in=handed_in("canvas", user))
    assert bool(read_roster(people).of(result)) is found
    write_gradebooks(tmp_path, [result], TITLE, read_roster(people, TITLE))
    number = rows_of(tmp_path / "canvas.csv")[2][1]
    assert number == ("1815" if found else "111")


def test_moodle_worksheet_is_a_roster_and_is_written_again(tmp_path: Path) -> None:
    people = roster(tmp_path, MOODLE)
    result = make_result("Jane Doe", 0.5, handed_in=handed_in("moodle", "31415"))
    write_gradebooks(tmp_path, [result], TITLE, read_roster(people, TITLE))
    write_gradebooks(tmp_path / "without", [result], TITLE)
    header, row = rows_of(tmp_path / "without" / "moodle-worksheet.csv")
    assert header == [
        "Identifier", "Full name", "Email address", "Status", "Grade", "Maximum Grade",
        "Last modified (grade)", "Feedback comments",
    ]  # fmt: skip
    assert row[6] == "-"
    header, row = rows_of(tmp_path / "moodle-worksheet.csv")
    about = dict(zip(header, row, strict=True))
    assert about["Last modified (grade)"] == "Monday, 9 March 2026"
    assert (about["Identifier"], about["Full name"]) == ("Participant 31415", "Jane Doe")
    assert (about["Grade"], about["Maximum Grade"]) == ("50", "100")
    late = [person.late for person in read_roster(people).people]
    assert late == [True, False]


def test_without_a_roster_the_ids_are_those_of_the_files(tmp_path: Path) -> None:
    result = make_result("lovelaceada", handed_in=handed_in("canvas", "1815", late=True))
    write_gradebooks(tmp_path, [result], TITLE)
    assert rows_of(tmp_path / "canvas.csv")[2][:2] == ["lovelaceada", "1815"]
    row = table(tmp_path / "gradebook.csv")["lovelaceada"]
    assert (row["id"], row["late"]) == ("1815", "late")


def test_who_is_exempt_is_so_on_the_platforms(tmp_path: Path) -> None:
    people = roster(tmp_path, "student,name,exempt\nada,Ada,x\nbob,Bob,\nzoe,Zoe,yes\n")
    results = [make_result("ada", exempt=True), make_result("bob")]
    write_gradebooks(tmp_path, results, TITLE, read_roster(people, TITLE))
    canvas = {row[0]: row[5] for row in rows_of(tmp_path / "canvas.csv")[2:]}
    assert canvas == {"Ada": "EX", "Bob": "100", "Zoe": "EX"}
    moodle = {row[0]: row[3:] for row in rows_of(tmp_path / "moodle.csv")[1:]}
    assert moodle["ada"] == ["", ""] and moodle["zoe"] == ["", ""]
    assert table(tmp_path / "gradebook.csv")["zoe"]["status"] == "exempt"


@pytest.mark.parametrize("sign", [";", "; ", "|", ",", ";\t", ';"', ';""', '; "', ";' \""])
def test_no_formula_appears_where_a_spreadsheet_splits_at_another_sign(
    tmp_path: Path, sign: str
) -> None:
    note = f"found as x{sign}=HYPERLINK(1);{sign[1:]}.ipynb"
    write_gradebooks(tmp_path, [make_result("ada", notes=[note])], TITLE)
    text = (tmp_path / "gradebook.csv").read_text()
    for cell in re.split(r"[;,|\t]", text.replace('"', "")):
        assert not cell.strip().startswith("="), cell
    for delimiter in ";|,":
        for row in csv.reader(io.StringIO(text), delimiter=delimiter):
            assert not any(cell.strip().startswith("=") for cell in row), row


# ---- what platforms and people do besides


def test_the_column_that_canvas_knows_is_the_one_given_back(tmp_path: Path) -> None:
    people = read_roster(roster(tmp_path, CANVAS.replace("100.0", "20")), "LAB 3")
    assert (people.column, people.maximum) == ("Lab 3 (4711)", 20)
    write_gradebooks(tmp_path, [make_result("lovelaceada")], "Lab 3", people)
    assert rows_of(tmp_path / "canvas.csv")[0][5] == "Lab 3 (4711)"
    other = read_roster(roster(tmp_path, CANVAS), "Lab 4")  # the only one, and another assignment
    assert (other.column, other.maximum) == ("", None)


def test_moodles_maximum_is_read(tmp_path: Path) -> None:
    assert read_roster(roster(tmp_path, MOODLE)).maximum == 100
    assert read_roster(roster(tmp_path, MOODLE.replace(",100,", ',"20,00",'))).maximum == 20
    unlike = MOODLE.replace("submission,-,100", "submission,-,50")
    assert read_roster(roster(tmp_path, unlike)).maximum is None


def test_an_export_in_another_language_is_told_how_to_be_one(tmp_path: Path) -> None:
    path = roster(tmp_path, "ID,Vollständiger Name,E-Mail-Adresse\nTeilnehmer/in 7,Jane Doe,j@x\n")
    with pytest.raises(RosterError, match="set your own language to English"):
        read_roster(path)


def test_a_teams_number_is_no_persons(tmp_path: Path) -> None:
    people = read_roster(roster(tmp_path, MOODLE))
    assert people.find("Team Rocket", "31415") is None
    for name in ("Jane Doe", "Group A-Jane Doe", "Jane Doe (31415)", "DOE JANE"):
        found = people.find(name, "31415")
        assert found is not None and found.id == "8", name
    anonymous = "Identifier,Status\nParticipant 31415,-\n"
    assert read_roster(roster(tmp_path, anonymous)).find("Teilnehmer_in", "31415")


def test_two_submissions_of_one_person_give_no_grade(tmp_path: Path) -> None:
    people = read_roster(roster(tmp_path, CANVAS))
    results = [make_result("Ada Lovelace"), make_result("Byron, George"),
               make_result("lovelaceada", handed_in=handed_in("canvas", "1815"))]  # fmt: skip
    assert set(people.twice(results)) == {"Ada Lovelace", "lovelaceada"}
    write_gradebooks(tmp_path, results, TITLE, people)
    assert [row[0] for row in rows_of(tmp_path / "canvas.csv")[2:]] == ["Byron, George"]
    assert len(table(tmp_path / "gradebook.csv")) == 3
    page = write_class_page(tmp_path, results, TITLE, people).read_text()
    assert "Two submissions of one person" in page


def test_vowels_and_invisible_signs_of_other_scripts(tmp_path: Path) -> None:
    hindi = CANVAS.replace("Lovelace, Ada", "राम").replace("Byron, George", "रमा")
    people = read_roster(roster(tmp_path, hindi))
    found = people.find("रमा", "")
    assert found is not None and found.user == "1788"
    persian = read_roster(roster(tmp_path, "student\nعلی\u200cرضا\n"))
    assert persian.find("علیرضا", "") is persian.people[0]


def test_moodles_number_of_a_person_is_not_canvas_own(tmp_path: Path) -> None:
    write_gradebooks(tmp_path, [make_result("x", handed_in=handed_in("moodle", "7"))], TITLE)
    assert rows_of(tmp_path / "canvas.csv")[2][1] == ""
