"""The flags of a `GenerationRequest`; each is named as its field."""

SAMPLING = """
--steps -s --num_inference_steps --ddim_steps: int
  of the sampler, 1 to the length of the schedule (default 50)
--sampler: NAME
  such as ddim, euler a, DPM++ 2M Karras, UniPCMultistepScheduler (default:
  the model's own)
--timestep_spacing --schedule --grid: NAME
  leading, trailing, linspace, quadratic, karras, exponential, beta,
  sgm_uniform, simple, kl_optimal, lcm
--times: numbers T,T,...
  the steps' times, falling, instead
--sigmas: numbers S,S,...
  their sigma / signal, instead
--order: int
  of deis, lms, unipc
--eta: float
  scale of the noise that samplers add (ddim 0, ancestral ones 1)
--compat: diffusers|
  repeat diffusers' timesteps, roundings and mistakes
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
  what guidance leads away from
--class_label: int
  for models that know classes
--num -n: int
  images per prompt (default 1)
--height -H: int
  pixels (default: as trained)
--width -W: int
  pixels (default: as trained)
--interpolate: int N
  N images from one prompt to another, or from the first noise to the second
--emphasis: yes
  read (word:1.3), (word) and [word] in prompts as weights
--clip_skip: int N
  2 leaves the last block of CLIP out, beyond what the model leaves out
  anyway; 1 is as trained
""",
  "other conditions": """
--segmap: FILE
  a map: a PNG whose grey values or palette indices are classes
--depth: FILE
  a PNG of grey values, lighter is nearer, for models of depth
--layout: FILE
  boxes: JSON such as [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}], left, top,
  right and bottom of the image
--neighbours: FILE
  embeddings for retrieval-augmented models, an .npy of ldm-jax retrieve
--conditions --condition: pairs NAME=FILE.npy,...
  what conditioners of your own read
""",
  "sampling": SAMPLING,
  "guidance": """
--guidance --guidance_scale --cfg_scale --scale: float
  scale of classifier-free guidance; 1 is none (default 3 for a run, 7.5 for
  Stable Diffusion, 5 for SDXL)
--guidance_rescale: float
  0 to 1: scale the standard deviation of the output back (default 0)
--guidance_interval: float FROM TO
  guide between these fractions of the noise's time (default 0 1)
--threshold: float QUANTILE MOST
  dynamic thresholding of x0, for models of pixels (e.g. 0.995 1.5)
""",
  "noise": """
--seed: int
  images are (seed, index) (default 0)
--variation: float FRACTION
  0 to 1: how far each image's noise is from that of the first
--rng: jax|torch
  whose noise; torch's gives the images of other programs
--initial_latents: FILE.npy
  (N, H, W, C) of unit variance in place of the seed's noise
""",
  "images to start from": """
--image --init_img -i: FILE
  to change, to inpaint, or to upscale
--mask: FILE
  white where the image is generated anew
--outpaint: integers L,T,R,B
  pixels to add to the image at its left, top, right and bottom
--strength: float
  above 0 to 1: how much of the image may change (default 0.8; 1 under a mask)
--invert: yes
  write the noise that DDIM inversion finds, for --initial_latents
--noise_level: int
  of upscaling: noise on the small image (default 20)
""",
  "ControlNet and classifier": """
--controlnet: FOLDER
  of a ControlNetModel
--control_image: FILE
  what it reads: edges, depth
--control_scale: float
  default 1
--control_interval: float FROM TO
  fractions of the noise's time in which it is used (default 0 1)
--classifier: RUN
  a run of a classifier of noisy latents; it guides to --class_label
--classifier_scale: float
  default 1
""",
  "large images": """
--tile --tiled: int?512 PIXELS
  encode and decode in overlapping tiles (default 512)
--window: int PIXELS
  denoise in overlapping windows, such as the size of training
""",
}
