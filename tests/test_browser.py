"""The web pages in a browser: generate, cancel, paint, send back, follow."""

import importlib.util
import urllib.parse
import zipfile

import browser as browsers
import numpy as np
import pytest
from PIL import Image
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures
from test_watch import make_run, write_metrics  # noqa: F401, a fixture

from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.serving.limits import Limits
from ldm_jax.serving.page import build_page
from ldm_jax.serving.watch import build_watch_page
from ldm_jax.serving.worker import Worker

MISSING = [
  name
  for name, is_there in (
    ("chromium", browsers.CHROMIUM),
    ("playwright", importlib.util.find_spec("playwright")),
  )
  if not is_there
]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed"),
]


@pytest.fixture(scope="module")
def worker(folder):  # noqa: F811
  made = Worker(Pipeline.from_pretrained(folder), 2, Limits(steps=900))
  made.start()
  yield made
  made.stop(drain=False)


@pytest.fixture(scope="module")
def address(worker):
  with browsers.served(build_page(worker)) as url:
    yield url


@pytest.fixture(scope="module")
def browser():
  with browsers.opened() as made:
    yield made


@pytest.fixture
def page(browser, address):
  """The page, from which nothing but its own server is asked."""
  made = browsers.new_page(browser, viewport={"width": 1200, "height": 900})
  hosts = set()
  made.on("request", lambda r: hosts.add(urllib.parse.urlparse(r.url).hostname))
  made.goto(address)
  made.locator("#text-generate").wait_for()
  yield made
  made.close()
  assert hosts <= {"127.0.0.1", None}  # None is of data: and blob:


def fill(page, tab, **fields):
  for name, value in fields.items():
    page.locator(f"#{tab}-{name}").locator("textarea, input").first.fill(value)


def generate(page, tab):
  """Presses the button; returns the path of what the browser then shows.

  A line of an error that is shown instead fails at once.
  """
  page.click(f"#{tab}-generate")
  image = page.locator(f"#{tab}-results img")
  line = page.get_by_test_id("toast-body")
  image.or_(line).first.wait_for()
  assert not line.count(), line.all_inner_texts()
  return image.first.get_attribute("src")


def saved(page, source, path):
  """The file of an image that is shown."""
  path.write_bytes(page.request.get(source).body())
  return path


def small_image(path, side=32):
  pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return str(path)


def test_an_image_is_made_and_made_again_from_its_own_png(
  page, worker, tmp_path
):
  """By a second client, bit for bit, from the settings that the PNG holds."""
  fill(page, "text", prompt="a cat", seed="12345678901234567890")
  first = saved(page, generate(page, "text"), tmp_path / "first.png")
  request = worker.pipeline.request_of(first)
  assert request.prompt == "a cat" and request.seed == 12345678901234567890
  page.reload()
  page.locator("#text-generate").wait_for()
  browsers.open_tab(page, "PNG info")
  page.set_input_files("#info-image input[type=file]", str(first))
  page.locator("#info-settings", has_text="a cat").wait_for()
  page.click("#info-send-text")
  page.locator("#text-generate").wait_for(state="visible")
  again = saved(page, generate(page, "text"), tmp_path / "again.png")
  pair = (np.asarray(Image.open(path)) for path in (first, again))
  np.testing.assert_array_equal(*pair)


def test_an_image_is_sent_to_the_tabs_that_change_one(page, tmp_path):
  """Any image; the tabs then show it, and it is what they change."""
  path = small_image(tmp_path / "image.png")
  browsers.open_tab(page, "PNG info")
  page.set_input_files("#info-image input[type=file]", path)
  page.locator("#info-settings", has_text="holds no metadata").wait_for()
  page.click("#info-send-inpaint")
  page.locator("#inpaint-editor").get_by_text("1000%").wait_for()
  browsers.open_tab(page, "PNG info")
  page.click("#info-send-image")
  shown = page.locator("#image-image img")
  shown.wait_for()
  sent = saved(page, shown.get_attribute("src"), tmp_path / "sent.png")
  pair = (np.asarray(Image.open(each)) for each in (path, sent))
  np.testing.assert_array_equal(*pair)
  generate(page, "image")


