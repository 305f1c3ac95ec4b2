"""Models that make images: diffusion, its samplers, and how good what they make is.

`DDPMDDIMCFG` trains a `Diffusion`, `sample` makes images with it, `compare` measures how near they are to real ones.
"""

from holdfast.generative.attention import Attention, Watched, cross_attention, watch_attention
from holdfast.generative.ddim import DDIM
from holdfast.generative.ddpm import DDPM
from holdfast.generative.ddpm_ddim_cfg import DDPMDDIMCFG, contexts
from holdfast.generative.diffusion import Diffusion
from holdfast.generative.grid import picture_grid
from holdfast.generative.judge import Judge, train_judge
from holdfast.generative.metrics import Comparison, FeatureNetwork, compare, fid, kid, precision_recall
from holdfast.generative.noise_prediction import NoisePrediction
from holdfast.generative.noise_schedule import Estimate, NoiseSchedule
from holdfast.generative.plug import plugged
from holdfast.generative.sampling import Denoiser, guided, sample, sample_path
from holdfast.generative.storage import Blueprint, build_diffusion, load_diffusion, save_diffusion
from holdfast.generative.text_encoder import TextEncoder, Tokenizer
from holdfast.generative.unet import UNet
from holdfast.generative.vae import VAE, VAELoss, train_vae

__all__ = [
    "DDIM",
    "DDPM",
    "DDPMDDIMCFG",
    "VAE",
    "Attention",
    "Blueprint",
    "Comparison",
    "Denoiser",
    "Diffusion",
    "Estimate",
    "FeatureNetwork",
    "Judge",
    "NoisePrediction",
    "NoiseSchedule",
    "TextEncoder",
    "Tokenizer",
    "UNet",
    "VAELoss",
    "Watched",
    "build_diffusion",
    "compare",
    "contexts",
    "cross_attention",
    "fid",
    "guided",
    "kid",
    "load_diffusion",
    "picture_grid",
    "plugged",
    "precision_recall",
    "sample",
    "sample_path",
    "save_diffusion",
    "train_judge",
    "train_vae",
    "watch_attention",
]
