"""What a command of Snakemake forces, and whether it makes results at all."""

import pytest

from workflow_scripts.provenance.verify import Command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-npc1", Command()),
        ("--cores 2 -kj4 results/smoke/report.html", Command()),
        ("-nFc4", Command(forces_all=True)),
        ("-c1 --forceall", Command(forces_all=True)),
        ("-R train_encoder score_pairs -n", Command(forced=frozenset({"train_encoder", "score_pairs"}))),
        ("--forcerun train_encoder", Command(forced=frozenset({"train_encoder"}))),
        ("--unlock", Command(makes_results=False)),
        ("--list-target-rules", Command(makes_results=False)),
        ("--report report.html", Command(makes_results=False)),
        ("-S", Command(makes_results=False)),
        ("tests/unit -q --of-another-program", Command()),
    ],
)
def test_what_a_command_does(arguments, expected, capfd):
    assert Command.read(arguments.split()) == expected
    assert capfd.readouterr() == ("", "")
