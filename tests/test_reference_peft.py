"""LoHa, LoKr and DoRA compared with peft's and LyCORIS' own sums."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm_jax.pretrained.lora.adapter_config import parse_config
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.pretrained.save_pretrained import save_pretrained
from ldm_jax.weights.safetensors_files import write_safetensors

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow

TARGETS = ["to_q", "to_out.0", "conv1", "conv_shortcut", "ff.net.0.proj"]
PATTERNS = {
  "rank_pattern": {"to_out.0": 5, r"mid_block\..*conv1": 2},
  "alpha_pattern": {
    "^down_blocks.0.attentions.0.*to_q": 7,
    r"resnets\.(0|1)\.conv1": 2,
    "mid_block.resnets.0.conv1": 9,  # after one that matches: not used
  },
}
FIXED = {"target_modules": TARGETS}
LYCORIS = FIXED | PATTERNS | {"r": 3, "alpha": 5, "init_weights": False}
LORA = FIXED | {"r": 3, "lora_alpha": 5, "init_lora_weights": False}
CONFIGS = {
  "LoHa": lambda: peft.LoHaConfig(**LYCORIS),
  "LoHa, cores": lambda: peft.LoHaConfig(**LYCORIS, use_effective_conv2d=True),
  "LoKr": lambda: peft.LoKrConfig(**LYCORIS),
  "LoKr, cores": lambda: peft.LoKrConfig(**LYCORIS, use_effective_conv2d=True),
  "LoKr, products": lambda: peft.LoKrConfig(
    **LYCORIS, decompose_both=True, decompose_factor=2
  ),
  "LoKr, whole": lambda: peft.LoKrConfig(**LYCORIS | {"r": 64}),
  "LoRA": lambda: peft.LoraConfig(**LORA, **PATTERNS),
  "LoRA, root of r": lambda: peft.LoraConfig(**LORA, use_rslora=True),
  "LoRA, biases": lambda: peft.LoraConfig(**LORA, bias="lora_only"),
  "DoRA": lambda: peft.LoraConfig(**LORA, **PATTERNS, use_dora=True),
}


def test_patterns_are_matched_as_by_peft():
  """Every module of a U-Net, with its network's name before it or not."""
  from peft.utils.other import get_pattern_key

  names = [n for n, _ in torch_models.unet().named_modules() if n]
  patterns = (
    *("to_q", "attn1.to_q", "o_q", "^mid_block", "^mid_block.*", "conv1$"),
    *(r"resnets\.\d\.conv[12]", "conv1|conv2", ".*", "^conv_in$", "time.*1"),
    *("down_blocks.0.resnets.0.conv1", "[a-d].*conv2", "(?:up|mid)_.*to_k"),
  )
  matched = 0
  for pattern in patterns:
    config = parse_config({"lora_alpha": 1, "alpha_pattern": {pattern: 2}})
    for name in names:
      wanted = get_pattern_key([pattern], name) == pattern
      assert config.alpha_of(name) == 1 + wanted, (pattern, name)
      assert config.alpha_of(f"unet.{name}") == 1 + wanted, (pattern, name)
      matched += wanted
  assert matched > 100


def adapted(network, kind):
  """A network with an adapter of random values, magnitudes too."""
  torch.manual_seed(1)
  found = peft.get_peft_model(network, CONFIGS[kind]())
  for name, parameter in found.named_parameters():
    if "magnitude" in name or (kind == "LoRA, biases" and ".bias" in name):
      parameter.data *= 0.7 + torch.rand_like(parameter)
    elif "hada_" in name:  # peft draws them with deviations of 1 and 0.1
      parameter.data *= 0.4 / parameter.std()
  return found


@pytest.fixture
def pipe(tmp_path):
  torch.manual_seed(0)
  made = torch_models.sd1(tmp_path / "words")
  made.save_pretrained(tmp_path / "base")
  return made


def assert_same_unet(ours, theirs, base):
  """Equal parameters, of which many changed."""
  trees = (ours.params.unet, theirs.params.unet, base.params.unet)
  leaves = [jax.tree.leaves(tree) for tree in trees]
  changed = 0
  for found, wanted, before in zip(*leaves, strict=True):
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    changed += np.abs(wanted - before).max() > 1e-3
  assert changed > 20


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_saves_is_merged_as_by_peft(pipe, tmp_path, kind):
  """adapter_model.safetensors next to adapter_config.json."""
  model = adapted(pipe.unet, kind)
  model.save_pretrained(tmp_path / "adapter")
  # Read again, since peft sorts the patterns as it saves them.
  unet = type(pipe.unet).from_pretrained(tmp_path / "base", subfolder="unet")
  again = peft.PeftModel.from_pretrained(unet, str(tmp_path / "adapter"))
  pipe.unet = again.merge_and_unload()
  pipe.save_pretrained(tmp_path / "changed")
  base = open_model(str(tmp_path / "base"))
  file = tmp_path / "adapter" / "adapter_model.safetensors"
  theirs = open_model(str(tmp_path / "changed"))
  assert_same_unet(merge_lora(base, file), theirs, base)


