"""A headless Chromium, driven over WebDriver by Selenium."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from .base import Server
from .find import find_program

if TYPE_CHECKING:
    from selenium.webdriver import Remote

PHONE, DESK = (390, 844), (1280, 900)


class Browser(Server):
    """Chromium's driver; `open` opens a browser, which ends with the driver at the latest."""

    name = "chromium"

    def find_programs(self) -> None:
        self._driver = find_program("chromedriver", package="chromium-driver")
        self._browser = find_program("chromium", "chromium-browser", "google-chrome", package="chromium")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [self._driver, f"--port={self.port}"]

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.directory), "TMPDIR": str(self.directory)}

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/status", timeout=5) as answer:  # noqa: S310 - our own server
            return b'"ready":true' in answer.read().replace(b" ", b"")

    def open(self) -> Remote:
        """A browser with an empty profile."""
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = self._browser
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(word)
        options.add_argument(f"--user-data-dir={self.directory / 'profile'}")
        return webdriver.Remote(self.url, options=options)


def shaped(driver: Remote, size: tuple[int, int], *, dark: bool = False) -> None:
    """Look at the page on a screen of this size, in a light or dark theme."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})


def scripted(driver: Remote, *, on: bool) -> None:
    """Let pages run scripts, or not."""
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not on})
