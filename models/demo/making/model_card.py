"""The model card beside the weights: data and credits, training, abilities and measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .media import FILM, PHOTOS
from .moves import MOVES

_HEAD = """---
license: apache-2.0
---
# ConsistI2V demo model

A small image-to-video diffusion model with the architecture and the stages of ConsistI2V (Ren et al. 2024,
arXiv:2402.04324): autoencoder, CLIP text encoder, video U-Net with first-frame attention, 3x3 window, rotary positions
and frame-stride condition. It was made from nothing by `python -m consisti2v_rt.models.demo.making train`, so that the
runtime can be tried and measured without a download. It is no substitute for the published model.

**Most of what it does was put into its start, not learnt by diffusion training**: see Training.

## What it can and cannot do
* It knows camera moves over a photo, and nothing else: {moves}.
  Other words are ignored; without a move among them the picture stands still.
* {size}x{size} pixels, 16 frames. Fine detail is lost: the autoencoder keeps a {latent}x{latent} picture of 4 channels.
* The frame stride, 1 to 5, is the speed of the move. What comes into view at the border is the border, smeared.
* It recommends guidance scale 1 (`recommended.json`, which bundles carry and every command follows): without a text the
  model shows the photo standing still, so larger scales stretch the difference to that into exaggerated edges.
* The camera motions of FrameInit (`--camera-motion`) choose the crop of the first frame, but move nothing.
* It holds half precision: every stage within 5e-3 relative L2 of float32, every operator rounded, the U-Net with its
  residual sums in float32 (a test says so).
* {ability}
"""


def write_model_card(folder: Path) -> None:
    """Write ``README.md`` from ``training.json`` and, where there is one, ``evaluation.json`` in `folder`."""
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    figures_file = folder / "evaluation.json"
    figures = json.loads(figures_file.read_text(encoding="utf-8")) if figures_file.is_file() else None
    size = facts["size"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    head = _HEAD.format(
        moves=", ".join(move.replace("_", " ") for move in MOVES),
        size=size,
        latent=size // factor,
        ability=_ability(figures),
    )
    parts = [head, _training(facts, vae, unet), _figures(figures), _data()]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def _ability(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Not evaluated yet: `python -m consisti2v_rt.models.demo.making evaluate`."
    agreement = figures["conditions"]["prompted"]["agreement"]
    verdict = "reaches" if agreement >= 0.8 else "does NOT reach"
    return (
        f"The camera moves as asked in {agreement:.0%} of the held-out trials; this {verdict} the 80 % that was wanted "
        "(figures below)."
    )


def _training(facts: dict[str, Any], vae: dict[str, Any], unet: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {widths} | {facts[part]['steps']} of batch {facts[part]['batch']} | {facts[part]['minutes']} |"
        for part, name, widths in (
            ("vae", "autoencoder", vae["block_out_channels"]),
            ("unet", "U-Net and text encoder", unet["block_out_channels"]),
        )
    )
    return f"""## Training
| part | widths | steps | minutes |
|---|---|---|---|
{rows}

Preset `{facts["preset"]}`; all files together {facts["bytes"] / 1e6:.1f} MB, float16. Hardware: {facts["hardware"]}.
{_validation(facts["unet"])}
{facts["note"]}

A processor allows a few hundred to a few thousand small batches, far too few to learn from random weights that a video
is its first frame seen through a moving view (an earlier try: 1426 steps, agreement 0.22). So the making has four
stages. 1. The autoencoder's decoder learns (preset cpu; its encoder stays the linear block average it starts as): half
of its pictures from latents that were moved as the video's are, against the moved picture. Without that it drew its
detail where the latents' positions are, and pans stuck. 2. The text encoder learns on captions alone to say, at the
end of a text, which way the camera moves (`text_training.py`); it then stays as it is, as CLIP does in the published
training. 3. The U-Net gets a start (`unet_start/`) that already animates: its layers are set, by formulas, least
squares and a short training of the position channels, so that the temporal text attention counts frames, feed-forwards
make each position's displacement, and spatial attention looks at the displaced place of the first frame. Units in
pairs of opposite signs carry every channel, so no number is large. All other branches start silent. 4. The whole U-Net
is trained as published: epsilon prediction, linear schedule of 1000 steps, pyoco_mixed noise (alpha 1), text dropped
with probability 0.1, the first frame replaced by its noisy self with probability 0.1, gates (half open at the start)
trained. Our own: the squared error is weighted by 1/SNR, at most 10; what the start has set learns 100 times, the last
layers 10 times slower than the silent branches (`learning_rates.py`: at one rate for all, 1e-5 was too much); the token
table is random and fixed; {facts["clips"]} clips are encoded once and seen several times; AdamW, cosine decay to the
end of the time, averaged weights, and a quarter of the way to them kept.

