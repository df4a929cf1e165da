"""The images of docs/screenshots/, by Debian's chromium and Playwright.

  pip install -e ".[test]" && apt-get install chromium
  ldm-jax serve --model=runs/glyphs_text --port 7860 &
  ldm-jax watch runs/glyphs_autoencoder runs/glyphs_text --port 7861 &
  python docs/screenshots.py http://127.0.0.1:7860 http://127.0.0.1:7861 IMAGE

IMAGE is one that the model made.
"""

import pathlib
import sys

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = pathlib.Path(__file__).parent / "screenshots"
ARGUMENTS = "--no-sandbox --disable-gpu --disable-background-networking"
PROMPT = "a large red striped circle at the top left on a black background"
LONG = 300_000  # milliseconds


def main(serve: str, watch: str, image: str) -> None:
  """Makes all screenshots."""
  FOLDER.mkdir(exist_ok=True)
  with sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path="/usr/bin/chromium", args=ARGUMENTS.split()
    )
    size = {"width": 1100, "height": 700}
    model_page(browser.new_page(viewport=size), serve, image)
    dark = browser.new_page(
      viewport={"width": 400, "height": 800}, color_scheme="dark"
    )
    narrow_page(dark, serve)
    runs = browser.new_page(viewport={"width": 1100, "height": 1250})
    runs.goto(watch)
    runs.locator("#loss .js-plotly-plot").wait_for(timeout=LONG)
    runs.locator("#previews img").first.wait_for(timeout=LONG)
    save(runs, "watch")
    browser.close()


def model_page(page: Page, url: str, image: str) -> None:
  """Text to image while it runs, a grid, inpainting, and the first stage."""
  open_page(page, url)
  page.fill("#text-prompt textarea", PROMPT)
  page.locator("#text-num input[type=number]").fill("4")
  page.locator("#text-num input[type=number]").press("Enter")
  page.locator("#text-steps input[type=number]").fill("100")
  page.locator("#text-steps input[type=number]").press("Enter")
  page.click("#text-generate")
  page.locator("#text-progress img").wait_for(timeout=LONG)
  save(page, "progress")
  page.locator("#text-results img").first.wait_for(timeout=LONG)
  save(page, "text_to_image")
  open_tab(page, "Grid")
  page.fill("#grid-prompt textarea", PROMPT)
  page.click("#grid-generate")
  page.locator("#grid-results img").wait_for(timeout=LONG)
  save(page, "grid")
  open_tab(page, "First stage")
  page.set_input_files("#first_stage-image input[type=file]", image)
  page.locator("#first_stage-results img").first.wait_for(timeout=LONG)
  save(page, "first_stage")
  open_tab(page, "Inpaint")
  page.locator("#inpaint-editor canvas").first.wait_for()
  page.set_input_files("#inpaint-editor input[type=file]", image)
  page.wait_for_timeout(3000)
  paint(page)
  page.fill("#inpaint-prompt textarea", "a small blue square")
  page.click("#inpaint-generate")
  page.locator("#inpaint-results img").first.wait_for(timeout=LONG)
  save(page, "inpaint")
  open_tab(page, "PNG info")
  page.set_input_files("#info-image input[type=file]", image)
  page.locator("#info-settings", has_text="prompt").wait_for(timeout=LONG)
  save(page, "png_info")


def narrow_page(page: Page, url: str) -> None:
  """The page on a telephone, dark."""
  open_page(page, url)
  page.fill("#text-prompt textarea", PROMPT)
  save(page, "narrow_dark")


def open_page(page: Page, url: str) -> None:
  """Loads the page of a model."""
  page.goto(url)
  page.locator("#text-generate").wait_for(timeout=LONG)


def open_tab(page: Page, name: str) -> None:
  """Selects a tab by its label."""
  page.get_by_role("tab", name=name, exact=True).click()
  page.wait_for_timeout(1000)


def paint(page: Page) -> None:
  """A stroke across the lower half of the image editor."""
  box = page.locator("#inpaint-editor canvas").first.bounding_box()
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.6
  page.mouse.move(x - 60, y)
  page.mouse.down()
  for i in range(30):
    page.mouse.move(x - 60 + 4 * i, y + (i % 10) * 3)
  page.mouse.up()
  page.wait_for_timeout(500)


def save(page: Page, name: str) -> None:
  """A screenshot of 96 colours, which takes fewer bytes."""
  page.wait_for_timeout(800)
  path = FOLDER / f"{name}.png"
  page.screenshot(path=path)
  with Image.open(path) as image:
    image.convert("RGB").quantize(96).save(path, optimize=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
