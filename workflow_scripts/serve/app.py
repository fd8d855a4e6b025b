"""The page and the API, as an ASGI application."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Collection
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from starlette.types import ASGIApp

from workflow_scripts import __version__
from workflow_scripts.core.errors import StudyError
from workflow_scripts.search.inputs import read_query_file
from workflow_scripts.search.query import Query as SearchQuery
from workflow_scripts.serve import limits
from workflow_scripts.serve.answers import LABELS_TOLD, Answerer
from workflow_scripts.serve.answers import Request as SearchRequest
from workflow_scripts.serve.batching import Batcher
from workflow_scripts.serve.schemas import NO_LABEL, About, Answers, Asked, AskedFile, Options

BATCH_QUERIES = 64
ASSETS = {
    "/": ("workflow_scripts.serve", "page/page.html", "text/html"),
    "/page.css": ("workflow_scripts.serve", "page/page.css", "text/css"),
    "/page.js": ("workflow_scripts.serve", "page/page.js", "text/javascript"),
    "/blocks.js": ("workflow_scripts.report", "templates/blocks.js", "text/javascript"),
    "/report.css": ("workflow_scripts.report", "templates/report.css", "text/css"),
}
ANSWER: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: {"model": Answers, "content": {"text/csv": {}}}},
}
FILE_BODY = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "required": True,
}


class _UnusableError(Exception):
    """What is asked for can't be answered; the message says why."""


def create_app(answerer: Answerer, *, encoder: str, corpus: str, names: Collection[str], **bounds: Any) -> ASGIApp:
    """Return the application.

    Parameters
    ----------
    answerer: answers requests.
    encoder: what the page calls the encoder.
    corpus: what it calls the corpus.
    names: host names under which the server is reached.
    bounds: of `limits.Guard`.
    """
    app = FastAPI(
        title="AirRep: ask for training examples",
        description="Ask which training examples help or harm an answer.",
        version=__version__,
        # FastAPI's own pages load scripts of a content delivery network; /docs is made of the same schema without any.
        docs_url=None,
        redoc_url=None,
    )
    batcher = Batcher(answerer.answer, lambda request: len(request.queries), BATCH_QUERIES)
    about = _about(answerer, encoder, corpus)

    async def answered(queries: list[SearchQuery], options: Options, left_out: list[dict[str, Any]]) -> Response:
        if unknown := answerer.unknown_labels(options):
            raise _UnusableError(
                f"no row of the corpus has the label {unknown[0]!r}; {NO_LABEL!r} is for those without"
            )
        content = await batcher.ask(SearchRequest(queries, options, left_out))
        kind = "text/csv; charset=utf-8" if options.format == "csv" else "application/json"
        return Response(content, media_type=kind)

    @app.get("/api/about")
    async def what_is_served() -> About:
        """Return what is served."""
        return about

    @app.post("/api/attribute", **ANSWER)
    async def attribute(asked: Asked) -> Response:
        """Return the training examples that help or harm each answer most, best first."""
        queries = [
            SearchQuery(one.prompt, one.response, row, contrast=one.contrast)
            for row, one in enumerate(asked.queries, 1)
        ]
        return await answered(queries, asked, [])

    @app.post("/api/file", openapi_extra=FILE_BODY, **ANSWER)
    async def attribute_file(request: Request, asked: Annotated[AskedFile, Query()]) -> Response:
        """Return the same for each row of a file, the body of the request: prompt and response, under usual names."""
        queries, left_out = await asyncio.to_thread(_read_file, asked.name, await request.body())
        try:
            asked.check_size(len(queries))
        except ValueError as error:
            raise _UnusableError(str(error)) from None
        return await answered(queries, asked, left_out)

    page = _documentation(app)

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return Response(page, media_type="text/html")

    for path, (package, name, kind) in ASSETS.items():
        app.add_api_route(path, _asset(package, name, kind), include_in_schema=False)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not sent back.
        found = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()[:10]]
        return JSONResponse({"detail": found}, 422)

    @app.exception_handler(_UnusableError)
    async def unusable(_: Request, error: _UnusableError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    return limits.Guard(app, names, **bounds)


def _about(answerer: Answerer, encoder: str, corpus: str) -> About:
    labels = answerer.mapped.labels
    rows, dimension = answerer.mapped.vectors.shape
    return About(
        encoder=encoder,
        corpus=corpus,
        rows=rows,
        dimension=dimension,
        version=__version__,
        labels=[{"label": label, "rows": number} for label, number in labels.most_common(LABELS_TOLD)],
        distinct_labels=len(labels),
        common_words=answerer.common_words(),
        limits={
            "queries": limits.QUERIES,
            "top": limits.TOP,
            "examples": limits.EXAMPLES,
            "text_characters": limits.TEXT_CHARACTERS,
            "body_bytes": limits.BODY_BYTES,
        },
    )


def _asset(package: str, name: str, kind: str) -> Any:
    content = files(package).joinpath(name).read_bytes()

    async def asset() -> Response:
        return Response(content, media_type=kind)

    return asset


def _documentation(app: FastAPI) -> str:
    environment = Environment(
        loader=PackageLoader("workflow_scripts.serve", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _code
    return environment.get_template("docs.html").render(api=app.openapi())


def _code(text: str) -> Markup:
    """Return a text as HTML, what stands in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _read_file(name: str, body: bytes) -> tuple[list[SearchQuery], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"queries.{name.rpartition('.')[2]}"
        path.write_bytes(body)
        try:
            queries, left_out = read_query_file(path, limits.QUERIES)
        except StudyError as error:
            # Where it lay here is nobody's affair.
            lay = f"(?:{re.escape(folder)}/)?{re.escape(path.name)}"
            raise _UnusableError(re.sub(lay, lambda _: name, str(error))) from None
    queries = [replace(query, file=name) for query in queries]
    long = [query for query in queries if max(len(query.prompt), len(query.response)) > limits.TEXT_CHARACTERS]
    reason = f"a text has more than {limits.TEXT_CHARACTERS:,} characters"
    left_out += [{"query": query.row, "reason": reason} for query in long]
    queries = [query for query in queries if query not in long]
    if not queries:
        why = f": row {left_out[0]['query']}: {left_out[0]['reason']}" if left_out else ""
        raise _UnusableError(f"{name} has no query{why}")
    return queries, left_out