def in_lycoris_form(model, folder):
  """peft's tensors under LyCORIS' names, with an alpha for every module."""
  tensors = {}
  scales = {
    name: (m.alpha if hasattr(m, "alpha") else m.lora_alpha)["default"]
    for name, m in model.base_model.model.named_modules()
    if hasattr(m, "get_base_layer")
  }
  roles = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
  }
  for key, array in load_file(folder / "adapter_model.safetensors").items():
    name = key.removeprefix("base_model.model.")
    module = next(m for m in scales if name.startswith(f"{m}."))
    role = name.removeprefix(f"{module}.")
    start = f"lora_unet_{module.replace('.', '_')}"
    if role == "lora_magnitude_vector":  # of outputs, along the first axis
      ndim = model.base_model.model.get_submodule(module).weight.ndim
      array = array.reshape(-1, *[1] * (ndim - 1))
    tensors[f"{start}.{roles.get(role, role)}"] = array
    tensors[f"{start}.alpha"] = np.float32(scales[module])
  return tensors


@pytest.mark.parametrize(
  "kind", ["LoHa", "LoHa, cores", "LoKr, products", "LoRA", "DoRA"]
)
def test_the_same_under_lycoris_names(pipe, tmp_path, kind):
  model = adapted(pipe.unet, kind)
  model.save_pretrained(tmp_path / "adapter")
  tensors = in_lycoris_form(model, tmp_path / "adapter")
  file = tmp_path / "x.safetensors"
  write_safetensors(file, tensors)
  pipe.unet = model.merge_and_unload()
  pipe.save_pretrained(tmp_path / "changed")
  base = open_model(str(tmp_path / "base"))
  theirs = open_model(str(tmp_path / "changed"))
  assert_same_unet(merge_lora(base, file), theirs, base)


OWN = {
  "LoCon": {"algo": "locon"},
  "LoCon, Tucker": {"algo": "locon", "use_tucker": True},
  "LoHa": {"algo": "loha"},
  "LoHa, Tucker": {"algo": "loha", "use_tucker": True},
  "LoKr": {"algo": "lokr", "factor": 4},
  "LoKr, products": {"algo": "lokr", "factor": 4, "decompose_both": True},
  "LoKr, Tucker": {"algo": "lokr", "factor": 4, "use_tucker": True},
  "LoKr, whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
  "full": {"algo": "full"},
  "DoRA of inputs": {"algo": "locon", "weight_decompose": True,
                     "wd_on_output": False},
  "DoRA of outputs": {"algo": "locon", "weight_decompose": True,
                      "wd_on_output": True},
  "LoHa, DoRA": {"algo": "loha", "weight_decompose": True},
  "LoKr, DoRA": {"algo": "lokr", "factor": 4, "weight_decompose": True},
  "norms": {"algo": "locon", "train_norm": True},
  "scalars": {"algo": "locon", "use_scalar": True},
  "root of r": {"algo": "locon", "rs_lora": True},
}  # fmt: skip


def predicted(unet):
  """Its output for fixed random inputs."""
  torch.manual_seed(2)
  x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
  with torch.no_grad():
    return unet.eval()(x, torch.tensor([3, 700]), context).sample.numpy()


@pytest.mark.parametrize("kind", OWN)
def test_what_lycoris_saves_is_merged_as_it_was_trained(pipe, tmp_path, kind):
  """Its own files and forward pass, by LyCORIS where it is installed.

  Not by its `merge_to`, which multiplies LoHa and LoKr by alpha / r twice.
  """
  lycoris = pytest.importorskip("lycoris")
  lycoris.LycorisNetwork.apply_preset(
    {"target_module": ["Transformer2DModel", "ResnetBlock2D"]}
  )
  options = {"linear_dim": 3, "linear_alpha": 2.0} | OWN[kind]
  network = lycoris.create_lycoris(pipe.unet, 1.0, **options)
  before = predicted(pipe.unet)
  network.apply_to()
  torch.manual_seed(1)
  for name, parameter in network.named_parameters():
    noise = torch.randn_like(parameter)
    if "dora_scale" in name:
      parameter.data *= 1 + 0.1 * noise.abs()
    else:
      parameter.data += 0.1 * noise
  file = tmp_path / "x.safetensors"
  network.save_weights(str(file), torch.float32, {})
  wanted = predicted(pipe.unet)
  network.restore()
  ours = merge_lora(open_model(str(tmp_path / "base")), file)
  save_pretrained(
    ours.model,
    ours.params,
    str(tmp_path / "merged"),
    tokenizer=ours.tokenizer,
    image_size=32,
  )
  merged = type(pipe.unet).from_pretrained(tmp_path / "merged/unet")
  assert np.abs(wanted - before).max() > 1e-2
  np.testing.assert_allclose(predicted(merged), wanted, atol=2e-5)
