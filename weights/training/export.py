"""An averaged generator in, ``latest_net_G.pth`` as NVlabs writes it and sheets of pictures out.

    python -m sparsegen.weights.training.export .training/landscape/latest_net_G.pth weights/training/contact_sheet.png

paints the contact sheet of an exported generator; ``train.py`` exports by itself, at every checkpoint.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .batches import one_hot, to_bytes
from .canvas import STYLE, STYLE_SIZE
from .dataset import UNSEEN
from .landscapes import colours, landscape
from .network import SPADEGenerator


def norms(network):
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def calibrate(network, batches, *, count):
    """Set the running statistics of every batch norm to the plain mean over ``count`` whole pictures."""
    network.eval()
    for norm in norms(network):
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # cumulative average
    for step in range(count // 4):
        seg, _, z, _ = batches(10**9 + step, size=4, whole=True)
        with torch.autocast("cpu", torch.bfloat16):
            network(seg, z)
    for norm in norms(network):
        norm.momentum = 0.1
    return network.eval()


@torch.no_grad()
def sheet(network, seeds, path, *, scale=1.0):
    """Write labels, painter's picture and the network's, side by side, for the unseen scenes ``seeds``."""
    rows = []
    for seed in seeds:
        labels, picture, style = landscape(seed)
        z = torch.from_numpy(style)[None].clone()
        z[:, len(STYLE) :] = 0
        made = to_bytes(network(one_hot(labels[None]), z))[0]
        rows.append(np.hstack([colours(labels), picture, made]))
    image = Image.fromarray(np.vstack(rows))
    image.resize([round(scale * n) for n in image.size], Image.Resampling.LANCZOS).save(path, optimize=True)


def save(value, path):
    """Write with torch.save so that a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    torch.save(value, part)
    os.replace(part, path)


def export(network, path):
    """Write the generator's flat state dict, spectral norm unfolded, as NVlabs's ``util.save_network`` does."""
    save({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="an exported generator, latest_net_G.pth")
    parser.add_argument("target", type=Path, help="the PNG to write")
    args = parser.parse_args()
    source, target = args.source, args.target
    network = SPADEGenerator(z_dim=STYLE_SIZE)
    network.load_state_dict(torch.load(source, weights_only=True))
    sheet(network.eval(), range(UNSEEN, UNSEEN + 8), target, scale=0.6)


if __name__ == "__main__":
    main()
