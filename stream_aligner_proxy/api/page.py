"""The page at `/`: one file, no outside assets; it talks to the same API as everybody else."""

from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.api.reading import grant_of
from stream_aligner_proxy.api.service import Service

_PLACEHOLDER = "{{CONFIG}}"
_EXAMPLES = (
    "Mia has 34 shells. She finds 27 more. How many shells does she have now?",
    "Explain in four sentences why the sky is blue.",
    "Write a short, polite reply to a customer whose parcel is late.",
)
# Only what is in the file may run or be loaded, and only this server be asked.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _template() -> str:
    return files("stream_aligner_proxy.api").joinpath("page.html").read_text(encoding="utf-8")


def page_route(service: Service) -> APIRouter:
    """The route of the page. What it is told: modes, the mode by default, example questions.

    Where clients need a key the page is a form for it, which everybody may see, and is told the
    rest when it shows one. The key goes into a header like any client's, and into no cookie: what a
    browser sends by itself, pages of others could have it send.
    """
    router = APIRouter()

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        sign_in = service.sign_in
        told = _told(service, None) if sign_in is None else {"sign_in": sign_in}
        # Inside a script element only "<" could end the data.
        config = orjson.dumps(told).decode().replace("<", "\\u003c")
        html = _template().replace(_PLACEHOLDER, config)
        return HTMLResponse(html, headers={"content-security-policy": _POLICY})

    @router.get("/page.json", include_in_schema=False)
    async def config(request: Request) -> Response:
        told = _told(service, grant_of(request))
        return Response(orjson.dumps(told), media_type="application/json")

    return router


def _told(service: Service, key: Key | None) -> dict[str, Any]:
    treatment = service.treatments[0]
    if key is not None:
        treatment = replace(treatment, rules=treatment.rules.within(key.modes))
    return {
        "modes": treatment.modes(),
        "mode": treatment.rules.mode,
        "examples": service.examples or _EXAMPLES,
    }
