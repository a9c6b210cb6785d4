// Questions to the service, and numbers in words.

const numbers = new Intl.NumberFormat("en");

export function grouped(number) {
  return numbers.format(number);
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function counted(number, one, many) {
  return `${numbers.format(number)} ${number === 1 ? one : many}`;
}

export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer: is distilhash serve still running?");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok || answer === null) {
    throw new Error(sentence(answer?.error ?? `the service answered ${response.status}.`));
  }
  return answer;
}
