// The videos of this server, those of other tabs and clients too; the list comes from the server alone.

import { $, ask, drawing, make } from "./page.js";
import { content, hasEnded, remove, videos } from "./server.js";
import { ago, percent } from "./words.js";

const PAGE = 24;
const MOST = 100; // of one answer
const cards = new Map();
const addresses = new Map();
const thumbnails = new Map();
const still = matchMedia("(prefers-reduced-motion: reduce)");
let wanted = PAGE;
let open = () => {};
let gone = () => {};
let current = null;

/** The address of a finished video in this browser; it is fetched once. */
export const videoAddress = (id) => addressOf(addresses, id, "video");

function addressOf(known, id, variant) {
  if (!known.has(id)) {
    const made = content(id, { variant }).then((blob) => URL.createObjectURL(blob));
    made.catch(() => known.delete(id));
    known.set(id, made);
  }
  return known.get(id);
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    addressOf(thumbnails, target.dataset.id, "thumbnail").then((address) => (target.src = address), () => {});
  }
}, { rootMargin: "200px" });

const STATES = { queued: "waiting", in_progress: "running", cancelling: "stopping", cancelled: "cancelled", failed: "failed" };

function picture(job) {
  if (job.status === "completed") {
    const image = make("img", { alt: "", data: { id: job.id } });
    seen.observe(image);
    return [image];
  }
  const state = STATES[job.status] ?? job.status;
  if (hasEnded(job)) return [state];
  return [make("span", { className: "card-state", textContent: job.progress ? `${state}, ${percent(job.progress / 100)}` : state })];
}

/** Moves a card's picture while the pointer or the focus is on it. */
function play(button, id) {
  if (still.matches || button.querySelector("video") || !button.querySelector("img")) return;
  const video = make("video", { muted: true, loop: true, autoplay: true, playsInline: true });
  video.setAttribute("aria-hidden", "true");
  button.querySelector(".card-picture").append(video);
  videoAddress(id).then((address) => (video.src = address), () => video.remove());
}

function card(job) {
  const item = make("li", { data: { id: job.id } });
  const button = make("button", { type: "button", className: "card" });
  button.addEventListener("click", () => open(job.id));
  for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => play(button, job.id));
  for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => button.querySelector("video")?.remove());
  const bin = make("button", { type: "button", className: "button icon delete", title: "Delete" }, drawing("bin"));
  bin.addEventListener("click", () => deleteVideo(job.id));
  item.append(button, bin);
  return { item, button, bin, state: "" };
}

function update(entry, job) {
  const name = job.prompt || "no prompt";
  const state = `${job.status} ${hasEnded(job) ? "" : job.progress}`;
  if (entry.state !== state) {
    entry.state = state;
    entry.button.className = `card ${job.status}`;
    entry.button.replaceChildren(
      make("span", { className: "card-picture" }, ...picture(job)),
      make("span", { className: "card-name", textContent: name }),
      make("span", { className: "card-fact hint" }),
    );
    entry.bin.setAttribute("aria-label", `Delete ${name}`);
  }
  entry.button.querySelector(".card-fact").textContent = ago(job.created_at);
  if (job.id === current) entry.button.setAttribute("aria-current", "true");
  else entry.button.removeAttribute("aria-current");
}

/** The newest `wanted` jobs, and whether there are older ones. */
async function newest() {
  const data = [];
  for (;;) {
    const query = { limit: Math.min(wanted - data.length, MOST), order: "desc" };
    if (data.length) query.after = data.at(-1).id;
    const page = await videos(query);
    data.push(...page.data);
    if (!page.has_more || data.length >= wanted) return { data, older: page.has_more };
  }
}

/** Reads the list again; gives the jobs, newest first. */
export async function refresh() {
  const { data, older } = await newest();
  const ids = new Set(data.map((job) => job.id));
  for (const [id, { item }] of cards) if (!ids.has(id)) forget(id, item);
  data.forEach((job, place) => {
    if (!cards.has(job.id)) cards.set(job.id, card(job));
    const entry = cards.get(job.id);
    update(entry, job);
    const list = $("gallery");
    if (list.children[place] !== entry.item) list.insertBefore(entry.item, list.children[place] ?? null);
  });
  $("gallery-empty").hidden = data.length > 0;
  $("more").hidden = !older;
  return data;
}

function forget(id, item) {
  item.remove();
  cards.delete(id);
  for (const known of [addresses, thumbnails]) {
    known.get(id)?.then((address) => URL.revokeObjectURL(address), () => {});
    known.delete(id);
  }
}

/** Marks the video that the page shows. */
export function setCurrent(id) {
  current = id;
  for (const [other, { button }] of cards) {
    if (other === id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

/** Deletes after a question; gives whether it did. */
export async function deleteVideo(id) {
  const agreed = await ask({
    title: "Delete this video?", text: "It is deleted on the server, for everyone. A running one is stopped first.", yes: "Delete",
  });
  if (!agreed) return;
  const entry = cards.get(id);
  const next = entry?.item.nextElementSibling ?? entry?.item.previousElementSibling;
  try {
    await remove(id);
    gone(id, null);
    await refresh();
    (next?.querySelector(".card") ?? $("compose")).focus();
  } catch (error) {
    gone(id, error);
  }
}

/** `onOpen(id)` shows a video, `onGone(id, error)` hears of a deletion. */
export function startGallery(onOpen, onGone) {
  open = onOpen;
  gone = onGone;
  $("more").addEventListener("click", () => {
    wanted += PAGE;
    refresh().catch(() => {});
  });
}
