// What every part of the page uses: elements, spoken messages and the one dialog.

export const $ = (id) => document.getElementById(id);

/** An element with properties, data and children; text stays text, whatever it holds. */
export function make(tag, { data = {}, attributes = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const DRAWINGS = {
  play: "m8 5 11 7-11 7z",
  pause: "M8 5v14M16 5v14",
  bin: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  down: "M12 4v11M7 11l5 5 5-5M5 20h14",
};

export function drawing(name) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  path.setAttribute("d", DRAWINGS[name]);
  picture.append(path);
  return picture;
}

/** Says something to screen readers without moving the focus. */
export function announce(text) {
  $("announce").textContent = text;
}

/** Shows an error in its box, or hides the box where there is none. */
export function showError(box, error) {
  box.hidden = !error;
  box.textContent = error ? error.message ?? error : "";
}

/** A question in the dialog: true or false, or with `key` what was typed (null where nothing was). */
export function ask({ title, text, yes, key = false }) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-key").hidden = !key;
  // Without the key there is nothing to go on with.
  $("ask-no").hidden = key;
  $("key").value = "";
  $("key").required = key;
  dialog.returnValue = "";
  dialog.showModal();
  (key ? $("key") : $("ask-no")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const agreed = dialog.returnValue === "yes";
        resolve(key ? (agreed && $("key").value.trim()) || null : agreed);
      },
      { once: true },
    );
  });
}