The preset `gpu` (128x128 pixels, wider, encoder trained too) is written for a GPU session and has not been tried.
Training goes on from the state in the working folder (`unet.pt`, `vae.pt`) with a larger `--minutes`; that state, with
the optimiser's, is not committed: `train --start models/demo` begins with these averaged weights instead.
"""


def _validation(part: dict[str, Any]) -> str:
    losses = part.get("validation")
    if not losses:
        return ""
    return (
        f"Loss of the U-Net on held-out clips with the same noise: {losses['start']:.5f} at the start, "
        f"{losses['end of training']:.5f} after the training, {losses['kept']:.5f} with the weights here: a quarter of "
        "the way from the start to the trained ones, because half precision does not hold these (8e-3)."
    )


def _figures(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "## Figures\nNone yet.\n"
    conditions = figures["conditions"]
    rows = []
    for name, figure in conditions.items():
        cells = [f"{figure[key]:.2f}" if key in figure else "" for key in ("agreement", "sign_agreement")]
        cells += [f"{100 * figure[key]:+.2f}" if key in figure else "" for key in ("amount", "speed")]
        cells += [f"{figure[key]:.1f}" if key in figure else "" for key in ("first_step_psnr_db", "photo_psnr_db")]
        rows.append(f"| {name} | {figure['videos']} | " + " | ".join(cells) + " |")
    table = "\n".join(rows)
    by_move = ", ".join(f"{m.replace('_', ' ')} {n}" for m, n in conditions["prompted"]["agreement_by_move"].items())
    true, shots = figures["true camera moves"], figures["film shots"]
    settings = figures["settings"]
    return f"""## Figures
Made by the exported bundle in ONNX Runtime. {len(figures["photos"])} photos that were held out whole,
{settings["steps"]} steps, guidance {settings["guidance_scale_txt"]}, frame stride {settings["frame_stride"]}, FrameInit
on, unless said. Motion is fitted to OpenCV's DIS optical flow between neighbouring frames. *Agreement*: a pan goes the
right way (within 45 degrees) and is faster than {100 * figures["still_speed"]:.2f} % of the frame's width a frame; a
zoom or turn has the right sign and that speed at the frame's edge; still is slower than that. *Sign*: only the sign of
the asked component (half by chance). *Amount*: that component (pan: frame widths, zoom and turn: rate, in % a frame).
Real camera moves at stride 3 score {true["agreement"]:.2f} with an amount of {100 * true["amount"]:.2f} by the same
measure.

| condition | videos | agreement | sign | amount | mean flow | frame 1 against frame 0, dB | against the photo, dB |
|---|---|---|---|---|---|---|---|
{table}

By move: {by_move}. *Wrong prompt* counts how often a video passes for a move that was not asked for.

Frame 0 of a video is the photo's round trip by construction; the round trip against the photo itself has
{figures["round trip"]["mean_psnr_db"]:.1f} dB PSNR on the held-out photos.

{shots["videos"]} held-out film shots, animated from their first frame with "{shots["caption"]}": frame 1 against frame
0 {shots["first_step_psnr_db"]:.1f} dB, round trip {shots["round_trip_psnr_db"]:.1f} dB, mean flow
{100 * shots["speed"]:+.2f} (the real shots: {100 * shots["real_speed"]:+.2f}): the model knows no move for that
caption and shows the frame standing still.

Consistency and motion by the measures of `consisti2v evaluate`; *shuffled*: the same frames, each video's mixed with
another's in random order; *still*: the first frame repeated.

| videos | subject consistency (EfficientNet-Lite0) | dynamic degree (DIS) | flow magnitude (DIS), pixels |
|---|---|---|---|
{_consistency(figures["consistency"])}

Machine-readable: `evaluation.json`.
"""


def _consistency(figures: dict[str, Any]) -> str:
    names = ("subject_consistency_lite0", "dynamic_degree_dis", "flow_magnitude_dis")
    return "\n".join(
        f"| {videos}, {kind} | " + " | ".join("unavailable" if v is None else f"{v:.3f}" for v in values) + " |"
        for videos, kinds in figures.items()
        for kind, values in ((kind, [row[name] for name in names]) for kind, row in kinds.items())
    )


def _data() -> str:
    def lines(held_out: bool) -> str:
        return "\n".join(
            f"| {m.name} | {m.package} | {m.author} | {m.licence} |" for m in PHOTOS if m.held_out == held_out
        )

    return f"""## Data and credits
Fetched by package name at training time, none of it is in this repository. The film, Big Buck Bunny, is
{FILM.author}, {FILM.licence} (https://creativecommons.org/licenses/by/3.0/), every second frame, from the package
{FILM.package}; every eighth shot is held out. CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/. The pictures
were scaled, cropped, mirrored and turned for training. Clips are camera moves over photos and film
stills, and film shots.

| trained on | package | author | licence |
|---|---|---|---|
{lines(False)}

| held out | package | author | licence |
|---|---|---|---|
{lines(True)}
"""
