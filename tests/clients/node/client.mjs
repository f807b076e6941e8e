// The official Node SDK against BASE_URL with API_KEY: runs the scenarios named as arguments, in order, and prints one
// line of JSON for each: {"scenario", "ok": what it saw} or {"scenario", "error": how the SDK failed}.

import OpenAI from "openai";

import { sessions } from "./sessions.mjs";
import { surface } from "./surface.mjs";

const { BASE_URL, API_KEY, MODEL } = process.env;
const TIMEOUT_MS = 20_000;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, timeout: TIMEOUT_MS });
const messages = [{ role: "user", content: "Say something." }];
const ask = { model: MODEL, messages };
const weather = { type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } };

async function readAll(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return {
    text: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
    finish_reason: chunks.findLast((chunk) => chunk.choices.length)?.choices[0].finish_reason,
    usages: chunks.map((chunk) => chunk.usage).filter(Boolean),
    without_choices: chunks.filter((chunk) => !chunk.choices.length).length,
  };
}

const scenarios = {
  async plain() {
    const reply = await client.chat.completions.create(ask);
    return { text: reply.choices[0].message.content, usage: reply.usage, request_id: reply._request_id };
  },

  async stream() {
    return readAll(await client.chat.completions.create({ ...ask, stream: true }));
  },

  async stream_with_usage() {
    const options = { stream: true, stream_options: { include_usage: true } };
    return readAll(await client.chat.completions.create({ ...ask, ...options }));
  },

  async tools() {
    const reply = await client.chat.completions.create({ ...ask, tools: [weather], tool_choice: "required" });
    return { name: reply.choices[0].message.tool_calls[0].function.name };
  },

  async tools_stream() {
    const stream = client.chat.completions.stream({ ...ask, tools: [weather], tool_choice: "required" });
    const reply = await stream.finalChatCompletion();
    return { name: reply.choices[0].message.tool_calls[0].function.name };
  },

  async with_response() {
    const { data, response, request_id } = await client.chat.completions.create(ask).withResponse();
    return { headers: Object.fromEntries(response.headers), request_id, text: data.choices[0].message.content };
  },

  async unknown_key() {
    await new OpenAI({ baseURL: BASE_URL, apiKey: "fb-unknown" }).chat.completions.create(ask);
  },

  async unknown_model() {
    await client.chat.completions.create({ ...ask, model: "no-such-model" });
  },

  async bad_request() {
    await client.chat.completions.create({ ...ask, n: 0 });
  },

  async abort() {
    const stream = await client.chat.completions.create({ ...ask, stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      return { first: chunk.choices[0].delta };
    }
  },

  async responses() {
    const ask = { model: MODEL, input: "Say something." };
    const first = await client.responses.create(ask);
    const next = await client.responses.create({ ...ask, previous_response_id: first.id });
    const read = await client.responses.retrieve(next.id);
    const items = await client.responses.inputItems.list(first.id);
    await client.responses.delete(first.id);
    return { text: read.output_text, same: read.id === next.id, items: items.data, usage: first.usage };
  },

  async responses_stream() {
    let text = "";
    const kinds = [];
    for await (const event of await client.responses.create({ model: MODEL, input: "Say something.", stream: true })) {
      kinds.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    return { text, first: kinds.at(0), last: kinds.at(-1) };
  },

  async responses_background() {
    const begun = await client.responses.create({ model: MODEL, input: "Say something.", background: true });
    const polled = await client.responses.retrieve(begun.id);
    const cancelled = await client.responses.cancel(begun.id);
    return { statuses: [begun.status, polled.status, cancelled.status] };
  },

  async models_list() {
    return { ids: (await client.models.list()).data.map((model) => model.id) };
  },

  async models_retrieve() {
    return await client.models.retrieve(MODEL);
  },
};

function failure(error) {
  const { status, code, type, headers, requestID: request_id } = error;
  const { required, available } = error.error ?? {};
  const should_retry = headers?.get?.("x-should-retry") ?? null;
  return { class: error.constructor.name, status, code, type, request_id, should_retry, required, available };
}

for (const scenario of process.argv.slice(2)) {
  let line;
  try {
    line = { scenario, ok: await { ...surface, ...sessions, ...scenarios }[scenario](client) };
  } catch (error) {
    line = { scenario, error: failure(error) };
  }
  console.log(JSON.stringify(line));
}
