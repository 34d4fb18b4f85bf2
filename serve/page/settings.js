// The advanced settings: one field each, built from what the server says of its kind, limits, default and help.

import { $, make } from "./page.js";
import { count } from "./words.js";

// Where the setting's own name says less.
const TITLES = {
  num_inference_steps: "Steps",
  autoregress_steps: "Clips",
  video_length: "Frames",
  noise_sampling_method: "Noise",
  guidance_scale_txt: "Text guidance",
  guidance_scale_img: "Photo guidance",
  use_frameinit: "FrameInit",
  frameinit_noise_level: "Noise level",
  frameinit_filter: "Filter",
  frameinit_d_s: "Spatial stop",
  frameinit_d_t: "Temporal stop",
  frameinit_order: "Order",
  fps: "Frames a second",
};
let known = {};

export function label(name) {
  const words = name.replaceAll("_", " ");
  return TITLES[name] ?? words[0].toUpperCase() + words.slice(1);
}

const sentence = (text) => (text.endsWith(".") ? text : `${text}.`);
const isPair = (setting) => Array.isArray(setting.default);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const inputsOf = (name) => [...$("settings").querySelectorAll(`[data-setting="${name}"]`)];

function number({ name, kind, minimum, maximum, default: value }) {
  const whole = kind === "integer";
  return make("input", {
    type: "number",
    min: minimum ?? "",
    max: maximum ?? "",
    step: whole ? "1" : "any",
    inputMode: whole ? "numeric" : "decimal",
    placeholder: value ?? "",
    data: { setting: name },
  });
}

const MAKERS = {
  integer: number,
  number,
  boolean: ({ name, default: value }) => make("input", { type: "checkbox", checked: value, data: { setting: name } }),
  text: ({ name, default: value }) => make("input", { type: "text", placeholder: value ?? "", data: { setting: name } }),
  choice: ({ name, choices, default: value }) => {
    const others = choices.filter((choice) => choice !== value);
    const options = [["", value ?? "none"], ...others.map((choice) => [choice, choice])];
    return make("select", { data: { setting: name } }, ...options.map(([key, text]) => new Option(text, key)));
  },
};

function field(setting) {
  const { name, kind, choices, help } = setting;
  const id = `setting-${name}`;
  const title = label(name);
  // A list of the choices says nothing that the choices do not.
  const told = help && !choices?.some((choice) => help.startsWith(choice)) ? sentence(help) : "";
  const hint = told ? [make("p", { className: "hint", id: `${id}-hint`, textContent: told })] : [];
  const described = (input, attributes = {}) => {
    const all = { ...attributes, ...(told && { "aria-describedby": `${id}-hint` }) };
    for (const [key, value] of Object.entries(all)) input.setAttribute(key, value);
    return input;
  };
  if (isPair(setting)) {
    const [start, end] = setting.default.map((value, place) => {
      const ends = number({ ...setting, minimum: 0, maximum: 1, default: value });
      return described(ends, { "aria-label": `${title}, ${place ? "end" : "start"}` });
    });
    const pair = make("div", { className: "pair" }, start, "to", end);
    return make("div", { className: "field" }, make("span", { className: "label", textContent: title }), pair, ...hint);
  }
  const input = described((MAKERS[kind] ?? MAKERS.text)(setting));
  input.id = id;
  if (kind === "boolean") {
    return make("div", { className: "field" }, make("label", { className: "check" }, input, title), ...hint);
  }
  const wide = kind === "text" ? "field full" : "field";
  return make("div", { className: wide }, make("label", { htmlFor: id, textContent: title }), input, ...hint);
}

/** Builds the fields of `settings`: {name, kind, minimum, maximum, choices, help, group, default} each. */
export function buildSettings(settings) {
  known = Object.fromEntries(settings.map((setting) => [setting.name, setting]));
  const groups = new Map();
  for (const setting of settings) groups.set(setting.group, [...(groups.get(setting.group) ?? []), field(setting)]);
  const boxes = [...groups].map(([title, fields]) => {
    return make("fieldset", { className: "group" }, make("legend", { textContent: title }), ...fields);
  });
  $("settings").replaceChildren(...boxes);
  markChanges();
}

/** The settings that differ from the defaults. */
export function readSettings() {
  const values = {};
  for (const { name, kind, default: usual } of Object.values(known)) {
    const inputs = inputsOf(name);
    if (kind === "boolean") values[name] = inputs[0].checked;
    else if (inputs.every((input) => input.value === "")) continue;
    else if (isPair({ default: usual })) {
      values[name] = inputs.map((input, place) => (input.value === "" ? usual[place] : Number(input.value)));
    } else values[name] = kind === "integer" || kind === "number" ? Number(inputs[0].value) : inputs[0].value;
    if (same(values[name], usual)) delete values[name];
  }
  return values;
}

/** Fills the fields; settings that are not named get their defaults. */
export function writeSettings(values) {
  for (const { name, kind, default: usual } of Object.values(known)) {
    const given = values[name] ?? usual;
    const [first] = inputsOf(name);
    if (kind === "boolean") first.checked = given;
    else inputsOf(name).forEach((input, place) => (input.value = same(given, usual) ? "" : [given].flat()[place]));
  }
  markChanges();
}

/** Shows which settings differ, and how many. */
export function markChanges() {
  const values = readSettings();
  for (const box of $("settings").querySelectorAll(".field")) {
    box.classList.toggle("changed", box.querySelector("[data-setting]").dataset.setting in values);
  }
  const number = Object.keys(values).length;
  $("changed").hidden = !number;
  $("changed").textContent = `${count(number, "setting")} changed`;
}
