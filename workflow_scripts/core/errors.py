"""Exceptions whose message is written for the user, and a test for libraries' out-of-memory errors."""

from workflow_scripts.core.redaction import redacted


class StudyError(Exception):
    """Something the user can mend: the message names the file, row or key and says what to write instead.

    Tokens of the hub that others' messages bring along are left out of it.
    """

    def __init__(self, message: str):
        super().__init__(redacted(message))


class UnusableRowError(Exception):
    """A corpus row that can't become an example: the message is its reason in the table of rejected rows.

    What comes before the first `: ` names the kind of fault, by which reasons are counted.
    """


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a GPU or on the CPU."""
    words = (
        "out of memory",
        "out_of_memory",
        "outofmemory",
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        # cuBLAS, cuDNN, cuSOLVER and cuSPARSE: CUBLAS_STATUS_ALLOC_FAILED and the like
        "status_alloc_failed",
        "memory allocation failure",
    )
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(some in said for some in words)
