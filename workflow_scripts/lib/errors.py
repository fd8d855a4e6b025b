"""Exceptions whose message is written for the user."""


class StudyError(Exception):
    """Something the user can mend: the message names the file, row or key and says what to write instead."""


class UnusableRowError(Exception):
    """A corpus row that can't become an example: the message is its reason in the table of rejected rows.

    What comes before the first `: ` names the kind of fault, by which reasons are counted.
    """
