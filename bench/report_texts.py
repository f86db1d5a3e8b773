"""The prose of the page of benchmarks: what each section measures, and why some of its targets are missed."""

from __future__ import annotations

from bench.cases import SDEDIT_CACHE, SDEDIT_LEVEL, SDEDIT_STEPS
from bench.harness import THREADS
from bench.latent_cases import LATENT
from sparsegen.pipelines.latent_edit import MARGIN

INTRO = f"""# Benchmarks

`python -m bench.report` writes this page from the JSON lines in [`bench/results/`](../bench/results). Do not edit it.
It measures nothing. **A figure belongs to the commit and the machine that are named above its table; it is not measured
again when the code changes.** `make bench` measures, appends lines, and writes the page again.

- Times of steps, layers and processes are medians of repeats; an SDEdit session is timed once. Tables of networks that
  do not say of how many are older: of 9 runs (GauGAN, GAN Compression) or 6 (steps of diffusion). *Spread* is the
  distance between the quartiles of the repeats as a share of the median; the machine shares its caches and its memory
  with others, which causes most of it.
- Every engine computes in float32 (but those marked so) with {THREADS} threads (but where their numbers are compared),
  in a separate process. Engines take turns, and are compared with PyTorch before they are timed.
- "PyTorch (bfloat16)" has weights and values in bfloat16, "sparsegen (bfloat16)" the products of 1×1 and strided
  convolutions and of windows of labels: where the processor multiplies bfloat16, beside the others. No target counts
  them.
- Kinds of vectors are never mixed in a line: "full AVX-512", of a processor that makes twice as many multiply-adds a
  cycle with it as with AVX2 (Zen 5); AVX-512, of one that computes such a vector in two halves (Zen 4); AVX2; and "AVX2
  alone", a machine with AVX-512 on which sparsegen and PyTorch are limited to AVX2 (the option `--as-avx2`; nothing
  limits ncnn and ONNX Runtime, which are left out there). Of each kind the machine counts that was measured last.
- "PyTorch" is the better of its two memory layouts. It is helped to keep the memory that it frees (the option
  `--plain-memory` omits the help).
- "× PyTorch" is how many times as fast as PyTorch's dense run. "Aimed at" is the project's target.
- MACs are the multiply-accumulates of a run as a share of the dense run's, counted by each layer's plain formula.
"""

GAUGAN = """93 M random weights, a street painted by [`bench/street.py`](../bench/street.py). Every timed
edit is new to the session. SIGE keeps 1,098 MB of activations for the same model.

The limit with AVX-512: with one row for each distinct window of labels a dense run takes 64 G multiply-adds (by
`sparsegen profile`), 542 ms at the products' peak of 236 GFLOP/s. It takes {GauGAN 512×256, ngf 64 AVX-512}, and would
be faster than that by fewer products alone, as windows share them already. Of its time Winograd's convolutions have
46 %, the windows of labels 38 %, other convolutions 9 %, everything outside kernels, such as the numbering of windows,
6 %; of an edit of 1.2 %: 52, 22, 4 and 19 %. With AVX2 the same multiply-adds take 711 of the
{GauGAN 512×256, ngf 64 AVX2}, at that machine's 180 GFLOP/s (*Layers*).

Full AVX-512 would make them in 239 ms, at 536 GFLOP/s (*Layers*), and takes {GauGAN 512×256, ngf 64 full AVX-512}. As
products take half the time there, all else has more of it: of a dense run Winograd's convolutions have 47 %, windows of
labels 36, other convolutions 9, everything outside kernels 8; of an edit of 1.2 % 51, 18, 3 and 25 % (9 of 37 ms, most
of them Python). Those shares are from before helpers computed while Python prepares kernels (the switch `queue`), which
hides at best half of it behind two threads. AVX2 alone, on the same processor at half that peak, takes
{GauGAN 512×256, ngf 64 AVX2 alone}."""

GAN_COMPRESSION = """20 M random weights of the published widths (32_32_32_48_32_24_24_32), the same streets. Under
`paper` the three lowest blocks are computed whole, 4.6 of the 5.5 G MACs of a 1.2 % edit. The two 3×3 convolutions at
16×32 alone take some 40 % of its time with AVX2, at half of what that machine can do, by `sparsegen profile
gan-compression --area 1.2 --policy paper --run`.

An edit of 100 % sets all canvases aside and paints new ones, in the memory that earlier edits have freed (the switch
`reused-canvases`). The first two of a session find none there: with full AVX-512 they took 113 and 169 ms, the next
four 86 to 93, dense runs 85 to 88. The second is among the runs of these tables, one of each five."""

