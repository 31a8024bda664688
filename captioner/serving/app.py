"""The application: its routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from captioner.captioner import Captioner
from captioner.errors import ImageError
from captioner.page.assets import Asset, page_assets
from captioner.serving.access import Access, Guard
from captioner.serving.answer import JSON, Captioned, to_answer
from captioner.serving.chat import chat_error, read_chat, to_completion, to_stream
from captioner.serving.counters import MEDIA_TYPE, Counters
from captioner.serving.door import Door, LoopErrors, Visit
from captioner.serving.limits import Limits, Uploads
from captioner.serving.queue import Queue
from captioner.serving.refusal import GoneError, RefusedError, busy, refusal_of
from captioner.serving.uploads import Part, parts_of
from captioner.serving.wish import Wish, read_wish
from captioner.system.escapes import utf8_name

T = TypeVar("T")
OPENAPI = Path(__file__).parent / "openapi.yaml"
PUBLIC = ("/healthz", "/openapi.yaml")  # need no token, nor do the files of the page
CHAT = "/v1/chat/completions"
IMAGE = "image"  # the name of the field of a form
FORM = "multipart/form-data"


def build_app(
    models: Mapping[str, Captioner],
    limits: Limits,
    access: Access,
    say: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> Starlette:
    """Build the application.

    Args:
        models: by name, all on one device; the first is the default.
        limits: of requests and of the queue.
        access: who may use it.
        say: prints a line of the log.
    """
    uploads, counters = Uploads(limits), Counters()
    assets = page_assets()

    def tell(visit: Visit) -> None:
        counters.add(visit)
        say(
            f"{visit.method:.10} {visit.route} {visit.status}, {visit.size:,} bytes, "
            f"{visit.seconds:.3f} s"
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(LoopErrors(say))
        async with Queue(models, limits, uploads, counters.batches.add) as queue:
            app.state.service = Service(models, limits, uploads, counters, queue)
            yield

    app = Starlette(
        routes=[*_routes(), *(_file_route(*each) for each in assets.items())],
        middleware=[
            *_cors(access),
            Middleware(Door, tell=tell, say=say, forms={CHAT: chat_error}),
            Middleware(Guard, access=access, public={*PUBLIC, *assets}),
        ],
        exception_handlers={HTTPException: _raise},
        lifespan=lifespan,
    )
    app.state.stopping = False  # whether new requests are refused
    return app


def _cors(access: Access) -> list[Middleware]:
    """Return what lets other pages call; nothing if none may."""
    if not access.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=[*access.origins],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    ]


async def _raise(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Leave the errors of the router to `Door`."""
    raise error


class Service:
    """What the routes share."""

    def __init__(
        self,
        models: Mapping[str, Captioner],
        limits: Limits,
        uploads: Uploads,
        counters: Counters,
        queue: Queue,
    ):
        self.models, self.limits, self.uploads = models, limits, uploads
        self.counters, self.queue = counters, queue

    async def caption(self, content: bytes, wish: Wish) -> Captioned:
        """Caption one picture within the time limit."""
        seconds = self.limits.max_seconds
        try:
            async with asyncio.timeout(seconds):
                found = await self.queue.caption(content, wish)
        except TimeoutError:
            raise busy(f"busy: no caption after {seconds:g} s; try again") from None
        except ImageError:
            self.counters.images["error"] += 1
            raise
        self.counters.images[found.status] += 1
        return found


