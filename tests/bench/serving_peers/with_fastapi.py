"""FastAPI and uvicorn: an async handler that scores inline, and one that scores what waits together.

A direct JSONResponse, because a returned dict is first walked value by value; the body is
read as JSON, because checking it against a model costs more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.bench.serving_peers.scorer import Ask, Scorer

LARGEST_BATCH = 64

scorer = Scorer()
waiting: asyncio.Queue[tuple[Ask, asyncio.Future[Any]]] = asyncio.Queue()


async def score_what_waits() -> None:
    while True:
        batch = [await waiting.get()]
        while len(batch) < LARGEST_BATCH and not waiting.empty():
            batch.append(waiting.get_nowait())
        for (_, future), answer in zip(batch, scorer.rank([asked for asked, _ in batch]), strict=True):
            future.set_result(answer)
        await asyncio.sleep(0)  # what came in meanwhile is read before the next batch


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(score_what_waits())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/rank")
async def rank(request: Request) -> JSONResponse:
    asked = await request.json()
    return JSONResponse(scorer.rank([(asked["user"], asked["items"])])[0])


@app.post("/batched")
async def batched(request: Request) -> JSONResponse:
    asked = await request.json()
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    waiting.put_nowait(((asked["user"], asked["items"]), future))
    return JSONResponse(await future)