STARTUP = """From the start of the process to the image on disk; the files are in the disk's cache.
`sparsegen edit` computes the original and the edit, the PyTorch process one image. Of a saved session it computes
the edit alone: from its time the edit's in a process that has loaded everything is taken off. `bench.startup` times
the first demo on a machine once; where there is AVX-512, also with the kernels that it would compile for AVX2.

The limit of an edit of a saved session is Python: its start and the import of modules take 0.40 s (Numba 0.15, typer
and pydantic 0.06), typer's checks of the options 0.07. The session's file takes 0.07 to 0.09, images 0.05, and a first
edit 0.08 more than later ones, for its kernels are loaded and its weights laid out."""

LAYERS = """Most of the time of a 3×3 layer of stride 1 is the products of Winograd's algorithm; then come
the transforms of kernels and windows, which write four times as much as they read. ncnn keeps its kernels
transformed, four times as large; a layer that is called again and again, as here, finds them in the machine's
large cache, a whole model has to read them from memory. 1×1 layers and layers of stride 2 have no products to
save. GFLOP/s count a layer's plain formula.

The limits, on the AVX2 machine, whose products reach 90 GFLOP/s a core with all they need in a first-level cache: at
256×256 they run at 85 and take 78 % of a layer's time, gathering 7 % (15 % with a norm and SiLU pending), transforms
11 %, writing 3 %. At 8×8 the transform of the kernels takes 37 %: its results, 36 floats for 9 read, leave the
first-level cache at the rate at which it can be written back. (Stages were timed by the cycle counter.)

The limit of AVX2 alone at 8×8 is the same: without reading and transforming the kernels the layer takes 34 % less time
(on the Zen 4 below). AVX-512 transforms the kernels of few tiles in registers. AVX2's 16 registers hold half a row of
positions at a time: so four tiles took 1.6 times as long as with stored kernels, and 1.5 times with the first of the
transform's two products stored. Stored kernels of 8 or 16 inputs at a time, which stay in a first-level cache, took 1.4
and 1.25 times as long, for each of the 36 positions begins its product anew.

What few tiles reach of the memory's speed, with AVX-512: in an edit of 1.2 % GauGAN's lowest layers, two tiles of 1024
channels, read their kernels at 65 to 84 % of the speed of a copy (96 MB in 3.0 to 3.6 ms). Those of eight tiles do at
42 to 48 %; their arithmetic takes 53 to 58 % of their time at the least (`sparsegen profile gaugan-cityscapes --area
1.2 --policy paper --run`, on a Zen 5). With inputs in a cache and kernels in none, a layer of 1024 channels took 0.9 ms
for two tiles, 42 GB/s, 1.3 for four and 2.1 for eight; with the same piece of kernels again and again, which a cache
holds, 0.9, 1.2 and 2.0. So from four tiles on the limit is not memory, but what a core loads from its first-level
cache: 9 vectors of kernels and 24 numbers for 36 multiply-adds, two of each a cycle at best.

In a network a layer takes what it takes alone. Those of DDPM 128→128 at 256×256 took 14.9 to 15.0 ms in a dense step,
with a residual 15.7; alone, with the same norm and SiLU pending and moments to measure, 14.9 and 15.8 when they were
called again and again, 15.3 and 16.1 when something else emptied the caches in between (once, on the Zen 5).

The limits on the AVX-512 machine, a Zen 4, whose products reach 118 GFLOP/s a core from a first-level cache, with 3
rows as with 8: a 3×3 layer at 256×256 takes 77 % of its time for its products at that rate, one at 8×8 58 %. Without
one stage, a layer at 256×256 takes 11 % less (windows gathered and transformed) or 5 % less (written). At 8×8 kernels
are transformed where they are multiplied, by 60 operations for the 144 of four tiles' products: together 82 % of the
time at one operation a cycle (`winograd-few` of the switches; written to a cache and read back, transformed kernels
took 45 % of a layer). The layer of 64 outputs has half as many products for each window that it transforms. 1×1
layers reach 72 to 93 % of the products' peak, layers of stride 2 89 to 93 %.

The limits with full AVX-512, on a Zen 5 that makes 268 GFLOP/s a core out of registers: products take half the time,
what is beside them as long as before. At that rate products are 68, 65, 67, 55, 51 and 44 % of the 3×3 layers from
256×256 to 8×8, the last two 66 and 62 % with the transform of their kernels; 60 % of the layer of 64 outputs; 66 to 90
% of 1×1 layers, 82 to 88 % of layers of stride 2. Without its products the first takes 73 % less time, without its
writing 6 %, without the transform of its sums 2 % more, without that of its windows 6 % more. A layer 64→64 at
256×256, of which PD has some, takes 57 % less without its products: 0.9 of its 4.2 ms are because 50 MB of canvases
lie in memory, and not in a cache as at 64×64. To prefetch outputs or residuals during the products gained nothing, the
next windows 4 % with 64 channels and nothing with more; 64 tiles in a batch, or 128 inputs in a piece, which rounds
otherwise, 1 to 2 %. (All that before tiles were written line by line, the switch `by-lines`.) The layer at 32×32 takes
3.3 to 4.1 ms from process to process: 9 MB of kernels and 5 MB of transformed windows share the large cache. The 1×1
layer at 256×512 needs 4.0 ms for its products, and 3.3 for 134 MB at the 40 GB/s that two threads read. Stores that
bypass the caches, which spare reading what is overwritten, were tried once: layers at 256×256 and 256×512 take 3 to 9
% less time with them, with moments to measure nothing less, for these then have to be measured elsewhere. They are not
in the kernels.

Queries, keys and values as one product of three times the outputs took 5 to 11 % less time than as three, which apply
the pending norm three times: 0.6 % of a dense step of PD 256 (at `8de909fde`; reading windows takes half as long
since). They stay three layers, whose canvases `sparsegen parity` compares with PyTorch's one by one.

Products of bfloat16 reach 234 GFLOP/s a core on the Zen 4, twice as many. PyTorch's values lie in memory as bfloat16,
sparsegen's canvases as float32: it reads and writes twice the bytes. sparsegen's 3×3 layers of stride 1 stay float32:
with transformed windows and kernels in bfloat16 their results would move ten times as far as a direct convolution's.
On a Xeon with AMX, which sparsegen does not use, PyTorch's bfloat16 is the faster of the two where its values fit the
caches: of a 3×3 layer 256→256 at 64×64 it took 2.0 ms with two threads, sparsegen's float32 9.4, PyTorch's 20.5; at
256×256, 128→128, 32, 29 and 112 ms (one run each, without a command of the bench)."""

