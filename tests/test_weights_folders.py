"""Weights in folders, in one file or in shards, are read and written."""

import json

import numpy as np
import pytest
import torch_files
from flax import serialization
from safetensors.numpy import load_file, save_file

from ldm_jax.errors import WeightsError
from ldm_jax.weights.folders import (
  DIFFUSERS,
  TRANSFORMERS,
  find_weights,
  read_folder,
  write_sharded,
)
from ldm_jax.weights.safetensors_files import metadata

STEM = DIFFUSERS[0]


def tensors(count=5, seed=0):
  """Tensors of 48 bytes each."""
  rng = np.random.default_rng(seed)
  grid = lambda: rng.normal(size=(3, 4)).astype(np.float32)
  return {f"block.{n}.weight": grid() for n in range(count)}


def save_torch(values, path):
  state = {name: torch_files.tensor(array) for name, array in values.items()}
  torch_files.write("zip", path, state)


def save_flax(values, path):
  path.write_bytes(serialization.msgpack_serialize(values))


def assert_same(arrays, expected):
  assert set(arrays) == set(expected) and len(arrays) == len(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(arrays[name], array, strict=True)


def shard(folder, values, names, save=save_file, stem=STEM, index=None):
  """Writes values to files in turn, with the index of `stem`."""
  parts = {name: {} for name in names}
  for n, (key, array) in enumerate(values.items()):
    parts[names[n % len(names)]][key] = array
  for name, part in parts.items():
    save(part, folder / name)
  places = {key: name for name, part in parts.items() for key in part}
  suffix = names[0].rpartition(".")[2]
  index = folder / (index or f"{stem}.{suffix}.index.json")
  index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
  return index


def refusal(folder, variant=None, read=read_folder, stems=DIFFUSERS):
  with pytest.raises(WeightsError) as caught:
    read(folder, stems, variant=variant)
  message = str(caught.value)
  assert message.startswith(str(folder)) and "\n" not in message
  assert message.count(str(folder)) == 1
  return message


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize(
  "stems, name, save",
  [
    (DIFFUSERS, "diffusion_pytorch_model.safetensors", save_file),
    (DIFFUSERS, "diffusion_pytorch_model.bin", save_torch),
    (DIFFUSERS, "diffusion_flax_model.msgpack", save_flax),
    (TRANSFORMERS, "model.safetensors", save_file),
    (TRANSFORMERS, "pytorch_model.bin", save_torch),
    (TRANSFORMERS, "flax_model.msgpack", save_flax),
  ],
)
def test_a_single_file_is_found_by_its_name(
  tmp_path, stems, name, save, variant
):
  if variant:
    name = ".".join([*name.split(".")[:-1], variant, name.split(".")[-1]])
  save(tensors(), tmp_path / name)
  found = find_weights(tmp_path, stems, variant=variant)
  assert found.files == (tmp_path / name,) and found.shard_of is None
  assert_same(read_folder(tmp_path, stems, variant=variant), tensors())


NUMBERED = ["-00001-of-00002", "-00002-of-00002"]


@pytest.mark.parametrize(
  "variant, form, index",
  [
    (None, "{stem}{n}.{suffix}", "{stem}.{suffix}.index.json"),
    ("fp16", "{stem}.fp16{n}.{suffix}", "{stem}.{suffix}.index.fp16.json"),
    ("fp16", "{stem}{n}.fp16.{suffix}", "{stem}.{suffix}.index.fp16.json"),
    ("fp16", "{stem}.fp16{n}.{suffix}", "{stem}.fp16.{suffix}.index.json"),
  ],
)
@pytest.mark.parametrize(
  "stems, stem, suffix, save",
  [
    (DIFFUSERS, STEM, "safetensors", save_file),
    (TRANSFORMERS, "model", "safetensors", save_file),
    (TRANSFORMERS, "pytorch_model", "bin", save_torch),
  ],
)
def test_shards_are_found_by_their_index(
  tmp_path, stems, stem, suffix, save, variant, form, index
):
  names = [form.format(stem=stem, n=n, suffix=suffix) for n in NUMBERED]
  index = index.format(stem=stem, suffix=suffix)
  shard(tmp_path, tensors(), names, save, index=index)
  found = find_weights(tmp_path, stems, variant=variant)
  assert [file.name for file in found.files] == names
  assert_same(read_folder(tmp_path, stems, variant=variant), tensors())


def test_safetensors_are_preferred_then_torch_then_flax(tmp_path):
  writers = [
    lambda t: save_flax(t, tmp_path / "diffusion_flax_model.msgpack"),
    lambda t: shard(
      tmp_path, t, [f"{STEM}{n}.bin" for n in NUMBERED], save_torch
    ),
    lambda t: save_torch(t, tmp_path / f"{STEM}.bin"),
    lambda t: shard(tmp_path, t, [f"{STEM}{n}.safetensors" for n in NUMBERED]),
    lambda t: save_file(t, tmp_path / f"{STEM}.safetensors"),
    lambda t: save_file(t, tmp_path / f"{STEM}.fp16.safetensors"),
  ]
  for seed, write in enumerate(writers):
    write(tensors(seed=seed))
    plain = min(seed, len(writers) - 2)
    assert_same(read_folder(tmp_path, DIFFUSERS), tensors(seed=plain))
  assert_same(read_folder(tmp_path, DIFFUSERS, variant="fp16"), tensors(seed=5))


def test_the_error_for_a_missing_variant_lists_the_files(tmp_path):
  save_file(tensors(), tmp_path / f"{STEM}.safetensors")
  save_file(tensors(), tmp_path / f"{STEM}.fp16.safetensors")
  (tmp_path / "README.md").write_text("words")
  message = refusal(tmp_path, "bf16", find_weights)
  assert "'bf16'" in message and "README" not in message
  assert f"{STEM}.fp16.safetensors, {STEM}.safetensors" in message
  (tmp_path / f"{STEM}.safetensors").unlink()
  assert "without a variant" in refusal(tmp_path)


def test_an_empty_and_a_missing_folder_are_refused(tmp_path):
  assert "0 files of other kinds" in refusal(tmp_path)
  assert "no such folder" in refusal(tmp_path / "unet")


@pytest.mark.parametrize(
  "name", ["../secret", "/etc/passwd", "sub/a", "..", ".", "", "a\\b"]
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, name):
  folder = tmp_path / "unet"
  folder.mkdir()
  save_file(tensors(), tmp_path / "secret")
  index = {"weight_map": {"a": name}}
  (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
  assert "outside the folder" in refusal(folder, read=find_weights)


def test_the_error_names_a_missing_shard(tmp_path):
  names = [f"{STEM}{n}.safetensors" for n in NUMBERED]
  shard(tmp_path, tensors(), names)
  (tmp_path / names[1]).unlink()
  assert f"'{names[1]}' is missing" in refusal(tmp_path, read=find_weights)


def test_the_error_names_a_tensor_missing_from_its_shard(tmp_path):
  names = [f"{STEM}{n}.safetensors" for n in NUMBERED]
  index = shard(tmp_path, tensors(), names)
  good = json.loads(index.read_text())["weight_map"]
  index.write_text(json.dumps({"weight_map": good | {"absent": names[0]}}))
  assert "lists tensor 'absent'" in refusal(tmp_path)
  moved = good | {"block.0.weight": names[1]}
  index.write_text(json.dumps({"weight_map": moved}))
  assert "lists tensor 'block.0.weight'" in refusal(tmp_path)


def test_the_error_names_a_tensor_in_two_shards(tmp_path):
  names = [f"{STEM}{n}.safetensors" for n in NUMBERED]
  shard(tmp_path, tensors(), names)
  save_file(tensors(), tmp_path / names[1])
  assert f"'block.0.weight' is in {names[0]} and" in refusal(tmp_path)


@pytest.mark.parametrize(
  "text, words",
  [
    ("", "JSON is malformed"),
    ("[]", "no weight_map"),
    ("{}", "no weight_map"),
    ('{"weight_map": {}}', "no weight_map"),
    ('{"weight_map": ["a"]}', "no weight_map"),
    ('{"weight_map": {"a": 3}}', "no weight_map"),
    ('{"weight_map": {"a": "b", "a": "c"}}', "'a' is twice"),
    ("[" * 10**6, "JSON is malformed"),
  ],
)
def test_a_malformed_index_is_refused(tmp_path, text, words):
  (tmp_path / f"{STEM}.safetensors.index.json").write_text(text)
  assert words in refusal(tmp_path, read=find_weights)


def test_the_error_names_a_damaged_shard(tmp_path):
  names = [f"{STEM}{n}.safetensors" for n in NUMBERED]
  shard(tmp_path, tensors(), names)
  whole = (tmp_path / names[1]).read_bytes()
  (tmp_path / names[1]).write_bytes(whole[:-1])
  assert f"{tmp_path / names[1]}: " in refusal(tmp_path)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_small_weights_are_written_to_one_file(tmp_path, variant):
  written = write_sharded(
    tmp_path, STEM, tensors=tensors(), max_bytes=5 * 48, variant=variant
  )
  name = f"{STEM}.fp16.safetensors" if variant else f"{STEM}.safetensors"
  assert written == (tmp_path / name,) == tuple(tmp_path.iterdir())
  assert_same(load_file(tmp_path / name), tensors())
  assert metadata(tmp_path / name) == {"format": "pt"}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_large_weights_are_written_in_shards(tmp_path, variant):
  values = tensors() | {"large": np.ones((40, 4), np.float32)}
  written = write_sharded(
    tmp_path / "unet", STEM, tensors=values, max_bytes=100, variant=variant
  )
  base = f"{STEM}.fp16" if variant else STEM
  names = [f"{base}-{n:05}-of-00004.safetensors" for n in range(1, 5)]
  kind = "index.fp16.json" if variant else "index.json"
  index = f"{STEM}.safetensors.{kind}"
  assert [path.name for path in written] == [*names, index]
  assert sorted(written) == sorted((tmp_path / "unet").iterdir())
  parts = [load_file(path) for path in written[:-1]]
  assert [len(part) for part in parts] == [2, 2, 1, 1]
  assert all(metadata(path) == {"format": "pt"} for path in written[:-1])
  content = json.loads(written[-1].read_text())
  assert content["metadata"] == {"total_size": 5 * 48 + 640}
  assert content["weight_map"].keys() == values.keys()
  assert_same(
    read_folder(tmp_path / "unet", DIFFUSERS, variant=variant), values
  )


def test_a_save_replaces_an_earlier_one_of_the_same_variant(tmp_path):
  """One file by shards, many by few, shards by one file; no others."""
  kept = [f"{STEM}.bin", f"{STEM}.fp16.safetensors", f"{STEM}_2.safetensors"]
  for name in kept:
    (tmp_path / name).write_text("kept")
  for seed, most in enumerate([10**6, 50, 100, 10**6]):
    values = tensors(seed=seed)
    written = write_sharded(tmp_path, STEM, tensors=values, max_bytes=most)
    assert_same(read_folder(tmp_path, DIFFUSERS), values)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*kept, *(path.name for path in written)}
  write_sharded(tmp_path, STEM, tensors=values, max_bytes=50, variant="fp16")
  assert (tmp_path / f"{STEM}.safetensors").exists()
  assert not (tmp_path / f"{STEM}.fp16.safetensors").exists()
  assert_same(read_folder(tmp_path, DIFFUSERS, variant="fp16"), values)


def test_arrays_read_from_a_folder_can_be_written_over_it(tmp_path):
  for most in (50, 100, 10**6, 50):
    write_sharded(tmp_path, STEM, tensors=tensors(), max_bytes=most)
    arrays = read_folder(tmp_path, DIFFUSERS)
    write_sharded(tmp_path, STEM, tensors=arrays, max_bytes=120)
    assert_same(arrays, tensors())
    assert_same(read_folder(tmp_path, DIFFUSERS), tensors())


def test_an_invalid_shard_size_is_refused(tmp_path):
  with pytest.raises(ValueError, match="try max_bytes"):
    write_sharded(tmp_path, STEM, tensors=tensors(), max_bytes=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("most", [2_000, 10**9])
def test_diffusers_loads_written_folders_and_its_own_are_read(
  tmp_path, variant, most
):
  diffusers = pytest.importorskip("diffusers")
  build = lambda: diffusers.UNet2DModel(
    sample_size=8,
    block_out_channels=(8, 8),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
  )
  model, theirs, ours = build(), tmp_path / "theirs", tmp_path / "ours"
  model.save_pretrained(theirs, variant=variant, max_shard_size=most)
  expected = {name: t.numpy() for name, t in model.state_dict().items()}
  arrays = read_folder(theirs, DIFFUSERS, variant=variant)
  assert_same(arrays, expected)

  written = write_sharded(
    ours, STEM, tensors=arrays, max_bytes=most, variant=variant
  )
  names = {path.name for path in theirs.iterdir()} - {"config.json"}
  assert {path.name for path in written} == names
  (ours / "config.json").write_bytes((theirs / "config.json").read_bytes())
  again = diffusers.UNet2DModel.from_pretrained(
    ours, variant=variant, use_safetensors=True
  )
  assert_same({n: t.numpy() for n, t in again.state_dict().items()}, expected)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("most", [3_000, 10**9])
def test_transformers_loads_written_folders_and_its_own_are_read(
  tmp_path, variant, most
):
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = transformers.CLIPTextConfig(
    vocab_size=50,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=7,
  )
  model = transformers.CLIPTextModel(config)
  theirs, ours = tmp_path / "theirs", tmp_path / "ours"
  model.save_pretrained(theirs, variant=variant, max_shard_size=most)
  arrays = read_folder(theirs, TRANSFORMERS, variant=variant)
  expected = {name: t.numpy() for name, t in model.state_dict().items()}
  assert len(arrays) == len(expected)
  written = write_sharded(
    ours, "model", tensors=arrays, max_bytes=most, variant=variant
  )
  assert (len(written) > 1) == (most < 10**9)
  (ours / "config.json").write_bytes((theirs / "config.json").read_bytes())
  again, report = transformers.CLIPTextModel.from_pretrained(
    ours, variant=variant, output_loading_info=True
  )
  assert not any(report.values()), report
  assert_same({n: t.numpy() for n, t in again.state_dict().items()}, expected)
