"""Tables for the terminal."""

from samples import make

from hf_calib.evaluation.evaluate import evaluate_probabilities
from hf_calib.evaluation.tables import print_groups, print_table


def test_names_are_not_markup(capsys):
    """A folder or a subject may have any name; `[/]` closes a style of rich, `[math]` opens one, `:id:` is an emoji."""
    probabilities, labels, _ = make(n=60)
    names = ["algebra [math]", "a[/]b", ":id: cards"]
    results = evaluate_probabilities(probabilities, labels, groups=names * 20, n_bootstrap=20)
    print_table([{"stage": "model[v2]", **results}], title="before [/] after")
    print_groups(results)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*names, "model[v2]", "before [/] after"))
