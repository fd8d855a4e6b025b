"""Errors of the hub's client, as its answers make them."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, httpx

URL = "https://huggingface.co/api/models/owner/lm/revision/main"


def hub_error(
    status: int, headers: Mapping[str, str] | None = None, token: str | None = None, body: object = None
) -> HfHubHTTPError:
    """Return what the client raises where the hub answers `status`, to a request with `token` if there is one."""
    request = httpx.Request("GET", URL, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        hf_raise_for_status(httpx.Response(status, headers=headers or {}, json=body or {}, request=request))
    except HfHubHTTPError as error:
        return error
    raise AssertionError(f"{status} is no error")
