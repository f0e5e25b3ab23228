"""The VGG of musicnn, a network for tagging music, as an audio tower (Pons & Serra, "musicnn: Pre-trained
convolutional neural networks for music audio tagging", ISMIR 2019 late-breaking demo; models.py, `vgg`).

Its first four convolutions are used. The fifth layer pools over three seconds of audio, and the tower embeds one.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.models.l3net.spectrogram import SpectrogramConfig

MUSICNN_VGG = "musicnn_vgg"
MUSICNN_FILTERS, MUSICNN_CONVOLUTIONS = 128, 4
KERAS_NORM_EPS = 1e-3

# configuration.py and extractor.py: 16 kHz, 96 mel bands of librosa, log10(10,000 x power + 1). librosa centers frames.
MUSICNN_SPECTROGRAM_CONFIG = SpectrogramConfig(
    sample_rate=16_000,
    window_samples=512,
    hop_samples=256,
    n_fft=512,
    zeros_before=256,
    zeros_after=256,
    mel_bands=96,
    mel_scale="slaney",
    scale="log_power",
)


class MusicnnVGG(nn.Module):
    """Spectrogram to the map of its fourth pooling. Each layer is convolution, ReLU, batch normalization, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, KERAS_NORM_EPS)
        channels = [1, *[MUSICNN_FILTERS] * MUSICNN_CONVOLUTIONS]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels[layer], MUSICNN_FILTERS, 3, padding=1) for layer in range(MUSICNN_CONVOLUTIONS)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(MUSICNN_FILTERS, KERAS_NORM_EPS) for _ in range(MUSICNN_CONVOLUTIONS))

    def forward(
        self, spectrogram: Float[Tensor, "batch 1 bands frames"]
    ) -> Float[Tensor, "batch channels new_frames new_bands"]:
        x = self.input_norm(spectrogram.mT)  # (batch, 1, frames, bands), the axes of the original
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.max_pool2d(norm(F.relu(convolution(x))), (4, 1) if layer == 0 else 2, 2)
        return x
