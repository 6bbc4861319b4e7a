"""The list of mutations is current, and a mutation that does no harm slips."""

import pytest

import mutations
from mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_changes_one_place_and_still_parses(mutation):
    assert mutations.count(mutation) == 1
    assert all((ROOT / "tests" / file).exists() for file in mutation.tests)
    text = mutations.place(mutation, ROOT).read_text(encoding="utf-8")
    changed = text.replace(mutation.old, mutation.new)
    assert changed != text
    compile(changed, mutation.module, "exec")


def test_there_are_enough_mutations_of_different_names():
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 30


@pytest.mark.parametrize(
    ("new", "found"), [("two = 2", "SLIPPED"), ("two = 3", "caught"), ("(", "ERROR 2")]
)
def test_a_verdict_is_what_the_tests_say(tmp_path, new, found):
    package = tmp_path / "notebooks" / "roadseg"
    package.mkdir(parents=True)
    (package / "sums.py").write_text("two = 1 + 1", "utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_sums.py").write_text(
        "from sums import two\n\ndef test_two():\n    assert two == 2\n", "utf-8"
    )
    settings = "[pytest]\npythonpath = notebooks/roadseg\nmarkers = slow\n"
    (tmp_path / "pytest.ini").write_text(settings, "utf-8")
    mutation = Mutation("a sum", "sums", "two = 1 + 1", new, ("test_sums.py",))
    assert mutations.count(mutation, tmp_path) == 1
    assert mutations.verdict(mutation, tmp_path).startswith(found)
    assert (package / "sums.py").read_text("utf-8") == "two = 1 + 1"
