"""The U-Net, set by formulas and least squares: a video is its first frame seen through a view that the text moves.

Every latent channel is one sample of an 8x8 block of pixels (:mod:`.vae`), so moving the picture means fetching blocks
and resampling inside them. The layers of the finest level share the work, in the order of a forward:

* ``down.0.resnets.0``: channels that follow timestep and stride. ``down.0.tempo_attns.0``: rotary text attention counts
  frames; its feed-forward gives MOTION = camera code x time x stride. ``down.0.tempo_attns.1``: what a growth or a turn
  of that size means for a view (VIEW).
* coarse levels: a linear ramp over the frame (PLACE), exact, from the zero padding of their convolutions.
* ``up.3.attentions.0``: where each block's content comes from (SOURCE). ``up.3.tempo_attns.0``: that place as a code.
* ``up.3.attentions.1`` resamples the first frame along rows, ``.2`` the result along columns: attention fetches the
  three nearest blocks, the feed-forward shifts by the rest, with weights fitted on photos.
* ``up.3.tempo_attns.2``: the noise that stands between this picture and the noisy latents.

All other branches are silent: their last layer is zero. Constants beside which all else is small make the norms pass
their input on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....export.unet import VideoUNet
from ....export.unet.gate import GatedResidual
from ....export.unet.resnets import SpatialResnet
from ....export.unet.transformers import SpatialTransformer
from ....kernels.ddim import SchedulerConfig, alphas_cumprod
from .moves import PAN_SPEED, STRIDES, TURN_SPEED, ZOOM_SPEED
from .norms import Run, inputs_of, pass_on, silence
from .text import BEGIN, END, TEXT_WIDTH
from .vae import CHANNELS, CHROMA, GRID, LUMA

FRAMES = 16
WIDTH = 128
CONFIG: dict[str, Any] = {
    "sample_size": GRID,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": [WIDTH, 32, 32, 32],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": [4, 1, 1, 1],
    "layers_per_block": 2,
    "norm_num_groups": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "n_temp_heads": 2,
    "n_frames": FRAMES,
    "augment_temporal_attention": True,
    "temp_pos_embedding": "rotary",
    "use_frame_stride_condition": True,
}


class Clips(NamedTuple):
    """Camera moves over photos, as latents."""

    latents: Tensor
    """float [n, 16, c, h, w]."""
    rows: Tensor
    """The same, moved along rows only: the first of the two resamplings."""
    weights: Tensor
    """How much each part counts; like `latents`."""
    codes: Tensor
    """float [n, 4], see :data:`.moves.MOVES`."""
    strides: Tensor
    """int64 [n]."""


At = tuple[str, int]
"""A name of :class:`Slots`, and which of its channels."""


class Slots:
    """Names for runs of channels."""

    def __init__(self, **lengths: int) -> None:
        self._first: dict[str, tuple[int, int]] = {}
        self.used = 0
        for name, length in lengths.items():
            self._first[name] = (self.used, length)
            self.used += length

    def __getitem__(self, key: str | At) -> int:
        name, offset = key if isinstance(key, tuple) else (key, 0)
        first, length = self._first[name]
        assert 0 <= offset < length
        return first + offset

    def all(self, name: str) -> list[int]:
        first, length = self._first[name]
        return list(range(first, first + length))


TRUNK = Slots(
    latent=CHANNELS,  # x LATENT_SCALE; at the end the predicted noise
    mirror=CHANNELS,  # its negative: silu(a) - silu(-a) = a
    warped=CHANNELS,
    key_x=4,
    key_y=4,
    query_x=12,
    query_y=12,
    place=2,  # right and down, in eight blocks
    source=2,
    motion=4,  # right, down, growth, clockwise turn, x time x stride / 5
    view=5,
    stride=1,
    gain=1,
    pull=1,
    time=1,
    other=1,  # 0 in the first frame, 1 in the others
    constant=2,
    zero=1,  # after a norm it shows the mean that the norm took away from all
)
LATENT_SCALE = 0.5
TRUNK_CONSTANT = TOKEN_CONSTANT = 64.0
REACH = GRID / 2
"""Blocks from the middle to the edge: the unit of place and source."""
_LONGEST = max(STRIDES) * (FRAMES - 1)
_PAN, _ZOOM, _TURN = PAN_SPEED * _LONGEST * GRID / REACH, ZOOM_SPEED * _LONGEST, TURN_SPEED * _LONGEST
_UNCERTAINTY = 0.04
"""Of the moved picture, as a standard deviation of latents: below this noise the noisy latents are the better guess."""
_CODE = ((4.0, 45.0), (32.0, 36.0))
"""Periods in blocks of the codes of a place, and what a match of each adds to the attention's logit."""
_FRAME_LOGIT, _FLAG_LOGIT = 24.0, 10.0
"""By which keys of other frames, and words beside a text's first and last token, fall behind."""
_HEADS = 3  # of four: the block to the left (above), the nearest one, the one to the right (below)
_KNOTS = torch.linspace(-1.2, 1.2, 20)
_STEEP = 12.0
_BEYOND = 1.0
"""Blocks beyond the outermost one's middle to which sources are drawn back: what lies further out is smeared."""


