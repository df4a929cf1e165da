"""A browser for tests of the web pages, and servers that it opens."""

import contextlib
import io
import shutil
import threading
import time

import uvicorn
from fastapi import FastAPI
from PIL import Image

from ldm_jax.serving.appearance import mount_page

# Nothing but what a page asks for may be requested.
ARGUMENTS = (
  *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update"),
  "--disable-sync",
)
WAIT = 90_000  # milliseconds; on a busy core a page may be slow
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


def new_page(browser, **options):
  """A page whose actions wait for `WAIT` at most."""
  page = browser.new_page(**options)
  page.set_default_timeout(WAIT)
  return page


def open_tab(page, name):
  """Selects a tab by its label."""
  page.get_by_role("tab", name=name, exact=True).click()


def expect(locator):
  """Playwright's assertions, which wait until they hold."""
  from playwright.sync_api import expect

  expect.set_options(timeout=WAIT)
  return expect(locator)


def give_image(page, selector, path):
  """Opens a file in an image editor, and waits until it is shown.

  An editor that is given a file before it has a canvas shows neither this one
  nor any later one (gradio 6.31).
  """
  editor = page.locator(selector)
  editor.locator("canvas").first.wait_for()
  editor.locator("input[type=file]").first.set_input_files(path)
  # It can undo as soon as it shows the image.
  expect(editor.get_by_role("button", name="Undo")).to_be_enabled()


def paint(page, selector):
  """A short red stroke in the middle of an image editor with an image."""
  editor = page.locator(selector)
  editor.get_by_role("button", name="Brush", exact=True).click()
  box = editor.locator("canvas").first.bounding_box()
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
  page.mouse.move(x - 15, y)
  page.mouse.down()
  page.mouse.move(x + 15, y + 10, steps=10)
  page.mouse.up()
  clip = {"x": x - 1, "y": y + 4, "width": 2, "height": 2}
  until(page, lambda: is_red(page.screenshot(clip=clip)), "the stroke is shown")


def is_red(png):
  """Whether the first pixel of a PNG is."""
  red, green, blue = Image.open(io.BytesIO(png)).convert("RGB").getpixel((0, 0))
  return red > 200 and green < 90 and blue < 90


def until(page, is_true, what, seconds=WAIT / 1000):
  """Looks again and again until `is_true()`."""
  end = time.monotonic() + seconds
  while not is_true():
    assert time.monotonic() < end, f"not within {seconds} s: {what}"
    page.wait_for_timeout(50)
