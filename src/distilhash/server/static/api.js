// Requests to the service, and numbers as text.

const numbers = new Intl.NumberFormat("en");

export function formatNumber(number) {
  return numbers.format(number);
}

function capitalized(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function plural(number, one, many) {
  return `${numbers.format(number)} ${number === 1 ? one : many}`;
}

export async function fetchJson(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer: is distilhash serve still running?");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok || body === null) {
    throw new Error(capitalized(body?.error ?? `the service answered ${response.status}.`));
  }
  return body;
}
