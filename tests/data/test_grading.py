"""Grading of written answers."""

import pytest

from hf_calib.data.grading import exact_match, grade_answers, load_grader, normalize_answer


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("1,000", "1000.0"),
        ("$1,000,000.50", "1000000.5"),
        ("−5 °C", "-5 °c"),
        ("ＡＢＣ", "abc"),
        ("well-known", "well known"),
        ("U.S.A.", "USA"),
        ("don’t", "dont"),
        ("+007", "7"),
        ("6.02e23", "602000000000000000000000"),
        (" an  apple\n", "apple"),
        ("Straße", "STRASSE"),
        ("1.50 metres", "1.5 metres"),
        (".5", "0.5"),
        ("The answer is 3.", "answer is 3"),
        ("1... -e5", "1 e5"),
    ],
)
def test_equal_after_normalisation(left, right):
    assert normalize_answer(left) == normalize_answer(right) != ""


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1.5", "15"),
        ("5", "-5"),
        ("1000", "1,00"),
        ("vitamin A", "vitamin"),
        ("A", ""),
        ("C++", "C"),
        ("résumé", "resume"),
        ("1e5x", "100000x"),
        ("3.14", "3.1"),
        ("10-5", "10 -5"),
    ],
)
def test_different_after_normalisation(left, right):
    assert normalize_answer(left) != normalize_answer(right)


def test_exact_match_takes_aliases_and_no_empty_answer():
    assert exact_match("NYC", ["New York", "nyc"])
    assert not exact_match("York", ["New York"])
    assert not exact_match("...", ["!", "?"])


def test_a_function_grades(tmp_path, monkeypatch):
    (tmp_path / "my_grader.py").write_text("def contains(answer, accepted):\n    return accepted[0] in answer\n")
    monkeypatch.chdir(tmp_path)
    grader = load_grader("my_grader:contains")
    assert grade_answers(["it is red", "", "blue"], [["red"]] * 3, grader) == [True, False, False]


@pytest.mark.parametrize("name", ["os", "os:", "no_such_module:f", "os:no_such_name", "os:sep"])
def test_a_wrong_name_of_a_grader_is_an_error(name):
    with pytest.raises(ValueError, match="grader"):
        load_grader(name)


@pytest.mark.parametrize("returned", [float("nan"), None, 0.5, "yes"])
def test_a_grader_returns_true_or_false(returned):
    with pytest.raises(ValueError, match="the grader returned"):
        grade_answers(["red"], [["red"]], lambda answer, accepted: returned)