@torch.no_grad()
def build_unet(data: list[Clips]) -> VideoUNet:
    """The finished U-Net; norms are measured on the first batch, the resampling is fitted on all."""
    torch.manual_seed(0)
    unet = VideoUNet.from_config(CONFIG)
    modules: Any = unet
    for module in unet.modules():
        if isinstance(module, SpatialResnet):
            silence(module.conv2)
        elif isinstance(module, SpatialTransformer):
            silence(module.proj_out)
        elif isinstance(module, GatedResidual):
            nn.init.zeros_(module.alpha)
            silence(module.last_layer())
    modules.frame_stride_embedding.linear_2.reset_parameters()
    run = _passes(unet, data)
    down, up = modules.down_blocks[0], modules.up_blocks[3]
    _set_trunk(modules)
    _set_levels(modules, down.resnets[0], run)
    _set_motion(down.tempo_attns[0], run)
    _set_view(down.tempo_attns[1], run)
    _set_source(up.attentions[0], run)
    _set_code(up.tempo_attns[0], run)
    weights = torch.cat([batch.weights.flatten(0, 1) for batch in data])
    for axis in (0, 1):
        target = torch.cat([(batch.latents if axis else batch.rows).flatten(0, 1) for batch in data])
        _set_pass(up.attentions[1 + axis], axis, run, target, weights)
    _set_noise(up.tempo_attns[2], run)
    pass_on(modules.conv_norm_out, run)
    return unet.eval().requires_grad_(False)


def text_of(codes: Tensor) -> Tensor:
    """Text states that say a camera code [n, 4] as the text encoder does: float [n, 77, width]."""
    text = torch.zeros(len(codes), 77, TEXT_WIDTH)
    text[:, 0, BEGIN] = text[:, 4, END] = 1
    text[:, 4, :4] = codes
    return text


def _passes(unet: VideoUNet, data: list[Clips]) -> Run:
    abar = schedule()
    generator = torch.Generator().manual_seed(0)

    def one(latents: Tensor, codes: Tensor, strides: Tensor) -> Callable[[], Any]:
        clean, times = latents.transpose(1, 2), torch.linspace(60, 940, len(latents)).long()
        level = abar[times].view(-1, 1, 1, 1, 1)
        noise = torch.randn(clean[:, :, 1:].shape, generator=generator)
        noisy = level.sqrt() * clean[:, :, 1:] + (1 - level).sqrt() * noise
        return lambda: unet(noisy, times, text_of(codes), clean[:, :, :1], strides)

    return [one(batch.latents, batch.codes, batch.strides) for batch in data]


def schedule() -> Tensor:
    """The published schedule's cumulative alphas, float32 [1000]."""
    return torch.from_numpy(alphas_cumprod(SchedulerConfig()).copy())


