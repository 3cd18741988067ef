"""The list of planted bugs fits the code: `make mutants` can plant each of them."""

from mutants.catalogue import ROOT, read_catalogue

MUTANTS = read_catalogue()


def test_every_bug_can_be_planted_and_is_python_where_the_file_is():
    for mutant in MUTANTS:
        text = mutant.applied()
        if mutant.path.endswith(".py"):
            compile(text, mutant.path, "exec")


def test_every_bug_says_what_it_breaks_and_has_tests_that_exist():
    for mutant in MUTANTS:
        assert mutant.breaks
        assert mutant.tests
        missing = [test for test in mutant.tests if not (ROOT / test.partition("::")[0]).is_file()]
        assert not missing, mutant


def test_no_bug_is_there_twice_and_there_are_enough():
    planted = [(mutant.path, mutant.old, mutant.new) for mutant in MUTANTS]
    assert len(set(planted)) == len(planted) >= 150
