"""What is trained: the decoder, and the encoder in front of it where pictures come as pixels."""

import torch
from torch import Tensor, nn

from raycap.decoders.decoder import Decoder, Tensors
from raycap.encoders.encoder import Encoder
from raycap.training import Augmentation


class Network(nn.Module):
    """Pictures of either kind to a decoder's memory. `encoder` is None where pictures come as features."""

    def __init__(self, decoder: Decoder, encoder: Encoder | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder

    def remember(self, pictures: Tensor, augmentation: Augmentation | None = None) -> Tensors:
        """From features [B, P + 1, D], the vector below the grid, or pixels [B, S, S, 3]."""
        if self.encoder is None:
            return self.decoder.remember(pictures[:, :-1], pictures[:, -1])
        pixels = pictures.permute(0, 3, 1, 2)  # [B, 3, S, S]
        if augmentation is not None and augmentation.on:
            pixels = augmented(pixels, augmentation)
        return self.decoder.remember(*self.encoder(pixels))


def augmented(pixels: Tensor, options: Augmentation) -> Tensor:
    """Each picture of uint8 [B, 3, S, S] cropped and perhaps mirrored in its own way, at its old size."""
    count, device = len(pixels), pixels.device
    kept = 1 - options.crop * torch.rand(count, 2, device=device)  # [B, 2] of width and height
    shift = (1 - kept) * (2 * torch.rand(count, 2, device=device) - 1)
    if options.flip:
        kept[:, 0] *= torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    frame = torch.zeros(count, 2, 3, device=device)
    frame[:, 0, 0], frame[:, 1, 1], frame[:, :, 2] = kept[:, 0], kept[:, 1], shift
    grid = nn.functional.affine_grid(frame, list(pixels.shape), align_corners=False)
    moved = nn.functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)
