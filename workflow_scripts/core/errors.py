"""Exceptions whose message is written for the user, and a test for libraries' out-of-memory errors."""


class StudyError(Exception):
    """An error that the user can fix: the message names the file, row or key and says what to write instead."""


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