Endpoint = Callable[[Request], Awaitable[Response]]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
    """Do some work; if the client hangs up, drop it.

    Raises:
        GoneError: if the client hangs up.
    """

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(work), asyncio.create_task(until_gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise GoneError
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _caption(request: Request) -> Response:
    service = _service(request)
    service.queue.check()
    wish = read_wish(request.query_params.multi_items(), service.models)
    content = await _one_image(request, service)
    service.uploads.check(len(content))
    with service.uploads.holding(len(content)):
        found = await _unless_gone(request, service.caption(content, wish))
    return JSONResponse(to_answer(wish, found))


async def _one_image(request: Request, service: Service) -> bytes:
    """Read the picture of a request: the body, or the part `image` of a form."""
    async with service.uploads.slot():
        if not _is_form(request):
            return b"".join([chunk async for chunk in service.uploads.chunks(request)])
        parts = await _images(request, service, 1)
    return bytes(parts[0].content)


async def _images(request: Request, service: Service, most: int) -> list[Part]:
    """Read the parts `image` of a form, from 1 to `most`."""
    kind = request.headers["content-type"]
    chunks = service.uploads.chunks(request)
    parts = [part async for part in parts_of(kind, chunks, most)]
    if other := next((part for part in parts if part.name != IMAGE), None):
        raise RefusedError(
            400, f"body: a part named {other.name[:60]!r}; send pictures as {IMAGE!r}"
        )
    if not parts:
        raise RefusedError(400, f"body: no part named {IMAGE!r}; send the picture in one")
    return parts


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


async def _captions(request: Request) -> Response:
    service = _service(request)
    service.queue.check()
    wish = read_wish(request.query_params.multi_items(), service.models)
    if not _is_form(request):
        raise RefusedError(415, f"body: must be {FORM} with parts named {IMAGE!r}")
    async with service.uploads.slot():
        parts = await _images(request, service, service.limits.max_images)
    service.uploads.check(sum(len(part.content) for part in parts))
    return StreamingResponse(_lines(service, wish, parts), media_type="application/x-ndjson")


async def _lines(service: Service, wish: Wish, parts: list[Part]) -> AsyncIterator[str]:
    """Caption some pictures at a time; yield a line for each as it is finished."""
    waiting = list(enumerate(parts))[::-1]
    running: set[asyncio.Task[JSON]] = set()
    size = sum(len(part.content) for part in parts)
    with service.uploads.holding(size):
        try:
            while waiting or running:
                while waiting and len(running) < service.limits.max_batch:
                    running.add(asyncio.create_task(_line(service, wish, *waiting.pop())))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield json.dumps(task.result(), ensure_ascii=False) + "\n"
        finally:
            for task in running:
                task.cancel()


async def _line(service: Service, wish: Wish, index: int, part: Part) -> JSON:
    content = bytes(part.content)
    part.content.clear()
    line: JSON = {"index": index, "file_name": utf8_name(part.file_name)}
    try:
        await service.queue.room()
        return line | to_answer(wish, await service.caption(content, wish))
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        return line | {"status": "error", "error": refusal.message}


async def _chat(request: Request) -> Response:
    service = _service(request)
    service.queue.check()
    async with service.uploads.slot():
        body = b"".join([chunk async for chunk in service.uploads.chunks(request)])
    service.uploads.check(len(body))
    asked = read_chat(body, request.query_params.multi_items(), service.models)
    with service.uploads.holding(len(body)):
        found = await _unless_gone(request, service.caption(asked.content, asked.wish))
    if asked.stream:
        return StreamingResponse(to_stream(asked, found), media_type="text/event-stream")
    return JSONResponse(to_completion(asked, found))


async def _metrics(request: Request) -> Response:
    service = _service(request)
    text = service.counters.text(service.queue.size, service.uploads)
    return Response(text, media_type=MEDIA_TYPE)


async def _models(request: Request) -> Response:
    models = _service(request).models
    entry = {"object": "model", "created": 0, "owned_by": "captioner"}
    return JSONResponse(
        {
            "object": "list",  # with `data`, the form of chat completions
            "data": [{"id": name} | entry for name in models],
            "models": [
                {
                    "name": name,
                    "default": number == 0,
                    "cnns": [cnn.spec.backbone for cnn in captioner.encoder.cnns],
                    "attention": captioner.map_size() > 0,
                    "decoding": captioner.decoding.model_dump(),
                }
                for number, (name, captioner) in enumerate(models.items())
            ],
        }
    )


async def _health(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse({"status": "ok"})


def _routes() -> list[BaseRoute]:
    return [
        _route("/v1/caption", _caption, "POST"),
        _route("/v1/captions", _captions, "POST"),
        _route(CHAT, _chat, "POST"),
        _route("/v1/models", _models, "GET"),
        _route("/metrics", _metrics, "GET"),
        _route("/healthz", _health, "GET"),
        _file_route("/openapi.yaml", Asset(OPENAPI.read_bytes(), "application/yaml")),
    ]


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    async def answer(request: Request) -> Response:
        request.scope["visit"].route = path
        return await endpoint(request)

    return Route(path, answer, methods=[method])


def _file_route(path: str, asset: Asset) -> Route:
    async def file(request: Request) -> Response:  # noqa: ARG001
        headers = {"Cache-Control": "no-cache"}
        return Response(asset.content, headers=headers, media_type=asset.media_type)

    return _route(path, file, "GET")
