// Photos in a grid, and how many there are at each distance.

import { counted } from "./api.js";

/** A photo of a grid; ``bits``: the length of a code where it is a hit, and 0 where it is not. */
export function tile(photo, bits) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.className = "tile";
  link.href = `/?photo=${photo.id}`;
  link.tabIndex = -1;
  const frame = document.createElement("span");
  frame.className = "frame";
  const image = document.createElement("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = "";
  image.addEventListener("load", () => image.classList.add("there"));
  image.addEventListener("error", () => frame.classList.add("gone"));
  image.src = photo.thumbnail;
  const label = document.createElement("span");
  label.className = "label";
  label.textContent = photo.name;
  frame.append(image, label);
  const words = [photo.name];
  const badge = badgeOf(photo, bits);
  if (badge) {
    frame.append(badge);
    words.push(badge.title);
  }
  link.append(frame);
  if (bits) {
    words.push(counted(photo.distance, "bit away", "bits away"));
    link.append(distance(photo.distance, bits));
    item.dataset.distance = photo.distance;
  }
  link.setAttribute("aria-label", words.join(", "));
  item.append(link);
  return item;
}

/** The mark of near-duplicates: of the photo that is compared, or how many there are of this one. */
function badgeOf(photo, bits) {
  if (!(bits ? photo.near_duplicate : photo.near_duplicates)) return null;
  const badge = document.createElement("span");
  badge.className = bits ? "badge near" : "badge";
  badge.textContent = bits ? "near-duplicate" : `\u2248 ${photo.near_duplicates}`;
  badge.title = bits ? badge.textContent : counted(photo.near_duplicates, "near-duplicate", "near-duplicates");
  return badge;
}

function distance(away, bits) {
  const line = document.createElement("span");
  line.className = "away";
  const number = document.createElement("b");
  number.textContent = away;
  const bar = document.createElement("i");
  bar.style.setProperty("--share", `${(100 * away) / bits}%`);
  line.append(number, bar);
  return line;
}

export function waiting(grid) {
  grid.replaceChildren(
    ...Array.from({ length: 12 }, () => {
      const item = document.createElement("li");
      item.className = "waiting";
      const frame = document.createElement("span");
      frame.className = "frame";
      item.append(frame);
      return item;
    }),
  );
  grid.setAttribute("aria-busy", "true");
}

export function settled(grid) {
  grid.removeAttribute("aria-busy");
  const links = visible(grid);
  if (!links.some((link) => link.tabIndex === 0) && links.length) links[0].tabIndex = 0;
}

export function visible(grid) {
  return [...grid.querySelectorAll("li:not([hidden]) > .tile")];
}

export function focusTile(grid, link) {
  for (const other of grid.querySelectorAll(".tile[tabindex='0']")) other.tabIndex = -1;
  link.tabIndex = 0;
  link.focus();
}

/** The tile that a key leads to from this one. */
export function beside(grid, link, key) {
  const links = visible(grid);
  const here = links.indexOf(link);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return links[0];
  if (key === "End") return links.at(-1);
  return step === undefined ? undefined : links[here + step];
}

/** How many hits there are at each distance, above the slider. */
export function spread(drawing, hits, radius, bits) {
  const counts = new Array(bits + 1).fill(0);
  for (const hit of hits) counts[hit.distance] += 1;
  const most = Math.max(1, ...counts);
  drawing.setAttribute("viewBox", `0 0 ${counts.length} 40`);
  drawing.replaceChildren(
    ...counts.map((count, away) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(2, (40 * count) / most) : 0;
      for (const [name, value] of Object.entries({ x: away + 0.1, y: 40 - height, width: 0.8, height })) {
        bar.setAttribute(name, value);
      }
      if (away <= radius) bar.setAttribute("class", "in");
      return bar;
    }),
  );
}
