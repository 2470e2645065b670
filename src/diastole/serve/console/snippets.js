// Try it: how programs talk to this server.
import { base, hasKey } from "./api.js";
import { $, copyButton, h } from "./dom.js";

const QUESTION = "What is 2+2?";

/** Text as one argument of a POSIX shell. */
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(model) {
  const body = JSON.stringify({ model, messages: [{ role: "user", content: QUESTION }] });
  const key = hasKey() ? `  -H "Authorization: Bearer $DIASTOLE_API_KEY" \\\n` : "";
  return `curl ${base()}/chat/completions \\\n  -H 'Content-Type: application/json' \\\n${key}  -d ${shell(body)}`;
}

function python(model) {
  const key = hasKey() ? `os.environ["DIASTOLE_API_KEY"]` : `"none"`;
  return `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base())}, api_key=${key})
stream = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=[{"role": "user", "content": ${JSON.stringify(QUESTION)}}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="")`;
}

function plain(model) {
  const key = hasKey() ? `, headers={"Authorization": f"Bearer {os.environ['DIASTOLE_API_KEY']}"}` : "";
  return `${hasKey() ? "import os\n" : ""}import httpx

body = {"model": ${JSON.stringify(model)}, "messages": [{"role": "user", "content": ${JSON.stringify(QUESTION)}}]}
answer = httpx.post(${JSON.stringify(`${base()}/chat/completions`)}, json=body, timeout=60${key})
print(answer.json()["choices"][0]["message"]["content"])`;
}

const KINDS = [
  ["In a shell", "curl", curl],
  ["In Python, with the openai package", "python", python],
  ["In Python, with any HTTP client", "python", plain],
];

/** Show the snippets for a model. */
export function show(model) {
  const parts = KINDS.map(([title, language, write]) => {
    const text = write(model);
    const caption = h("figcaption", {}, h("span", {}, language), copyButton(() => text));
    const code = h("pre", { tabindex: "0", "aria-label": title }, h("code", {}, text));
    return h("section", {}, h("h2", {}, title), h("figure", { class: "code" }, caption, code));
  });
  const intro = h("p", {}, "The server speaks OpenAI's API at ", h("code", {}, base()), ". These call ", h("code", {}, model), ".");
  $("try").replaceChildren(h("div", { class: "page" }, h("h1", {}, "Try it"), intro, ...parts));
}

/** What is shown before the models are known. */
export function wait() {
  $("try").replaceChildren(h("div", { class: "page" }, h("h1", {}, "Try it"), h("p", {}, "Waiting for the server to name its models.")));
}
