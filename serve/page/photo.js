// The photo: chosen, dropped or pasted, and shown with the part of it that the model will see.

import { $, showError } from "./page.js";
import { percent } from "./words.js";

let chosen = null;
let address = null;
let wanted = { width: 0, height: 0, fit: "crop", camera: null };

export const photo = () => chosen;

/** Sets the size (pixels), fit and camera motion that the photo is shown for. */
export function setFrame(frame) {
  wanted = frame;
  drawFrame();
}

/** Takes a file as the photo; pictures only. */
export function takePhoto(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) {
    showError($("form-error"), `${file.name} is not a picture: choose a photo, for example a JPEG or PNG file.`);
    return;
  }
  showError($("form-error"), null);
  chosen = file;
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  $("photo-image").src = address;
  $("photo-image").alt = `The chosen photo, ${file.name}`;
  $("drop-empty").hidden = true;
  $("photo").hidden = false;
  $("example").hidden = true;
  $("crop-text").textContent = "";
}

function drawFrame() {
  const image = $("photo-image");
  const crop = $("crop");
  const text = $("crop-text");
  if (!chosen || !image.naturalWidth || !wanted.width) return;
  const { naturalWidth: width, naturalHeight: height } = image;
  const size = `${wanted.width}×${wanted.height}`;
  image.style.aspectRatio = wanted.fit === "stretch" ? `${wanted.width} / ${wanted.height}` : "";
  crop.hidden = wanted.fit !== "crop";
  if (wanted.fit === "stretch") {
    text.textContent = `The whole photo is stretched to ${size} pixels, as shown.`;
    return;
  }
  if (wanted.fit === "pad") {
    text.textContent = `The whole photo is used, with black bars where it does not fill ${size} pixels.`;
    return;
  }
  // The same centred window as the runtime's: the photo covers the video, and what hangs over is cut off.
  const scale = Math.max(wanted.width / width, wanted.height / height);
  const across = wanted.width / scale / width;
  const down = wanted.height / scale / height;
  Object.assign(crop.style, {
    left: `${50 - across * 50}%`,
    top: `${50 - down * 50}%`,
    width: `${across * 100}%`,
    height: `${down * 100}%`,
  });
  const cut = Math.max(1 - across, 1 - down);
  const side = across < down ? "width" : "height";
  if (wanted.camera) {
    text.textContent = `The camera motion moves the crop over the photo; its size is ${size} pixels.`;
  } else if (cut < 0.01) {
    text.textContent = `The model sees the whole photo, as ${size} pixels.`;
  } else {
    text.textContent = `The model sees the bright part, as ${size} pixels; ${percent(cut)} of the ${side} is cut off.`;
  }
}

const pictureOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

/** Wires the field. */
export function startPhoto() {
  const file = $("file");
  file.addEventListener("change", () => takePhoto(file.files[0]));
  $("photo-image").addEventListener("load", drawFrame);
  $("photo-image").addEventListener("error", () => {
    if (!chosen) return;
    $("crop").hidden = true;
    $("crop-text").textContent = "This browser cannot show this kind of picture; the server may read it all the same.";
  });
  document.addEventListener("paste", (event) => {
    const picture = pictureOf(event.clipboardData);
    if (picture) {
      event.preventDefault();
      takePhoto(picture);
    }
  });
  let inside = 0;
  const show = () => ($("dropping").hidden = inside <= 0);
  addEventListener("dragenter", (event) => holdsFiles(event) && ((inside += 1), show()));
  addEventListener("dragleave", (event) => holdsFiles(event) && ((inside -= 1), show()));
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    inside = 0;
    show();
    takePhoto(pictureOf(event.dataTransfer) ?? event.dataTransfer.files[0]);
  });
}
