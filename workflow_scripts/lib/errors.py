"""The one exception that users are meant to read."""


class StudyError(Exception):
    """Something the user can mend: the message names the file, row or key and says what to write instead."""
