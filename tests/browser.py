"""Chromium, driven by selenium: what the tests of all pages use."""

import json
import time
from collections.abc import Callable
from typing import Any, Self

import pytest

pytest.importorskip("selenium", reason="the tests of pages need selenium: pip install selenium")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from lm.bench.browser import CHROME, DRIVER, chromium

__all__ = ["ActionChains", "By", "Keys", "Page", "chromium", "needs_browser"]
needs_browser = pytest.mark.skipif(
    not (CHROME and DRIVER), reason="no browser: apt-get install chromium chromium-driver runs the tests of pages"
)


class Page:
    """A browser with a page in it."""

    ready = "drawn"
    """the mark of window.performance that says that a page is complete"""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, dark: bool = False) -> Self:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)
        self.wait(lambda: self.js("return performance.getEntriesByName(arguments[0]).length", self.ready) == 1)
        return self

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def at(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Click as a mouse does, having scrolled there."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.at(selector))
        self.at(selector).click()

    def slide(self, selector: str, value: float) -> None:
        """Move a slider, as dragging it does."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.js(script, self.at(selector), value)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def wait(self, holds: Callable[[], Any], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Messages on the console, and requests that left the page, since the last call."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return messages + [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]
