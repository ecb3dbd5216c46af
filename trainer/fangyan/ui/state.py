"""What the handlers of the page share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from fangyan.ui.checks import Checks
from fangyan.ui.jobs import Jobs
from fangyan.ui.runs import Paces
from fangyan.ui.trial import Trial


@dataclass(frozen=True)
class State:
    """Of a server: its templates, and what runs."""

    templates: Jinja2Templates
    jobs: Jobs
    checks: Checks
    trial: Trial
    paces: Paces

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a page."""
        return self.templates.TemplateResponse(request, template, context, status_code=status)
