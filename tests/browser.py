"""A browser for tests of the web pages, and servers that it opens."""

import contextlib
import shutil
import threading
import time

import uvicorn
from fastapi import FastAPI

from ldm_jax.serving.appearance import mount_page

# Nothing but what a page asks for may be requested.
ARGUMENTS = (
  *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update"),
  "--disable-sync",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def served(blocks):
  """The address of a page, served by a thread."""
  app = mount_page(FastAPI(), blocks)
  config = uvicorn.Config(
    app, port=0, log_level="error", timeout_graceful_shutdown=1
  )
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    time.sleep(0.05)
  port = server.servers[0].sockets[0].getsockname()[1]
  yield f"http://127.0.0.1:{port}"
  server.should_exit = True
  thread.join(20)


@contextlib.contextmanager
def opened():
  """Chromium, driven by Playwright."""
  from playwright.sync_api import sync_playwright

  with sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=CHROMIUM, args=list(ARGUMENTS)
    )
    yield browser
    browser.close()


def open_tab(page, name):
  """Selects a tab by its label."""
  page.get_by_role("tab", name=name, exact=True).click()


def paint(page, selector):
  """A short stroke in the middle of an image editor."""
  box = page.locator(f"{selector} canvas").first.bounding_box()
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
  page.mouse.move(x - 15, y)
  page.mouse.down()
  for i in range(10):
    page.mouse.move(x - 15 + 3 * i, y + i)
  page.mouse.up()
