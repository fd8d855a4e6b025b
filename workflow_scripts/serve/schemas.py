"""What the API is asked, and what it answers."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from workflow_scripts.serve.limits import EXAMPLES, QUERIES, TEXT_CHARACTERS, TOP

Text = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS)]
# What a field of a form or of an address can't say, a null.
NO_LABEL = "(no label)"
FILE_KINDS = (".jsonl", ".json", ".csv")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AskedQuery(Strict):
    """An answer whose training examples are wanted."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=TEXT_CHARACTERS)] = Field(
        description="What was asked."
    )
    response: Text = Field("", description="The answer.")
    contrast: Text | None = Field(
        None, description="Another answer: scores are then for `response` minus those for this one."
    )

    @model_validator(mode="after")
    def _contrast_has_a_response(self) -> Self:
        if self.contrast is not None and not self.response:
            raise ValueError("a contrast needs a response that it is set against")
        return self


class Options(Strict):
    """What is wanted for each query."""

    top: int = Field(10, ge=1, le=TOP, description="Examples for each query and sign, or groups of them with `fold`.")
    sign: Literal["both", "helpful", "harmful"] = Field("both", description="Which end of the scores.")
    label: list[Annotated[str, StringConstraints(max_length=1_000)]] = Field(
        [], max_length=100, description=f"Only examples with one of these labels; `{NO_LABEL}` for those without."
    )
    min_score: float | None = Field(
        None, description="Only helpful examples with at least this score, and harmful ones with at most this score."
    )
    fold: bool = Field(
        False, description="Whether examples that say the same are one, with the others of the list under `same`."
    )
    format: Literal["json", "csv"] = Field("json", description="Of the answer.")

    def check_size(self, queries: int) -> None:
        """Raise `ValueError` if the answer would be too long."""
        signs = 2 if self.sign == "both" else 1
        if queries * signs * self.top > EXAMPLES:
            raise ValueError(
                f"{queries:,} queries x {signs} signs x top {self.top} are more than {EXAMPLES:,} examples; ask for "
                "fewer of one of them"
            )


class Asked(Options):
    """Queries, and what is wanted for them."""

    queries: list[AskedQuery] = Field(min_length=1, max_length=QUERIES)

    @model_validator(mode="after")
    def _is_not_too_much(self) -> Self:
        self.check_size(len(self.queries))
        return self


def _name_of_a_file(name: str) -> str:
    if not name.endswith(FILE_KINDS):
        raise ValueError(f"the file's name must end in {', '.join(FILE_KINDS[:-1])} or {FILE_KINDS[-1]}")
    if "/" in name or any(unicodedata.category(letter) == "Cc" for letter in name):
        raise ValueError("the file's name may have neither a slash nor control characters; send its last part alone")
    return name


class AskedFile(Options):
    """A file's name, and what is wanted for its queries."""

    name: Annotated[str, StringConstraints(max_length=255), AfterValidator(_name_of_a_file)] = Field(
        description="Name of the file; its end says how it is read: .jsonl, .json or .csv."
    )


class Same(Strict):
    """An example that says the same as the one above it in the list."""

    rank: int = Field(description="Its place in the list without `fold`.")
    score: float
    example_id: int
    source_file: str
    source_row: int
    label: str | None
    prompt: str = Field(description="Its first 200 characters.")


class Found(Strict):
    """A training example."""

    sign: Literal["helpful", "harmful"]
    rank: int = Field(description="From 1, best first, among all examples of this sign and these labels.")
    score: float = Field(description="Inner product of the example's embedding and the query's.")
    source_file: str = Field(description="File of the corpus's source.")
    source_row: int = Field(description="Row in that file, from 1.")
    example_id: int = Field(description="Row of the prepared corpus, from 0.")
    label: str | None
    prompt: str
    response: str
    prompt_characters: int = Field(description="Length of the whole prompt, which may be cut here.")
    response_characters: int = Field(description="Length of the whole response, which may be cut here.")
    same: list[Same] = Field(description="With `fold`: later examples that say the same.")


class Answer(Strict):
    """What was found for one query."""

    query: int = Field(description="Its number, or its row in the file; from 1.")
    query_file: str | None = Field(description="Name of the file; `null` for a query that was sent as JSON.")
    query_prompt: str
    query_response: str
    query_contrast: str | None
    examples: list[Found]


class LeftOut(Strict):
    """A row of a file that can't be used."""

    query: int
    reason: str


class Answers(Strict):
    """What was found."""

    answers: list[Answer]
    left_out: list[LeftOut] = Field(description="Rows of a file that can't be used.")


class Label(Strict):
    """A label of the corpus."""

    label: str | None
    rows: int


class About(Strict):
    """What is served."""

    encoder: str
    corpus: str
    rows: int = Field(description="Of the corpus.")
    dimension: int = Field(description="Numbers of an embedding.")
    version: str = Field(description="Of the workflow.")
    labels: list[Label] = Field(description="The most frequent ones.")
    distinct_labels: int
    common_words: list[str] = Field(description="Words that stand in many rows, in lower case.")
    limits: dict[str, int] = Field(description="Most of what a request may have.")