class Layer:
    """One transformer: which trunk channels its tokens hold, its attentions and feed-forward, and what it writes.

    Args:
        transformer: of the finest level; everything in it is set.
        run: forward passes up to here.
        held: token channels by name, each a list of {trunk channel: factor}.
        free: more token channels, 0 at first: {name: length}.
    """

    def __init__(self, transformer: Any, run: Run, held: dict[str, list[dict[int, float]]], **free: int) -> None:
        self.block, self.out, self.run = transformer.transformer_blocks[0], transformer.proj_out, run
        self.at = Slots(constant=2, zero=1, **{name: len(rows) for name, rows in held.items()}, **free)
        self._units = 0
        silence(transformer.proj_in)
        for name, rows in held.items():
            for i, row in enumerate(rows):
                for channel, factor in row.items():
                    transformer.proj_in.weight[self.at[name, i], channel] += factor
                    transformer.proj_in.weight[self.at[name, i], TRUNK["zero"]] -= factor
        transformer.proj_in.bias[:2] = torch.tensor([TOKEN_CONSTANT, -TOKEN_CONSTANT])
        ff = self.block.ff.net
        for layer in (self.block.attn1.to_out[0], self.block.attn2.to_out[0], ff[0].proj, ff[2], self.out):
            silence(layer)
        for norm in (transformer.norm, self.block.norm1):
            pass_on(norm, run)

    @staticmethod
    def empty(attention: Any) -> Any:
        """The attention, with nothing in it yet."""
        for linear in (attention.to_q, attention.to_k, attention.to_v):
            silence(linear)
        return attention

    def attended(self) -> None:
        """To be called when the attentions are set."""
        for norm in (self.block.norm2, self.block.norm3):
            pass_on(norm, self.run)

    def read(self, row: Tensor, factors: dict[At, float]) -> None:
        """Let a row of weights read token channels after a norm, less the mean that the norm took away."""
        for name, factor in factors.items():
            row[self.at[name]] += factor
            row[self.at["zero"]] -= factor

    def constant(self, row: Tensor, value: float) -> None:
        row[self.at["constant"]] += value / TOKEN_CONSTANT

    def unit(
        self, value: dict[At, float] | float, gate: dict[At, float], offset: float, target: At, factor: float
    ) -> None:
        """One feed-forward unit: target += factor x value x gelu(gate + offset)."""
        proj, last = self.block.ff.net[0].proj, self.block.ff.net[2]
        row, self._units = self._units, self._units + 1
        assert row < last.in_features, "the feed-forward has no more units"
        if isinstance(value, float):
            proj.bias[row] = value
        else:
            self.read(proj.weight[row], value)
        self.read(proj.weight[last.in_features + row], gate)
        proj.bias[last.in_features + row] = offset
        last.weight[self.at[target], row] = factor

    def product(self, a: At, b: dict[At, float], target: At, factor: float, offset: float = 0.0) -> None:
        """target += factor x a x (b + offset), exactly: gelu(g) - gelu(-g) = g."""
        for sign in (1.0, -1.0):
            gate = {name: sign * weight for name, weight in b.items()}
            self.unit({a: 1.0}, gate, sign * offset, target, sign * factor)

    def curves(self, source: At, end: float, step: float, wanted: dict[At, Callable[[Tensor], Tensor]]) -> None:
        """targets += functions of a token channel, as least-squares sums of units that bend at every `step`.

        Args:
            source: the channel; what it holds, float64 here, lies between `-end` and `end`.
            end, step: see there.
            wanted: {target: function}.
        """
        bends = torch.arange(-end, end + step / 2, step, dtype=torch.double)
        signs, steep = torch.where(bends < 0, -1.0, 1.0), 2 / step
        x = torch.linspace(-end, end, 20 * len(bends), dtype=torch.double)[:, None]
        design = torch.cat([F.gelu(steep * signs * (x - bends)) / steep, x, torch.ones_like(x)], 1)
        gram = design.T @ design + 1e-7 * len(x) * torch.eye(design.shape[1], dtype=torch.double)
        ys = torch.cat([function(x) for function in wanted.values()], 1)
        fit = torch.linalg.solve(gram, design.T @ ys).float()
        last, rows = self.block.ff.net[2], [self.at[target] for target in wanted]
        for bend, sign, weights in zip(bends.tolist(), signs.tolist(), fit[:-2], strict=True):
            self.unit(1.0, {source: steep * sign}, -steep * sign * bend, next(iter(wanted)), 0.0)
            last.weight[rows, self._units - 1] = weights / steep
        for target, slope in zip(wanted, fit[-2].tolist(), strict=True):
            self.product(source, {}, target, slope / 10, 10.0)
        last.bias[rows] += fit[-1]

    def write(self, channel: int, name: str, i: int, factor: float = 1.0) -> None:
        """Add a token channel to a trunk channel."""
        self.out.weight[channel, self.at[name, i]] += factor
        self.out.weight[channel, self.at["zero"]] -= factor


