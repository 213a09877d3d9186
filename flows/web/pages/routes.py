"""The addresses of all pages."""

from __future__ import annotations

from fastapi import APIRouter

from flows.web.pages import dataset, files, overview, report, trying

router = APIRouter(include_in_schema=False)
for module in (files, overview, report, trying, dataset):
    router.include_router(module.router)
