"""Chromium for tests: a page on which every console message, error and request to outside is noted."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

HOSTILE = (
    """<script>document.title='owned'</script>"><img src=x onerror="document.title='owned'"></textarea></style>"""
    """{{7*7}} javascript:alert(1) <a href=https://evil.example/>""" + "w" * 300 + " مرحبا بالعالم \u202e abc 猫 고양이"
)


def needs_browser(test: Any) -> Any:
    """Mark a test that runs in Chromium; it skips with a reason where there is none."""
    missing = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
    return pytest.mark.browser(missing(test))


@contextmanager
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install playwright)")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def page_of(chromium: Any, complaints: list[str], own: str, width: int = 1280, scheme: str = "light") -> Any:
    """A page that adds to `complaints` whatever it says on its console and asks for elsewhere than at `own`."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))

    def asked(request: Any) -> None:
        if not request.url.startswith((own, "data:")):
            complaints.append(f"request: {request.url}")

    page.on("request", asked)
    return page
