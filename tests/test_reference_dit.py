"""DiT compared with diffusers' DiTTransformer2DModel and DiTPipeline."""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.dit.dit import SIZES, dit_of_size
from ldm_jax.pretrained.dit.dit_config import DIT, dit
from ldm_jax.pretrained.open_model import open_model

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

CONFIG = {
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "in_channels": 4,
  "out_channels": 8,
  "num_layers": 3,
  "sample_size": 8,
}
LABELS = {str(i): f"class {i}" for i in range(1000)}


def random_weights(model):
  """Every tensor random, none zero; the blocks' embeddings are one."""
  tensors = model.state_dict()
  for name, tensor in tensors.items():
    scale = max(1, tensor[0].numel()) ** -0.5 if tensor.ndim > 1 else 0.1
    tensor.copy_(
      torch.randn(tensor.shape) * (1.0 if "table" in name else scale)
    )
  for name, tensor in tensors.items():
    if ".norm1.emb." in name:
      first = name.replace(name.split(".")[1], "0", 1)
      tensor.copy_(tensors[first])
  return model.eval()


@pytest.fixture(scope="module")
def pipeline():
  torch.manual_seed(0)
  transformer = random_weights(diffusers.DiTTransformer2DModel(**CONFIG))
  vae = diffusers.AutoencoderKL(
    block_out_channels=(32, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
  )
  scheduler = diffusers.DDIMScheduler(
    beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False
  )
  pipe = diffusers.DiTPipeline(transformer, vae.eval(), scheduler)
  pipe.set_progress_bar_config(disable=True)
  pipe.register_to_config(id2label=LABELS)
  return pipe


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("dit") / "pipeline")
  pipeline.save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def loaded(folder):
  return open_model(folder)


@pytest.mark.parametrize("side", [8, 12])  # 12: positions are resampled
def test_outputs_at_several_times_and_classes(pipeline, loaded, side):
  rng = np.random.default_rng(0)
  xt = rng.standard_normal((4, side, side, 4)).astype(np.float32)
  times, labels = np.array([0, 17, 500, 999]), np.array([3, 1000, 0, 999])

  def theirs(dtype):
    network = copy.deepcopy(pipeline.transformer).to(dtype)
    with torch.no_grad():
      out = network(
        torch.tensor(xt).to(dtype).movedim(-1, 1),
        torch.tensor(times),
        torch.tensor(labels),
      ).sample
    return out[:, :4].double().movedim(1, -1).numpy()

  model, params = loaded.model, loaded.params
  condition = model.condition(
    params,
    {"label": jnp.asarray(labels % 1000)},
    {"label": jnp.asarray(labels == 1000)},
  )
  with jax.default_matmul_precision("highest"):
    found = jax.jit(model.predict)(
      params, jnp.asarray(xt), jnp.asarray(times, jnp.float32), condition
    )
  exact, single = theirs(torch.float64), theirs(torch.float32)
  scale = np.abs(exact).max()
  error, floor = (np.abs(x - exact).max() / scale for x in (found, single))
  assert error <= max(20 * floor, 1e-5)


def test_ten_steps_with_guidance(pipeline, folder, monkeypatch):
  latents = {}

  def keep(z, **_):
    latents["z"] = z * pipeline.vae.config.scaling_factor
    return type("Decoded", (), {"sample": z[:, :3]})

  monkeypatch.setattr(pipeline.vae, "decode", keep)
  pipeline(
    [3, 7],
    guidance_scale=3.0,
    num_inference_steps=10,
    generator=torch.Generator().manual_seed(5),
  )
  noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
  ours = ldm_jax.Pipeline.from_pretrained(folder)
  found = [
    ours(
      class_label=label,
      steps=10,
      guidance=3.0,
      initial_latents=noise[i : i + 1].movedim(1, -1).numpy(),
      output="latents",
      compat="diffusers",
    ).images[0]
    for i, label in enumerate((3, 7))
  ]
  expected = latents["z"].movedim(1, -1).numpy()
  scale = np.abs(expected).max()
  error = np.abs(np.stack(found) - expected).max() / scale
  assert error <= 2e-3


