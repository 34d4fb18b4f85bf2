// The form's settings, built from what the server says of each: kind, limits, default, help.

import { $, make } from "./page.js";
import { count } from "./words.js";

const OWN_FIELDS = new Set(["seed", "prompt", "preset"]);
const FIRST_MOVES = 9;
let known = {};

const label = (name) => {
  const words = name.replaceAll("_", " ").replace("txt", "text").replace("img", "image").replace("fps", "frames a second");
  return words[0].toUpperCase() + words.slice(1);
};

const shown = (value) => (Array.isArray(value) ? value.join(" to ") : String(value));

function number(name, setting, place) {
  const value = setting.default;
  return make("input", {
    type: "number",
    min: setting.minimum ?? "",
    max: setting.maximum ?? "",
    step: setting.type === "integer" ? "1" : "any",
    inputMode: setting.type === "integer" ? "numeric" : "decimal",
    placeholder: shown((Array.isArray(value) ? value[place] : value) ?? ""),
    data: { setting: name },
  });
}

function select(name, setting) {
  const first = setting.default ?? "none";
  const others = setting.choices.filter((choice) => choice !== setting.default);
  return make(
    "select",
    { data: { setting: name } },
    make("option", { value: "", textContent: first }),
    ...others.map((choice) => make("option", { value: choice, textContent: choice })),
  );
}

function field(name, setting) {
  const id = `setting-${name}`;
  // A list of the choices says nothing that the choices do not.
  const help = setting.choices && setting.help?.startsWith(setting.choices[0]) ? "" : setting.help;
  const hint = help ? make("p", { className: "hint", id: `${id}-hint`, textContent: help }) : "";
  const described = help ? { "aria-describedby": `${id}-hint` } : {};
  const finish = (input, extra = {}) => {
    for (const [key, value] of Object.entries({ ...described, ...extra })) input.setAttribute(key, value);
    return input;
  };
  if (setting.type === "boolean") {
    const input = finish(make("input", { type: "checkbox", id, checked: setting.default, data: { setting: name } }));
    return make("div", { className: "field" }, make("label", { className: "check" }, input, label(name)), hint);
  }
  if (setting.type === "pair") {
    const ends = ["start", "end"].map((end, place) => {
      return finish(number(name, setting, place), { "aria-label": `${label(name)}, ${end}` });
    });
    const pair = make("div", { className: "pair" }, ends[0], "to", ends[1]);
    return make("div", { className: "field" }, make("span", { className: "label", textContent: label(name) }), pair, hint);
  }
  let input;
  if (setting.choices) input = select(name, setting);
  else if (setting.type === "string") input = make("input", { type: "text", data: { setting: name } });
  else input = number(name, setting, 0);
  input.id = id;
  const full = setting.type === "string" && !setting.choices ? " full" : "";
  const title = make("label", { htmlFor: id, textContent: label(name) });
  return make("div", { className: `field${full}` }, title, finish(input), hint);
}

function moves(prompts) {
  const box = $("moves");
  const chips = prompts.map((prompt, place) => {
    return make("button", {
      type: "button", className: "chip", textContent: prompt, hidden: place >= FIRST_MOVES, data: { prompt },
    });
  });
  box.replaceChildren(...chips);
  if (chips.length > FIRST_MOVES + 1) {
    const more = make("button", { type: "button", className: "chip plain", textContent: `all ${chips.length}` });
    more.addEventListener("click", () => {
      for (const chip of chips) chip.hidden = false;
      chips[FIRST_MOVES].focus();
      more.remove();
    });
    box.append(more);
  } else {
    for (const chip of chips) chip.hidden = false;
  }
  box.hidden = !chips.length;
  $("prompt-hint").hidden = !chips.length;
  $("prompt-hint").textContent = "This model knows these moves; another prompt may do nothing.";
  box.addEventListener("click", (event) => {
    const prompt = event.target.dataset.prompt;
    if (prompt === undefined) return;
    $("prompt").value = $("prompt").value === prompt ? "" : prompt;
    pressMoves();
  });
  $("prompt").addEventListener("input", pressMoves);
  pressMoves();
}

