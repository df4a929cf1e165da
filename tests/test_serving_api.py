"""The HTTP API, by the messages of A1111's and OpenAI's clients."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.serving.api.a1111_fields import WITHOUT_EFFECT
from ldm_jax.serving.app import create_app
from ldm_jax.serving.limits import Limits
from ldm_jax.serving.worker import Worker

SIZE = {"width": 16, "height": 16, "steps": 2}
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)


def encoded(array):
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


def decoded(text):
  with Image.open(io.BytesIO(base64.b64decode(text))) as image:
    return np.asarray(image), dict(image.info)


@pytest.fixture(scope="module")
def worker(folder):  # noqa: F811
  limits = Limits(queue=8, images=4, steps=20, pixels=32 * 32, body=100_000)
  made = Worker(Pipeline.from_pretrained(folder), 2, limits)
  made.start()
  yield made
  made.stop(drain=False)


@pytest.fixture(scope="module")
def client(worker):
  app = create_app(worker, "small", allowed_origins=["https://page.example"])
  with TestClient(app, raise_server_exceptions=False) as made:
    yield made


def post(client, path, **fields):
  return client.post(f"/sdapi/v1/{path}", json=fields)


def test_txt2img_counts_seeds_up(client):
  answer = post(
    client, "txt2img", prompt="a cat", seed=5, batch_size=2, n_iter=2, **SIZE
  ).json()
  info = json.loads(answer["info"])
  assert info["all_seeds"] == [5, 6, 7, 8] and len(answer["images"]) == 4
  images = [decoded(text)[0] for text in answer["images"]]
  again = post(client, "txt2img", prompt="a cat", seed=7, **SIZE).json()
  np.testing.assert_array_equal(decoded(again["images"][0])[0], images[2])
  assert not np.array_equal(images[0], images[1])


def test_png_info_gives_back_the_settings(client):
  fields = {"prompt": "a cat", "negative_prompt": "dog", "seed": 3}
  answer = post(
    client, "txt2img", **fields, sampler_name="Euler a", **SIZE
  ).json()
  found = post(client, "png-info", image=answer["images"][0]).json()
  assert "Sampler: Euler a" in found["info"] and "Seed: 3" in found["info"]
  assert found["parameters"]["negative_prompt"] == "dog"
  plain = post(client, "png-info", image=encoded(IMAGE)).json()
  assert plain == {"info": "", "items": {}, "parameters": {}}


def test_img2img_keeps_what_the_mask_does_not_show(client):
  mask = np.zeros((16, 16, 3), np.uint8)
  mask[4:12, 4:12] = 255
  fields = {"prompt": "a cat", "init_images": [encoded(IMAGE)], **SIZE}
  answer = post(
    client, "img2img", **fields, mask=encoded(mask), mask_blur=4, seed=1
  ).json()
  image, _ = decoded(answer["images"][0])
  outside = mask[..., 0] == 0
  np.testing.assert_array_equal(image[outside], IMAGE[outside])
  assert (image != IMAGE)[~outside].any()
  assert "mask_blur=4" in json.loads(answer["info"])["warnings"][0]
  assert answer["parameters"]["init_images"] is None
  turned = post(
    client,
    "img2img",
    **fields,
    mask=encoded(255 - mask),
    inpainting_mask_invert=1,
    seed=1,
  ).json()
  np.testing.assert_array_equal(decoded(turned["images"][0])[0], image)


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"enable_hr": True}, "enable_hr=True is not supported"),
    ({"styles": ["a"]}, "styles"),
    ({"nonsense": 1}, "does not know the field 'nonsense'"),
    ({"sampler_name": "Euler z"}, "Euler z"),
    ({"steps": 21}, "steps must be at most 20 on this server"),
    ({"width": 64, "height": 64}, "at most 1024 pixels"),
    ({"batch_size": 5}, "at most 4 images"),
    ({"batch_size": 2, "n_iter": 10**12}, "at most 4 images"),
    ({"width": "wide"}, "width"),
    ({"override_settings": {"sd_vae": "x"}}, "'sd_vae' is not supported"),
    ({"override_settings": {"sd_model_checkpoint": "x"}}, "'small' alone"),
  ],
)
def test_what_cannot_be_obeyed_is_refused(client, fields, line):
  answer = post(client, "txt2img", **{"prompt": "a", **SIZE, **fields})
  assert answer.status_code == 422
  assert line in answer.json()["detail"]


def test_fields_without_effect_are_taken(client):
  fields = {
    name: 2 if values[0] is ... else values[0]
    for name, values in WITHOUT_EFFECT.items()
  }
  answer = post(client, "txt2img", prompt="a cat", seed=1, **SIZE, **fields)
  assert answer.status_code == 200, answer.text
  plain = post(client, "txt2img", prompt="a cat", seed=1, **SIZE)
  assert answer.json()["images"] == plain.json()["images"]


def test_damaged_images_are_one_line(client):
  fields = {"prompt": "a", **SIZE}
  for image, line in [("%%%", "base64"), ("aGVsbG8=", "not_an_image")]:
    answer = post(client, "img2img", init_images=[image], **fields)
    assert answer.status_code == 422 and line in answer.json()["detail"]


def test_lists_are_in_the_form_of_a1111(client):
  get = lambda path: client.get(f"/sdapi/v1/{path}").json()
  names = {each["name"] for each in get("samplers")}
  assert {"Euler a", "DPM++ 2M", "ddim"} <= names
  assert {"name": "karras", "label": "Karras", "aliases": None} in get(
    "schedulers"
  )
  assert get("sd-models")[0]["model_name"] == "small"
  assert get("options")["sd_model_checkpoint"] == "small"
  assert get("progress")["progress"] == 0
  assert get("loras") == []


def test_openai_generates(client):
  body = {"prompt": "a cat", "n": 2, "size": "16x16", "seed": 4, "steps": 2}
  answer = client.post("/v1/images/generations", json=body).json()
  images = [decoded(each["b64_json"]) for each in answer["data"]]
  assert [image.shape for image, _ in images] == [(16, 16, 3)] * 2
  assert json.loads(images[0][1]["ldm_jax"])["seed"] == 4
  jpeg = client.post(
    "/v1/images/generations", json=body | {"output_format": "jpeg", "n": 1}
  ).json()
  data = base64.b64decode(jpeg["data"][0]["b64_json"])
  assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_openai_edits_where_the_mask_is_transparent(client):
  opacity = np.full((16, 16, 1), 255, np.uint8)
  opacity[4:12, 4:12] = 0
  files = {
    "image": ("image.png", base64.b64decode(encoded(IMAGE)), "image/png"),
    "mask": (
      "mask.png",
      base64.b64decode(encoded(np.concatenate([IMAGE, opacity], -1))),
      "image/png",
    ),
  }
  fields = {"prompt": "a cat", "size": "16x16", "steps": "3", "seed": "1"}
  answer = client.post("/v1/images/edits", data=fields, files=files)
  assert answer.status_code == 200, answer.text
  image, _ = decoded(answer.json()["data"][0]["b64_json"])
  outside = opacity[..., 0] == 255
  np.testing.assert_array_equal(image[outside], IMAGE[outside])
  assert (image != IMAGE)[~outside].any()


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"size": "big"}, "size must be WIDTHxHEIGHT"),
    ({"model": "other"}, "the model 'small' alone"),
    ({"response_format": "url"}, "b64_json"),
    ({"style": "vivid"}, "style"),
    ({"nonsense": 1}, "nonsense"),
    ({"n": 0}, "n:"),
    ({"strength": 0.5}, "/v1/images/edits"),
  ],
)
def test_openai_errors_have_their_shape(client, fields, line):
  body = {"prompt": "a", "size": "16x16", "steps": 2, **fields}
  answer = client.post("/v1/images/generations", json=body)
  assert answer.status_code == 422
  error = answer.json()["error"]
  assert line in error["message"] and error["type"] == "invalid_request_error"


def test_models_are_listed(client):
  assert client.get("/v1/models").json()["data"][0]["id"] == "small"
  assert client.get("/v1/models/small").json()["object"] == "model"
  assert client.get("/v1/models/other").status_code == 422


def test_a_long_body_is_refused_with_or_without_its_length(client):
  for content in (b"x" * 200_000, iter([b"x" * 50_000] * 4)):
    answer = client.post("/v1/images/generations", content=content)
    assert answer.status_code == 413
    assert "100000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_back(client, worker, monkeypatch):
  monkeypatch.setattr(worker, "limits", Limits(queue=1, images=4))
  answer = post(client, "txt2img", prompt="a", batch_size=2, **SIZE)
  assert answer.status_code == 429 and answer.headers["Retry-After"]


def test_health_and_metrics(client):
  assert client.get("/healthz").json() == {"status": "ok"}
  text = client.get("/metrics").text
  for name in ("requests_total", "waiting", "latency_seconds_count", "steps"):
    assert f"ldm_jax_{name}" in text


def test_the_api_is_described(client):
  described = client.get("/openapi.json").json()
  assert described["openapi"].startswith("3.")
  assert {"/v1/images/generations", "/sdapi/v1/txt2img"} <= set(
    described["paths"]
  )
  assert client.get("/docs").status_code == 404  # its scripts are elsewhere


def test_other_pages_may_read_if_they_are_allowed(client):
  for origin, allowed in [
    ("https://page.example", True),
    ("https://x.y", False),
  ]:
    answer = client.get("/healthz", headers={"Origin": origin})
    assert ("access-control-allow-origin" in answer.headers) is allowed


def test_a_key_is_needed_where_there_is_one(worker):
  client = TestClient(create_app(worker, "small", api_key="secret"))
  assert client.get("/healthz").status_code == 200
  for headers in (
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic ="},
  ):
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
  bearer = {"Authorization": "Bearer secret"}
  assert client.get("/v1/models", headers=bearer).status_code == 200
  assert (
    client.get("/sdapi/v1/samplers", auth=("user", "secret")).status_code == 200
  )


def test_a_preview_comes_after_it_is_asked_for(client, worker):
  """No preview is computed for clients that never ask for progress."""
  fields = {"prompt": "a cat", "seed": 1, **SIZE, "steps": 20}
  tickets = []
  submit = worker.submit

  def watched(*arguments, **options):
    tickets.append(submit(*arguments, **options))
    return tickets[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(worker, "submit", watched)
    post(client, "txt2img", **fields, batch_size=4)
    assert tickets[0].preview is None
    found, done = [], threading.Event()

    def poll():
      while not done.is_set():
        answer = client.get("/sdapi/v1/progress").json()
        found.append((answer["progress"], answer["current_image"]))

    poller = threading.Thread(target=poll)
    poller.start()
    post(client, "txt2img", **fields, batch_size=4)
    done.set()
    poller.join()
  images = [image for _, image in found if image is not None]
  assert images and decoded(images[-1])[0].shape == (8, 8, 3)
  assert max(fraction for fraction, _ in found) > 0


def test_a_worker_that_takes_nothing_more_says_so(worker):
  ended = Worker(worker.pipeline, 2)
  ended.start()
  ended.stop()
  client = TestClient(create_app(ended, "small"))
  assert client.get("/healthz").status_code == 503
  answer = post(client, "txt2img", prompt="a", **SIZE)
  assert answer.status_code == 503 and answer.headers["Retry-After"]