def test_the_keyboard_alone_makes_an_image(page):
  page.locator("#text-prompt textarea").focus()
  page.keyboard.type("a dog")
  for _ in range(30):
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.id")
    if focused == "text-generate":
      break
  assert focused == "text-generate"
  page.keyboard.press("Enter")
  page.locator("#text-results img").first.wait_for()


def test_cancelling_frees_the_slot(page, worker):
  browsers.open_tab(page, "Text to image")
  page.locator("#text-steps input[type=number]").fill("900")
  page.locator("#text-steps input[type=number]").press("Enter")
  fill(page, "text", prompt="a cat")
  before = worker.statistics.tickets["cancelled"]
  page.click("#text-generate")
  page.locator("#text-progress progress").wait_for()
  page.locator("#text-progress", has_text="Step").wait_for()
  page.click("#text-cancel")
  page.locator("#text-progress", has_text="Cancelled").wait_for()
  assert worker.statistics.tickets["cancelled"] == before + 1
  assert worker.running == worker.waiting == 0


def test_a_painted_mask_keeps_the_rest(page, tmp_path):
  browsers.open_tab(page, "Inpaint")
  path = small_image(tmp_path / "image.png")
  browsers.give_image(page, "#inpaint-editor", path)
  browsers.paint(page, "#inpaint-editor")
  fill(page, "inpaint", prompt="a cat")
  source = generate(page, "inpaint")
  result = np.asarray(Image.open(saved(page, source, tmp_path / "result.png")))
  is_kept = (result == np.asarray(Image.open(path))).all(2)
  assert is_kept[0].all() and is_kept[:, 0].all() and not is_kept.all()


def test_an_error_is_one_line(page):
  fill(page, "text", prompt="a cat", seed="one")
  page.click("#text-generate")
  line = page.get_by_test_id("toast-body")
  line.get_by_text("seed must be a whole number, got 'one'").wait_for()


def test_the_session_is_downloaded_as_a_zip(page, tmp_path):
  fill(page, "text", prompt="a cat")
  generate(page, "text")
  browsers.open_tab(page, "Session")
  page.locator("#session-images img").first.wait_for()
  with page.expect_download() as download:
    page.click("#session-zip")
  path = tmp_path / "images.zip"
  download.value.save_as(path)
  with zipfile.ZipFile(path) as file:
    assert {"00000.png", "settings.jsonl"} <= set(file.namelist())


def test_a_film_has_a_frame_for_every_step(page):
  browsers.open_tab(page, "Film")
  fill(page, "film", prompt="a cat")
  last = generate(page, "film")
  number = page.locator("#film-step input[type=number]")
  number.fill("2")
  number.press("Enter")
  image = browsers.expect(page.locator("#film-results img").first)
  image.not_to_have_attribute("src", last)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_screen(browser, address, scheme):
  page = browsers.new_page(
    browser, viewport={"width": 400, "height": 800}, color_scheme=scheme
  )
  page.goto(address)
  page.locator("#text-generate").wait_for()
  width = page.evaluate("document.documentElement.scrollWidth")
  assert width <= 400
  dark = page.evaluate("document.body.classList.contains('dark')")
  assert dark == (scheme == "dark")
  page.close()


def test_a_run_is_followed_while_it_trains(browser, make_run):  # noqa: F811
  folders = [make_run("first"), make_run("second", rate=2e-4)]
  lines = [(10, {"loss": 3.0, "images_per_second": 50.0})]
  write_metrics(folders[0], lines)
  with browsers.served(build_watch_page(folders, every=0.5)) as url:
    page = browsers.new_page(browser)
    page.goto(url)
    page.locator("#loss .js-plotly-plot").wait_for()
    page.locator("#overview", has_text="first").wait_for()
    write_metrics(folders[0], [*lines, (20, {"loss": 1.2345})])
    page.locator("#overview", has_text="1.234").wait_for()
    page.get_by_role("tab", name="Differences of configs").click()
    page.locator("#config", has_text="task.rate").wait_for()
    page.set_viewport_size({"width": 400, "height": 800})
    browsers.until(
      page,
      lambda: page.evaluate("document.documentElement.scrollWidth") <= 400,
      "the page is as narrow as the screen",
    )
    page.close()
