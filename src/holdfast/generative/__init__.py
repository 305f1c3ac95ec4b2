"""Models that make images: diffusion, its samplers, and how good what they make is.

`DDPMDDIMCFG` trains a `Diffusion`, `sample` makes images with it, `compare` measures how near they are to real ones.
"""

from holdfast.generative.attention import Attention, Watched, cross_attention, watch_attention
from holdfast.generative.ddim import DDIM
from holdfast.generative.ddpm import DDPM
from holdfast.generative.ddpm_ddim_cfg import DDPMDDIMCFG, contexts
from holdfast.generative.diffusion import Diffusion
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
    "Denoiser",
    "Diffusion",
    "Estimate",
    "NoisePrediction",
    "NoiseSchedule",
    "TextEncoder",
    "Tokenizer",
    "UNet",
    "VAELoss",
    "Watched",
    "build_diffusion",
    "contexts",
    "cross_attention",
    "guided",
    "load_diffusion",
    "plugged",
    "sample",
    "sample_path",
    "save_diffusion",
    "train_vae",
    "watch_attention",
]
