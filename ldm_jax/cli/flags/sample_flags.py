"""The flags of a `GenerationRequest`; each has the name of its field."""

SAMPLING = """
--steps -s --num_inference_steps --ddim_steps: int
  of the sampler, 1 to the length of the schedule (default 50)
--sampler: NAME
  such as ddim, euler a, DPM++ 2M Karras (default: the model's own)
--timestep_spacing --schedule --grid: NAME
  leading, trailing, linspace, quadratic, karras, exponential, beta,
  sgm_uniform, simple, kl_optimal, lcm
--times: numbers T,T,...
  decreasing times of the steps, in place of --steps
--sigmas: numbers S,S,...
  decreasing sigma / signal (of flows s, 0 to 1), in place of --steps
--shift: float
  of flow models, moves the steps towards noise (default: the model's own)
--order: int
  of deis, lms, unipc
--eta: float
  scale of the noise that samplers add (ddim 0, ancestral ones 1)
--compat: diffusers|
  reproduce diffusers' timesteps, rounding and deviations
--batch: int
  images at a time (default 16)
--dtype: float32|bfloat16
  of published parameters and of computation (default float32)
"""
GROUPS = {
  "what to generate": """
--prompt: text+
  what to generate; repeat it for several
--prompts_file --from_file: FILE
  prompts, one a line; - reads them from stdin
--negative_prompt: text
  what guidance steers away from
--class_label: label N|NAME
  for class-conditional models; ldm-jax info lists the names of a run
--num -n: int
  images per prompt (default 1)
--height -H: int
  pixels (default: as trained)
--width -W: int
  pixels (default: as trained)
--interpolate: int N
  N images from one prompt to another, or from the first noise to the second
--emphasis: yes
  read A1111's syntax in prompts: (word:1.3), [word], BREAK, AND, [a:b:0.5]
--clip_skip: int N
  skip N - 1 last blocks of CLIP more than the model itself does (default 1)
""",
  "other conditions": """
--segmap: FILE
  a PNG whose grey values or palette indices are classes
--depth: FILE
  a PNG of grey values, lighter is nearer, for depth-conditional models
--layout: FILE
  boxes, JSON: [{"class": 3, "box": [left, top, right, bottom]}], in 0 to 1
--neighbours: FILE
  embeddings for retrieval-augmented models, an .npy of ldm-jax retrieve
--conditions --condition: pairs NAME=FILE.npy,...
  inputs of your own conditioners
""",
  "sampling": SAMPLING,
  "guidance": """
--guidance --guidance_scale --cfg_scale --scale: float
  1 is none (default 3 for a run, 7.5 for Stable Diffusion, 5 for SDXL)
--image_guidance_scale: float
  towards the image that InstructPix2Pix edits (default 1.5)
--guidance_rescale: float
  0 to 1: scale the standard deviation of the output back (default 0)
--guidance_interval: float FROM TO
  guide only between these values of t / T; 0 is the image (default 0 1)
--threshold: float QUANTILE MAX
  dynamic thresholding of x0, for models of pixels (e.g. 0.995 1.5)
""",
  "noise": """
--seed: int
  images are (seed, index) (default 0); -1 draws one and reports it
--variation: float FRACTION
  0 to 1: how far each image's noise is from that of the first
--rng: jax|torch
  noise generator; torch's gives the same images as other programs
--initial_latents: FILE.npy
  (N, H, W, C) of unit variance in place of the seed's noise
""",
  "initial images": """
--image --init_img -i: FILE
  to change, to inpaint, or to upscale
--mask: FILE
  white where new content is generated
--outpaint: integers L,T,R,B
  pixels to add to the image at its left, top, right and bottom
--strength: float
  above 0 to 1: how much of the image may change (default 0.8; 1 under a mask)
--invert: yes
  write the noise that DDIM inversion finds, for --initial_latents
--noise_level: int
  of upscaling: noise level of the small image (default 20)
""",
  "ControlNet and classifier": """
--controlnet: FOLDER
  of a ControlNetModel
--control_image: FILE
  what it reads: edges, depth
--control_scale: float
  default 1
--control_interval: float FROM TO
  use it only between these values of t / T (default 0 1)
--classifier: RUN
  a run of a classifier of noisy latents, for guidance towards --class_label
--classifier_scale: float
  default 1
""",
  "large images": """
--tile --tiled: int?512 PIXELS
  encode and decode in tiles of less memory (default 512)
--window: int PIXELS
  denoise in overlapping windows, such as the size of training
""",
}
