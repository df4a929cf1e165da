"""FLUX's folders compared with diffusers' FluxPipeline."""

import clip_tokenizer
import jax
import numpy as np
import PIL.Image
import pytest
import t5_files

import ldm_jax
from ldm_jax.pretrained.open_model import open_model

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
references = pytest.importorskip("flux_references")

pytestmark = pytest.mark.slow

HEIGHT, WIDTH, VECTOR = 16, 24, 24
PROMPTS = ["a red fox in the snow", "the cat"]
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}
DYNAMIC |= {"base_image_seq_len": 8, "max_image_seq_len": 64}


def pipeline(folder, is_dev):
  """Of random weights; its tokenizers are read from files in `folder`."""
  torch.manual_seed(0)
  config = references.CONFIG | {"guidance_embeds": is_dev}
  config |= {"joint_attention_dim": 32, "pooled_projection_dim": VECTOR}
  clip = transformers.CLIPTextConfig(
    vocab_size=250,
    hidden_size=VECTOR,
    intermediate_size=2 * VECTOR,
    num_hidden_layers=2,
    num_attention_heads=2,
    eos_token_id=2,
    projection_dim=VECTOR,
  )
  vae = diffusers.AutoencoderKL(
    block_out_channels=(32, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    use_quant_conv=False,
    use_post_quant_conv=False,
  )
  sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
  made = diffusers.FluxPipeline(
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
      **DYNAMIC if is_dev else {"shift": 1.0}
    ),
    vae=vae.eval(),
    text_encoder=transformers.CLIPTextModel(clip).eval(),
    tokenizer=clip_tokenizer.tokenizer(folder / "raw"),
    text_encoder_2=transformers.T5EncoderModel(
      transformers.T5Config(**t5_files.CONFIG)
    ).eval(),
    tokenizer_2=transformers.T5Tokenizer(vocab=t5_files.PIECES + sentinels),
    transformer=references.random_weights(
      diffusers.FluxTransformer2DModel(**config)
    ),
  )
  made.set_progress_bar_config(disable=True)
  return made


@pytest.fixture(scope="module", params=["dev", "schnell"])
def pipe(request, tmp_path_factory):
  is_dev = request.param == "dev"
  return pipeline(tmp_path_factory.mktemp("tokenizer"), is_dev)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("flux") / "pipeline")
  pipe.save_pretrained(path)
  return path


