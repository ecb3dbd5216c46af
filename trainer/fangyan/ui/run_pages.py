"""The page of a run: it is watched, stopped and resumed, its report is read, and its model tried."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse

from fangyan.errors import UserError
from fangyan.ui import trial
from fangyan.ui.choice import TASK_NAMES
from fangyan.ui.files import inside
from fangyan.ui.runs import Run, run_at, status
from fangyan.ui.state import State

# A report is a page of its own with scripts in it, and may quote anybody's text: it reaches nothing of ours.
_REPORT = {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads allow-popups; default-src 'none'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
}


def add_run_pages(app: FastAPI, state: State) -> None:
    """Add the pages of runs."""

    @app.get("/run")
    def watch(request: Request, run: str) -> HTMLResponse:
        found = run_at(inside(run), state.jobs)
        names, texts = trial.example(found.path)
        return state.page(
            request,
            "run.html",
            run=found,
            now=status(found, state.paces),
            command=_command(found),
            recipe_file=_recipe_file(found),
            task=TASK_NAMES.get(found.task, found.task),
            fields=list(zip(names, texts, strict=True)),
            sources=trial.sources(found.path),
        )

    @app.get("/run/status")
    def now(run: str) -> dict[str, Any]:
        return status(run_at(inside(run), state.jobs), state.paces)

    @app.post("/run/stop")
    def stop(run: Annotated[str, Form()]) -> RedirectResponse:
        path = inside(run)
        state.jobs.stop(path)
        return _to(path)

    @app.post("/run/resume")
    def resume(run: Annotated[str, Form()]) -> RedirectResponse:
        found = run_at(inside(run), state.jobs)
        if not found.can_resume:
            raise UserError(
                f"{found.path}: {found.state}, expected a run that has stopped or failed on its way"
            )
        state.jobs.start(found.path, _resuming(found.path))
        return _to(found.path)

    @app.get("/run/report")
    def report(run: str) -> FileResponse:
        path = inside(run) / "report.html"
        if not path.is_file():
            raise UserError(f"{path}: no report yet, expected one at the end of the run")
        return FileResponse(path, headers=_REPORT)

    @app.post("/run/try")
    async def ask(
        run: Annotated[str, Form()],
        text: Annotated[list[str], Form()],
        source: Annotated[str, Form()] = "",
    ) -> JSONResponse:
        lines = [" ".join(part.split("\n")).replace("\t", " ").replace("\r", "") for part in text]
        if not all(line.strip() for line in lines):
            raise UserError("text: empty, expected a sentence to try the model on")
        answer = await asyncio.wrap_future(state.trial.ask(inside(run), "\t".join(lines), source))
        return JSONResponse(answer)


def _to(path: Path) -> RedirectResponse:
    return RedirectResponse(f"/run?{urlencode({'run': str(path)})}", 303)


def _resuming(path: Path) -> list[str]:
    """Return the command that resumes a run, by the recipe in its folder: that which it began with."""
    return ["train", str(path / "recipe.yaml"), f"run_dir={path}", "--resume", "auto"]


def _command(run: Run) -> str:
    """Return what does the same in a terminal."""
    return run.job.command if run.job is not None else f"fangyan train {run.path / 'recipe.yaml'}"


def _recipe_file(run: Run) -> str:
    """Return the recipe that the page has run, to be edited and run again."""
    if run.job is not None and "--resume" not in run.job.arguments and Path(run.job.arguments[1]).is_file():
        return run.job.arguments[1]
    return str(run.path / "recipe.yaml")