SWITCHES = """Each trick of the CPU kernels is turned off by itself, by `python -m bench.switches`: the sources with
the replacement that [`bench/switch_table.py`](../bench/switch_table.py) has for it, in a separate process, against the
sources as they are, in bursts in turn. Two threads. *Gain* is the time without the trick over the time with it, the
median of the pairs of bursts; quartiles that enclose 1 show no gain. Tricks work together: gains do not multiply. A
layer that is called again and again finds its weights in the machine's caches; with *cold weights* it does not."""

THREADS = """What more threads bring, by `python -m bench.threads`. Of 1, 2, 4, 8 and 16 threads those up to the
cores of the machine are measured, in separate processes, in turn, after all of them have given the same
bits. (… ×) is how many times as fast as one thread. *Undivided* is the share of one thread's time that
a second thread does not divide: s = 2 T(2) / T(1) − 1, by Amdahl's law. It is Python's time, that of
launches too small for two threads, and what two cores lose because they share caches and memory. An
error of 1 % in T(2) moves s by one to two points.

**Cells that say "on paper" are not measured**: T(n) = T(1) (s + (1 − s) / n), where s below 0 counts as 0. They are
what more cores bring at best, for they leave out:

- the bandwidth of the memory and the shared caches, of which each core gets less; the clock, which falls as more cores
  compute;
- the number of items. A launch has at most as many as its batches of tiles times its panels of output channels
  ([`backends/numba_cpu/launch.py`](../backends/numba_cpu/launch.py)); an edit of few tiles has fewer than 16 in many
  layers, and threads without an item wait. Where threads share the panels of a batch, each transforms the same windows
  again.

The limit of 16 threads in these tables is what one thread does between kernels: of GauGAN's dense run then 22 % are
outside launches (37 of 173 ms), of its edit of 1.2 % 41 % (18 of 43 ms): the numbering of windows, tiles, and Python.
Helpers compute meanwhile since `6414b0a38` (the switch `queue`), which was not measured with more than two threads. A
launch itself takes 8 to 12 µs with 2 to 16 threads, for helpers stay in machine code between kernels
([`backends/numba_cpu/handover.py`](../backends/numba_cpu/handover.py)). Before that, up to commit `16f5e1a8d`, they
took each kernel from Python, one after the other: the edit took 94, 63, 66 and 96 ms with 2, 4, 8 and 16 threads, the
dense run 697, 365, 255 and 203 ms, on the same kind of machine.

`exact` edits set canvases aside. The first two of a session wait for the memory of new ones, and the second is
one of each three of these runs: spreads of 90 to 150 % are that.

The last column is the time of two threads in a process limited to one core, over that of one thread: 1 means that
nothing is wasted. Without a number given, such a process takes one thread; that is checked first."""

