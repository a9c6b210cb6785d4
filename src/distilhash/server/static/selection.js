// Photos that are selected, in this tab and in the order of selection, and their paths.

import { plural } from "./tiles.js";

const element = (id) => document.getElementById(id);
const chosen = new Map(); // photos by id

export const isChosen = (photo) => chosen.has(photo.id);

/** Select photos, or with ``on`` false the opposite. */
export function choose(photos, on = true) {
  for (const photo of photos) on ? chosen.set(photo.id, photo) : chosen.delete(photo.id);
  mark();
}

/** Show what is selected; call it after tiles were added, too. */
export function mark() {
  for (const item of document.querySelectorAll(".grid li")) {
    if (item.photo) item.querySelector(".choose").setAttribute("aria-checked", isChosen(item.photo));
  }
  element("selection").hidden = !chosen.size;
  element("selection-count").textContent = `${plural(chosen.size, "photo", "photos")} selected`;
  element("copy").hidden = !navigator.clipboard; // only browsers on a secure address have it
  element("copy").textContent = "Copy paths";
}

// A path with a line break would look like two.
const list = () => [...chosen.values()].map(({ file }) => (/[\n\r]/.test(file) ? JSON.stringify(file) : file)).join("\n");

element("copy").addEventListener("click", async () => {
  const copied = await navigator.clipboard.writeText(list()).then(() => true, () => false);
  element("copy").textContent = copied ? "Copied" : "The browser refuses";
});
element("download").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([`${list()}\n`], { type: "text/plain" }));
  Object.assign(document.createElement("a"), { href: url, download: "photos.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
});
element("unselect").addEventListener("click", () => choose([...chosen.values()], false));
