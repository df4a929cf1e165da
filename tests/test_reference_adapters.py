"""Adapters compared with diffusers: merged weights and learned tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_tensors

from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.lora import LoRA
from ldm_jax.pretrained.lora.export import save_lora
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.textual_inversion import load_inversion
from ldm_jax.weights.safetensors_files import write_safetensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow

RANK = 2
KOHYA = {
  "unet": "lora_unet_",
  "text_encoder": "lora_te_",
  "text_encoder_2": "lora_te2_",
}


@pytest.fixture(params=["sd1", "sd2", "sdxl", "refiner"])
def pipe(request, tmp_path):
  torch.manual_seed(0)
  made = torch_models.FAMILIES[request.param](tmp_path / "words")
  made.set_progress_bar_config(disable=True)
  made.save_pretrained(tmp_path / "base")
  return made


def sdxl(tmp_path):
  torch.manual_seed(0)
  made = torch_models.sdxl(tmp_path / "words")
  made.save_pretrained(tmp_path / "base")
  return made


def layers(pipe):
  """(network, name): the linear maps and convolutions that LoRAs change."""
  kinds = (torch.nn.Linear, torch.nn.Conv2d)
  return {
    (part, name): layer
    for part in KOHYA
    if getattr(pipe, part, None) is not None
    for name, layer in getattr(pipe, part).named_modules()
    if isinstance(layer, kinds)
  }


def random_factors(pipe):
  """down and up for every layer."""
  sizes = {}
  for place, layer in layers(pipe).items():
    outputs, *inputs = layer.weight.shape
    sizes["/".join(place), "down"] = (RANK, *inputs)
    ones = [1] * (len(inputs) - 1)
    sizes["/".join(place), "up"] = (outputs, RANK, *ones)
  return {name: 0.1 * array for name, array in random_tensors(sizes).items()}


def whole_name(part, name):
  """transformers may leave out what every file has."""
  is_text = part != "unet" and not name.startswith("text_")
  return f"text_model.{name}" if is_text else name


def assert_same(ours, theirs):
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
  jax.tree.map(close, ours.params, theirs.params)


def test_every_layer_of_diffusers_is_changed(pipe, tmp_path):
  """torch and ldm_jax add the same update, under kohya's names."""
  values, tensors = random_factors(pipe), {}
  for i, ((part, name), layer) in enumerate(layers(pipe).items()):
    down, up = (values[f"{part}/{name}", role] for role in ("down", "up"))
    start = KOHYA[part]
    if part == "text_encoder" and getattr(pipe, "text_encoder_2", None):
      start = "lora_te1_"
    start += whole_name(part, name).replace(".", "_")
    alpha = np.float32(1 + i % 3)
    tensors |= {
      f"{start}.lora_down.weight": down,
      f"{start}.lora_up.weight": up,
      f"{start}.alpha": alpha,
    }
    product = np.tensordot(up.reshape(-1, RANK), down, 1)
    change = torch.from_numpy(0.7 * (alpha / RANK) * product)
    layer.weight.data += change.reshape(layer.weight.shape)
  write_safetensors(tmp_path / "x.safetensors", tensors)
  pipe.save_pretrained(tmp_path / "changed")
  base = str(tmp_path / "base")
  ours = merge_lora(open_model(base), tmp_path / "x.safetensors", scale=0.7)
  assert_same(ours, open_model(str(tmp_path / "changed")))
  options = LoadOptions(lora=[f"{tmp_path / 'x.safetensors'}:0.7"])
  assert_same(open_model(base, options), ours)


# Of a small SDXL; the blocks are counted by hand.
SGM = (
  "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
  "input_blocks_3_1_transformer_blocks_1_attn2_to_k",
  "input_blocks_3_1_proj_in",
  "middle_block_1_transformer_blocks_1_ff_net_0_proj",
  "output_blocks_2_1_transformer_blocks_0_attn1_to_out_0",
  "output_blocks_5_1_transformer_blocks_0_ff_net_2",
  "output_blocks_5_1_proj_out",
)


