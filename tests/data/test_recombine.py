"""Questions with options of other questions."""

from datasets import Dataset

from hf_calib.data.recombine import recombine_options


QUESTIONS = Dataset.from_dict(
    {
        "id": ["0", "1", "2"],
        "question": ["What is hot?", "What is cold?", "2 + 2"],
        "choices": [["fire", "ice"], ["snow", "lava", "ice"], ["3", "4"]],
        "answer": [0, 0, 1],
        "subject": ["nature", "nature", "maths"],
    }
)


def test_options_come_from_the_subject_and_differ():
    pools = {"nature": {"fire", "ice", "snow", "lava"}, "maths": {"3", "4"}}
    counts = dict(zip(QUESTIONS["question"], [2, 3, 2], strict=True))
    made = recombine_options(QUESTIONS, 200, seed=1)
    assert len(set(made["id"])) == 200 and set(made["answer"]) == {None}
    for row in made:
        assert len(row["choices"]) == len(set(row["choices"])) == counts[row["question"]]
        assert set(row["choices"]) <= pools[row["subject"]]
    assert len({tuple(choices) for choices in made["choices"]}) > 20


def test_the_seed_decides():
    assert recombine_options(QUESTIONS, 20, seed=1)[:] == recombine_options(QUESTIONS, 20, seed=1)[:]
    assert recombine_options(QUESTIONS, 20, seed=1)["choices"][:] != recombine_options(QUESTIONS, 20, 2)["choices"][:]


def test_without_subjects_all_share_their_options():
    made = recombine_options(QUESTIONS.remove_columns("subject"), 200)
    assert any("3" in row["choices"] for row in made if row["question"] == "What is hot?")