def test_a_written_folder_is_read_by_diffusers(pipeline, loaded, tmp_path):
  path = str(tmp_path / "again")
  ldm_jax.save_pretrained(
    loaded.model,
    loaded.params,
    path,
    image_size=16,
    scheduler=loaded.scheduler,
    classes=loaded.classes,
  )
  again = diffusers.DiTPipeline.from_pretrained(path)
  for name in ("transformer", "vae"):
    ours = getattr(again, name).state_dict()
    theirs = getattr(pipeline, name).state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
      torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)
  assert again.labels == {name: int(i) for i, name in LABELS.items()}
  kept = {k: v for k, v in again.transformer.config.items() if k[0] != "_"}
  for key, value in pipeline.transformer.config.items():
    assert key.startswith("_") or kept[key] == value, key
  assert dit({"_class_name": DIT.kind, **kept}) == loaded.model.unet


TIME = "transformer_blocks.0.norm1.emb.timestep_embedder.linear"
# diffusers' scripts/convert_dit_to_diffusers.py, read from right to left.
RELEASED = {
  "x_embedder.proj": "pos_embed.proj",
  "t_embedder.mlp.0": f"{TIME}_1",
  "t_embedder.mlp.2": f"{TIME}_2",
  "final_layer.adaLN_modulation.1": "proj_out_1",
  "final_layer.linear": "proj_out_2",
}
IN_BLOCKS = {
  "adaLN_modulation.1": "norm1.linear",
  "attn.proj": "attn1.to_out.0",
  "mlp.fc1": "ff.net.0.proj",
  "mlp.fc2": "ff.net.2",
}


def test_a_released_pickle_has_the_parameters_of_the_folder(
  pipeline, loaded, folder, tmp_path
):
  model = pipeline.transformer
  tensors, found = model.state_dict(), {}
  table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
  found["y_embedder.embedding_table.weight"] = tensors[table]
  found["pos_embed"] = model.pos_embed.pos_embed
  for leaf in ("weight", "bias"):
    for name, theirs in RELEASED.items():
      found[f"{name}.{leaf}"] = tensors[f"{theirs}.{leaf}"]
    for i in range(CONFIG["num_layers"]):
      block = f"transformer_blocks.{i}"
      for name, theirs in IN_BLOCKS.items():
        tensor = tensors[f"{block}.{theirs}.{leaf}"]
        found[f"blocks.{i}.{name}.{leaf}"] = tensor
      parts = [tensors[f"{block}.attn1.to_{n}.{leaf}"] for n in "qkv"]
      found[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat(parts)
  path = str(tmp_path / "DiT.pt")
  torch.save(found, path)
  options = {"config": {"unet": {"num_attention_heads": 2}}}
  released, params = ldm_jax.from_single_file(
    path, vae=f"{folder}/vae", **options
  )
  assert released.unet == loaded.model.unet.clone(
    frequency_shift=0, mlp_epsilon=1e-6
  )
  jax.tree.map(np.testing.assert_array_equal, params.unet, loaded.params.unet)
  jax.tree.map(
    np.testing.assert_array_equal,
    params.conditioners,
    loaded.params.conditioners,
  )
  assert released.schedule == loaded.model.schedule


def test_the_schema_has_diffusers_defaults():
  signature = inspect.signature(diffusers.DiTTransformer2DModel.__init__)
  for name, parameter in list(signature.parameters.items())[1:]:
    default = parameter.default
    if name in DIT.demands:
      assert default in DIT.demands[name]
    elif name not in DIT.passive:
      assert (default or 0) == DIT.defaults[name], name


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
  """diffusers has the embeddings of time and class once in every block."""
  module = dit_of_size(size).clone(learns_variance=True)
  with torch.device("meta"):
    model = diffusers.DiTTransformer2DModel(
      module.heads,
      module.width // module.heads,
      out_channels=8,
      num_layers=module.depth,
    )
  count = sum(
    p.numel()
    for name, p in model.named_parameters()
    if ".norm1.emb." not in name or ".0.norm1.emb." in name
  )
  shapes = jax.eval_shape(
    module.init,
    jax.random.key(0),
    np.zeros((1, 32, 32, 4), np.float32),
    np.zeros((1,), np.float32),
    Condition(vector=np.zeros((1, module.width), np.float32)),
  )
  own = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert own + 1001 * module.width == count