def _plain(name: str) -> list[dict[int, float]]:
    return [{channel: 1.0} for channel in TRUNK.all(name)]


def _set_trunk(unet: Any) -> None:
    """What enters, what the blocks pass on, the ramp over the frame, and what leaves."""
    for layer in (unet.conv_in, unet.conv_out):
        silence(layer)
    for c in range(CHANNELS):
        for name, sign in (("latent", 1.0), ("mirror", -1.0)):
            unet.conv_in.weight[TRUNK[name, c], c, 1, 1] = sign * LATENT_SCALE
            unet.conv_out.weight[c, TRUNK[name, c], 1, 1] = sign / LATENT_SCALE
    unet.conv_in.bias[TRUNK.all("constant")] = torch.tensor([TRUNK_CONSTANT, -TRUNK_CONSTANT])
    # Coarse levels hold 1, and in channels 1 and 2 the ramps.
    for level, block in enumerate(unet.down_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                silence(resnet.conv_shortcut)
                nn.init.dirac_(resnet.conv_shortcut.weight)
        for downsampler in block.downsamplers:
            silence(downsampler.conv)
            constant = TRUNK["constant"] if level == 0 else 0
            downsampler.conv.weight[0, constant, 1, 1] = 1 / TRUNK_CONSTANT if level == 0 else 1
    # Two positions a side, the first of which sees the padding: -1/2 and 1/2.
    last = unet.down_blocks[2].downsamplers[0].conv
    last.weight[1, 0, 1, 0] = last.weight[2, 0, 0, 1] = 1
    last.bias[1:3] = -0.5
    for level, block in zip((3, 2, 1, 0), unet.up_blocks, strict=True):
        for i, resnet in enumerate(block.resnets):
            silence(resnet.conv_shortcut)
            if level == 0 and i == 0:
                nn.init.dirac_(resnet.conv_shortcut.weight[:, 32:])
                for axis in (0, 1):
                    resnet.conv_shortcut.weight[TRUNK["place", axis], 1 + axis] = 1 / REACH
            else:
                nn.init.dirac_(resnet.conv_shortcut.weight)
        for upsampler in block.upsamplers:
            silence(upsampler.conv)
            weight, edge = upsampler.conv.weight, (GRID >> (level + 1)) / 2 + 0.25
            weight[0, 0, 1, 1] = 1
            # Twice the linear interpolation; the padding takes the place of the ramp's next step.
            for taps, channel in ((weight[1, :, 1, :], 1), (weight[2, :, :, 1], 2)):
                taps[channel] = torch.tensor([0.5, 1.0, 0.5])
                taps[0] = torch.tensor([edge, 0.0, -edge])


def _set_levels(unet: Any, resnet: Any, run: Run) -> None:
    """Channels STRIDE ((stride - 3) / 2), GAIN (less 1) and PULL (gain x sqrt(abar)), the last two over their largest.

    They are fitted to hidden units of the two embeddings that bend at chosen timesteps and strides, stand in the
    embedding as pairs of opposite signs, and pass the resnet as such.
    """
    abar = schedule()
    # By what an error does to the clean latents that it stands for; the noisiest timesteps magnify it most.
    magnified = (1 / abar).clamp(max=600).sqrt()
    levels = _gain_and_pull() - torch.tensor([1.0, 0.0])
    wanted = levels / levels.amax(0)
    importance = torch.stack([magnified * (1 - abar) * levels[:, 0].max(), magnified], 1) + 0.3
    bends = 1000 * (torch.arange(32) / 31) ** 1.7
    _fit_embedding(unet.time_embedding, torch.arange(len(abar)), bends, 1000.0, wanted, importance, [0, 1])
    strides = torch.tensor(STRIDES)
    ones = torch.ones(len(STRIDES), 1)
    wanted = (strides[:, None] - 3) / 2
    _fit_embedding(unet.frame_stride_embedding, strides, torch.linspace(0, 8, 9), 8.0, wanted, ones, [2])
    for layer in (resnet.time_emb_proj, resnet.conv1, resnet.conv2):
        silence(layer)
    for k, name in enumerate(("gain", "pull", "stride")):
        for row, sign in ((2 * k, 1.0), (2 * k + 1, -1.0)):
            resnet.time_emb_proj.weight[row, 2 * k], resnet.time_emb_proj.weight[row, 2 * k + 1] = sign, -sign
            resnet.conv2.weight[TRUNK[name], row, 1, 1] = sign
    resnet.conv1.bias[6:8] = torch.tensor([TRUNK_CONSTANT, -TRUNK_CONSTANT])
    pass_on(resnet.norm2, run)


def _gain_and_pull() -> Tensor:
    """By timestep, float [1000, 2]: noise per difference, sigma / (sigma^2 + abar u^2), for the difference of noisy
    latents and sqrt(abar) times a guess with standard deviation u, its best linear estimate; and that times sqrt(abar).
    """
    abar = schedule()
    gain = (1 - abar).sqrt() / (1 - abar + abar * _UNCERTAINTY**2)
    return torch.stack([gain, gain * abar.sqrt()], 1)


def _fit_embedding(
    embedding: Any, values: Tensor, bends: Tensor, end: float, wanted: Tensor, importance: Tensor, pairs: list[int]
) -> None:
    """Make channels 2 pair and 2 pair + 1 of an embedding half the wanted functions and their negatives, the rest 0.

    Args:
        embedding: of timesteps or strides.
        values: [n], what is embedded.
        bends: values at which hidden units silu(steep (bend - value)) bend, in a wave that is nearly straight up to
            `end`.
        wanted, importance: [n, pairs].
    """
    layer, frequencies = embedding.linear_1, torch.tensor(embedding.frequencies)
    silence(embedding.linear_2)
    wave = int((frequencies - 1 / end).abs().argmin())
    # [cos, sin]: the sine of the slow wave.
    column, frequency = len(frequencies) + wave, float(frequencies[wave])
    gaps = torch.diff(bends, append=2 * bends[-1:] - bends[-2:-1])
    for row, (bend, gap) in enumerate(zip(bends.tolist(), gaps.tolist(), strict=True)):
        steep = 2 / (frequency * gap)
        layer.weight[row] = 0
        layer.weight[row, column] = -steep
        layer.bias[row] = steep * math.sin(frequency * bend)
    features = F.silu(layer(embedding.sinusoid(values)))[:, : len(bends)]
    design = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    for k, pair in enumerate(pairs):
        weighted = design * importance[:, k : k + 1].double()
        # The rounding of half precision, as a ridge.
        ridge = torch.diag((3e-4**2) * weighted.pow(2).sum(0))
        fit = torch.linalg.solve(weighted.T @ weighted + ridge, weighted.T @ (wanted[:, k] * importance[:, k]).double())
        for row, sign in ((2 * pair, 1.0), (2 * pair + 1, -1.0)):
            embedding.linear_2.weight[row, : len(bends)] = sign * fit[:-1].float()
            embedding.linear_2.bias[row] = sign * fit[-1].float()


def _set_motion(transformer: Any, run: Run) -> None:
    """TIME: the frame's number over that of the last; MOTION: camera code x TIME x stride / 5."""
    layer = Layer(transformer, run, {"stride": _plain("stride")}, share=5, motion=4)
    attention = layer.empty(layer.block.attn2)
    half = WIDTH // 2  # head 0 is turned by the rotary positions, head 1 is not
    frequencies = torch.as_tensor(attention.rotary_emb.freqs).double()
    used = torch.nonzero(frequencies < 0.4).flatten()
    least, span = 0.04, 0.6
    number = torch.arange(FRAMES, dtype=torch.double)
    share = least + span * number / (FRAMES - 1)
    # The begin token's logit against the end's, as a sum of cosines and sines of the rotary angles. An even error of
    # the share is wanted: errors of the logit count by its slope.
    angles = number[:, None] * frequencies[used]
    slope = (share * (1 - share))[:, None]
    design = torch.cat([angles.cos(), angles.sin()], 1) * slope
    wanted = (torch.log((1 - share) / share)[:, None] * slope)[:, 0]
    gram = design.T @ design + 1e-8 * torch.eye(design.shape[1], dtype=torch.double)
    fit = torch.linalg.solve(gram, design.T @ wanted)
    scale = half**0.5
    for k, pair in enumerate(used.tolist()):
        layer.constant(attention.to_q.weight[2 * pair], scale)
        attention.to_k.weight[2 * pair, BEGIN] = fit[k]
        attention.to_k.weight[2 * pair + 1, BEGIN] = fit[len(used) + k]
    # All other tokens stand aside: begin and end both get a bonus, by the slowest pair.
    slow = 2 * (len(frequencies) - 1)
    layer.constant(attention.to_q.weight[half], scale)
    attention.to_k.weight[[slow, half], END] = _FLAG_LOGIT
    attention.to_k.weight[slow, BEGIN] += _FLAG_LOGIT
    # Head 1 sees the end alone: (head 0 - 0.04 head 1) / 0.6 is 0 in frame 0 and 1 in the last.
    for k, channel in enumerate((0, 1, 2, 3, END)):
        for head, factor in ((0, 1 / span), (half, -least / span)):
            attention.to_v.weight[head + k, channel] = 1
            attention.to_out[0].weight[layer.at["share", k], head + k] = factor
    layer.attended()
    for k in range(4):
        layer.product(("share", k), {("stride", 0): 0.4}, ("motion", k), 1.0, 0.6)
        layer.write(TRUNK["motion", k], "motion", k)
    layer.write(TRUNK["time"], "share", 4)


def _set_view(transformer: Any, run: Run) -> None:
    """VIEW: size - 1; 1 / cos - 1, tan, cos - 1 and sin of the turn. OTHER: 0 in the first frame, 1 in the others."""
    layer = Layer(transformer, run, {"motion": _plain("motion")[2:], "time": _plain("time")}, view=5, other=1)
    layer.attended()
    layer.curves(("motion", 0), 1.1, 0.1, {("view", 0): lambda m: torch.exp(-_ZOOM * m) - 1})
    turns: dict[At, Any] = {
        ("view", 1): lambda m: 1 / torch.cos(_TURN * m) - 1,
        ("view", 2): lambda m: torch.tan(_TURN * m),
        ("view", 3): lambda m: torch.cos(_TURN * m) - 1,
        ("view", 4): lambda m: torch.sin(_TURN * m),
    }
    layer.curves(("motion", 1), 1.1, 0.1, turns)
    for sign, offset in ((1.0, -0.2), (-1.0, -3.2)):
        layer.unit(1.0, {("time", 0): 50.0}, offset, ("other", 0), sign / 3)
    for k in range(5):
        layer.write(TRUNK["view", k], "view", k)
    layer.write(TRUNK["other"], "other", 0)


def _set_source(transformer: Any, run: Run) -> None:
    """SOURCE: along x where a block's content is in the first frame's same row, along y in the result of that."""
    held = {name: _plain(name) for name in ("place", "view")} | {"pan": _plain("motion")[:2]}
    layer = Layer(transformer, run, held, shift=2)
    layer.attended()
    terms = ((0, 0, 0, 1.0), (1, 0, 0, 1.0), (2, 1, 0, 1.0), (0, 1, 1, 1.0), (3, 1, 1, 1.0), (4, 0, 1, -1.0))
    for view, place, axis, sign in terms:
        layer.product(("place", place), {("view", view): 1.0}, ("shift", axis), sign)
    for axis in (0, 1):
        layer.write(TRUNK["source", axis], "place", axis)
        layer.write(TRUNK["source", axis], "shift", axis)
        layer.write(TRUNK["source", axis], "pan", axis, _PAN)


def _set_code(transformer: Any, run: Run) -> None:
    """KEY: the place as cosines and sines. QUERY: the same of the source and of one block before and after it, within
    the frame. SOURCE is drawn back to what lies little outside.
    """
    layer = Layer(transformer, run, {"place": _plain("place"), "source": _plain("source")}, key=8, query=24, back=2)
    layer.attended()
    edge = REACH - 0.5

    def code(offset: float, sine: bool, period: float) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            angle = 2 * math.pi / period * (REACH * x + offset).clamp(-edge, edge)
            return angle.sin() if sine else angle.cos()

        return function

    kinds = [(sine, period) for period, _ in _CODE for sine in (False, True)]
    reach = (edge + _BEYOND) / REACH
    for axis in (0, 1):
        keys = {("key", 4 * axis + k): code(0.0, *kind) for k, kind in enumerate(kinds)}
        layer.curves(("place", axis), 1.0, 0.5 / REACH, keys)
        offsets = [(head - 1.0, *kind) for head in range(_HEADS) for kind in kinds]
        queries = {("query", 12 * axis + k): code(*offset) for k, offset in enumerate(offsets)}
        layer.curves(("source", axis), 1.2, 0.4 / REACH, queries)
        for sign in (1.0, -1.0):
            layer.unit(1.0, {("source", axis): sign * 64}, -64 * reach, ("back", axis), -sign / 64)
        for name, length in (("key", 4), ("query", 12)):
            for k in range(length):
                layer.write(TRUNK[f"{name}_{'xy'[axis]}", k], name, length * axis + k)
        layer.write(TRUNK["source", axis], "back", axis)


def _set_pass(transformer: Any, axis: int, run: Run, target: Tensor, weight: Tensor) -> None:
    """Resample blocks along an axis: WARPED from the first frame's latents (x), then from itself (y).

    Args:
        axis: 0 along rows, 1 along columns.
        target, weight: [clips x frames, channels, h, w], latents that this pass should give, and how much they count.
    """
    along, across = "xy"[axis], "yx"[axis]
    view = [TRUNK["view", k] for k in range(5)]
    # How the source changes along and across the block.
    rates = ([{view[0]: 1.0, view[1]: 1.0}, {view[2]: 1.0}], [{view[0]: 1.0, view[3]: 1.0}, {view[4]: -1.0}])[axis]
    held = {
        "content": _plain("latent" if axis == 0 else "warped"),
        "key": _plain(f"key_{along}") + _plain(f"key_{across}"),
        "query": _plain(f"query_{along}"),
        "other": _plain("other"),
        "place": [_plain("place")[axis]],
        "source": [_plain("source")[axis]],
        "rate": rates,
    }
    layer = Layer(transformer, run, held, fetched=_HEADS * CHANNELS, where=1)
    attention = layer.empty(layer.block.attn1)
    size = WIDTH // attention.heads
    strengths = [strength for _, strength in _CODE for _ in (0, 1)]
    for head in range(_HEADS):
        rows = head * size
        q, k, v = (linear.weight[rows : rows + size] for linear in (attention.to_q, attention.to_k, attention.to_v))
        for i in range(8):
            root = (strengths[i % 4] * size**0.5) ** 0.5
            layer.read(q[i], {("query", 4 * head + i) if i < 4 else ("key", i): root})
            layer.read(k[i], {("key", i): root})
        # Along x the first frame is looked at, along y the frame itself.
        layer.constant(q[8], size**0.5 * _FRAME_LOGIT * (-1 if axis == 0 else 1))
        layer.read(k[8], {("other", 0): 1.0})
        for c in range(CHANNELS):
            layer.read(v[c], {("content", c): 1.0})
            attention.to_out[0].weight[layer.at["fetched", head * CHANNELS + c], rows + c] = 1
        if head == 1:
            layer.read(v[CHANNELS], {("place", 0): 1.0})
            attention.to_out[0].weight[layer.at["where", 0], rows + CHANNELS] = 1
    layer.attended()
    seen = torch.cat([x.flatten(0, 1) for x in inputs_of(layer.block.ff, run)])
    seen = seen.flatten(0, 1) - seen.flatten(0, 1)[:, layer.at["zero"], None]
    wanted = LATENT_SCALE * target.permute(0, 2, 3, 1).flatten(0, 2)
    weights = weight.permute(0, 2, 3, 1).flatten(0, 2)
    for c in range(CHANNELS):
        # The first of the picture's samples in a block, and their number along a side.
        side = LUMA if c < LUMA**2 else CHROMA
        first = 0 if side == LUMA else LUMA**2 + (c - LUMA**2) // CHROMA**2 * CHROMA**2
        row, column = divmod(c - first, side)
        mine, other = (column, row) if axis == 0 else (row, column)
        line = [first + (other * side + k if axis == 0 else k * side + other) for k in range(side)]
        inputs = [("fetched", head * CHANNELS + k) for head in range(_HEADS) for k in line]
        place = {("source", 0): _STEEP * REACH, ("where", 0): -_STEEP * REACH}
        for k, position in ((0, mine), (1, other)):
            place["rate", k] = _STEEP * ((position + 0.5) / side - 0.5)
        shift = torch.stack([factor * seen[:, layer.at[name]] for name, factor in place.items()]).sum(0)
        gates = torch.cat([F.gelu(shift[:, None] - _STEEP * _KNOTS), torch.full((len(shift), 1), 8.0)], 1)
        values = seen[:, [layer.at[name] for name in inputs]]
        design = (gates[:, :, None] * values[:, None, :]).flatten(1)
        fit = _least_squares(design, wanted[:, c], weights[:, c]).view(len(_KNOTS) + 1, len(inputs))
        for knot, row_fit in zip(_KNOTS.tolist(), fit[:-1], strict=True):
            layer.unit(dict(zip(inputs, row_fit.tolist(), strict=True)), place, -_STEEP * knot, ("content", c), 1.0)
        # Content is replaced; what the trunk has of it already is taken away with it.
        held_already = {("content", c): -(1.0 if axis == 0 else 2.0) / 8}
        layer.unit(dict(zip(inputs, fit[-1].tolist(), strict=True)) | held_already, {}, 8.0, ("content", c), 1.0)
        layer.write(TRUNK["warped", c], "content", c)


def _least_squares(design: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted fit with a small ridge: [n, k], [n], [n] -> [k]."""
    size = design.shape[1]
    gram, right = torch.zeros(size, size, dtype=torch.double), torch.zeros(size, dtype=torch.double)
    for rows, y, w in zip(design.split(20000), wanted.split(20000), weight.split(20000), strict=True):
        gram += ((rows * w[:, None]).T @ rows).double()
        right += ((rows * w[:, None]).T @ y).double()
    ridge = 1e-5 * gram.diagonal().mean()
    return torch.linalg.solve(gram + ridge * torch.eye(size, dtype=torch.double), right).float()


def _set_noise(transformer: Any, run: Run) -> None:
    """LATENT becomes the predicted noise, gain (x - sqrt(abar) WARPED); MIRROR its negative."""
    names = ("latent", "warped", "gain", "pull")
    layer = Layer(transformer, run, {name: _plain(name) for name in names}, out=CHANNELS)
    layer.attended()
    gain, pull = _gain_and_pull().amax(0).tolist()
    for c in range(CHANNELS):
        layer.product(("latent", c), {("gain", 0): gain - 1}, ("out", c), 1.0)
        layer.product(("warped", c), {("pull", 0): pull}, ("out", c), -1.0)
        for name, sign in (("latent", 1.0), ("mirror", -1.0)):
            layer.write(TRUNK[name, c], "out", c, sign)
