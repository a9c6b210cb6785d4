// The larger view: a dialog that steps through the tiles of the page. Escape closes it, as of every dialog.

import { choose, isChosen } from "./selection.js";
import { bytes, focusTile } from "./tiles.js";

const element = (id) => document.getElementById(id);
const viewer = element("viewer");
let current = null; // the tile's list item
let loadMore = null; // adds tiles at the end

const items = () =>
  [...document.querySelectorAll("main section:not([hidden]) .grid li:not([hidden])")].filter((item) => item.photo);

/** Show the photo of a tile. ``more``: a function that adds further tiles. */
export function view(item, more) {
  loadMore = more;
  show(item);
  if (!viewer.open) viewer.showModal();
  element("viewer-next").focus();
}

function show(item) {
  current = item;
  const { photo } = item;
  const image = element("viewer-image");
  image.src = photo.image;
  image.alt = photo.name;
  element("viewer-name").textContent = photo.name;
  const pixels = photo.width ? `${photo.width} \u00d7 ${photo.height}, ` : "";
  element("viewer-facts").textContent = `${photo.path} \u00b7 ${pixels}${bytes(photo.size)} \u00b7 ${photo.date}`;
  element("viewer-similar").href = `?photo=${photo.id}`;
  element("viewer-open").href = photo.image;
  const all = items();
  element("viewer-previous").disabled = all[0] === item;
  element("viewer-next").disabled = all.at(-1) === item;
  for (const beside of [all[all.indexOf(item) + 1], all[all.indexOf(item) - 1]]) {
    if (beside) new Image().src = beside.photo.image;
  }
  showChoice();
}

function showChoice() {
  element("viewer-choose").setAttribute("aria-pressed", isChosen(current.photo));
  element("viewer-choose").textContent = isChosen(current.photo) ? "Selected" : "Select";
}

async function step(by) {
  const from = current;
  if (by > 0 && items().at(-2) === from) await loadMore().catch(() => {}); // the page says so itself
  const to = items()[items().indexOf(from) + by];
  if (to && current === from) show(to);
}

function toggle() {
  choose([current.photo], !isChosen(current.photo));
  showChoice();
}

element("viewer-previous").addEventListener("click", () => step(-1));
element("viewer-next").addEventListener("click", () => step(1));
element("viewer-close").addEventListener("click", () => viewer.close());
element("viewer-choose").addEventListener("click", toggle);
element("viewer-similar").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
  else if (event.key === "x") toggle();
});
viewer.addEventListener("close", () => {
  element("viewer-image").removeAttribute("src");
  const link = current.querySelector(".tile");
  if (link.checkVisibility()) focusTile(current.closest(".grid"), link);
});
