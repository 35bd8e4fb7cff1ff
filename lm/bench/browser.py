"""Chromium without a window, driven by selenium: for the benchmark and the tests of pages."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from lm.files import UserError

CHROME, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1000"
).split()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A selenium driver that keeps messages of the console and requests.

    Raises:
        UserError: there is no browser, or no selenium.
    """
    try:
        from selenium import webdriver
    except ImportError:
        raise UserError("a browser is driven by selenium: pip install selenium") from None
    if not (CHROME and DRIVER):
        raise UserError("no browser found: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