def sgm_file():
  """A file of kohya's for SDXL; layers as the model has them."""
  unet = {
    "attn1_to_q": (32, 32),
    "attn2_to_k": (64, 80),
    "3_1_proj_in": (64, 64),
    "ff_net_0_proj": (512, 64),
    "attn1_to_out_0": (64, 64),
    "ff_net_2": (32, 128),
    "5_1_proj_out": (32, 32),
  }
  places = {
    f"lora_unet_{name}": next(
      s for end, s in unet.items() if name.endswith(end)
    )
    for name in SGM
  }
  for number, width in ((1, 32), (2, 48)):
    start = f"lora_te{number}_text_model_encoder_layers_1_"
    # diffusers reads kohya's q_proj only where there is an out_proj too.
    places[f"{start}self_attn_q_proj"] = width, width
    places[f"{start}self_attn_out_proj"] = width, width
    places[f"{start}mlp_fc1"] = 3 * width, width
  rng, tensors = np.random.default_rng(1), {}
  for name, (outputs, inputs) in places.items():
    for role, shape in (("down", (RANK, inputs)), ("up", (outputs, RANK))):
      array = rng.normal(size=shape).astype(np.float32)
      tensors[f"{name}.lora_{role}.weight"] = 0.1 * array
    tensors[f"{name}.alpha"] = np.float32(3)
  return tensors


def peft_file(pipe, folder):
  """What diffusers itself saves of a pipeline that was given layers by peft."""
  import peft

  unet_config = peft.LoraConfig(
    r=RANK,
    lora_alpha=5,
    target_modules=["to_q", "to_out.0", "conv1", "proj_in", "ff.net.0.proj"],
    alpha_pattern={"mid_block.resnets.0.conv1": 3},
    init_lora_weights=False,
  )
  text = peft.LoraConfig(
    r=RANK,
    lora_alpha=7,
    target_modules=["q_proj", "fc1"],
    init_lora_weights=False,
    use_rslora=True,
  )
  layers = {}
  for part, config in (("unet", unet_config), ("text_encoder", text)):
    network = peft.inject_adapter_in_model(config, getattr(pipe, part))
    state = peft.get_peft_model_state_dict(network)
    layers[f"{part}_lora_layers"] = state
    layers[f"{part}_lora_adapter_metadata"] = config.to_dict()
  pipe.save_lora_weights(folder, **layers)
  return folder / "pytorch_lora_weights.safetensors"


def processors_file():
  """What diffusers' own trainer wrote before there was peft."""
  unet = "mid_block.attentions.0.transformer_blocks.1.attn2.processor.to_"
  places = {f"unet.{unet}{word}_lora": (64, 64) for word in ("q", "out")}
  places |= {f"unet.{unet}{word}_lora": (64, 80) for word in "kv"}
  text = "text_encoder_2.text_model.encoder.layers.0.self_attn.to_"
  places |= {f"{text}{w}_lora": (48, 48) for w in ("q", "k", "v", "out")}
  rng, tensors = np.random.default_rng(1), {}
  for name, (outputs, inputs) in places.items():
    for role, shape in (("down", (RANK, inputs)), ("up", (outputs, RANK))):
      array = rng.normal(size=shape).astype(np.float32)
      tensors[f"{name}.{role}.weight"] = 0.1 * array
  return tensors


@pytest.mark.parametrize("form", ["sgm", "processors", "peft"])
def test_diffusers_with_peft_merges_the_same(tmp_path, form):
  pytest.importorskip("peft")
  pipe = sdxl(tmp_path)
  path = tmp_path / "x.safetensors"
  if form == "sgm":
    write_safetensors(path, sgm_file())
  elif form == "processors":
    write_safetensors(path, processors_file())
  else:
    path = peft_file(pipe, tmp_path)
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
      tmp_path / "base"
    )
  pipe.load_lora_weights(str(path))
  pipe.fuse_lora(lora_scale=0.6)
  pipe.unload_lora_weights()
  pipe.save_pretrained(tmp_path / "changed")
  base = open_model(str(tmp_path / "base"))
  ours = merge_lora(base, path, scale=0.6)
  assert_same(ours, open_model(str(tmp_path / "changed")))
  moved = jax.tree.map(lambda a, b: a is not b, ours.params, base.params)
  assert sum(jax.tree.leaves(moved)) > 5


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_trained_model_is_loaded_by_diffusers(name, form, tmp_path):
  """A LoRA on text encoders and U-Net is the documented sum in both."""
  pytest.importorskip("peft")
  torch.manual_seed(0)
  pipe = torch_models.FAMILIES[name](tmp_path / "words")
  pipe.save_pretrained(tmp_path / "base")
  base, path = open_model(str(tmp_path / "base")), tmp_path / "x.safetensors"
  where = r"attention[12]/(q|k|v|out)/kernel$|/attention/(q|k|v|out)/kernel$"
  lora = LoRA(
    rank=3,
    alpha=2.0,
    where=where,
    rank_pattern=(("attention2/q", 5), ("block_1/attention/v", 2)),
    alpha_pattern=(("mid_attention.*out", 1.5), ("block_0/attention/k", 4.0)),
  )
  trees = {"unet": base.params.unet, "conditioners": base.params.conditioners}
  fresh = lora.init(jax.random.key(0), trees)
  assert fresh.keys() == {"unet", "conditioners"}
  shapes = {str(i): x.shape for i, x in enumerate(jax.tree.leaves(fresh))}
  leaves = [0.3 * x for x in random_tensors(shapes).values()]
  factors = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
  save_lora(base, lora, factors, path, form)
  pipe.load_lora_weights(str(path))
  pipe.fuse_lora()
  pipe.unload_lora_weights()
  pipe.save_pretrained(tmp_path / "changed")
  theirs = open_model(str(tmp_path / "changed")).params
  ours = lora.merge(trees, factors)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
  jax.tree.map(close, ours["unet"], theirs.unet)
  jax.tree.map(close, ours["conditioners"], theirs.conditioners)


