"""Training steps of the paper's full-width L3-Net in Keras, for `training_step.py --keras-python`.

It runs in a Python with Keras 3, without comodal or PyTorch. For each line on standard input it takes one step on the
same random batch and prints its seconds: CPU seconds with one thread, else wall time. The architecture is that of
L3-Net, section 3.1; the spectrogram is a fixed convolution, as in l3embedding, and the loss includes its L2 penalty.
"""

import argparse
import os
import sys
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()
for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ[name] = str(options.threads)
os.environ |= {"TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import keras  # noqa: E402  it reads the settings above
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-5  # of l3embedding


def make_tower(x: keras.KerasTensor) -> keras.KerasTensor:
    """Four blocks of two convolutions, in the paper with 64 to 512 filters, and the maximum over the last map."""
    for block in range(4):
        for _ in range(2):
            penalty = keras.regularizers.L2(WEIGHT_DECAY)
            x = layers.Conv2D(
                options.width * 2**block, 3, padding="same", kernel_initializer="he_normal", kernel_regularizer=penalty
            )(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x) if block < 3 else layers.GlobalMaxPooling2D()(x)
    return x


def make_l3net() -> keras.Model:
    """The network of 224-pixel images and one second of audio at 48 kHz, with logits of mismatch and match."""
    image, audio = keras.Input((224, 224, 3)), keras.Input((48_000, 1))
    spectrogram = layers.STFTSpectrogram(
        mode="log", frame_length=480, frame_step=240, fft_length=512, padding="valid", expand_dims=True
    )(audio)
    spectrogram = layers.Permute((2, 1, 3))(spectrogram)
    joined = layers.Concatenate()([make_tower(image), make_tower(spectrogram)])
    return keras.Model([image, audio], layers.Dense(2)(layers.Dense(128, activation="relu")(joined)))


rng = np.random.default_rng(0)
inputs = [
    rng.uniform(-1, 1, (options.batch, 224, 224, 3)).astype(np.float32),
    0.1 * rng.standard_normal((options.batch, 48_000, 1), np.float32),
]
target = np.arange(options.batch) % 2
model = make_l3net()
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(LEARNING_RATE), loss, jit_compile=False)  # XLA was slower on a CPU
clock = time.process_time if options.threads == 1 else time.perf_counter
print(f"Keras {keras.__version__} with {keras.backend.backend()}, {model.count_params():,} parameters", flush=True)
for _ in sys.stdin:
    start = clock()
    model.train_on_batch(inputs, target)
    print(clock() - start, flush=True)
