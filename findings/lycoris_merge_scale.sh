#!/usr/bin/env bash
# LyCORIS: merging a LoHa or LoKr multiplies its change by alpha / dim twice.
#
# Expected: after merge_to the layer computes what it did with the module
# applied: W + (alpha / dim) change.
# Seen with lycoris-lora 4.1.3 and torch 2.13.0 (CPU), dim 4 and alpha 2: for
# LoCon (LoRA) the merged change is the applied one; for LoHa and LoKr it is half
# of it, which is alpha / dim once more.
# Exits with 1 if this has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 lycoris-lora==4.1.3
cat > "$folder/try.py" <<'P'
import torch
import lycoris
from lycoris import create_lycoris

DIM, ALPHA = 4, 2.0
ratios = {}
for algo in ("locon", "loha", "lokr"):
  torch.manual_seed(0)
  net = torch.nn.Sequential(torch.nn.Linear(128, 128))
  x = torch.randn(5, 128)
  plain = net(x).detach()
  lycoris.LycorisNetwork.apply_preset({"target_module": ["Linear"]})
  options = {"linear_dim": DIM, "linear_alpha": ALPHA, "algo": algo}
  wrapper = create_lycoris(net, 1.0, **options)
  wrapper.apply_to()
  for parameter in wrapper.parameters():
    parameter.data = torch.randn_like(parameter) * 0.2
  applied = net(x).detach() - plain
  wrapper.restore()
  wrapper.merge_to(1.0)
  merged = net(x).detach() - plain
  fits = torch.allclose(merged / applied, (merged / applied).median(), atol=1e-2)
  ratios[algo] = round(float((merged / applied).median()), 3), fits

for algo, (ratio, fits) in ratios.items():
  print(f"{algo}: merged change / applied change = {ratio}, the same all over: {fits}")
seen = {name: ratio for name, (ratio, _) in ratios.items()}
raise SystemExit(seen != {"locon": 1.0, "loha": 0.5, "lokr": 0.5})
P
"$folder/env/bin/python" "$folder/try.py"
