// The photo: chosen, dropped or pasted, and shown with the part of it that the model will see.

import { $, showError } from "./page.js";
import { percent } from "./words.js";

let chosen = null;
let address = null;
let wanted = { width: 0, height: 0, fit: "crop", camera: null, sizes: [] };

export const photo = () => chosen;

/** Sets the size (pixels), fit, camera motion and, for the fit "auto", the sizes [width, height] to choose from. */
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
  let size = [wanted.width, wanted.height];
  if (wanted.fit === "auto" && wanted.sizes.length) {
    // The shape nearest to the photo's, as the runtime chooses it.
    const distance = ([across, down]) => Math.abs(Math.log(((across / down) * height) / width));
    size = wanted.sizes.reduce((best, other) => (distance(other) < distance(best) ? other : best));
  }
  const told = size.join("×");
  image.style.aspectRatio = wanted.fit === "stretch" ? size.join(" / ") : "";
  crop.hidden = wanted.fit === "pad" || wanted.fit === "stretch";
  if (wanted.fit === "stretch") {
    text.textContent = `The whole photo is stretched to ${told} pixels, as shown.`;
    return;
  }
  if (wanted.fit === "pad") {
    text.textContent = `The whole photo is used, with black bars where it does not fill ${told} pixels.`;
    return;
  }
  // The same centred window as the runtime's: the photo covers the video, and what hangs over is cut off.
  const scale = Math.max(size[0] / width, size[1] / height);
  const across = size[0] / scale / width;
  const down = size[1] / scale / height;
  Object.assign(crop.style, {
    left: `${50 - across * 50}%`,
    top: `${50 - down * 50}%`,
    width: `${across * 100}%`,
    height: `${down * 100}%`,
  });
  const cut = Math.max(1 - across, 1 - down);
  const side = across < down ? "width" : "height";
  if (wanted.camera) {
    text.textContent = `The camera motion moves the crop over the photo; its size is ${told} pixels.`;
  } else if (cut < 0.01) {
    text.textContent = `The model sees the whole photo, as ${told} pixels.`;
  } else {
    text.textContent = `The model sees the bright part, as ${told} pixels; ${percent(cut)} of the ${side} is cut off.`;
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