STORED_WEIGHTS = """`weights="float16"` and `weights="bfloat16"` of the `numba` backend take half the memory of
weights, by `python -m bench.stored_weights`: processes of each type in turn. (…) is the time as a share of float32's.
Errors are against float32, of the largest value."""

LANDSCAPE = """The built-in model, 256×512, 18.6 G MACs. The edits are rectangles that turn land into water
and water into land, which is harder for `paper` than the demo's house (41 dB): their influence reaches far
through the lowest resolutions. PSNR is against the dense run of the edited labels."""

DIFFUSION = f"""Random weights. The edits are rectangles, each new to the session. SDEdit takes
{SDEDIT_STEPS} steps of DDIM from noise level {SDEDIT_LEVEL} with {SDEDIT_CACHE} of RAM for its caches, and is
timed to the PNG.

Under the family's `paper` settings everything below 64×64 is computed whole: 24 of the 32.6 G MACs of a 1.2 %
edit of DDPM, 33 of the 35 G of PD. That is most of the time of an edit. Under `fast` those resolutions are
sparse, and computed at some of the steps alone. An edit then has steps of three kinds: the first one, which also
finds the active tiles; *refreshed* ones, which compute every layer; *carried* ones. Their mean is over all steps
of the family's edits (DDPM {SDEDIT_STEPS}, PD 5). The Python of a step is its time on a backend that computes
nothing. The run of an original is timed with the weights laid out, and compared with as many of the table's dense
steps, whose canvases are there already. Caches and journals count together, and files grow by 0.27 GB at a time; the
process has the weights, and the arrays that kernels compute in, beside them.

A dense step is timed at one time of the model again and again, and replays the first one's program. At another time, as
in a sampler, the model's code runs, which takes 1 % longer for DDPM, 3 % for PD 256 and 7 % for PD 128.

The targets are for machines with AVX2 and with AVX-512.

The limit with AVX-512: at the products' peak of 236 GFLOP/s the multiply-adds of a dense step (by `sparsegen profile`)
take 633 ms of DDPM's {{DDPM 256 AVX-512}}, 205 of PD 128's {{PD 128 AVX-512}}, 329 of PD 256's {{PD 256 AVX-512}}. Of
DDPM's time Winograd's convolutions have 78 %, other convolutions 18 %, moments 1 %, everything outside kernels 2 %; of
PD 256's 68, 17, 1 and 6 %, attention 8 %; of PD 128's 59, 20, 1, 7 and 13 %. What convolutions take beyond their
products are windows, with the norm and the SiLU of each pixel, transforms and outputs (*Layers*); layers of 64
channels, of which PD 128 has ten at 128×128, have half the products for each window.

The limit with AVX2: at that machine's 180 GFLOP/s they take 830 ms of DDPM's {{DDPM 256 AVX2}}, 269 of PD 128's
{{PD 128 AVX2}}, 431 of PD 256's {{PD 256 AVX2}}. Its rows are of commits before finite checks and moments moved into
the kernels that write: with AVX-512 that took 6 % off a step of DDPM.

The limits on a Zen 5, by the same multiply-adds: at 536 GFLOP/s of full AVX-512 they take 279 ms of DDPM's {{DDPM 256
full AVX-512}}, 90 of PD 128's {{PD 128 full AVX-512}}, 145 of PD 256's {{PD 256 full AVX-512}}; at 268 of AVX2 alone,
with the same kernels of now, 557 of {{DDPM 256 AVX2 alone}}, 181 of {{PD 128 AVX2 alone}}, 290 of {{PD 256 AVX2
alone}}. With full AVX-512 Winograd's convolutions have 78 % of DDPM's time, other convolutions 17 %, everything outside
kernels 4 %; of PD 256's 69, 14 and 7 %, attention 7 %; of PD 128's 60, 17, 10 and 12 %. Those are the shares of the Zen
4 above, but for Python's, which gained less.

Two thirds of the caches of an SDEdit session of DDPM 256 under `paper`, 10 of 14 GB, lie in files: of the 3.3 s that an
edit of 1.2 % took on the Zen 5 its 25 steps account for 2.0, of the original's 43 s for 12. The rest is the system's,
which finds memory for 14 GB, as the host of this virtual machine does, and pages of files. Under `fast` it is 1.0 of
the 1.5 s, most of it for a new file of the journal: edits that find that of an edit undone took 0.7 to 0.8 s. In
float16 the caches need no file, and an edit takes 0.7 s.

Of an edit of 1.2 % under `paper`, everything outside kernels has 10 %, some 100 to 150 µs for each layer (AVX-512);
helpers compute during it since `6414b0a38` (the switch `queue`).
With warm caches a launch takes 9 µs, 5 of them Python, with one thread and with two; in an edit the kernel before has
emptied the caches.

An edit of 100 % sets all canvases aside and paints new ones, in the memory that earlier edits have freed (the switch
`reused-canvases`). The first two of a session find none there, and wait for the system: on the Zen 5 those of DDPM
took 1.16 and 1.18 s, the next four 0.45 to 0.49, dense steps 0.46 to 0.47."""

