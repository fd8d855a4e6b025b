"""A headless browser for the tests of pages: Debian's `chromium` and `chromium-driver`."""

import base64
import shutil
from pathlib import Path

import pytest
from selenium import webdriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def start_browser(folder: Path) -> webdriver.Chrome:
    """Return a driver; profile and downloads are in `folder`."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    # The browser's own first page may still be loading, and what it asks for is not the page's.
    driver.get("about:blank")
    return driver


def open_page(driver: webdriver.Chrome, address: str, width: int = 1440, dark: bool = False) -> None:
    """Open a page in a window of this width, without motion."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    # A driver's click fails while the page is still gliding to the element.
    preferences = [
        {"name": "prefers-reduced-motion", "value": "reduce"},
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferences})
    driver.get_log("browser"), driver.get_log("performance")  # reading empties them
    driver.get(address)


def take_picture(driver: webdriver.Chrome, path: Path, width: int, height: int = 3000) -> None:
    """Write a picture of the page's upper part."""
    driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(picture["data"]))
