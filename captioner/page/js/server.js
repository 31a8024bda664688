// Asks the server.

const TOKEN = "captioner-token";

// `captioner serve --open` puts the token behind the #, which browsers send to nobody.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  setToken(given);
  history.replaceState(null, "", location.pathname + location.search);
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export async function askModels() {
  return (await ask("v1/models", {})).models;
}

// `query`: URLSearchParams as POST /v1/caption takes them.
export async function askCaption(body, query, signal) {
  const headers = { "Content-Type": body.type || "application/octet-stream" };
  return ask(`v1/caption?${query}`, { method: "POST", body, headers, signal });
}

// An error says in one sentence what went wrong; `needsToken` if the token was missing or wrong.
async function ask(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const unless = (error, sentence) => {
    if (error.name === "AbortError") throw error;
    if (sentence) throw new Error(sentence);
  };
  const answer = await fetch(path, { ...options, headers })
    .catch((error) => unless(error, "The server does not answer: is it still running?"));
  // An answer may be dropped, or end too early, while it comes in.
  const value = await answer.json()
    .catch((error) => unless(error, answer.ok && "The answer ended too early."));
  if (answer.ok) return value;
  const needsToken = answer.status === 401;
  const aboutToken = token ? "This is not the token of this server." : "This server asks for its token.";
  const error = new Error(needsToken ? aboutToken : value?.error ?? `The server answered ${answer.status}: try again.`);
  Object.assign(error, { status: answer.status, needsToken });
  throw error;
}
