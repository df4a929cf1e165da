"""A server in its own process, used by the unmodified clients of others."""

import base64
import concurrent.futures
import contextlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(path, *flags):
  """The process and the address of a server."""
  command = [sys.executable, "-m", "ldm_jax", "serve", "--model", path]
  process = subprocess.Popen(
    [*command, "--port", "0", "--name", "small", *flags],
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  try:
    yield process, process.stdout.readline().strip()
  finally:
    if process.poll() is None:
      process.kill()
    process.wait()


@pytest.fixture(scope="module")
def server(folder):  # noqa: F811
  with serving(folder, "--slots", "4", "--max_queue", "200") as (process, url):
    yield process, url


def images_client(url, **options):
  options = {"api_key": "none", "max_retries": 0, "timeout": 300, **options}
  return openai.OpenAI(base_url=f"{url}/v1", **options)


def generated(client, seed, **fields):
  """An image by OpenAI's client."""
  extra = {"seed": seed, "steps": 2 + seed % 3, **fields}
  answer = client.images.generate(
    model="small", prompt=f"a cat {seed}", size="16x16", extra_body=extra
  )
  data = base64.b64decode(answer.data[0].b64_json)
  return np.asarray(Image.open(io.BytesIO(data)))


def memory(process):
  """Resident bytes."""
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  (line,) = (each for each in status.splitlines() if each.startswith("VmRSS"))
  return int(line.split()[1]) * 1024


def test_openais_client(server):
  client = images_client(server[1])
  assert [each.id for each in client.models.list()] == ["small"]
  image = generated(client, 3)
  assert image.shape == (16, 16, 3)
  np.testing.assert_array_equal(generated(client, 3), image)
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  answer = client.images.edit(
    model="small",
    image=("image.png", file.getvalue()),
    prompt="a dog",
    size="16x16",
    extra_body={"steps": 3, "strength": 0.5, "seed": 1},
  )
  assert answer.data[0].b64_json
  with pytest.raises(openai.UnprocessableEntityError, match="steps"):
    generated(client, 1, steps=10_000)


def test_a_client_of_a1111(server):
  host, port = server[1].removeprefix("http://").split(":")
  api = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler a", steps=3)
  size = {"width": 16, "height": 16}
  result = api.txt2img(prompt="a cat", seed=5, batch_size=2, **size)
  assert result.info["all_seeds"] == [5, 6] and len(result.images) == 2
  again = api.txt2img(prompt="a cat", seed=6, **size)
  np.testing.assert_array_equal(again.images[0], result.images[1])
  mask = Image.new("L", (16, 16))
  mask.paste(255, (4, 4, 12, 12))
  edited = api.img2img(
    images=[result.images[0]], prompt="a dog", mask_image=mask, **size
  )
  outside = np.asarray(mask) == 0
  kept = np.asarray(edited.image)[outside]
  np.testing.assert_array_equal(kept, np.asarray(result.images[0])[outside])
  assert "Seed: 5" in api.png_info(result.images[0]).info
  assert api.get_progress()["progress"] == 0
  assert api.interrupt() == {}
  assert any(each["name"] == "Euler a" for each in api.get_samplers())
  assert api.get_sd_models()[0]["model_name"] == "small"


def test_64_clients_get_their_own_images_and_memory_stays(server):
  """Nothing is lost or mixed up: each image is what it is alone."""
  process, url = server
  clients = [images_client(url) for _ in range(64)]
  jobs = [(clients[i % 64], i % 40) for i in range(192)]
  with concurrent.futures.ThreadPoolExecutor(64) as pool:
    together = lambda jobs: list(pool.map(lambda job: generated(*job), jobs))
    together(jobs[:64])
    before = memory(process)
    found = together(jobs)
  growth = memory(process) - before
  alone = {seed: generated(clients[0], seed) for seed in range(40)}
  for (_, seed), image in zip(jobs, found, strict=True):
    np.testing.assert_array_equal(image, alone[seed])
  assert growth < 64 * 2**20


def test_a_client_that_leaves_frees_its_place(server):
  client = images_client(server[1], timeout=0.05)
  with pytest.raises(openai.APITimeoutError):
    client.images.generate(prompt="a", size="32x32", extra_body={"steps": 150})
  patient = images_client(server[1])
  began = time.monotonic()
  generated(patient, 1)
  assert time.monotonic() - began < 120


def test_what_is_being_computed_is_finished_at_the_end(folder):  # noqa: F811
  with serving(folder, "--slots", "2") as (process, url):
    client = images_client(url)
    generated(client, 0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      found = [pool.submit(generated, client, i, steps=30) for i in range(4)]
      time.sleep(0.5)
      process.send_signal(signal.SIGTERM)
      assert all(each.result().shape == (16, 16, 3) for each in found)
    assert process.wait(60) in (0, -signal.SIGTERM, 143)


def test_an_open_page_does_not_delay_the_end(folder):  # noqa: F811
  """Its heartbeat is a stream that ends with the page alone."""
  with serving(folder, "--drain", "300") as (process, url):
    heartbeat = f"{url}/gradio_api/heartbeat/page"
    with httpx.stream("GET", heartbeat, timeout=120) as stream:
      lines = stream.iter_lines()
      assert next(lines) == "data: ALIVE"
      process.send_signal(signal.SIGTERM)
      assert process.wait(60) in (0, -signal.SIGTERM, 143)


def test_after_a_kill_the_same_image_comes_again(folder):  # noqa: F811
  with serving(folder) as (process, url):
    image = generated(images_client(url), 7)
    process.kill()
    process.wait()
    with pytest.raises(openai.APIConnectionError):
      generated(images_client(url), 7)
  with serving(folder) as (_, url):
    np.testing.assert_array_equal(generated(images_client(url), 7), image)


def test_a_port_in_use_and_a_missing_key_are_one_line(folder, server, tmp_path):  # noqa: F811
  port = server[1].rpartition(":")[2]
  command = [sys.executable, "-m", "ldm_jax", "serve", "--model", folder]
  for flags, line in (
    (["--port", port], "cannot bind to"),
    (["--api_key", str(tmp_path / "none")], "the key in"),
  ):
    done = subprocess.run(
      [*command, *flags], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 2 and line in done.stderr
    assert "Traceback" not in done.stderr