function pressMoves() {
  const prompt = $("prompt").value.trim();
  for (const chip of $("moves").querySelectorAll("[data-prompt]")) {
    chip.setAttribute("aria-pressed", String(chip.dataset.prompt === prompt));
  }
}

function presets(all) {
  const named = [["", { help: "Settings as the model recommends them." }], ...Object.entries(all)];
  const choices = named.map(([name]) => {
    const input = make("input", { type: "radio", name: "preset", value: name, checked: name === "" });
    return make("label", {}, input, make("span", { textContent: name || "default" }));
  });
  $("presets").append(make("div", {}, ...choices));
  $("presets").hidden = !Object.keys(all).length;
  const tell = () => {
    const chosen = all[presetName()];
    $("preset-hint").textContent = chosen ? presetText(chosen) : "";
  };
  $("presets").addEventListener("change", tell);
  tell();
}

function presetText({ help, ...values }) {
  const told = Object.entries(values).map(([name, value]) => `${label(name).toLowerCase()} ${shown(value)}`);
  return help ?? `${told.join(", ")}.`;
}

export const presetName = () => $("presets").querySelector(":checked")?.value ?? "";

/** Builds the fields; `onChange` is called after each change of a setting. */
export function startSettings(server, onChange) {
  known = Object.fromEntries(Object.entries(server.settings).filter(([name]) => !OWN_FIELDS.has(name)));
  const groups = {};
  for (const [name, setting] of Object.entries(known)) (groups[setting.group ?? "Other"] ??= []).push([name, setting]);
  for (const [title, members] of Object.entries(groups)) {
    const fields = members.map(([name, setting]) => field(name, setting));
    $("settings").append(make("fieldset", { className: "group" }, make("legend", { textContent: title }), ...fields));
  }
  moves(server.known_prompts ?? []);
  presets(server.presets ?? {});
  const changed = () => (markChanges(), onChange());
  $("settings").addEventListener("input", changed);
  $("reset").addEventListener("click", () => (writeSettings({}), changed()));
  $("draw").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  });
  changed();
}

/** The settings that differ from the defaults. */
export function readSettings() {
  const values = {};
  for (const [name, setting] of Object.entries(known)) {
    const inputs = [...$("settings").querySelectorAll(`[data-setting="${name}"]`)];
    if (setting.type === "boolean") {
      if (inputs[0].checked !== setting.default) values[name] = inputs[0].checked;
    } else if (setting.type === "pair") {
      const ends = inputs.map((input, place) => (input.value === "" ? setting.default[place] : Number(input.value)));
      if (inputs.some((input) => input.value !== "")) values[name] = ends;
    } else if (inputs[0].value !== "") {
      const text = ["string", "choice"].includes(setting.type) || setting.choices;
      values[name] = text ? inputs[0].value : Number(inputs[0].value);
    }
  }
  return values;
}

/** A setting as it will be used: what was typed, else the default. */
export const settingOf = (name) => readSettings()[name] ?? known[name]?.default;

/** Fills the fields; settings that are not named get their defaults. */
export function writeSettings(values) {
  for (const [name, setting] of Object.entries(known)) {
    const inputs = [...$("settings").querySelectorAll(`[data-setting="${name}"]`)];
    const given = values[name] ?? null;
    const same = JSON.stringify(given) === JSON.stringify(setting.default);
    if (setting.type === "boolean") inputs[0].checked = given ?? setting.default;
    else inputs.forEach((input, place) => (input.value = given === null || same ? "" : [given].flat()[place]));
  }
  markChanges();
}

export function writePrompt(prompt, preset = "") {
  $("prompt").value = prompt;
  pressMoves();
  const radio = $("presets").querySelector(`[value="${CSS.escape(preset)}"]`);
  if (radio) {
    radio.checked = true;
    $("presets").dispatchEvent(new Event("change"));
  }
}

function markChanges() {
  const values = readSettings();
  for (const box of $("settings").querySelectorAll(".field")) {
    box.classList.toggle("changed", box.querySelector("[data-setting]").dataset.setting in values);
  }
  const number = Object.keys(values).length;
  $("changed").hidden = !number;
  $("changed").textContent = `${count(number, "setting")} changed`;
}