STABLE_DIFFUSION = f"""{LATENT.name}, by `python -m bench.stable_diffusion`. Random weights, whose file holds 16 bits:
sparsegen keeps them so, diffusers in 32. A *step* is a guided one, both halves in one call; edits are rectangles, with
{MARGIN} pixels around them. Means are over the {LATENT.usual_steps} steps that a session takes with its default
settings. The *session* takes {len(LATENT.settings().times())} steps, its caches are in float16, its journals are those
of two edits; beside it is diffusers' pipeline of image to image. Both go from the painted image to the PNG, with the
texts encoded before. MACs in G are those of one half; SIGE's rule gives 71.8 G for a square in the middle."""

CARD = """PyTorch with cuDNN, channels last; CUDA graphs on both sides, equal settings of TF32. "× PyTorch" is of the
time from the call to the result in main memory, "on the card" of the graphs alone ([CUDA](cuda.md#the-bench))."""

CARD_CASES = {"gaugan": "GauGAN, 512×256", "ddpm": "DDPM, 256×256", "pd": "Progressive distillation, 256×256"}
"""Case of `bench.gpu` -> its title."""

CARD_LIMITS = """What limits them:

- *Edits*: the card needs 1.2 ms of GauGAN's 4.8 (16 times as fast as PyTorch's dense run) and 2.8 of DDPM's 6.3 (10
  times). The rest is Python: about two thirds of it finds the tiles of each resolution and prepares the launch, while
  the card waits; the other third copies images and inputs, and writes down what was done. PyTorch's dense run is one
  graph, and waits for Python nowhere.
- *GauGAN in TF32 and float16*: cuDNN takes two thirds of the time of our kernels. These write each window to memory
  before they multiply it: 3×3 layers of 128 channels at 256² take as long with every shape of block.
- *SDEdit* is 25 denoising steps: all of them sparse under `paper`; under `fast` 10 compute, and the others carry
  deltas on.
- Single steps under `fast` are owed: they were timed before recordings for different whole canvases stood beside each
  other, and included new recordings."""

OWED = """No speed is measured yet: the backend's kernels are checked on a card ([CUDA](cuda.md)), and
`python bench/gpu.py` measures them on one that does nothing else. Aimed at on an H100, against PyTorch's dense run:
dense runs in at most 1.3 times its time, edits of 1.2 % at least 6 times (DDPM 256) and 10 times (GauGAN 512×256) as
fast."""

