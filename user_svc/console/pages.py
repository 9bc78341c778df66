"""The console's pages and static files.

A page is a shell: what it shows and does, its scripts ask of the JSON API of the same listener. So a page holds nothing
about anybody, and the API's guards are the only ones that count. What the policy below forbids (inline code, other
hosts), no name or address can bring about.
"""

import hashlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.runtime.session import logged_in
from user_svc.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_UNKEPT = {"Cache-Control": "no-store"}
PAGES = {"Overview": "/", "Mails": "/console/mails", "Dead letters": "/console/dead-letters", "Audit": "/console/audit"}
"""What the navigation lists, in its order."""
_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
"""By what a file's name ends with. Not the machine's table: it may say anything, and `nosniff` makes browsers obey."""


class File(msgspec.Struct, frozen=True):
    """A static file in memory."""

    content: bytes
    media_type: str
    tag: str
    """Its ETag."""


def routes(settings: Settings) -> list[Route]:
    """All pages."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("user_svc.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = dict(_files(resources.files("user_svc.console") / "static"))
    token = settings.admin_token

    def html(request: Request, template: str, **values: Any) -> Response:
        text = templates.get_template(template).render(
            pages=PAGES,
            path=_listed(request.url.path),
            open=token is None,
            inside=template != "login.html.j2",
            **values,
        )
        return Response(text, headers=HEADERS | _UNKEPT, media_type="text/html")

    def page(request: Request, template: str, **values: Any) -> Response:
        """For whoever is logged in; others are asked to, and come back."""
        if not logged_in(request, token):
            where = f"/console/login?next={quote(request.url.path)}"
            return Response(status_code=303, headers=HEADERS | _UNKEPT | {"Location": where})
        return html(request, template, **values)

    async def overview(request: Request) -> Response:
        return page(request, "overview.html.j2")

    async def mails(request: Request) -> Response:
        return page(request, "mails.html.j2")

    async def history(request: Request) -> Response:
        traces = (settings.jaeger_url or "").rstrip("/")
        return page(request, "history.html.j2", user_id=request.path_params["user_id"], traces=traces)

    async def letters(request: Request) -> Response:
        return page(request, "letters.html.j2")

    async def audit(request: Request) -> Response:
        return page(request, "audit.html.j2")

    async def login(request: Request) -> Response:
        return html(request, "login.html.j2")

    async def static(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            return Response("There is no such file.\n", 404, HEADERS, "text/plain")
        headers = HEADERS | {"ETag": file.tag, "Cache-Control": "no-cache"}  # asked for again, sent only when changed
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    return [
        Route("/", overview),
        Route("/console/mails", mails),
        Route("/console/mails/{user_id}", history),
        Route("/console/dead-letters", letters),
        Route("/console/audit", audit),
        Route("/console/login", login),
        Route("/console/static/{name:path}", static),
    ]


def _listed(path: str) -> str:
    """The page of the navigation that a path belongs to."""
    return next((page for page in PAGES.values() if page != "/" and path.startswith(page)), path)


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, File]]:
    """Every file below a folder of the package, by its path there."""
    for each in folder.iterdir():
        if each.is_dir():
            yield from _files(each, f"{prefix}{each.name}/")
            continue
        content = each.read_bytes()
        kind = _TYPES.get(each.name.rpartition(".")[2], "text/plain")
        yield prefix + each.name, File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"')
