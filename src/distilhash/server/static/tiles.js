// The grid of photos, and the histogram of distances.

import { plural } from "./api.js";

/** The tile of a photo. ``bits``: length of a code if the photo is a hit, else 0. */
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
  const description = [photo.name];
  const badge = badgeOf(photo, bits);
  if (badge) {
    frame.append(badge);
    description.push(badge.title);
  }
  link.append(frame);
  if (bits) {
    description.push(plural(photo.distance, "bit away", "bits away"));
    link.append(distanceBar(photo.distance, bits));
    item.dataset.distance = photo.distance;
  }
  link.setAttribute("aria-label", description.join(", "));
  item.append(link);
  return item;
}

/** Marks a near-duplicate of the query, or counts the near-duplicates of a photo. */
function badgeOf(photo, bits) {
  if (!(bits ? photo.near_duplicate : photo.near_duplicates)) return null;
  const badge = document.createElement("span");
  badge.className = bits ? "badge near" : "badge";
  badge.textContent = bits ? "near-duplicate" : `\u2248 ${photo.near_duplicates}`;
  badge.title = bits ? badge.textContent : plural(photo.near_duplicates, "near-duplicate", "near-duplicates");
  return badge;
}

function distanceBar(distance, bits) {
  const line = document.createElement("span");
  line.className = "away";
  const number = document.createElement("b");
  number.textContent = distance;
  const bar = document.createElement("i");
  bar.style.setProperty("--share", `${(100 * distance) / bits}%`);
  line.append(number, bar);
  return line;
}

export function showPlaceholders(grid) {
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

/** End the placeholders, and let Tab reach one tile. */
export function updateGrid(grid) {
  grid.removeAttribute("aria-busy");
  const links = visibleTiles(grid);
  if (!links.some((link) => link.tabIndex === 0) && links.length) links[0].tabIndex = 0;
}

export function visibleTiles(grid) {
  return [...grid.querySelectorAll("li:not([hidden]) > .tile")];
}

export function focusTile(grid, link) {
  for (const other of grid.querySelectorAll(".tile[tabindex='0']")) other.tabIndex = -1;
  link.tabIndex = 0;
  link.focus();
}

/** The tile to which an arrow, Home or End leads. */
export function nextTile(grid, link, key) {
  const links = visibleTiles(grid);
  const here = links.indexOf(link);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return links[0];
  if (key === "End") return links.at(-1);
  return step === undefined ? undefined : links[here + step];
}

/** Draw the number of hits at each distance, above the slider. */
export function drawHistogram(drawing, hits, radius, bits) {
  const counts = new Array(bits + 1).fill(0);
  for (const hit of hits) counts[hit.distance] += 1;
  const largest = Math.max(1, ...counts);
  drawing.setAttribute("viewBox", `0 0 ${counts.length} 40`);
  drawing.replaceChildren(
    ...counts.map((count, distance) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(2, (40 * count) / largest) : 0;
      for (const [name, value] of Object.entries({ x: distance + 0.1, y: 40 - height, width: 0.8, height })) {
        bar.setAttribute(name, value);
      }
      if (distance <= radius) bar.setAttribute("class", "in");
      return bar;
    }),
  );
}
