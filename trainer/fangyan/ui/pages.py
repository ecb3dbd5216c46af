"""The pages before a run: files, how they are read, the model, the recipe and its check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from fangyan.errors import UserError
from fangyan.first_run.settings import learning, suitable_model
from fangyan.first_run.siblings import name_of, siblings
from fangyan.ui import recipes
from fangyan.ui.checks import Checked
from fangyan.ui.choice import (
    FORMAT_NAMES,
    SCHEME_NAMES,
    TASK_NAMES,
    Choice,
    column_selects,
    guessed,
    preview,
)
from fangyan.ui.files import MOST_UPLOADED, entries, free_name, in_words, inside, keep_upload
from fangyan.ui.recipes import RUNS, Settings
from fangyan.ui.runs import all_runs, best_of
from fangyan.ui.state import State

# Files that may be dev or test, of those beside the one to train on.
_MOST_FILES = 200


class Wish(Choice, Settings):
    """What the form of the model sends: how the file is read, and the settings."""


def add_pages(app: FastAPI, state: State) -> None:
    """Add the pages before a run."""

    @app.get("/")
    def home(request: Request) -> HTMLResponse:
        runs = [(run, best_of(run)) for run in all_runs(state.jobs)]
        return state.page(request, "home.html", runs=runs, recipes=recipes.recipes_here(), tasks=TASK_NAMES)

    @app.get("/files")
    def files(request: Request, at: str = "") -> HTMLResponse:
        folder = inside(at)
        found, more = entries(folder)
        parents = [(str(folder), folder.name), *((str(p), p.name) for p in folder.parents)]
        return state.page(
            request,
            "files.html",
            at=str(folder),
            parents=[each for each in reversed(parents) if each[1]],
            entries=found,
            more=more,
            most=MOST_UPLOADED,
            most_in_words=in_words(MOST_UPLOADED),
        )

    @app.post("/files")
    def upload(file: Annotated[UploadFile, File()], at: Annotated[str, Form()] = "") -> JSONResponse:
        path = keep_upload(file.filename or "", file.file, inside(at))
        return JSONResponse({"path": str(path), "next": f"/data?{urlencode({'train': str(path)})}"})

    @app.get("/data")
    def data(request: Request, choice: Annotated[Choice, Query()]) -> HTMLResponse:
        return _data_page(request, state, choice)

    @app.get("/model")
    def model(request: Request, choice: Annotated[Choice, Query()]) -> HTMLResponse:
        return _model_page(request, state, choice, Settings())

    @app.post("/model")
    def write(request: Request, wish: Annotated[Wish, Form()]) -> Response:
        path = inside(wish.train)
        try:
            _, found = guessed(wish, path)
            file, text = recipes.written(found, str(path), wish)
            recipes.save(file, text, None)
        except UserError as error:
            return _model_page(request, state, wish, wish, str(error))
        return RedirectResponse(f"/recipe?{urlencode({'file': file})}", 303)

    _add_recipe_pages(app, state)


def _data_page(request: Request, state: State, choice: Choice) -> HTMLResponse:
    """Return the page on how a file is read, with its first examples."""
    path = inside(choice.train)
    first, found = guessed(choice, path)
    mistake: str | None = None
    examples: list[dict[str, Any]] = []
    try:
        examples = preview(found, path)
    except UserError as error:
        mistake = str(error)
    return state.page(
        request,
        "data.html",
        200 if mistake is None else 422,
        choice=choice,
        guess=first,
        found=found,
        is_own=found == first,
        examples=examples,
        mistake=mistake,
        selects=column_selects(found, path),
        tasks=_with(TASK_NAMES, found.task),
        formats=_with(FORMAT_NAMES, found.format["format"]),
        schemes=SCHEME_NAMES,
        scheme=choice.scheme or found.options.get("scheme", "auto"),
    )


def _with(names: dict[str, str], name: str) -> dict[str, str]:
    return names if name in names else {**names, name: name}


def _model_page(
    request: Request, state: State, choice: Choice, settings: Settings, mistake: str | None = None
) -> HTMLResponse:
    """Return the page on the model and the settings of a run."""
    path = inside(choice.train)
    _, found = guessed(choice, path)
    preview(found, path)
    beside = siblings(path, found)
    files = [
        str(other)
        for other in sorted(path.parent.iterdir())
        if other.is_file()
        and other != path
        and other.suffix == path.suffix
        and not other.name.startswith(".")
    ]
    suits = suitable_model(found)
    return state.page(
        request,
        "model.html",
        200 if mistake is None else 422,
        choice=choice,
        found=found,
        settings=settings,
        name=settings.name or free_name(name_of(path), ".yaml", taken=[RUNS]),
        dev=settings.dev or str(beside.get("dev", "")),
        test=settings.test or str(beside.get("test", "")),
        files=files[:_MOST_FILES],
        suits=suits,
        epochs=None if suits is None else learning(found, suits.path)["train"].get("epochs"),
        models=_models_here(),
        mistake=mistake,
        task=TASK_NAMES.get(found.task, found.task),
    )


def _models_here() -> list[str]:
    """Return the folders of models near the top of the folder, which the page proposes."""
    found = (path.parent for pattern in ("*/config.json", "*/*/config.json") for path in Path().glob(pattern))
    return sorted(str(path) for path in found if not path.is_relative_to(RUNS))


def _add_recipe_pages(app: FastAPI, state: State) -> None:
    @app.get("/recipe")
    def recipe(request: Request, file: str) -> HTMLResponse:
        text = recipes.read(file)
        return _recipe_page(request, state, file, text, recipes.digest(text))

    @app.post("/recipe")
    def save(
        request: Request,
        file: Annotated[str, Form()],
        text: Annotated[str, Form()],
        before: Annotated[str, Form()],
        then: Annotated[str, Form()] = "",
    ) -> Response:
        path = recipes.recipe_path(file)
        try:
            saved = recipes.save(file, text, before)
            if then == "start":
                state.checks.close()
                run = inside(str(saved.folder))
                state.jobs.start(run, ["train", str(path)])
                return RedirectResponse(f"/run?{urlencode({'run': str(run)})}", 303)
            if then == "check":
                state.checks.start(path, recipes.digest(recipes.read(file)))
        except UserError as error:
            return _recipe_page(request, state, file, text, before, str(error))
        return RedirectResponse(f"/recipe?{urlencode({'file': str(path)})}#check", 303)

    @app.get("/check")
    def check(request: Request, file: str) -> Response:
        """Return what the check has found, as a piece of the page; 202 while it runs."""
        found = state.checks.of(recipes.recipe_path(file))
        if found is True:
            return Response(status_code=202)
        checked = found if isinstance(found, Checked) else None
        return state.page(request, "check.html", checked=checked, is_of_this=_is_of_this(checked, file))


def _is_of_this(checked: Checked | None, file: str) -> bool:
    return checked is not None and checked.digest == recipes.digest(recipes.read(file))


def _recipe_page(
    request: Request, state: State, file: str, text: str, before: str, mistake: str | None = None
) -> HTMLResponse:
    """Return the page of a recipe, with its check."""
    path = recipes.recipe_path(file)
    found = state.checks.of(path)
    checked = found if isinstance(found, Checked) else None
    return state.page(
        request,
        "recipe.html",
        200 if mistake is None else 422,
        file=str(path),
        text=text,
        before=before,
        mistake=mistake,
        checked=checked,
        is_of_this=_is_of_this(checked, file),
        is_checking=found is True,
        running=state.jobs.running(),
    )