def test_steps_with_guidance(pipe, folder):
  """Ten of dev, four of schnell, and the images of their latents."""
  is_dev = pipe.transformer.config.guidance_embeds
  steps, length = (10, 512) if is_dev else (4, 256)
  noise = torch.randn(2, 4, HEIGHT // 2, WIDTH // 2)
  options = {
    "prompt": PROMPTS,
    "guidance_scale": 3.5,
    "num_inference_steps": steps,
    "max_sequence_length": length,
    "height": HEIGHT,
    "width": WIDTH,
    "latents": pipe._pack_latents(noise, 2, 4, HEIGHT // 2, WIDTH // 2),
  }
  latents = pipe(**options, output_type="latent").images
  latents = pipe._unpack_latents(latents, HEIGHT, WIDTH, 2).movedim(1, -1)
  images = pipe(**options, output_type="np").images
  ours = ldm_jax.Pipeline.from_pretrained(folder)
  for output, expected in (("latents", latents.numpy()), ("numpy", images)):
    found = np.stack(
      [
        ours(
          prompt=prompt,
          steps=steps,
          height=HEIGHT,
          width=WIDTH,
          initial_latents=noise[i : i + 1].movedim(1, -1).numpy(),
          output=output,
          compat="diffusers",
        ).images[0]
        for i, prompt in enumerate(PROMPTS)
      ]
    )
    if output == "numpy":
      found = np.asarray(found, np.float32) / 255
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= (2e-3 if output == "latents" else 1 / 128)


def test_a_folder_comes_back(pipe, folder, tmp_path):
  loaded = open_model(folder)
  assert loaded.guidance == (3.5 if loaded.model.embeds_guidance else 1.0)
  path = str(tmp_path / "again")
  ldm_jax.save_pretrained(
    loaded.model,
    loaded.params,
    path,
    tokenizer=loaded.tokenizer,
    t5_tokenizer=loaded.t5_tokenizer,
    scheduler=loaded.scheduler,
  )
  again = diffusers.FluxPipeline.from_pretrained(path)
  for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
    ours = getattr(again, name).state_dict()
    theirs = getattr(pipe, name).state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
      torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)
  assert (
    dict(again.scheduler.config).items()
    >= {
      key: value
      for key, value in pipe.scheduler.config.items()
      if not key.startswith("_")
    }.items()
  )
  assert (
    again.tokenizer_2(PROMPTS)["input_ids"]
    == (pipe.tokenizer_2(PROMPTS)["input_ids"])
  )
  back = open_model(path)
  assert back.model == loaded.model
  jax.tree.map(np.testing.assert_array_equal, back.params, loaded.params)


@pytest.mark.parametrize("kind", ["Fill", "Control"])
def test_models_that_read_an_image(kind, tmp_path, monkeypatch):
  """FLUX.1-Fill; FLUX.1-Depth and -Canny. The images' latents are modes."""
  from diffusers.models.autoencoders import vae

  monkeypatch.setattr(
    vae.DiagonalGaussianDistribution,
    "sample",
    lambda self, generator=None: self.mode(),
  )
  parts = pipeline(tmp_path, True).components
  config = dict(parts["transformer"].config)
  config["in_channels"] = {"Fill": 4 * (4 + 4 + 2**2), "Control": 4 * 8}[kind]
  config["out_channels"] = 16
  config = {k: v for k, v in config.items() if not k.startswith("_")}
  parts["transformer"] = references.random_weights(
    diffusers.FluxTransformer2DModel(**config)
  )
  names = ("image_encoder", "feature_extractor")
  parts = {name: part for name, part in parts.items() if name not in names}
  pipe = getattr(diffusers, f"Flux{kind}Pipeline")(**parts)
  pipe.set_progress_bar_config(disable=True)
  folder = str(tmp_path / "folder")
  pipe.save_pretrained(folder)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
  mask = rng.random((HEIGHT, WIDTH)) < 0.5
  noise = torch.randn(1, 4, HEIGHT // 2, WIDTH // 2)
  given = PIL.Image.fromarray(image)
  white = PIL.Image.fromarray(255 * mask.astype(np.uint8))
  inputs = {"control_image": given}
  if kind == "Fill":
    inputs = {"image": given, "mask_image": white}
  latents = pipe(
    **inputs,
    prompt=PROMPTS[0],
    guidance_scale=8.0,
    num_inference_steps=4,
    height=HEIGHT,
    width=WIDTH,
    latents=pipe._pack_latents(noise, 1, 4, HEIGHT // 2, WIDTH // 2),
    output_type="latent",
  ).images
  expected = pipe._unpack_latents(latents, HEIGHT, WIDTH, 2).movedim(1, -1)
  ours = ldm_jax.Pipeline.from_pretrained(folder)
  own = {"image": given} | ({"mask": white} if kind == "Fill" else {})
  found = ours(
    **own,
    prompt=PROMPTS[0],
    guidance=8.0,
    steps=4,
    height=HEIGHT,
    width=WIDTH,
    initial_latents=noise.movedim(1, -1).numpy(),
    output="latents",
    compat="diffusers",
  ).images
  expected = expected.numpy()
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error <= 2e-3
  loaded = open_model(folder)
  assert loaded.guidance == {"Fill": 30.0, "Control": 3.5}[kind]
  again = str(tmp_path / "again")
  options = {"tokenizer": loaded.tokenizer, "t5_tokenizer": loaded.t5_tokenizer}
  options["scheduler"] = loaded.scheduler
  ldm_jax.save_pretrained(loaded.model, loaded.params, again, **options)
  assert open_model(again).model == loaded.model
  kinds = diffusers.DiffusionPipeline.from_pretrained(again)
  assert type(kinds).__name__ == f"Flux{kind}Pipeline"
