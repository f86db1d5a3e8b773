"""GAN Compression's GauGAN against PyTorch, as `gaugan.py` measures the big one: checked, then timed in turn.

    python -m bench.gan_compression [--backend NAME] [--rounds 3] [--repeats 5]

20 M random weights in one checkpoint that both load, of the published widths; the street is `street.py`'s. The curve
goes beside that of `gaugan.py`.
"""

from __future__ import annotations

from bench.gaugan import compete
from bench.harness import parse


def main() -> None:
    compete("gan-compression", parse(__doc__, repeats=5, rounds=3))


if __name__ == "__main__":
    main()