QUALITY = """`landscape-ddpm`, SDEdit of 25 steps: PSNR and SSIM against the session's dense edit of the same
strokes, each a median · the lowest, PSNR in dB. They are of the *region*, the pixels that the sparse or the dense
edit changed, by area of the strokes; only the last column is of the whole image. MACs are a share of the dense
edit's. Each of the lower lines differs from `fast` in the settings in brackets: sparsity alone, sparsity with one of
the other two ideas.

**The quality of PD and of DDPM 256 is not measured**: their weights here are random, and their images mean nothing.
That their MACs are reached at the quality of these tables is an assumption, and the settings of PD under `fast`
(`refresh` 4, `frontier` 3) are chosen by its MACs alone."""

STUDY = """What each setting of `fast` costs and gains, on strokes of *unseen images*, taken in an order that spreads
their areas (`python -m bench.quality --study`). PSNR of the region, median · lowest, in dB; the number of strokes is
in brackets. MACs are the median share of the dense edit's."""

STUDIED = {
    "Weight of fresh statistics, one step alone": """The model's output after one step, without any sampling: how far
the edit moves the dense output, over the error of the sparse one, in dB (root mean squares over the region). Late
steps are at small times.""",
    "Other noise levels": """The same strokes, denoised from other noise levels of 1000, and so with other steps.""",
    "Strokes that chose nothing": """Another set, from seed 3,000,000 on, which no setting was chosen by.""",
}
"""Title of a table of the study -> what it shows beside the others."""

CHAINS = """Strokes of 2 % on the result of the last edit, compared with the same strokes in a row of dense edits:
over the regions of all edits so far, and, for the last edit alone, with the dense edit from the same place. Before a
figure is recorded, undo of all edits gives the original and redo the last image, bit for bit."""

LATENTS = """`landscape-sd`, 128×128, latents of 32×32, guidance 4: strokes and masks of 1, 5 and 15 % on three
images that the training has not seen, against the session's dense edit of the same input
(`python -m bench.quality --model landscape-sd`). PSNR of the region by area, median · lowest, in dB; the number of
edits is in brackets; the last column is of the whole image. MACs, the autoencoder's among them, are a share of the
dense edit's; of a model so small they are more than of the published ones."""

LATENT_LIMITS = """The targets that are missed with AVX2:

- *A dense step*: 800 G MACs in 8.4 s, if nothing is kept, are 96 G a second on two cores, where PyTorch does 65; only
  3×3 convolutions, by Winograd, take fewer than they count. A run that keeps its canvases writes 0.5 GB a step.
- *An edit of 1.2 %* is bound by the low resolutions: of the MACs of a step that computes, 16×16 and 8×8 latents take
  three quarters, since an edit in the middle, dilated, reaches most of their tiles. No dilation at 8×8 would save 7 %,
  at both 17 %, and would cost single edits up to 8 dB.
- *MACs of a refreshed step*, for the same reason; the mean over the steps of an edit is below the target.
- *RAM*: of the caches some 3 GB are encoder's and decoder's, in float32; the weights take 2.1 GB, and two journals and
  the arrays that layers without canvases compute in 1.3 GB. Working arrays shared by shape, not by layer, would take
  less.

With AVX-512 the 508 G multiply-adds of a dense step (by `sparsegen profile sd-1.5`) take 4.3 s at the products' peak of
236 GFLOP/s, of the {Stable Diffusion 1.x, 512×512 AVX-512} that are measured. That would be 2.1 times as fast as
PyTorch: 2.5 times takes fewer products, or other ones. Of an edit of 1.2 % the low resolutions are the limit there,
too.

With AVX2 there is one round of one run each, without a spread."""

COMMITS = """What a rebuilding of the code cost, by `python -m bench.commits`: built-in models on the `numba` backend
under `paper`, processes of both commits call by call in turn, the bits compared before the times. The times are *CPU
time*, user and system of the process and all its threads: the machine was busy with other work, which lengthens the
time that passes much more. "New over old" is the median of the ratios of two calls in a row, beside it their quartiles.

`3a82327` and `7e94a65` are the first and the last commit of the rebuilding into floors, which was to cost at most 5 %.
Dense runs kept to that; in small edits of models of this size, where much of the time is Python's, it cost 8 to 11 %
(17,000 Python calls for an edit and its undo of 1.2 % of `landscape`, from 14,000). Edits replay programs since, and
`2e5a81d` is below the old times."""
