// What is asked for: the model, the prompt with its known moves, the preset, the seed and the settings.

import { $, make } from "./page.js";
import { setFrame } from "./photo.js";
import { buildSettings, label, markChanges, readSettings, writeSettings } from "./settings.js";

const FIRST_MOVES = 9;
// With fields of their own.
const APART = new Set(["seed", "video_length"]);
let able = null;
let model = null;

const shown = (value) => (Array.isArray(value) ? value.join(" to ") : String(value));

function drawMoves() {
  const prompts = model.known_prompts ?? [];
  const chips = prompts.map((prompt) => {
    return make("button", { type: "button", className: "chip", textContent: prompt, data: { prompt } });
  });
  $("moves").replaceChildren(...chips);
  if (chips.length > FIRST_MOVES + 1) {
    for (const chip of chips.slice(FIRST_MOVES)) chip.hidden = true;
    const more = make("button", { type: "button", className: "chip plain", textContent: `all ${chips.length}` });
    more.addEventListener("click", () => {
      for (const chip of chips) chip.hidden = false;
      chips[FIRST_MOVES].focus();
      more.remove();
    });
    $("moves").append(more);
  }
  $("moves").hidden = $("prompt-hint").hidden = !chips.length;
  pressMoves();
}

function pressMoves() {
  const prompt = $("prompt").value.trim();
  for (const chip of $("moves").querySelectorAll("[data-prompt]")) {
    chip.setAttribute("aria-pressed", String(chip.dataset.prompt === prompt));
  }
}

function drawPresets() {
  const choices = ["", ...Object.keys(able.presets)].map((name) => {
    const input = make("input", { type: "radio", name: "preset", value: name, checked: name === "" });
    return make("label", {}, input, make("span", { textContent: name || "default" }));
  });
  $("presets").append(make("div", {}, ...choices));
  $("presets").hidden = choices.length === 1;
}

const preset = () => $("presets").querySelector(":checked")?.value ?? "";

function tellPreset() {
  const values = Object.entries(able.presets[preset()] ?? {});
  $("preset-hint").textContent = values.map(([name, value]) => `${label(name)}: ${shown(value)}`).join(", ");
}

function chooseModel(id) {
  model = able.models.find((one) => one.id === id);
  const most = { num_inference_steps: able.limits.steps, autoregress_steps: able.limits.clips };
  const settings = able.options
    // A size that the model has only one of is no choice.
    .filter(({ name }) => !APART.has(name) && (model.size_multiple || !["height", "width"].includes(name)))
    .map((option) => ({
      ...option,
      maximum: most[option.name] ?? option.maximum,
      default: model.defaults[option.name],
      ...(["height", "width"].includes(option.name) && { help: `Pixels, a multiple of ${model.size_multiple}.` }),
    }));
  buildSettings(settings);
  drawMoves();
  drawFrame();
}

function drawFrame() {
  const now = { ...model.defaults, ...readSettings() };
  const sizes = (model.sizes ?? []).map((size) => size.split("x").map(Number));
  setFrame({ width: now.width, height: now.height, fit: now.fit, camera: now.camera_motion, sizes });
}

/** The request as fields of a form, the photo left aside. */
export function readRequest() {
  const settings = { ...(preset() && { preset: preset() }), ...readSettings() };
  return { model: model.id, prompt: $("prompt").value.trim(), seed: $("seed").value, settings };
}

/** Of a job's settings those that differ from its model's defaults, without the seed. */
export function changedSettings(job) {
  const usual = able.models.find((one) => one.id === job.model)?.defaults ?? {};
  const differs = ([name, value]) => name !== "seed" && JSON.stringify(value) !== JSON.stringify(usual[name] ?? null);
  return Object.fromEntries(Object.entries(job.settings).filter(differs));
}

/** Fills the form with what a job was asked for. */
export function writeRequest(job) {
  if (job.model !== model.id && able.models.some((one) => one.id === job.model)) {
    $("model").value = job.model;
    chooseModel(job.model);
  }
  const settings = changedSettings(job);
  $("prompt").value = job.prompt;
  $("seed").value = job.seed;
  const usual = $("presets").querySelector("input");
  if (usual) usual.checked = true;
  writeSettings(settings);
  if (Object.keys(settings).length) $("advanced").open = true;
  tellPreset();
  pressMoves();
  drawFrame();
}

/** Builds the form from the server's capabilities. */
export function startRequest(capabilities) {
  able = capabilities;
  $("model").append(...able.models.map((one) => new Option(one.id, one.id)));
  $("model-field").hidden = able.models.length === 1;
  $("model").addEventListener("change", () => chooseModel($("model").value));
  $("prompt").maxLength = able.limits.prompt_characters;
  $("prompt").addEventListener("input", pressMoves);
  $("moves").addEventListener("click", (event) => {
    const { prompt } = event.target.dataset;
    if (prompt === undefined) return;
    $("prompt").value = $("prompt").value === prompt ? "" : prompt;
    pressMoves();
  });
  $("presets").addEventListener("change", tellPreset);
  $("draw").addEventListener("click", () => {
    // As the runtime draws one: 31 bits.
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  });
  $("settings").addEventListener("input", () => (markChanges(), drawFrame()));
  $("reset").addEventListener("click", () => (writeSettings({}), drawFrame()));
  drawPresets();
  chooseModel(able.models[0].id);
}