PROMPTS = (
  "a <toy> fox in the snow",
  "painting of <toy>, a red <toy>",
  "a cat",
)


def condition_of(loaded, prompts):
  """Context and vector, in numpy."""
  part = next(
    p for p in loaded.model.conditioners if isinstance(p, ClipEmbedder)
  )
  ids = jnp.asarray(loaded.tokenizer.encode(prompts))
  keep = jnp.zeros(len(prompts), bool)
  params = loaded.params.conditioners[part.input_key]
  with jax.default_matmul_precision("highest"):
    condition = jax.jit(part.apply)(params, ids, keep)
  return np.asarray(condition.context), condition.vector


def encoded(pipe, prompts):
  """The same by diffusers, which encodes one text after another."""
  contexts, vectors = [], []
  for prompt in prompts:
    with torch.no_grad():
      context, _, *pooled = pipe.encode_prompt(
        prompt,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
      )
    contexts.append(context.numpy())
    vectors += [pooled[0].numpy()] if pooled else []
  return np.concatenate(contexts), np.concatenate(vectors) if vectors else None


@pytest.mark.parametrize("count", [1, 3])
def test_learned_tokens_condition_as_in_diffusers(pipe, tmp_path, count):
  names = [p for p in KOHYA if p != "unet" and getattr(pipe, p, None)]
  widths = [getattr(pipe, name).config.hidden_size for name in names]
  vectors = {
    name: torch.randn(count, width) * 0.05
    for name, width in zip(names, widths, strict=True)
  }
  for name, rows in vectors.items():
    tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
    pipe.load_textual_inversion(
      {"<toy>": rows},
      text_encoder=getattr(pipe, name),
      tokenizer=tokenizer,
    )
  loaded = open_model(str(tmp_path / "base"))
  if len(names) > 1:
    path = tmp_path / "<toy>.safetensors"
    clips = zip(("clip_l", "clip_g"), vectors.values(), strict=True)
    write_safetensors(path, {key: rows.numpy() for key, rows in clips})
  else:
    path = tmp_path / "learned_embeds.bin"
    (rows,) = vectors.values()
    torch.save({"<toy>": rows}, path)
  found = load_inversion(loaded, path)
  context, vector = condition_of(found, PROMPTS)
  theirs, pooled = encoded(pipe, PROMPTS)
  np.testing.assert_allclose(context, theirs, atol=2e-5)
  if pooled is not None:
    np.testing.assert_allclose(vector, pooled, atol=2e-5)
  # The token changes the condition; a model without it gives another one.
  assert np.abs(condition_of(loaded, PROMPTS)[0] - theirs)[:2].max() > 1e-2
  options = LoadOptions(embedding=[str(path)])
  again, _ = condition_of(open_model(str(tmp_path / "base"), options), PROMPTS)
  np.testing.assert_array_equal(again, context)


def test_files_of_automatic1111_are_those_that_torch_writes(tmp_path):
  torch.manual_seed(0)
  made = torch_models.sd1(tmp_path / "words")
  made.save_pretrained(tmp_path / "base")
  rows = torch.randn(2, 32)
  content = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": rows},
    "name": "<toy>",
    "step": 1000,
    "sd_checkpoint": None,
  }
  torch.save(content, tmp_path / "other.pt")
  content["string_to_param"] = torch.nn.ParameterDict({"*": rows})
  torch.save(content, tmp_path / "older.pt")
  made.load_textual_inversion(str(tmp_path), weight_name="other.pt")
  theirs, _ = encoded(made, PROMPTS)
  for name in ("other.pt", "older.pt"):
    loaded = open_model(str(tmp_path / "base"))
    context, _ = condition_of(load_inversion(loaded, tmp_path / name), PROMPTS)
    np.testing.assert_allclose(context, theirs, atol=2e-5)
