/* What the page asks of its server. The key is kept here, in memory, and nowhere else. */
let key = "";

export const useKey = given => { key = given; };

/** An answer that is an error, with the server's own words. */
export class Refused extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

const wordsOf = (value, text) => value?.error?.message ?? value?.error ?? value?.message ?? text;

export async function ask(path, body) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (key) headers.authorization = `Bearer ${key}`;
  let answer, text;
  try {
    const method = body ? "POST" : "GET";
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
    text = await answer.text();
  } catch {
    throw new Refused(0, "The server cannot be reached. Is it still running?");
  }
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    if (answer.ok) throw new Refused(answer.status, "The server's answer is no JSON.");
  }
  if (!answer.ok) throw new Refused(answer.status, wordsOf(value, text || answer.statusText));
  return value;
}
